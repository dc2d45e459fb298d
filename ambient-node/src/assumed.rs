//! What whoever has started the node takes for granted of the mesh, against what the mesh says.

use ambient_core::{Identity, IdentityError, Mesh, TrustDomain};
use ambient_redirect::PodSpec;

use crate::Config;

/// Whose certificate a pod is served with.
pub(crate) fn identity(config: &Config, pod: &PodSpec, mesh: Option<&Mesh>) -> Result<Identity, IdentityError> {
    Identity::new(&trust_domain(config, pod, mesh), &pod.namespace, &pod.service_account)
}

/// The trust domain of that: as the node was told, or where it was not, as the mesh says it of the pod.
fn trust_domain(config: &Config, pod: &PodSpec, mesh: Option<&Mesh>) -> TrustDomain {
    let Some(mesh) = mesh.filter(|_| config.trust_domain_of_mesh) else {
        return config.trust_domain.clone();
    };
    let said = mesh
        .workload(&config.workload_of_pod(&pod.namespace, &pod.name))
        // One that has just begun may be served a moment before the mesh knows it: it is of the domain that others here are of.
        .or_else(|| mesh.workloads_of_node(&config.node).next())
        .or_else(|| mesh.workloads().find(|workload| workload.cluster == config.cluster_id));
    said.map_or_else(|| config.trust_domain.clone(), |workload| workload.trust_domain.clone())
}

/// What contradicts it; each is told once.
#[derive(Debug, Default)]
pub(crate) struct Contradictions {
    network: bool,
}

impl Contradictions {
    /// Those that are new, of the pods that are served.
    pub(crate) fn new_of<'a>(&mut self, config: &Config, pods: impl IntoIterator<Item = &'a PodSpec>, mesh: &Mesh) -> Vec<String> {
        let mut new = Vec::new();
        if let Some(network) = config.assumed.network.as_deref().filter(|_| !self.network) {
            let mut pods = pods.into_iter();
            let elsewhere = pods.find_map(|pod| {
                let workload = mesh.workload(&config.workload_of_pod(&pod.namespace, &pod.name))?;
                (workload.network.as_str() != network).then(|| (pod, workload.network.as_str()))
            });
            if let Some((pod, other)) = elsewhere {
                self.network = true;
                new.push(format!(
                    "the mesh says that {}/{} is in the network {other:?}, and this node was started for {network:?}: what the mesh says counts",
                    pod.namespace, pod.name
                ));
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use ambient_core::{Workload, mesh::Update};

    use super::*;
    use crate::Assumed;

    fn pod(name: &str) -> PodSpec {
        PodSpec {
            uid: "u1".into(),
            namespace: "shop".into(),
            name: name.into(),
            service_account: "default".into(),
            addresses: Vec::new(),
            capture: ambient_core::Capture::default(),
            has_run: true,
        }
    }

    #[test]
    fn who_was_not_told_the_trust_domain_takes_the_meshs() {
        let mut config = Config::new("n", "/");
        let workload = |uid: &str, node: &str, domain: &str| {
            let workload = Workload {
                node: node.into(),
                cluster: "Kubernetes".into(),
                trust_domain: domain.parse().unwrap(),
                ..Workload::new(uid, "shop", "cart")
            };
            Update::Workload(workload.into())
        };
        let elsewhere = Mesh::default().apply([workload("Kubernetes//Pod/shop/a", "m", "elsewhere.example")]);
        let beside = elsewhere.apply([workload("Kubernetes//Pod/shop/b", "n", "beside.example")]);
        let whole = beside.apply([workload("Kubernetes//Pod/shop/cart", "n", "own.example")]);
        let said = |config: &Config, mesh: Option<&Mesh>| trust_domain(config, &pod("cart"), mesh).to_string();
        assert_eq!(said(&config, Some(&whole)), "cluster.local", "as it was told");
        config.trust_domain_of_mesh = true;
        assert_eq!(said(&config, Some(&whole)), "own.example");
        assert_eq!(said(&config, Some(&beside)), "beside.example", "before the mesh knows the pod");
        assert_eq!(said(&config, Some(&elsewhere)), "elsewhere.example");
        assert_eq!(said(&config, Some(&Mesh::default())), "cluster.local");
        assert_eq!(said(&config, None), "cluster.local");
    }

    #[test]
    fn what_the_mesh_says_otherwise_is_told_once() {
        let mut config = Config::new("n", "/");
        config.assumed = Assumed {
            network: Some("net1".into()),
        };
        let cart = |network: &str| {
            let workload = Workload {
                network: network.into(),
                ..Workload::new("Kubernetes//Pod/shop/cart", "shop", "cart")
            };
            Update::Workload(workload.into())
        };
        let pods = [pod("cart")];
        let mut contradictions = Contradictions::default();
        let as_assumed = Mesh::default().apply([cart("net1")]);
        let mut told = |mesh: &Mesh| contradictions.new_of(&config, &pods, mesh);
        assert_eq!(told(&Mesh::default()), [""; 0]);
        assert_eq!(told(&as_assumed), [""; 0]);
        let otherwise = as_assumed.apply([cart("net2")]);
        let said = told(&otherwise);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("shop/cart") && said[0].contains("\"net2\"") && said[0].contains("\"net1\""));
        assert_eq!(told(&otherwise), [""; 0], "once");
        let nothing = Config::new("n", "/");
        assert_eq!(Contradictions::default().new_of(&nothing, &pods, &otherwise), [""; 0]);
    }
}
