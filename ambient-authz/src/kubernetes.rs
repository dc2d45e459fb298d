//! The Kubernetes resources that say who may talk to whom, and their reading into policies.
//!
//! The types take what `kubectl get -o json` prints; any format that serde knows will do. [`read`] makes a [`Policy`] of
//! an [`AuthorizationPolicy`], all of it or none: what cannot be read refuses the whole resource, and says where it
//! stands ([`ReadError`]). [`peer_authentication`] does the same for [`PeerAuthentication`], whose meaning hangs on the
//! others beside it. [`Resources`] holds both kinds of a mesh, and says which policies a workload lists.
//!
//! Reading is *safe* unless [`Settings::istio_exact`] says otherwise: where Istio's control plane drops what it cannot
//! express at L4 and so lets through more than is written, this reading lets through less, and warns. What is in force as
//! it is written, and is seldom meant so, [`traps`](traps()) tells.
//!
//! ```
//! use ambient_authz::kubernetes::{self, AuthorizationPolicy, Settings};
//!
//! let resource: AuthorizationPolicy = serde_json::from_str(
//!     r#"{ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
//!          "metadata": { "name": "stock", "namespace": "shop" },
//!          "spec": { "selector": { "matchLabels": { "app": "stock" } },
//!                    "rules": [{ "from": [{ "source": { "ipBlocks": ["10.0.0.0/33"] } }] }] } }"#,
//! )?;
//! let error = kubernetes::read(&resource, &Settings::default()).unwrap_err();
//! assert_eq!(&*error.path, "spec.rules[0].from[0].source.ipBlocks[0]");
//! # Ok::<(), serde_json::Error>(())
//! ```

use std::{collections::BTreeMap, fmt, sync::Arc};

use ambient_core::{PolicyKey, TrustDomain};

use crate::{Policy, Scope, policy::Unreadable, trust::Names};

pub mod peer_authentication;

mod authorization;
mod resource;
mod resources;
mod traps;
mod value;

pub use authorization::read;
pub use resource::{
    AuthorizationPolicy, AuthorizationRule, AuthorizationSpec, Condition, Envelope, Metadata, MutualTls, Operation, PeerAuthentication,
    PeerAuthenticationSpec, RuleFrom, RuleTo, Selector, Source, Unknown,
};
pub use resources::{Resources, Selecting, SelectingKind, attached};
pub use traps::traps;

/// How resources are read. More may come: what is not to be other than it is by default is best taken from there
/// (`..Settings::default()`).
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace whose resources apply to the whole mesh; `istio-system` by default.
    pub root_namespace: Arc<str>,
    /// The mesh's own trust domain; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// Other names of the mesh's trust domain: a policy that names one of them, or the domain itself, means all. Istio
    /// knows none at L4, so [`Settings::istio_exact`] passes over them.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Whether `cluster.local` in a policy means the mesh's own trust domain, whatever its name, as Istio documents it
    /// for sidecars. On by default.
    pub cluster_local: bool,
    /// Whether policies with the annotation `istio.io/dry-run: "true"` are read, to be told and not enforced; else they
    /// are left out. On by default; off in istiod's default.
    pub dry_run: bool,
    /// The revision of the control plane whose place this takes: of resources that are labelled with one (`istio.io/rev`)
    /// only those of this revision count, as istiod has it; see [`Settings::concerns`]. None by default: then all count,
    /// as they do for an istiod without a revision.
    pub revision: Option<Arc<str>>,
    /// Read as istiod does: values that cannot be read are dropped one by one, trust domains are ignored, attributes of
    /// HTTP vanish from DENY rules, `selector: {}` selects nothing (but all of its namespace with `matchLabels: {}` in it), and
    /// trust domains have no other names.
    pub istio_exact: bool,
}

impl Settings {
    /// What istiod does by default.
    pub fn istio_exact() -> Self {
        Self {
            cluster_local: false,
            dry_run: false,
            istio_exact: true,
            ..Self::default()
        }
    }

