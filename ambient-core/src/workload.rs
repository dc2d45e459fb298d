//! Workloads: pods, and whatever else has an identity and addresses in the mesh.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::Service;
use crate::{Capture, GatewayAddress, Identity, IdentityError, NamespacedHostname, Network, PortMap, TrustDomain};

macro_rules! text_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub(crate) Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same text, shared.
            pub fn to_shared(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_key! {
    /// The mesh's name of a workload; for a pod `CLUSTER//Pod/NAMESPACE/NAME`, as istiod writes it.
    WorkloadUid
}
text_key! {
    /// A pod's `metadata.uid`: a pod that is deleted and made again under the same name has another.
    PodUid
}
text_key! {
    /// The name of a policy, `NAMESPACE/NAME`.
    PolicyKey
}

impl PolicyKey {
    /// The name of a policy by its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The namespace; empty where none is named.
    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

/// A workload of the mesh. More may be known of one some day: [`Workload::new`] and `..` stand for what is not said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name in the mesh.
    pub uid: WorkloadUid,
    /// The `metadata.uid` of its pod, where the source of state tells it.
    pub pod: Option<PodUid>,
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// Every address of it; the first is the preferred one. In a [`Mesh`](crate::Mesh) they are canonical: an IPv4-mapped one
    /// becomes the IPv4 address that it is.
    pub addresses: Vec<IpAddr>,
    /// The network of those addresses.
    pub network: Network,
    /// The trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// The service account of its identity.
    pub service_account: Arc<str>,
    /// The node it runs on; empty if unknown.
    pub node: Arc<str>,
    /// The cluster it belongs to.
    pub cluster: Arc<str>,
    /// Whether it is meant to be in the mesh: what its labels and its namespace's say.
    pub ambient: bool,
    /// What its annotations ask of its capture; `None` where they ask nothing.
    pub capture: Option<Arc<Capture>>,
    /// Whether something may have run in it: `false` only where its status says that nothing has.
    pub has_run: bool,
    /// How it is reached: by tunnel only once its node has said that it is captured.
    pub tunnel: TunnelProtocol,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Whether it may be chosen as an endpoint.
    pub health: Health,
    /// What owns it: for telemetry.
    pub kind: WorkloadKind,
    /// The name of its owner (Deployment and so on), else the pod's.
    pub workload_name: Arc<str>,
    /// The canonical service name: for telemetry.
    pub canonical_name: Arc<str>,
    /// The canonical revision: for telemetry.
    pub canonical_revision: Arc<str>,
    /// Region, zone, subzone; empty where unknown.
    pub locality: [Arc<str>; 3],
    /// Policies attached to it by selector; those of its namespace and of the mesh are found by scope.
    pub policies: Vec<PolicyKey>,
    /// The proxy that speaks for it, if it has one.
    pub waypoint: Option<GatewayAddress>,
    /// Where those of other networks reach it: a gateway of its own network.
    pub network_gateway: Option<GatewayAddress>,
    /// The DNS name that it is reached by where it has no address; empty as a rule.
    pub hostname: Arc<str>,
    /// Whether it speaks HBONE itself, so that no node captures it.
    pub native_tunnel: bool,
    /// How what came by HBONE is handed to its application, where that is not as plain TCP.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The services that it is an endpoint of; those that [list](Service::endpoints) it themselves are not named here.
    pub services: Vec<Membership>,
    /// Its weight among the endpoints of a service; 0 is never chosen.
    pub capacity: u32,
}

impl Workload {
    /// A healthy workload with the defaults of Istio: trust domain `cluster.local`, account `default`, not in the mesh.
    pub fn new(uid: &str, namespace: &str, name: &str) -> Self {
        let name: Arc<str> = name.into();
        Self {
            uid: uid.into(),
            pod: None,
            namespace: namespace.into(),
            addresses: Vec::new(),
            network: Network::default(),
            trust_domain: TrustDomain::default(),
            service_account: "default".into(),
            node: "".into(),
            cluster: "Kubernetes".into(),
            ambient: false,
            capture: None,
            has_run: true,
            tunnel: TunnelProtocol::None,
            network_mode: NetworkMode::Standard,
            health: Health::Healthy,
            kind: WorkloadKind::Pod,
            workload_name: name.clone(),
            canonical_name: name.clone(),
            canonical_revision: "latest".into(),
            locality: ["".into(), "".into(), "".into()],
            policies: Vec::new(),
            waypoint: None,
            network_gateway: None,
            hostname: "".into(),
            native_tunnel: false,
            application_tunnel: None,
            services: Vec::new(),
            capacity: 1,
            name,
        }
    }

    /// Its identity.
    ///
    /// # Errors
    /// When its namespace or account cannot stand in a SPIFFE ID.
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::new(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// Whether an identity is its own; as [`Workload::identity`] would say, without making that.
    pub fn bears(&self, identity: &Identity) -> bool {
        let is_own = (identity.namespace(), identity.service_account()) == (&*self.namespace, &*self.service_account);
        is_own && *identity.trust_domain() == self.trust_domain
    }

    /// Whether an address is one of its own.
    ///
    /// An IPv4-mapped IPv6 address, as a socket that listens on both families tells it, is the IPv4 address that it is.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.to_canonical() == ip.to_canonical())
    }
}

/// A service that a workload is an endpoint of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The service; it need not be known (yet).
    pub service: NamespacedHostname,
    /// Its ports and the workload's own.
    pub ports: PortMap,
}

/// How what came by HBONE is handed to an application (`ApplicationTunnel` of Istio's workload API).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// What is said first.
    pub protocol: ApplicationProtocol,
    /// The port that is connected to in the place of any other; where there is none, the port that was asked for.
    pub port: Option<u16>,
}

/// What an application is told before the bytes that came for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ApplicationProtocol {
    /// Nothing.
    #[default]
    None,
    /// Who speaks and to whom, as a PROXY protocol header, version 2.
    Proxy,
}

/// How a workload is reached. It is exhaustive on purpose: a way that somebody does not know must not be taken for plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// In plaintext, as the application listens.
    #[default]
    None,
    /// Through HBONE to its own port 15008.
    Hbone,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// They are.
    #[default]
    Standard,
    /// They are the node's (`hostNetwork`): it is never found by address, and never captured.
    HostNetwork,
}

/// Whether a workload may be chosen as an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// It may.
    #[default]
    Healthy,
    /// It may not, except for services that publish unready addresses.
    Unhealthy,
}

/// What owns a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// Nothing: a pod of its own.
    #[default]
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    /// The word that stands in `baggage` and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_policy_has_a_namespace_and_a_name() {
        let key = PolicyKey::new("shop", "a");
        assert_eq!((key.as_str(), key.namespace(), key.name()), ("shop/a", "shop", "a"));
        for (text, namespace, name) in [("a", "", "a"), ("/a", "", "a"), ("shop/a/b", "shop", "a/b")] {
            let key = PolicyKey::from(text);
            assert_eq!((key.namespace(), key.name()), (namespace, name), "{text}");
        }
    }
}
