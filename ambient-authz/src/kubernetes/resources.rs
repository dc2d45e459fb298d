//! All resources of a mesh, and which of the policies that they become a workload lists.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ambient_core::PolicyKey;

use super::{
    AuthorizationPolicy, Envelope, Labels, PeerAuthentication, ReadError, Reading, Selector, Settings, Warning,
    peer_authentication::{self, Set},
    read,
};
use crate::{Action, Policies, Scope, policy::Update};
use versions::{Unread, Versions};

mod versions;

#[cfg(test)]
mod tests;

/// The AuthorizationPolicies and PeerAuthentications of a mesh, as a list and a watch of them tell.
///
/// A version that cannot be read leaves the last good one of its resource in force, where it was attached; where there is
/// none, everything that it could apply to is refused until it is mended or removed.
///
/// Whoever watches gives each event to one of [`authorization`](Self::authorization),
/// [`peer_authentication`](Self::peer_authentication), [`misshapen`](Self::misshapen),
/// [`remove_authorization`](Self::remove_authorization) and
/// [`remove_peer_authentication`](Self::remove_peer_authentication). After it two things are brought up to date, before
/// anybody decides by either: the snapshot ([`updates_from`](Self::updates_from)), and what workloads list
/// ([`attached`](Self::attached)), as a policy with a selector counts for those alone that list it.
///
/// ```
/// use ambient_authz::{decide, kubernetes::{AuthorizationPolicy, Labels, Resources, Settings}, Conn, Peer};
/// use ambient_core::Workload;
///
/// let labels = Labels::from([("app".into(), "stock".into())]);
/// let mut stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
/// let nobody = Peer::plaintext();
/// let conn = Conn { peer: &nobody, source: "10.0.1.2".parse()?, destination: "10.0.2.2:8080".parse()? };
///
/// let mut resources = Resources::new(Settings::default());
/// let mut policies = resources.policies();
/// for (rules, may_pass) in [
///     (Some(r#"[{}]"#), false),                                            // added
///     (Some(r#""nonsense""#), false),                                      // changed, and broken
///     (Some(r#"[{"to": [{"operation": {"ports": ["9090"]}}]}]"#), true),   // changed
///     (None, true),                                                        // deleted
/// ] {
///     match rules {
///         Some(rules) => {
///             let text = format!(
///                 r#"{{ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
///                      "metadata": {{ "name": "closed", "namespace": "shop" }},
///                      "spec": {{ "selector": {{ "matchLabels": {{ "app": "stock" }} }},
///                                "action": "DENY", "rules": {rules} }} }}"#
///             );
///             let told = match serde_json::from_str::<AuthorizationPolicy>(&text) {
///                 Ok(resource) => resources.authorization(&resource),
///                 Err(why) => resources.misshapen(&serde_json::from_str(&text)?, "spec", &why),
///             };
///             match told {
///                 Ok(warnings) => warnings.iter().for_each(|warning| println!("shop/closed: {warning}")),
///                 Err(error) => println!("{}: {error}", error.key),
///             }
///         }
///         None => assert!(resources.remove_authorization("shop", "closed")),
///     }
///     policies = policies.apply(resources.updates_from(&policies));
///     stock.policies = resources.attached("shop", &labels);
///     assert_eq!(decide(&policies, &stock, &conn).is_allow(), may_pass);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Resources {
    settings: Settings,
    authorizations: ByName<Versions>,
    /// Those of which a version is in force.
    peers: Set,
    /// Those whose present version cannot be read.
    unread_peers: ByName<Unread>,
}

/// A resource that selects workloads by their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selecting<'a> {
    /// What it is.
    pub kind: SelectingKind,
    /// What a workload lists that it selects; of a PeerAuthentication the key that it goes by where it cannot be read
    /// ([`peer_authentication::unreadable_key`]): what is listed for it hangs on others as well.
    pub key: PolicyKey,
    /// The labels that a workload must have.
    pub selector: &'a Selector,
}

/// What kind of resource selects workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectingKind {
    /// An AuthorizationPolicy.
    Policy {
        /// What it does with a connection that it matches.
        action: Action,
        /// Whether its verdict is only told.
        dry_run: bool,
    },
    /// A PeerAuthentication.
    PeerAuthentication,
    /// One of either kind that cannot be read, and refuses what it selects.
    Unreadable,
}

impl<'a> Selecting<'a> {
    fn new(kind: SelectingKind, key: PolicyKey, selector: &'a Selector) -> Self {
        Self { kind, key, selector }
    }
}

/// By namespace and name.
type ByName<T> = BTreeMap<Arc<str>, BTreeMap<Arc<str>, T>>;

impl Resources {
    /// None.
    pub fn new(settings: Settings) -> Self {
        Self {
            authorizations: BTreeMap::new(),
            peers: Set::new(&settings, []),
            unread_peers: BTreeMap::new(),
            settings,
        }
    }

