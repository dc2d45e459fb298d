//! What whoever has started the node takes for granted of the mesh, against what the mesh says.

use std::{sync::Arc, time::Duration};

use ambient_core::{Identity, IdentityError, Mesh, Network, TrustDomain, Workload};
use ambient_redirect::PodSpec;
use tokio::time;

use crate::{Config, state::State};

/// How long a pod waits for the mesh to say of somebody in its cluster which trust domain it is of: whoever hands pods over waits for
/// five seconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Waits until the mesh says of which trust domain a pod is, or that may be told from others in its cluster; for three seconds at most, and
/// not at all where the node was told. Cancel safe.
pub(crate) async fn settled(config: &Config, pod: &PodSpec, state: &State) {
    if !config.trust_domain_of_mesh {
        return;
    }
    let mut news = state.news();
    let known = async {
        while state.current().is_none_or(|now| alike(config, pod, &now.mesh).is_none()) {
            // An error says that there will be no more.
            if news.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = time::timeout(PATIENCE, known).await;
}

/// Whose certificate a pod is served with.
pub(crate) fn identity(config: &Config, pod: &PodSpec, mesh: Option<&Mesh>) -> Result<Identity, IdentityError> {
    Identity::new(&trust_domain(config, pod, mesh), &pod.namespace, &pod.service_account)
}

/// The trust domain of that: as the node was told, or where it was not, as the mesh says it of the pod.
pub(crate) fn trust_domain(config: &Config, pod: &PodSpec, mesh: Option<&Mesh>) -> TrustDomain {
    let Some(mesh) = mesh.filter(|_| config.trust_domain_of_mesh) else {
        return config.trust_domain.clone();
    };
    alike(config, pod, mesh).map_or_else(|| config.trust_domain.clone(), |workload| workload.trust_domain.clone())
}

/// In which network a pod is: as the mesh says it of the pod, or where it does not know that yet or any more, of others in its cluster. A
/// service's addresses in another network would mean nothing to it.
pub(crate) fn network(config: &Config, pod: &PodSpec, mesh: &Mesh) -> Network {
    mesh.workload_by_pod(&pod.uid)
        .or_else(|| alike(config, pod, mesh))
        .map_or_else(Network::default, |workload| workload.network.clone())
}

/// A workload that is of the same trust domain as a pod: its own, or as long as the mesh does not know that, as may be when a pod has just
/// begun, another of its cluster.
fn alike<'m>(config: &Config, pod: &PodSpec, mesh: &'m Mesh) -> Option<&'m Arc<Workload>> {
    let is_here = |workload: &&Arc<Workload>| workload.cluster == config.cluster_id;
    mesh.workload(&config.workload_of_pod(&pod.namespace, &pod.name))
        .or_else(|| mesh.workloads_of_node(&config.node).find(is_here))
        .or_else(|| mesh.workloads().find(is_here))
}

/// What contradicts it; each is told once.
#[derive(Debug, Default)]
pub(crate) struct Contradictions {
    network: bool,
    domain: bool,
}

