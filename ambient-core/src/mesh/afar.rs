//! Workloads behind the gateways of networks, found by what their connections say of them: of what comes through a gateway the
//! address is the gateway's.

use std::sync::Arc;

use crate::{Identity, Shards, Workload, WorkloadUid, headers::Baggage};

/// The workloads of an owner that are behind a gateway. A mesh of one network has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Afar(Shards<Owner, Shards<WorkloadUid, Arc<Workload>>>);

/// A namespace, and the name of what owns workloads in it.
type Owner = (Arc<str>, Arc<str>);

impl Afar {
    pub(super) fn put(&mut self, workload: &Arc<Workload>) {
        let Some(owner) = owner(workload) else { return };
        let (uid, workload) = (workload.uid.clone(), workload.clone());
        match self.0.value_mut(&owner) {
            Some(all) => drop(all.insert(uid, workload)),
            None => {
                let mut all = Shards::default();
                all.insert(uid, workload);
                self.0.insert(owner, all);
            }
        }
    }

    pub(super) fn take(&mut self, old: &Workload) {
        let Some(owner) = owner(old) else { return };
        if let Some(all) = self.0.value_mut(&owner) {
            all.remove(&old.uid);
            if all.is_empty() {
                self.0.remove(&owner);
            }
        }
    }

    pub(super) fn find(&self, said: &Baggage, proven: &Identity) -> Option<&Arc<Workload>> {
        let (_, owner) = said.workload.as_ref()?;
        let owner: Owner = (said.namespace.as_deref()?.into(), owner.as_str().into());
        let mut some = self.0.get(&owner)?.values().take(MOST);
        some.find(|workload| is_said(workload, said) && workload.bears(proven))
    }
}

/// `None` for who is not behind a gateway, or goes by no owner's name.
fn owner(workload: &Workload) -> Option<Owner> {
    let is_afar = workload.network_gateway.is_some() && !workload.workload_name.is_empty();
    is_afar.then(|| (workload.namespace.clone(), workload.workload_name.clone()))
}

/// Whether all that is said is so, and nothing is left out.
fn is_said(workload: &Workload, said: &Baggage) -> bool {
    let kind = said.workload.as_ref().map(|(kind, _)| *kind);
    let pairs = [
        (&said.cluster, &workload.cluster),
        (&said.service, &workload.canonical_name),
        (&said.revision, &workload.canonical_revision),
        (&said.region, &workload.locality[0]),
        (&said.zone, &workload.locality[1]),
    ];
    kind == Some(workload.kind) && pairs.iter().all(|(said, known)| said.as_deref().unwrap_or_default() == &***known)
}

/// So many of an owner are looked at, however many there are: as a rule what is said is so of all of them.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GatewayAddress, GatewayTarget, Mesh, NetworkAddress, WorkloadKind, headers, mesh::Update};

    fn behind(name: &str, zone: &str) -> Workload {
        Workload {
            network: "far".into(),
            network_gateway: Some(GatewayAddress {
                target: GatewayTarget::Address(NetworkAddress::new("far".into(), "192.0.2.1".parse().unwrap())),
                hbone_port: 15008,
            }),
            service_account: "cart".into(),
            cluster: "c2".into(),
            kind: WorkloadKind::Deployment,
            workload_name: "cart".into(),
            canonical_name: "cart".into(),
            canonical_revision: "v1".into(),
            locality: ["r".into(), zone.into(), "".into()],
            ..Workload::new(&format!("c2//Pod/shop/{name}"), "shop", name)
        }
    }

    fn read(text: &str) -> Baggage {
        Baggage::read([text.as_bytes()])
    }

    #[test]
    fn who_is_afar_is_found_by_all_that_is_true_of_it() {
        let (one, other) = (behind("cart-1", "z1"), behind("cart-2", "z2"));
        let near = Workload {
            network_gateway: None,
            workload_name: "near".into(),
            ..behind("near-1", "z1")
        };
        let mesh = Mesh::default().apply([&one, &other, &near].map(|workload| Update::Workload(Arc::new(workload.clone()))));
        let proven = one.identity().unwrap();
        let find = |text: &str| mesh.workload_afar(&read(text), &proven).map(|workload| workload.name.to_string());
        let said = headers::baggage(&one);
        assert_eq!(find(&said).as_deref(), Some("cart-1"));
        assert_eq!(find(&headers::baggage(&other)).as_deref(), Some("cart-2"));
        // Each part that is not so, and each that is left out.
        for part in said.split(',') {
            let (key, value) = part.split_once('=').unwrap();
            assert_eq!(find(&said.replace(part, &format!("{key}={value}x"))), None, "{part}");
            assert_eq!(find(&said.replace(part, "")), None, "{part}");
        }
        assert_eq!(find(&said.replace("deployment", "job")), None);
        assert_eq!(find(&headers::baggage(&near)), None, "it has an address of its own");
        assert_eq!(find(""), None);
        // Nobody is who somebody else is proven to be.
        let stranger = Identity::new(proven.trust_domain(), "shop", "other").unwrap();
        assert!(mesh.workload_afar(&read(&said), &stranger).is_none());
        // What goes, or comes near, is not found any more.
        let gone = mesh.apply([Update::RemoveWorkload(one.uid.clone())]);
        assert!(gone.workload_afar(&read(&said), &proven).is_none());
        assert!(gone.workload_afar(&read(&headers::baggage(&other)), &proven).is_some());
        let moved = Workload {
            network_gateway: None,
            ..one.clone()
        };
        assert!(
            mesh.apply([Update::Workload(moved.into())])
                .workload_afar(&read(&said), &proven)
                .is_none()
        );
        let none = gone.apply([Update::RemoveWorkload(other.uid.clone())]);
        assert!(none.0.afar.0.is_empty(), "nothing is kept of owners that have gone");
    }
}