    /// How they are read.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads an AuthorizationPolicy and puts it in, in the place of the one of its name. What it returns is to be told.
    ///
    /// One that is for another [revision](Settings::concerns) is no more there than if it had been removed.
    ///
    /// # Errors
    /// As [`read`] says. The last good version of it stays in force, where it was attached; where there is none, all that this
    /// one would apply to is refused.
    pub fn authorization(&mut self, resource: &AuthorizationPolicy) -> Result<Vec<Warning>, ReadError> {
        let (namespace, name) = (resource.metadata.namespace(), resource.metadata.name.as_str());
        if !self.settings.concerns(&resource.metadata) {
            self.remove_authorization(&namespace, name);
            return Ok(vec![self.settings.other_revision()]);
        }
        let read = read(resource, &self.settings);
        let told = read.as_ref().map(|reading| reading.warnings.clone()).map_err(ReadError::clone);
        self.put_authorization(namespace, name, read);
        told
    }

    /// Reads a PeerAuthentication and puts it in, in the place of the one of its name. What it returns is to be told.
    ///
    /// One that is for another [revision](Settings::concerns) is no more there than if it had been removed.
    ///
    /// # Errors
    /// As [`peer_authentication::read`] says. The last good version of it stays in force; where there is none, all that this
    /// one would apply to is refused.
    pub fn peer_authentication(&mut self, resource: &PeerAuthentication) -> Result<Vec<Warning>, ReadError> {
        let (namespace, name) = (resource.metadata.namespace(), resource.metadata.name.as_str());
        if !self.settings.concerns(&resource.metadata) {
            self.remove_peer_authentication(&namespace, name);
            return Ok(vec![self.settings.other_revision()]);
        }
        match peer_authentication::read(resource, &self.settings) {
            Ok(reading) => {
                take(&mut self.unread_peers, &namespace, name);
                self.peers.insert(reading.object);
                Ok(reading.warnings)
            }
            Err(error) => {
                self.unread_peer(name, error.clone());
                Err(error)
            }
        }
    }

    /// Puts in what has a resource's [`Envelope`] and no more of its shape, in the place of the one of its name: why, and where
    /// in it, are what its deserializer says (`spec`, where it does not say where). Whatever is no PeerAuthentication is taken
    /// for an AuthorizationPolicy.
    ///
    /// One that is for another [revision](Settings::concerns) is no more there than if it had been removed.
    ///
    /// # Errors
    /// Always, unless it is for another revision: [`ReadError::of_shape`]. The last good version of it stays in force, where it
    /// was attached; where there is none, all that this one could apply to is refused.
    pub fn misshapen(&mut self, envelope: &Envelope, path: &str, why: &dyn fmt::Display) -> Result<Vec<Warning>, ReadError> {
        let (namespace, name) = (envelope.metadata.namespace(), envelope.metadata.name.as_str());
        let is_peer = envelope.kind == "PeerAuthentication";
        if !self.settings.concerns(&envelope.metadata) {
            match is_peer {
                true => self.remove_peer_authentication(&namespace, name),
                false => self.remove_authorization(&namespace, name),
            };
            return Ok(vec![self.settings.other_revision()]);
        }
        let mut error = ReadError::of_shape(envelope, why, &self.settings);
        error.path = path.into();
        match is_peer {
            true => self.unread_peer(name, error.clone()),
            false => self.put_authorization(namespace, name, Err(error.clone())),
        }
        Err(error)
    }

    /// Takes an AuthorizationPolicy out, readable or not; whether there was one of this name.
    pub fn remove_authorization(&mut self, namespace: &str, name: &str) -> bool {
        take(&mut self.authorizations, namespace, name).is_some()
    }

    /// Takes a PeerAuthentication out, readable or not; whether there was one of this name.
    pub fn remove_peer_authentication(&mut self, namespace: &str, name: &str) -> bool {
        let was_unread = take(&mut self.unread_peers, namespace, name).is_some();
        self.peers.remove(namespace, name) || was_unread
    }

    fn put_authorization(&mut self, namespace: Arc<str>, name: &str, read: Result<Reading, ReadError>) {
        let before = take(&mut self.authorizations, &namespace, name);
        let space = self.authorizations.entry(namespace).or_default();
        space.insert(name.into(), Versions::after(before, read));
    }

    fn unread_peer(&mut self, name: &str, error: ReadError) {
        let unread = Unread {
            kept: self.peers.contains(&error.namespace, name),
            error,
        };
        let space = self.unread_peers.entry(unread.error.namespace.clone()).or_default();
        space.insert(name.into(), unread);
    }

    /// Every policy that they become, readable or not, for a snapshot that holds none yet. To bring one up to date that holds
    /// some, there is [`Resources::updates_from`]: these remove nothing.
    pub fn updates(&self) -> Vec<Update> {
        let authorizations = self.authorizations.values().flat_map(BTreeMap::values);
        let peers = peer_authentication::policies(&self.peers)
            .into_iter()
            .map(|p| Update::Set(p.into()));
        let unread = self.unread_peers.values().flat_map(BTreeMap::values).map(Unread::update);
        authorizations.flat_map(Versions::updates).chain(peers).chain(unread).collect()
    }

