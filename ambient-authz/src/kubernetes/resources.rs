//! All resources of a mesh, and which of the policies that they become a workload lists.

use std::{collections::BTreeMap, sync::Arc};

use ambient_core::PolicyKey;

use super::{
    AuthorizationPolicy, Labels, PeerAuthentication, ReadError, Reading, Selector, Settings, Warning,
    peer_authentication::{self, Set},
    read,
};
use crate::{Action, Policies, Scope, policy::Update};

#[cfg(test)]
mod tests;

/// The AuthorizationPolicies and PeerAuthentications of a mesh, as they are now.
///
/// It keeps no history: a resource that cannot be read takes the place of what stood under its name, and refuses all that
/// it would apply to. Who wants the last good version to stay gives the updates of each state to
/// [`Policies::apply`] in turn.
///
/// ```
/// use ambient_authz::{decide, kubernetes::{AuthorizationPolicy, Labels, Resources, Settings}, Conn, Peer};
/// use ambient_core::Workload;
///
/// let closed: AuthorizationPolicy = serde_json::from_str(
///     r#"{ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
///          "metadata": { "name": "closed", "namespace": "shop" },
///          "spec": { "selector": { "matchLabels": { "app": "stock" } } } }"#,
/// )?;
/// let mut resources = Resources::new(Settings::default());
/// assert_eq!(resources.authorization(&closed)?, []);
///
/// let mut stock = Workload::new("cluster//Pod/shop/stock-0", "shop", "stock-0");
/// stock.policies = resources.attached("shop", &Labels::from([("app".into(), "stock".into())]));
/// let nobody = Peer::plaintext();
/// let conn = Conn { peer: &nobody, source: "10.0.1.2".parse()?, destination: "10.0.2.2:8080".parse()? };
/// assert!(!decide(&resources.policies(), &stock, &conn).is_allow());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Resources {
    settings: Settings,
    authorizations: ByName<Result<Reading, ReadError>>,
    peers: Set,
    unread_peers: ByName<ReadError>,
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

    /// Reads one and puts it in; it takes the place of one of the same name. What it returns is to be told.
    ///
    /// # Errors
    /// As [`read`] says; the resource is in, and refuses all that it would apply to.
    pub fn authorization(&mut self, resource: &AuthorizationPolicy) -> Result<Vec<Warning>, ReadError> {
        let read = read(resource, &self.settings);
        let told = read.as_ref().map(|reading| reading.warnings.clone()).map_err(ReadError::clone);
        let space = self.authorizations.entry(resource.metadata.namespace()).or_default();
        space.insert(resource.metadata.name.as_str().into(), read);
        told
    }

    /// Reads one and puts it in; it takes the place of one of the same name. What it returns is to be told.
    ///
    /// # Errors
    /// As [`peer_authentication::read`] says; the resource is in, and refuses all that it would apply to.
    pub fn peer_authentication(&mut self, resource: &PeerAuthentication) -> Result<Vec<Warning>, ReadError> {
        let (namespace, name) = (resource.metadata.namespace(), resource.metadata.name.as_str());
        if !self.settings.concerns(&resource.metadata) {
            self.unread_peers.get_mut(&namespace).and_then(|space| space.remove(name));
            self.peers.remove(&namespace, name);
            return Ok(vec![self.settings.other_revision()]);
        }
        match peer_authentication::read(resource, &self.settings) {
            Ok(reading) => {
                self.unread_peers.get_mut(&namespace).and_then(|space| space.remove(name));
                self.peers.insert(reading.object);
                Ok(reading.warnings)
            }
            Err(error) => {
                self.peers.remove(&namespace, name);
                self.unread_peers.entry(namespace).or_default().insert(name.into(), error.clone());
                Err(error)
            }
        }
    }

    /// Puts in what is no such resource at all ([`ReadError::of_shape`]) under the name that it bears, so that it refuses
    /// what it could apply to.
    pub fn misshapen(&mut self, kind: &str, name: &str, error: ReadError) {
        let namespace = error.namespace.clone();
        if kind == "PeerAuthentication" {
            self.peers.remove(&namespace, name);
            self.unread_peers.entry(namespace).or_default().insert(name.into(), error);
        } else {
            self.authorizations.entry(namespace).or_default().insert(name.into(), Err(error));
        }
    }

    /// Every policy that they become, readable or not.
    pub fn updates(&self) -> Vec<Update> {
        let authorizations = self.authorizations.values().flat_map(BTreeMap::values);
        let authorizations = authorizations.filter_map(|read| match read {
            Ok(reading) => reading.policy.clone().map(|policy| Update::Set(policy.into())),
            Err(error) => Some(Update::Unreadable(error.unreadable().into())),
        });
        let peers = peer_authentication::policies(&self.peers)
            .into_iter()
            .map(|p| Update::Set(p.into()));
        let unread = self.unread_peers.values().flat_map(BTreeMap::values);
        let unread = unread.map(|error| Update::Unreadable(error.unreadable().into()));
        authorizations.chain(peers).chain(unread).collect()
    }

    /// The snapshot with exactly these, in the mode of the settings.
    pub fn policies(&self) -> Policies {
        let empty = match self.settings.istio_exact {
            true => Policies::istio_exact(),
            false => Policies::default(),
        };
        empty.apply(self.updates())
    }

    /// The keys that a workload of a namespace with these labels lists.
    pub fn attached(&self, namespace: &str, labels: &Labels) -> Vec<PolicyKey> {
        let authorizations = self.in_reach(&self.authorizations, namespace).filter_map(|read| match read {
            Ok(reading) => Some((&reading.policy.as_ref()?.key, reading.selector.as_ref()?)),
            Err(error) => Some((&error.key, error.selector.as_ref()?)),
        });
        let unread = self.in_reach(&self.unread_peers, namespace);
        attached(authorizations, unread, &self.peers, namespace, labels)
    }

    /// The keys that a workload of a namespace lists that no label selects.
    pub fn attached_unselected(&self, namespace: &str) -> Vec<PolicyKey> {
        let everybodys = |selector: &&Selector| selector.labels().is_empty();
        let authorizations = self.in_reach(&self.authorizations, namespace).filter_map(|read| match read {
            Ok(reading) => reading
                .selector
                .as_ref()
                .filter(everybodys)
                .and_then(|_| Some(&reading.policy.as_ref()?.key)),
            Err(error) => error.selector.as_ref().filter(everybodys).map(|_| &error.key),
        });
        let mut keys: Vec<PolicyKey> = authorizations.cloned().collect();
        keys.sort();
        keys.extend(peer_authentication::keys(&self.peers, namespace, &Labels::new()));
        keys
    }

    /// What selects workloads of a namespace by their labels: AuthorizationPolicies first, each kind by namespace and name,
    /// those of the root namespace last. For whoever does not know a workload's labels: [`Resources::attached`] without
    /// labels leaves these out.
    pub fn selecting(&self, namespace: &str) -> Vec<Selecting<'_>> {
        let authorizations = self.in_reach(&self.authorizations, namespace).filter_map(|read| match read {
            Ok(reading) => {
                let policy = reading.policy.as_ref()?;
                let kind = SelectingKind::Policy {
                    action: policy.action,
                    dry_run: policy.dry_run,
                };
                Some(Selecting::new(kind, policy.key.clone(), reading.selector.as_ref()?))
            }
            Err(error) => Some(Selecting::new(
                SelectingKind::Unreadable,
                error.key.clone(),
                error.selector.as_ref()?,
            )),
        });
        let peers = self.peers.selecting(namespace).filter_map(|object| {
            let key = peer_authentication::unreadable_key(object.namespace(), object.name());
            Some(Selecting::new(SelectingKind::PeerAuthentication, key, object.selector()?))
        });
        let unread = self.in_reach(&self.unread_peers, namespace).filter_map(|error| {
            let selector = error.selector.as_ref().filter(|_| error.scope == Scope::Selector)?;
            Some(Selecting::new(SelectingKind::Unreadable, error.key.clone(), selector))
        });
        let all = authorizations.chain(peers).chain(unread);
        all.filter(|selecting| !selecting.selector.labels().is_empty()).collect()
    }

    /// Where a rule of a policy stands in its resource's `spec.rules`, as [`Reading::rules`] tells; the same number for a
    /// policy that comes from elsewhere.
    pub fn written_rule(&self, policy: &PolicyKey, rule: usize) -> usize {
        let (namespace, name) = policy.as_str().split_once('/').unwrap_or_default();
        let read = self.authorizations.get(namespace).and_then(|space| space.get(name));
        let written = read.and_then(|read| read.as_ref().ok()?.rules.get(rule).copied());
        written.unwrap_or(rule)
    }

    /// The PeerAuthentications that were read.
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
