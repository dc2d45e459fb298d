//! Kinds of Kubernetes itself: pods and services, and what stands about them.

use std::{collections::BTreeMap, fmt};

use ambient_authz::kubernetes::Labels;
use ambient_core::Identity;
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{Invalid, Metadata, absent_if_null, address, name_of, port_number, word};

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
    pub(super) fn check(&self) -> Result<(), Invalid> {
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
    /// What runs before them; the ports of those that go on running are read.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub init_containers: Vec<Container>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Its ports.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ports: Vec<ContainerPort>,
    /// `Always` for one that begins before the others and goes on running beside them.
    #[serde(default)]
    pub restart_policy: Option<String>,
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
    #[serde(default, deserialize_with = "is_there")]
    pub running: bool,
    /// It has ended.
    #[serde(default, deserialize_with = "is_there")]
    pub terminated: bool,
}

/// Whether a field says anything, whatever that is.
fn is_there<'de, D: Deserializer<'de>>(field: D) -> Result<bool, D::Error> {
    Option::<IgnoredAny>::deserialize(field).map(|said| said.is_some())
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
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let spec = &self.spec;
        for (at, ip) in spec.cluster_ips.iter().enumerate() {
            virtual_address(&format!("spec.clusterIPs[{at}]"), ip)?;
        }
        if let Some(ip) = &spec.cluster_ip {
            virtual_address("spec.clusterIP", ip)?;
        }
        for (at, port) in spec.ports.iter().enumerate() {
            port_number(format!("spec.ports[{at}].port"), port.port)?;
            match &port.target_port {
                Some(TargetPort::Number(number)) => port_number(format!("spec.ports[{at}].targetPort"), *number)?,
                Some(TargetPort::Name(name)) if !name.bytes().any(|b| b.is_ascii_lowercase()) => {
                    let why = format!("{name:?} is not the name of a port; write a number without quotes");
                    return Err(Invalid::new(format!("spec.ports[{at}].targetPort"), why));
                }
                _ => {}
            }
        }
        for (at, family) in spec.ip_families.iter().enumerate() {
            word(&format!("spec.ipFamilies[{at}]"), family, &["IPv4", "IPv6"])?;
        }
        for (path, value, known) in [
            (
                "spec.type",
                &spec.kind,
                &["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][..],
            ),
            ("spec.internalTrafficPolicy", &spec.internal_traffic_policy, &["Cluster", "Local"]),
        ] {
            if let Some(value) = value {
                word(path, value, known)?;
            }
        }
        Ok(())
    }
}

/// What a service shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; none or empty where it is the only one.
    #[serde(default)]
    pub name: Option<String>,
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

fn virtual_address(path: &str, text: &str) -> Result<(), Invalid> {
    if matches!(text, "" | "None") { Ok(()) } else { address(path, text) }
}

/// Endpoints of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, labels and so on; the label `kubernetes.io/service-name` names the service.
    pub metadata: Metadata,
    /// `IPv4` or `IPv6`; one of `FQDN` is left alone.
    pub address_type: String,
    /// The ports of every endpoint.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub endpoints: Vec<SliceEndpoint>,
}

impl EndpointSlice {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        word("addressType", &self.address_type, &["IPv4", "IPv6", "FQDN"])?;
        if self.address_type == "FQDN" {
            return Ok(());
        }
        for (at, port) in self.ports.iter().enumerate() {
            if let Some(number) = port.port {
                port_number(format!("ports[{at}].port"), number)?;
            }
        }
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            for (n, ip) in endpoint.addresses.iter().enumerate() {
                address(&format!("endpoints[{at}].addresses[{n}]"), ip)?;
            }
        }
        Ok(())
    }

    /// The service that it is of.
    pub(in super::super) fn service(&self) -> Option<&str> {
        (self.address_type != "FQDN").then(|| self.metadata.label(SERVICE_NAME)).flatten()
    }
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, Deserialize)]
pub struct SlicePort {
    /// The name of the service's port that it is.
    #[serde(default)]
    pub name: Option<String>,
    /// The port; one without a number is left alone.
    #[serde(default)]
    pub port: Option<u16>,
    /// TCP where absent; others are not read.
    #[serde(default)]
    pub protocol: Option<String>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Its addresses.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub addresses: Vec<String>,
    /// How it is.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub conditions: EndpointConditions,
    /// The object that it is, if it is one.
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
}

/// How an endpoint is. What is not said is as Kubernetes has it: ready, and not terminating.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct EndpointConditions {
    /// Whether it may be sent to.
    #[serde(default)]
    pub ready: Option<bool>,
    /// Whether it answers, also while it ends; nothing is made of it.
    #[serde(default)]
    pub serving: Option<bool>,
    /// Whether it ends.
    #[serde(default)]
    pub terminating: Option<bool>,
}

/// The object that an endpoint is.
#[derive(Clone, Debug, Deserialize)]
pub struct TargetRef {
    /// Its kind.
    #[serde(default)]
    pub kind: Option<String>,
    /// Its namespace; absent, that of the slice.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its UID; absent, whichever has the name.
    #[serde(default)]
    pub uid: Option<String>,
}

impl TargetRef {
    /// Namespace and name of the pod that it is, if it is one; `namespace` is the slice's.
    pub(in super::super) fn pod<'a>(&'a self, namespace: &'a str) -> Option<(&'a str, &'a str)> {
        let name = self.name.as_deref().filter(|_| self.kind.as_deref() == Some("Pod"))?;
        Some((self.namespace.as_deref().unwrap_or(namespace), name))
    }
}

/// Settings.
#[derive(Clone, Debug, Deserialize)]
pub struct ConfigMap {
    /// Name, labels and so on.
    pub metadata: Metadata,
    /// Texts by their names.
    #[serde(default, deserialize_with = "absent_if_null")]
    pub data: BTreeMap<String, String>,
}

/// The label of an EndpointSlice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