    /// What leads from a snapshot to the one with exactly these: what is new or has changed, and a removal for each policy that
    /// it knows and that is none of these, wherever it came from. To be applied in one go; none where nothing differs.
    ///
    /// It looks at every policy of both.
    pub fn updates_from(&self, before: &Policies) -> Vec<Update> {
        before.steps_to(self.updates())
    }

    /// The snapshot with exactly these, in the mode of the settings.
    pub fn policies(&self) -> Policies {
        let empty = match self.settings.istio_exact {
            true => Policies::istio_exact(),
            false => Policies::default(),
        };
        empty.apply(self.updates())
    }

    /// The keys that a workload of a namespace with these labels lists; of a resource that cannot be read as its last good
    /// version has it.
    pub fn attached(&self, namespace: &str, labels: &Labels) -> Vec<PolicyKey> {
        let authorizations = self.in_reach(&self.authorizations, namespace).filter_map(Versions::attached);
        let unread = self.in_reach(&self.unread_peers, namespace).filter_map(Unread::refusing);
        attached(authorizations, unread, &self.peers, namespace, labels)
    }

    /// The keys that a workload of a namespace lists that no label selects.
    pub fn attached_unselected(&self, namespace: &str) -> Vec<PolicyKey> {
        let authorizations = self.in_reach(&self.authorizations, namespace).filter_map(Versions::attached);
        let everybodys = authorizations.filter(|(_, selector)| selector.labels().is_empty());
        let mut keys: Vec<PolicyKey> = everybodys.map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys.extend(peer_authentication::keys(&self.peers, namespace, &Labels::new()));
        keys
    }

    /// What selects workloads of a namespace by their labels: AuthorizationPolicies first, each kind by namespace and name,
    /// those of the root namespace last. For whoever does not know a workload's labels: [`Resources::attached`] without
    /// labels leaves these out.
    pub fn selecting(&self, namespace: &str) -> Vec<Selecting<'_>> {
        let authorizations = self.in_reach(&self.authorizations, namespace).filter_map(Versions::selecting);
        let peers = self.peers.selecting(namespace).filter_map(|object| {
            let key = peer_authentication::unreadable_key(object.namespace(), object.name());
            Some(Selecting::new(SelectingKind::PeerAuthentication, key, object.selector()?))
        });
        let unread = self.in_reach(&self.unread_peers, namespace).filter_map(|unread| {
            let error = unread.refusing()?;
            let selector = error.selector.as_ref().filter(|_| error.scope == Scope::Selector)?;
            Some(Selecting::new(SelectingKind::Unreadable, error.key.clone(), selector))
        });
        let all = authorizations.chain(peers).chain(unread);
        all.filter(|selecting| !selecting.selector.labels().is_empty()).collect()
    }

    /// Where a rule of a policy stands in its resource's `spec.rules`, as [`Reading::rules`] tells; the same number for a
    /// policy that comes from elsewhere.
    pub fn written_rule(&self, policy: &PolicyKey, rule: usize) -> usize {
        let space = self.authorizations.get(policy.namespace());
        let versions = space.and_then(|space| space.get(policy.name()));
        let written = versions.and_then(|versions| versions.good()?.rules.get(rule).copied());
        written.unwrap_or(rule)
    }

    /// The PeerAuthentications that are in force.
    pub fn peer_authentications(&self) -> &Set {
        &self.peers
    }

    /// Those of a namespace and of the root namespace: the ones whose selectors can select a workload there.
    fn in_reach<'a, T>(&self, all: &'a ByName<T>, namespace: &str) -> impl Iterator<Item = &'a T> {
        let root = &*self.settings.root_namespace;
        let own = all.get(namespace);
        let root = all.get(root).filter(|_| *namespace != *root);
        own.into_iter().chain(root).flat_map(BTreeMap::values)
    }
}

/// Takes one out, and its namespace with the last.
fn take<T>(all: &mut ByName<T>, namespace: &str, name: &str) -> Option<T> {
    let space = all.get_mut(namespace)?;
    let taken = space.remove(name);
    if space.is_empty() {
        all.remove(namespace);
    }
    taken
}

/// The keys that a workload with these labels lists: those of AuthorizationPolicies, in order, then those of
/// PeerAuthentications.
///
/// It is given every AuthorizationPolicy with a selector, and every PeerAuthentication that cannot be read, of the
/// workload's namespace and of the root namespace; no other can select it.
pub fn attached<'a>(
    authorizations: impl Iterator<Item = (&'a PolicyKey, &'a Selector)>,
    unread: impl Iterator<Item = &'a ReadError>,
    peers: &Set,
    namespace: &str,
    labels: &Labels,
) -> Vec<PolicyKey> {
    // Istiod takes a workload without labels for one that every selector selects.
    let everything = peers.is_istio_exact() && labels.is_empty();
    let selecting = authorizations.filter(|(_, selector)| everything || selector.selects(labels));
    let mut keys: Vec<PolicyKey> = selecting.map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys.extend(peer_authentication::keys(peers, namespace, labels));
    let selects = |error: &&ReadError| error.scope == Scope::Selector && error.selector.as_ref().is_some_and(|s| s.selects(labels));
    keys.extend(unread.filter(selects).map(|error| error.key.clone()));
    keys
}
