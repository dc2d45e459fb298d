//! Workloads: pods, and whatever else has an identity and addresses in the mesh.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Capture, GatewayAddress, Identity, IdentityError, Network, TrustDomain};

macro_rules! text_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
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

/// A workload of the mesh.
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
    /// Every address of it, canonical; the first is the preferred one.
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

    /// Whether an address is one of its own.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}

/// How a workload is reached.
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