impl Contradictions {
    /// Those that are new, of the pods that are served.
    pub(crate) fn new_of<'a>(
        &mut self,
        config: &Config,
        pods: impl IntoIterator<Item = (&'a PodSpec, &'a Identity)> + Clone,
        mesh: &Mesh,
    ) -> Vec<String> {
        let mut new = Vec::new();
        if config.trust_domain_of_mesh && !self.domain {
            let elsewhere = pods.clone().into_iter().find_map(|(pod, served)| {
                let workload = mesh.workload(&config.workload_of_pod(&pod.namespace, &pod.name))?;
                (workload.trust_domain != *served.trust_domain()).then_some((pod, served, &workload.trust_domain))
            });
            if let Some((pod, served, domain)) = elsewhere {
                self.domain = true;
                new.push(format!(
                    "the mesh says that {}/{} is of the trust domain {domain}, and it is served as {served}, which was told from others before \
                     the mesh knew it: nothing is carried for it until it is handed over again or this node starts anew; tell the node the \
                     trust domain of its pods (TRUST_DOMAIN)",
                    pod.namespace, pod.name
                ));
            }
        }
        if let Some(network) = config.assumed.network.as_deref().filter(|_| !self.network) {
            let elsewhere = pods.into_iter().find_map(|(pod, _)| {
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
        // A node of another cluster may have the same name.
        let stranger = Workload {
            node: "n".into(),
            cluster: "other".into(),
            trust_domain: "stranger.example".parse().unwrap(),
            ..Workload::new("other//Pod/shop/a", "shop", "cart")
        };
        let strangers = Mesh::default().apply([Update::Workload(stranger.into())]);
        let elsewhere = strangers.apply([workload("Kubernetes//Pod/shop/a", "m", "elsewhere.example")]);
        let beside = elsewhere.apply([workload("Kubernetes//Pod/shop/b", "n", "beside.example")]);
        let whole = beside.apply([workload("Kubernetes//Pod/shop/cart", "n", "own.example")]);
        let said = |config: &Config, mesh: Option<&Mesh>| trust_domain(config, &pod("cart"), mesh).to_string();
        assert_eq!(said(&config, Some(&whole)), "cluster.local", "as it was told");
        config.trust_domain_of_mesh = true;
        assert_eq!(said(&config, Some(&whole)), "own.example");
        assert_eq!(said(&config, Some(&beside)), "beside.example", "before the mesh knows the pod");
        assert_eq!(said(&config, Some(&elsewhere)), "elsewhere.example");
        for nobody in [Some(&strangers), Some(&Mesh::default()), None] {
            assert_eq!(said(&config, nobody), "cluster.local");
        }
    }

    #[test]
    fn a_pod_that_the_mesh_does_not_know_is_in_the_network_of_those_beside_it() {
        let config = Config::new("n", "/");
        let workload = |uid: &str, node: &str, network: &str, pod: &str| {
            let workload = Workload {
                node: node.into(),
                cluster: uid.split("//").next().unwrap().into(),
                network: network.into(),
                pod: (!pod.is_empty()).then(|| pod.into()),
                ..Workload::new(uid, "shop", "cart")
            };
            Update::Workload(workload.into())
        };
        let mut mesh = Mesh::default();
        for (update, expected) in [
            (workload("other//Pod/shop/a", "m", "", ""), ""),
            (workload("Kubernetes//Pod/shop/a", "m", "elsewhere", ""), "elsewhere"),
            (workload("Kubernetes//Pod/shop/b", "n", "beside", ""), "beside"),
            (workload("Kubernetes//Pod/shop/cart", "n", "by-name", ""), "by-name"),
            (workload("x", "n", "own", "u1"), "own"),
        ] {
            mesh = mesh.apply([update]);
            assert_eq!(network(&config, &pod("cart"), &mesh).as_str(), expected);
        }
    }

    #[test]
    fn who_is_served_as_of_another_trust_domain_is_told_of_once() {
        let mut config = Config::new("n", "/");
        let cart = Workload {
            trust_domain: "own.example".parse().unwrap(),
            ..Workload::new("Kubernetes//Pod/shop/cart", "shop", "cart")
        };
        let mesh = Mesh::default().apply([Update::Workload(cart.into())]);
        let pod = pod("cart");
        let of = |domain: &str| Identity::new(&domain.parse().unwrap(), "shop", "default").unwrap();
        let (guessed, own) = (of("cluster.local"), of("own.example"));
        let mut contradictions = Contradictions::default();
        assert_eq!(contradictions.new_of(&config, [(&pod, &guessed)], &mesh), [""; 0], "as it was told");
        config.trust_domain_of_mesh = true;
        assert_eq!(contradictions.new_of(&config, [(&pod, &own)], &mesh), [""; 0]);
        let said = contradictions.new_of(&config, [(&pod, &guessed)], &mesh);
        assert!(
            said.len() == 1 && said[0].contains("own.example") && said[0].contains("TRUST_DOMAIN"),
            "{said:?}"
        );
        assert_eq!(contradictions.new_of(&config, [(&pod, &guessed)], &mesh), [""; 0], "once");
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
        let (pod, as_whom) = (pod("cart"), Identity::new(&TrustDomain::default(), "shop", "default").unwrap());
        let pods = [(&pod, &as_whom)];
        let mut contradictions = Contradictions::default();
        let as_assumed = Mesh::default().apply([cart("net1")]);
        let mut told = |mesh: &Mesh| contradictions.new_of(&config, pods, mesh);
        assert_eq!(told(&Mesh::default()), [""; 0]);
        assert_eq!(told(&as_assumed), [""; 0]);
        let otherwise = as_assumed.apply([cart("net2")]);
        let said = told(&otherwise);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("shop/cart") && said[0].contains("\"net2\"") && said[0].contains("\"net1\""));
        assert_eq!(told(&otherwise), [""; 0], "once");
        let nothing = Config::new("n", "/");
        assert_eq!(Contradictions::default().new_of(&nothing, pods, &otherwise), [""; 0]);
    }
}
