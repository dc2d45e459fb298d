//! What whoever has started the node takes for granted of the mesh, against what the mesh says.

use ambient_core::Mesh;
use ambient_redirect::PodSpec;

use crate::Config;

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
        let pods = [PodSpec {
            uid: "u1".into(),
            namespace: "shop".into(),
            name: "cart".into(),
            service_account: "default".into(),
            addresses: Vec::new(),
            capture: ambient_core::Capture::default(),
            has_run: true,
        }];
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
