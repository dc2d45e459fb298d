//! The Kubernetes objects, as far as they are read: serde types that take what `kubectl get -o yaml` prints.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ambient_authz::kubernetes::{AuthorizationPolicy, Envelope, Labels, PeerAuthentication};
use serde::{Deserialize, Deserializer};

mod core;
mod gateway;
mod istio;

pub use self::{core::*, gateway::*, istio::*};

/// An object of a kind that matters to the mesh.
#[derive(Clone, Debug)]
pub enum Object {
    /// A namespace, for its labels and annotations.
    Namespace(Bare),
    /// A node, for the labels that say where it stands.
    Node(Bare),
    /// A service account. It says nothing that a pod does not say, so it changes nothing.
    ServiceAccount(Bare),
    /// Settings. It changes nothing: whoever makes the translator takes its [`Settings`](super::Settings) from the one that
    /// is named `istio`.
    ConfigMap(Box<ConfigMap>),
    /// A pod.
    Pod(Box<Pod>),
    /// A service.
    Service(Box<Service>),
    /// Endpoints of a service: those that are no pods, and pods of a service without a selector.
    EndpointSlice(Box<EndpointSlice>),
    /// Names and addresses that services go by which Kubernetes does not know.
    ServiceEntry(Box<ServiceEntry>),
    /// A workload that is no pod, such as a virtual machine.
    WorkloadEntry(Box<WorkloadEntry>),
    /// A waypoint, or the gateway of another network.
    Gateway(Box<Gateway>),
    /// What gateways of a class have in common; only its labels and annotations are read.
    GatewayClass(Bare),
    /// A policy of authorization.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    /// A policy of authentication.
    PeerAuthentication(Box<PeerAuthentication>),
    /// A policy, by its kind, that has not even the shape of one. It may have meant anything, so it refuses all that it
    /// could apply to.
    Misshapen {
        /// Which it is.
        envelope: Box<Envelope>,
        /// Where it stands, such as `spec.rules`.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Object {
    /// What it goes by.
    pub fn key(&self) -> ObjectKey {
        let own = |kind: Kind, m: &Metadata| kind.key(m.namespace(), &m.name);
        let policy = |kind, m: &ambient_authz::kubernetes::Metadata| ObjectKey::new(kind, &m.namespace(), &m.name);
        match self {
            Self::Namespace(o) => own(Kind::Namespace, &o.metadata),
            Self::Node(o) => own(Kind::Node, &o.metadata),
            Self::ServiceAccount(o) => own(Kind::ServiceAccount, &o.metadata),
            Self::ConfigMap(o) => own(Kind::ConfigMap, &o.metadata),
            Self::Pod(o) => own(Kind::Pod, &o.metadata),
            Self::Service(o) => own(Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => own(Kind::EndpointSlice, &o.metadata),
            Self::ServiceEntry(o) => own(Kind::ServiceEntry, &o.metadata),
            Self::WorkloadEntry(o) => own(Kind::WorkloadEntry, &o.metadata),
            Self::Gateway(o) => own(Kind::Gateway, &o.metadata),
            Self::GatewayClass(o) => own(Kind::GatewayClass, &o.metadata),
            Self::AuthorizationPolicy(o) => policy(Kind::AuthorizationPolicy, &o.metadata),
            Self::PeerAuthentication(o) => policy(Kind::PeerAuthentication, &o.metadata),
            Self::Misshapen { envelope, .. } if envelope.kind == "PeerAuthentication" => {
                policy(Kind::PeerAuthentication, &envelope.metadata)
            }
            Self::Misshapen { envelope, .. } => policy(Kind::AuthorizationPolicy, &envelope.metadata),
        }
    }

    /// The metadata of one that says who may talk to whom.
    pub(super) fn policy_metadata(&self) -> Option<&ambient_authz::kubernetes::Metadata> {
        match self {
            Self::AuthorizationPolicy(o) => Some(&o.metadata),
            Self::PeerAuthentication(o) => Some(&o.metadata),
            Self::Misshapen { envelope, .. } => Some(&envelope.metadata),
            _ => None,
        }
    }

    /// Whether it holds what its kind requires, as an API server would ask.
    ///
    /// # Errors
    /// The first field that is missing or is not what it must be. The value of a policy is not looked at here: one that
    /// cannot be read refuses its own scope.
    pub fn check(&self) -> Result<(), Invalid> {
        let ObjectKey { kind, namespace, name } = self.key();
        name_of("metadata.name", &name)?;
        if kind.is_namespaced() {
            name_of("metadata.namespace", &namespace)?;
        }
        match self {
            Self::Pod(pod) => pod.check(),
            Self::Service(service) => service.check(),
            Self::EndpointSlice(slice) => slice.check(),
            Self::ServiceEntry(entry) => entry.check(),
            Self::WorkloadEntry(entry) => entry.check(),
            Self::Gateway(gateway) => gateway.check(),
            _ => Ok(()),
        }
    }
}

/// A kind of object that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1`
    Namespace,
    /// `v1`
    Node,
    /// `v1`
    ServiceAccount,
    /// `v1`
    ConfigMap,
    /// `v1`
    Pod,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
    /// `networking.istio.io/v1`, `v1beta1` and `v1alpha3`
    ServiceEntry,
    /// `networking.istio.io/v1`, `v1beta1` and `v1alpha3`
    WorkloadEntry,
    /// `gateway.networking.k8s.io/v1` and `v1beta1`
    Gateway,
    /// `gateway.networking.k8s.io/v1` and `v1beta1`
    GatewayClass,
    /// `security.istio.io/v1` and `v1beta1`
    AuthorizationPolicy,
    /// `security.istio.io/v1` and `v1beta1`
    PeerAuthentication,
}

impl Kind {
    /// The kind by its two names, such as `v1` and `Pod`; none for one that is not read.
    ///
    /// # Errors
    /// A version that is not known, and a kind that is surely meant as a policy and is none: to pass over either could let
    /// through what it refuses.
    pub fn of(api_version: &str, kind: &str) -> Result<Option<Self>, Invalid> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let Some((known, versions)) = known(group, kind) else {
            if is_almost_policy(group, kind) {
                let why =
                    format!("{api_version} {kind} is no kind: AuthorizationPolicy and PeerAuthentication of security.istio.io/v1 are");
                return Err(Invalid::new("kind", why));
            }
            return Ok(None);
        };
        if !versions.contains(&version) {
            let why = format!("{api_version:?} is not known for {kind}: {} is wanted", versions.join(" or "));
            return Err(Invalid::new("apiVersion", why));
        }
        Ok(Some(known))
    }