    /// Whether a resource counts: unless it is labelled with another revision than [`Settings::revision`].
    ///
    /// [`read`] and [`Resources`] leave the others out. Whoever calls [`peer_authentication::read`] or
    /// [`ReadError::of_shape`] asks first, and tells [`Settings::other_revision`].
    pub fn concerns(&self, metadata: &Metadata) -> bool {
        let labelled = metadata.labels.as_ref().and_then(|labels| labels.get(REVISION));
        match (labelled, self.revision.as_deref().filter(|own| !own.is_empty())) {
            (Some(labelled), Some(own)) => labelled == own,
            _ => true,
        }
    }

    /// What is to be told of a resource that does not count.
    pub fn other_revision(&self) -> Warning {
        let own = self.revision.as_deref().unwrap_or_default();
        Warning {
            path: format!("metadata.labels[{REVISION}]"),
            text: format!("it is for a control plane of another revision than {own:?}, and has no effect here"),
        }
    }

    fn names(&self) -> Names<'_> {
        Names {
            own: &self.trust_domain,
            aliases: match self.istio_exact {
                true => &[],
                false => &self.trust_domain_aliases,
            },
            cluster_local: self.cluster_local,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            cluster_local: true,
            dry_run: true,
            revision: None,
            istio_exact: false,
        }
    }
}

/// What an [`AuthorizationPolicy`] was read as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The policy; none where the resource is not for L4 (`targetRefs`, CUSTOM and AUDIT: a warning says which).
    pub policy: Option<Policy>,
    /// The workloads that it is to be attached to; none where its scope says all.
    ///
    /// In the root namespace it selects in all namespaces, else in its own.
    pub selector: Option<Selector>,
    /// Where in `spec.rules` each of the policy's rules stands, from 0: a rule that admits nobody is left out.
    pub rules: Vec<usize>,
    /// What stands in the resource and is not in force as it is written.
    pub warnings: Vec<Warning>,
}

/// Something in a resource that is not in force as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where it stands, such as `spec.rules[1].to[0].operation.methods`.
    pub path: String,
    /// What becomes of it, and in which direction.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

/// A resource that cannot be read, and what it would apply to: enough to refuse that until it is mended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ReadError {
    /// The name to list it under.
    pub key: PolicyKey,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// What it would apply to; where its selector cannot be read either, all that the selector could select.
    pub scope: Scope,
    /// Whether it says of itself that it is in dry run (`istio.io/dry-run`), and so refuses nothing.
    pub dry_run: bool,
    /// The workloads that it would be attached to; none in dry run.
    pub selector: Option<Selector>,
    /// Where it cannot be read, such as `spec.rules[1].from[0].source.ipBlocks[2]`.
    pub path: Box<str>,
    /// Why, and what is wanted.
    pub why: Box<str>,
}

impl ReadError {
    /// For a resource that is no such resource at all, as its deserializer says: it may have meant anything, so its
    /// scope is its namespace, or the mesh where that is the root namespace.
    pub fn of_shape(envelope: &Envelope, why: &dyn fmt::Display, settings: &Settings) -> Self {
        let namespace = envelope.metadata.namespace();
        let name = match envelope.kind.as_str() {
            "PeerAuthentication" => peer_authentication::unreadable_key(&namespace, &envelope.metadata.name),
            _ => key(&namespace, &envelope.metadata.name),
        };
        Self {
            key: name,
            scope: whole_scope(&namespace, settings),
            namespace,
            dry_run: envelope.kind == "AuthorizationPolicy" && in_dry_run(&envelope.metadata) == Ok(true),
            selector: None,
            path: "spec".into(),
            why: why.to_string().into(),
        }
    }

    /// The value that tells it to [`Policies::apply`](crate::Policies::apply).
    pub fn unreadable(&self) -> Unreadable {
        Unreadable {
            only_new: false,
            dry_run: self.dry_run,
            key: self.key.clone(),
            namespace: self.namespace.clone(),
            scope: self.scope,
            error: self.to_string(),
        }
    }
}

/// A place in a resource and what is wrong there.
#[derive(Debug)]
struct Fault {
    path: String,
    why: String,
}

