//! What whoever has started the node takes for granted of the mesh, against what the mesh says.

use ambient_core::{Mesh, TunnelProtocol, WorkloadUid};
use ambient_redirect::PodSpec;

use crate::Config;

/// What contradicts it; each is told once.
#[derive(Debug, Default)]
pub(crate) struct Contradictions {
    network: bool,
    own_pod: bool,
}

impl Contradictions {
    /// Those that are new, of the pods that are served and of the node's own.
    pub(crate) fn new_of<'a>(&mut self, config: &Config, pods: impl IntoIterator<Item = &'a PodSpec>, mesh: &Mesh) -> Vec<String> {
        let mut new = Vec::new();
        let workload_of = |namespace: &str, name: &str| {
            let uid = WorkloadUid::from(format!("{}//Pod/{namespace}/{name}", config.cluster_id).as_str());
            mesh.workload(&uid)
        };
        if let Some(network) = config.assumed.network.as_deref().filter(|_| !self.network) {
            let mut pods = pods.into_iter();
            let elsewhere = pods.find_map(|pod| {
                let workload = workload_of(&pod.namespace, &pod.name)?;
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
        if let Some((namespace, name)) = config.assumed.own_pod.as_ref().filter(|_| !self.own_pod)
            && workload_of(namespace, name).is_some_and(|own| own.tunnel == TunnelProtocol::Hbone)
        {
            self.own_pod = true;
            new.push(format!(
                "the mesh says that the pod of this proxy itself, {namespace}/{name}, takes tunnels, and it takes none: what others \
                 send there, as to its metrics, fails; leave off what says so, such as the label networking.istio.io/tunnel"
            ));
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
            own_pod: Some(("istio-system".into(), "ztunnel-x".into())),
        };
        let workload = |namespace: &str, name: &str, network: &str, tunnel| {
            let uid = format!("Kubernetes//Pod/{namespace}/{name}");
            let workload = Workload {
                network: network.into(),
                tunnel,
                ..Workload::new(&uid, namespace, name)
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
        let as_assumed = Mesh::default().apply([
            workload("shop", "cart", "net1", TunnelProtocol::Hbone),
            workload("istio-system", "ztunnel-x", "net1", TunnelProtocol::None),
        ]);
        let mut told = |mesh: &Mesh| contradictions.new_of(&config, &pods, mesh);
        assert_eq!(told(&Mesh::default()), [""; 0]);
        assert_eq!(told(&as_assumed), [""; 0]);
        let otherwise = as_assumed.apply([
            workload("shop", "cart", "net2", TunnelProtocol::Hbone),
            workload("istio-system", "ztunnel-x", "net1", TunnelProtocol::Hbone),
        ]);
        let said = told(&otherwise);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("shop/cart") && said[0].contains("\"net2\"") && said[0].contains("\"net1\""));
        assert!(said[1].contains("istio-system/ztunnel-x") && said[1].contains("networking.istio.io/tunnel"));
        assert_eq!(told(&otherwise), [""; 0], "once");
        let nothing = Config::new("n", "/");
        assert_eq!(Contradictions::default().new_of(&nothing, &pods, &otherwise), [""; 0]);
    }
}
