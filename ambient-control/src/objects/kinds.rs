//! The Kubernetes objects, as far as they are read: serde types that take what `kubectl get -o yaml` prints.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ambient_authz::kubernetes::{AuthorizationPolicy, Envelope, Labels, PeerAuthentication};
use ambient_core::Identity;
use serde::{Deserialize, Deserializer};

/// An object of a kind that matters to the mesh.
#[derive(Clone, Debug)]
pub enum Object {
    /// A namespace, for its labels.
    Namespace(Bare),
    /// A service account. It says nothing that a pod does not say, so it changes nothing.
    ServiceAccount(Bare),
    /// A pod.
    Pod(Box<Pod>),
    /// A service.
    Service(Box<Service>),
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
        let own = |kind, m: &Metadata| match kind {
            Kind::Namespace => ObjectKey::new(kind, "", &m.name),
            _ => ObjectKey::new(kind, m.namespace(), &m.name),
        };
        let policy = |kind, m: &ambient_authz::kubernetes::Metadata| ObjectKey::new(kind, &m.namespace(), &m.name);
        match self {
            Self::Namespace(o) => own(Kind::Namespace, &o.metadata),
            Self::ServiceAccount(o) => own(Kind::ServiceAccount, &o.metadata),
            Self::Pod(o) => own(Kind::Pod, &o.metadata),
            Self::Service(o) => own(Kind::Service, &o.metadata),
            Self::AuthorizationPolicy(o) => policy(Kind::AuthorizationPolicy, &o.metadata),
            Self::PeerAuthentication(o) => policy(Kind::PeerAuthentication, &o.metadata),
            Self::Misshapen { envelope, .. } if envelope.kind == "PeerAuthentication" => {
                policy(Kind::PeerAuthentication, &envelope.metadata)
            }
            Self::Misshapen { envelope, .. } => policy(Kind::AuthorizationPolicy, &envelope.metadata),
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
        if kind != Kind::Namespace {
            name_of("metadata.namespace", &namespace)?;
        }
        match self {
            Self::Pod(pod) => pod.check(),
            Self::Service(service) => service.check(),
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
    ServiceAccount,
    /// `v1`
    Pod,
    /// `v1`
    Service,
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
    /// Its namespace; empty for a namespace.
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Invalid {
    /// Where, such as `spec.ports[0].port`.
    pub path: String,
    /// Why, and what is wanted.
    pub why: String,
}

impl Invalid {
    fn new(path: impl Into<String>, why: impl Into<String>) -> Self {
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
    /// Set once it is being deleted.
    #[serde(default)]
    pub deletion_timestamp: Option<String>,
}

impl Metadata {
    /// The namespace, `default` where none is written.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
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

/// A pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What it shall be.
    pub spec: PodSpec,
    /// What it is; absent until somebody has seen to it.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub status: PodStatus,
}

impl Pod {
    fn check(&self) -> Result<(), Invalid> {
        if self.metadata.uid.as_deref() == Some("") {
            return Err(Invalid::new(
                "metadata.uid",
                "is empty; leave it out, or write what the API server gave",
            ));
        }
        if let Some(account) = &self.spec.service_account_name {
            name_of("spec.serviceAccountName", account)?;
        }
        let account = self.spec.service_account_name.as_deref().unwrap_or("default");
        Identity::new(&ambient_core::TrustDomain::default(), self.metadata.namespace(), account)
            .map_err(|e| Invalid::new("spec.serviceAccountName", e.to_string()))?;
        if let Some(ip) = &self.status.pod_ip {
            address("status.podIP", ip)?;
        }
        for (at, ip) in self.status.pod_ips.iter().enumerate() {
            address(&format!("status.podIPs[{at}].ip"), &ip.ip)?;
        }
        Ok(())
    }
}

/// What a pod shall be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Its node, once it has one.
    #[serde(default)]
    pub node_name: Option<String>,
    /// Its account; absent, `default`.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// Whether it lives in its node's network namespace.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub host_network: bool,
    /// What runs in it, for the names of ports.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub containers: Vec<Container>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Container {
    /// Its ports.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ports: Vec<ContainerPort>,
}

/// A port of a container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// What services call it.
    #[serde(default)]
    pub name: Option<String>,
    /// The port.
    pub container_port: u16,
    /// TCP where absent.
    #[serde(default)]
    pub protocol: Option<String>,
}

/// What a pod is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    #[serde(default)]
    pub phase: Option<String>,
    /// Its first address.
    #[serde(default, rename = "podIP")]
    pub pod_ip: Option<String>,
    /// All of its addresses.
    #[serde(default, rename = "podIPs", deserialize_with = "absent_if_null")]
    pub pod_ips: Vec<PodIp>,
    /// What holds of it; `Ready` is read.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub conditions: Vec<Condition>,
    /// How its containers stand.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub container_statuses: Vec<ContainerStatus>,
    /// How those stand that run before the others.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// How those stand that were added while it ran.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ephemeral_container_statuses: Vec<ContainerStatus>,
}

/// How a container stands; what says whether it has run is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// How it is now.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub state: ContainerState,
    /// How it ended before.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub last_state: ContainerState,
    /// How often it was started anew.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub restart_count: u32,
    /// Whether it is started, and its startup probe has passed.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub started: bool,
}