    /// The kind of a group by its name, in whatever version.
    pub fn named(group: &str, kind: &str) -> Option<Self> {
        known(group, kind).map(|(kind, _)| kind)
    }

    /// Whether objects of it are in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }

    /// Whether it is a policy: what cannot be read of one refuses.
    pub fn is_policy(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication)
    }

    /// The key of an object; the namespace does not count where objects of the kind are in none.
    pub fn key(self, namespace: &str, name: &str) -> ObjectKey {
        let namespace = if self.is_namespaced() { namespace } else { "" };
        ObjectKey::new(self, namespace, name)
    }

    /// Whether objects of a group of kinds are read, so that a list of them is too.
    pub fn is_of_group(group: &str) -> bool {
        matches!(
            group,
            "" | "discovery.k8s.io" | "networking.istio.io" | "gateway.networking.k8s.io" | "security.istio.io"
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What an object goes by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for what is in none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// A field that is missing or is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Invalid {
    /// Where, such as `spec.ports[0].port`.
    pub path: String,
    /// Why, and what is wanted.
    pub why: String,
}

impl Invalid {
    pub(super) fn new(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            why: why.into(),
        }
    }
}

/// An object of which only the metadata are read.
#[derive(Clone, Debug, Deserialize)]
pub struct Bare {
    /// Name, labels and so on.
    pub metadata: Metadata,
}

/// The part of an object's metadata that is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The name.
    pub name: String,
    /// What its name was made of, where nobody has chosen it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub generate_name: String,
    /// The namespace; absent for those that have none, and where `default` is meant.
    #[serde(default)]
    pub namespace: Option<String>,
    /// What the API server calls this very object, and no later one.
    #[serde(default)]
    pub uid: Option<String>,
    /// Labels.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub labels: Labels,
    /// Annotations.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub annotations: Labels,
    /// What made it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub owner_references: Vec<OwnerReference>,
    /// When it was made, as RFC 3339 in UTC; what has no date is older than what has one.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
    /// Set once it is being deleted.
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
}