impl Fault {
    fn new(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            why: why.into(),
        }
    }

    fn of(self, key: PolicyKey, namespace: Arc<str>, scope: Scope, selector: Option<Selector>) -> ReadError {
        ReadError {
            key,
            namespace,
            scope,
            dry_run: false,
            selector,
            path: self.path.into(),
            why: self.why.into(),
        }
    }
}

/// What the annotation says, as Go's `ParseBool` reads it; what stands there where that cannot be read.
fn in_dry_run(metadata: &Metadata) -> Result<bool, &str> {
    let annotations = metadata.annotations.as_ref();
    match annotations.and_then(|annotations| annotations.get(DRY_RUN)).map(String::as_str) {
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(true),
        None | Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(false),
        Some(other) => Err(other),
    }
}

const DRY_RUN: &str = "istio.io/dry-run";

fn key(namespace: &str, name: &str) -> PolicyKey {
    PolicyKey::new(namespace, name)
}

/// The scope of a resource without a selector.
fn whole_scope(namespace: &str, settings: &Settings) -> Scope {
    if *namespace == *settings.root_namespace {
        Scope::Global
    } else {
        Scope::Namespace
    }
}

/// What both kinds must be before anything else of them is read.
fn head(api_version: &str, kind: [&str; 2], metadata: &Metadata) -> Result<(), Fault> {
    if !matches!(api_version, "security.istio.io/v1" | "security.istio.io/v1beta1") {
        let why = format!("{api_version:?} is not known here: security.istio.io/v1 and v1beta1 are");
        return Err(Fault::new("apiVersion", why));
    }
    let [kind, wanted] = kind;
    if kind != wanted {
        return Err(Fault::new("kind", format!("{kind:?} is not {wanted}")));
    }
    let name = metadata.name.as_str();
    if name.is_empty() {
        return Err(Fault::new("metadata.name", "a resource needs a name"));
    }
    // Keys are made of names, those of policies that PeerAuthentications become among them: none may be taken for another.
    let in_none = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    if name.contains(|c| c == '_' || in_none(c)) {
        return Err(Fault::new("metadata.name", format!("{name:?} is no name of a resource")));
    }
    match metadata.namespace() {
        namespace if namespace.contains(in_none) => Err(Fault::new("metadata.namespace", format!("{namespace:?} is no namespace"))),
        _ => Ok(()),
    }
}

/// What stands around the spec and is not known.
fn unknown_around(unknown: &Unknown, metadata: &Metadata, warnings: &mut Vec<Warning>) {
    unknown_fields(unknown, "", warnings);
    for name in metadata.unknown() {
        warnings.push(no_such_field("metadata", name));
    }
}

fn unknown_fields(unknown: &Unknown, path: &str, warnings: &mut Vec<Warning>) {
    warnings.extend(unknown.names().map(|name| no_such_field(path, name)));
}

fn no_such_field(path: &str, name: &str) -> Warning {
    Warning {
        path: join(path, name),
        text: "no such field is known; it has no effect".into(),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

/// The selector that counts: one without labels is none, as sidecars read it. For istiod it is one where they are written.
fn labelled<'a>(selector: Option<&'a Selector>, settings: &Settings) -> Result<Option<&'a Selector>, Fault> {
    let Some(selector) = selector else { return Ok(None) };
    if !settings.istio_exact {
        if let Some(name) = selector.unknown.names().next() {
            let why = "no such field is known, and what it would select cannot be told; use matchLabels";
            return Err(Fault::new(format!("spec.selector.{name}"), why));
        }
        let mut labels = selector.labels().iter();
        if let Some((name, value)) = labels.find(|(name, value)| name.is_empty() || name.contains('*') || value.contains('*')) {
            let why =
                format!("no workload can have the label {name:?}: {value:?}, and there are no wildcards here: nothing would be selected");
            return Err(Fault::new(format!("spec.selector.matchLabels[{name}]"), why));
        }
    }
    let counts = !selector.labels().is_empty() || (settings.istio_exact && selector.match_labels.is_some());
    Ok(Some(selector).filter(|_| counts))
}

const REVISION: &str = "istio.io/rev";

/// Labels of a workload.
pub type Labels = BTreeMap<String, String>;