/// What a container does: one of these, or it waits.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ContainerState {
    /// It runs.
    #[serde(default)]
    pub running: Option<serde::de::IgnoredAny>,
    /// It has ended.
    #[serde(default)]
    pub terminated: Option<serde::de::IgnoredAny>,
}

/// An address of a pod.
#[derive(Clone, Debug, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// Something that holds of a pod, or does not.
#[derive(Clone, Debug, Deserialize)]
pub struct Condition {
    /// What.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// What it shall be.
    pub spec: ServiceSpec,
}

impl Service {
    fn check(&self) -> Result<(), Invalid> {
        let spec = &self.spec;
        for (at, ip) in spec.cluster_ips.iter().enumerate() {
            virtual_address(&format!("spec.clusterIPs[{at}]"), ip)?;
        }
        if let Some(ip) = &spec.cluster_ip {
            virtual_address("spec.clusterIP", ip)?;
        }
        for (at, port) in spec.ports.iter().enumerate() {
            if port.port == 0 {
                return Err(Invalid::new(format!("spec.ports[{at}].port"), "must be in 1..=65535"));
            }
            match &port.target_port {
                Some(TargetPort::Number(0)) => {
                    return Err(Invalid::new(format!("spec.ports[{at}].targetPort"), "must be in 1..=65535"));
                }
                Some(TargetPort::Name(name)) if !name.bytes().any(|b| b.is_ascii_lowercase()) => {
                    let why = format!("{name:?} is not the name of a port; write a number without quotes");
                    return Err(Invalid::new(format!("spec.ports[{at}].targetPort"), why));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a service shall be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// ClusterIP where absent; an ExternalName has neither addresses nor endpoints.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Its first address; `None` for a headless service.
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// All of its addresses.
    #[serde(default, rename = "clusterIPs", deserialize_with = "absent_if_null")]
    pub cluster_ips: Vec<String>,
    /// Its ports.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ports: Vec<ServicePort>,
    /// The labels of the pods behind it; none, no pods.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub selector: Labels,
    /// Whether pods that are not ready are told as ready ones.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub publish_not_ready_addresses: bool,
    /// `IPv4`, `IPv6`, or both.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ip_families: Vec<String>,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    #[serde(default)]
    pub traffic_distribution: Option<String>,
    /// `Local`: only pods on the client's node.
    #[serde(default)]
    pub internal_traffic_policy: Option<String>,
}

/// A port of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// The port that clients name.
    pub port: u16,
    /// The port of the pods; absent, the same.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// TCP where absent; others are not read.
    #[serde(default)]
    pub protocol: Option<String>,
}

/// A port of the pods behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name that each pod gives it.
    Name(String),
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = TargetPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port's number or name")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<TargetPort, E> {
                let number = u16::try_from(number).map_err(|_| E::custom(format_args!("{number} is not a port: must be in 1..=65535")))?;
                Ok(TargetPort::Number(number))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<TargetPort, E> {
                // A negative number becomes one that is refused in the same words.
                self.visit_u64(u64::try_from(number).unwrap_or(u64::MAX))
            }

            fn visit_str<E>(self, name: &str) -> Result<TargetPort, E> {
                Ok(TargetPort::Name(name.into()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `null` stands for what is absent in what Go programs print.
pub(super) fn absent_if_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn name_of(path: &str, name: &str) -> Result<(), Invalid> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.len() <= 253 && name.bytes().all(inner) && ends(name.bytes().next()) && ends(name.bytes().last()) {
        return Ok(());
    }
    let why = format!("{name:?} is not a name: at most 253 lower case letters, digits, `-` and `.`, with a letter or digit at both ends");
    Err(Invalid::new(path, why))
}

fn address(path: &str, text: &str) -> Result<(), Invalid> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Invalid::new(path, format!("{text:?} is not an IP address"))),
    }
}

fn virtual_address(path: &str, text: &str) -> Result<(), Invalid> {
    if matches!(text, "" | "None") { Ok(()) } else { address(path, text) }
}

/// Whether a map of labels holds all of another, which is not empty.
pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn known(group: &str, kind: &str) -> Option<(Kind, &'static [&'static str])> {
    Some(match (group, kind) {
        ("", "Namespace") => (Kind::Namespace, &["v1"]),
        ("", "ServiceAccount") => (Kind::ServiceAccount, &["v1"]),
        ("", "Pod") => (Kind::Pod, &["v1"]),
        ("", "Service") => (Kind::Service, &["v1"]),
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