impl Metadata {
    /// The namespace, `default` where none is written.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

/// What made an object.
#[derive(Clone, Debug, Deserialize)]
pub struct OwnerReference {
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// Whether it is the one that rules.
    #[serde(default)]
    pub controller: Option<bool>,
}

/// `null` stands for what is absent in what Go programs print.
pub(super) fn absent_if_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Whether an API server takes it for the name of an object.
pub fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253 && name.bytes().all(inner) && ends(name.bytes().next()) && ends(name.bytes().last())
}

fn name_of(path: &str, name: &str) -> Result<(), Invalid> {
    if is_name(name) {
        return Ok(());
    }
    let why = format!("{name:?} is not a name: at most 253 lower case letters, digits, `-` and `.`, with a letter or digit at both ends");
    Err(Invalid::new(path, why))
}

fn address(path: &str, text: &str) -> Result<(), Invalid> {
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Invalid::new(path, format!("{text:?} is not an IP address"))),
    }
}

fn port_number(path: impl Into<String>, port: u16) -> Result<(), Invalid> {
    match port {
        0 => Err(Invalid::new(path, "must be in 1..=65535")),
        _ => Ok(()),
    }
}

/// One of a few words.
fn word(path: &str, text: &str, known: &[&str]) -> Result<(), Invalid> {
    match known.contains(&text) {
        true => Ok(()),
        false => Err(Invalid::new(path, format!("{text:?} is not known: {} is wanted", known.join(", ")))),
    }
}

/// A name that DNS could know; in a [`ServiceEntry`] and for endpoints in any case.
fn dns_name(path: &str, text: &str) -> Result<(), Invalid> {
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if text.len() <= 253 && !digits && text.split('.').all(label) {
        return Ok(());
    }
    Err(Invalid::new(path, format!("{text:?} is not a DNS name")))
}

/// Whether a map of labels holds all of another, which is not empty.
pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn known(group: &str, kind: &str) -> Option<(Kind, &'static [&'static str])> {
    let istio = &["v1", "v1beta1", "v1alpha3"];
    Some(match (group, kind) {
        ("", "Namespace") => (Kind::Namespace, &["v1"]),
        ("", "Node") => (Kind::Node, &["v1"]),
        ("", "ServiceAccount") => (Kind::ServiceAccount, &["v1"]),
        ("", "ConfigMap") => (Kind::ConfigMap, &["v1"]),
        ("", "Pod") => (Kind::Pod, &["v1"]),
        ("", "Service") => (Kind::Service, &["v1"]),
        ("discovery.k8s.io", "EndpointSlice") => (Kind::EndpointSlice, &["v1"]),
        ("networking.istio.io", "ServiceEntry") => (Kind::ServiceEntry, istio),
        ("networking.istio.io", "WorkloadEntry") => (Kind::WorkloadEntry, istio),
        ("gateway.networking.k8s.io", "Gateway") => (Kind::Gateway, &["v1", "v1beta1"]),
        ("gateway.networking.k8s.io", "GatewayClass") => (Kind::GatewayClass, &["v1", "v1beta1"]),
        ("security.istio.io", "AuthorizationPolicy") => (Kind::AuthorizationPolicy, &["v1", "v1beta1"]),
        ("security.istio.io", "PeerAuthentication") => (Kind::PeerAuthentication, &["v1", "v1beta1"]),
        _ => return None,
    })
}

/// Whether what is no policy was surely meant as one: passing it over would let through what it refuses.
fn is_almost_policy(group: &str, kind: &str) -> bool {
    let policy = ["AuthorizationPolicy", "PeerAuthentication"]
        .iter()
        .any(|p| p.eq_ignore_ascii_case(kind));
    match group {
        // It validates tokens, which is not for L4.
        "security.istio.io" => kind != "RequestAuthentication",
        "" => policy,
        _ => policy && group.ends_with("istio.io"),
    }
}
