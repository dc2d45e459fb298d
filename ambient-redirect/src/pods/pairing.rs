//! Which namespace is which pod's, by addresses.

use std::{collections::BTreeMap, net::IpAddr};

use ambient_core::PodUid;

use super::{Seen, Unpaired};
use crate::{PodSpec, linux::NetnsId};

pub(super) struct Found {
    pub(super) pairs: Vec<(NetnsId, PodSpec)>,
    pub(super) unpaired: BTreeMap<PodUid, Unpaired>,
}

/// What pods are paired by. The addresses are canonical.
struct There<'a> {
    desired: &'a [PodSpec],
    seen: &'a BTreeMap<NetnsId, Seen>,
    /// The pods that have no namespace.
    waiting: Vec<&'a PodSpec>,
    /// The namespaces that have no pod.
    free: Vec<(NetnsId, Vec<IpAddr>)>,
    held: Vec<Held<'a>>,
}

/// A namespace that has a pod.
struct Held<'a> {
    id: NetnsId,
    there: Vec<IpAddr>,
    pod: &'a PodSpec,
    leaves: bool,
}

/// Pairs pods that have no namespace with namespaces that have no pod. A pairing that stands is never questioned: whoever
/// can give himself another's address could else put that pod outside the mesh. `holder` says which pod a namespace has, and
/// whether it is leaving; `is_not` that one is not a pod's whatever addresses are in it.
pub(super) fn pair<'a>(
    desired: &'a [PodSpec],
    seen: &'a BTreeMap<NetnsId, Seen>,
    holder: impl Fn(NetnsId) -> Option<(&'a PodSpec, bool)>,
    placed: impl Fn(&PodUid) -> bool,
    too_early: impl Fn(NetnsId, &PodUid) -> bool,
    is_not: impl Fn(NetnsId, &PodUid) -> bool,
) -> Found {
    let mut found = Found {
        pairs: Vec::new(),
        unpaired: BTreeMap::new(),
    };
    let mut all = There {
        desired,
        seen,
        waiting: desired.iter().filter(|d| !placed(&d.uid)).collect(),
        free: Vec::new(),
        held: Vec::new(),
    };
    for (id, seen) in seen {
        let (id, there) = (*id, canonical(&seen.addresses));
        match holder(id) {
            Some((pod, leaves)) => all.held.push(Held { id, there, pod, leaves }),
            None => all.free.push((id, there)),
        }
    }

    for spec in &all.waiting {
        let addresses = canonical(&spec.addresses);
        let claim = |(_, there): &&(NetnsId, Vec<IpAddr>)| addresses.iter().any(|ip| there.contains(ip));
        let (doubtful, claims): (Vec<NetnsId>, _) =
            (all.free.iter().filter(claim).map(|(id, _)| *id)).partition(|id| is_not(*id, &spec.uid));
        let verdict = match all.place(spec, &addresses, claims) {
            Ok(Some(id)) if too_early(id, &spec.uid) => Err(Unpaired::JustLeft),
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err(all.lacking(&addresses, &doubtful)),
            Err(why) => Err(why),
        };
        match verdict {
            Ok(id) if found.pairs.iter().any(|(_, other)| other.uid == spec.uid) => {
                // Listed twice.
                let _ = id;
            }
            Ok(id) => found.pairs.push((id, (*spec).clone())),
            Err(why) => {
                found.unpaired.insert(spec.uid.clone(), why);
            }
        }
    }
    found
}

fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

impl There<'_> {
    /// Why a pod has no namespace, where none that is free and beyond doubt has one of its addresses.
    fn lacking(&self, addresses: &[IpAddr], doubtful: &[NetnsId]) -> Unpaired {
        let claim = self.held.iter().find_map(|held| held.why(addresses));
        claim.unwrap_or_else(|| doubtful.first().copied().map_or(Unpaired::Nowhere, Unpaired::Doubtful))
    }

    /// Why a pod waits for a namespace that another has: it may be its own. That is one whose pod is known by the same address, as
    /// where a kubelet's own pod is given another UID, or by nothing. What else a pod that is in the mesh gives itself keeps no other
    /// out.
    fn awaits(&self, spec: &PodSpec, addresses: &[IpAddr]) -> Option<Unpaired> {
        self.held.iter().find_map(|held| {
            let known = canonical(&held.pod.addresses);
            let its_own: Vec<IpAddr> = addresses
                .iter()
                .copied()
                .filter(|ip| known.is_empty() || known.contains(ip))
                .collect();
            let why = held.why(&its_own)?;
            anothers(held.id, &spec.uid, self.desired, self.seen).is_none().then_some(why)
        })
    }

    /// The free namespace that is a pod's, of those that claim an address of it; `None` where none does.
    fn place(&self, spec: &PodSpec, addresses: &[IpAddr], mut claims: Vec<NetnsId>) -> Result<Option<NetnsId>, Unpaired> {
        if addresses.is_empty() {
            return Err(Unpaired::NoAddress);
        }
        if let Some(everyones) = addresses.iter().find(|ip| ip.is_loopback() || ip.is_unspecified()) {
            return Err(Unpaired::NotAPods(*everyones));
        }
        match by_processes(spec, &claims, self.desired, self.seen) {
            // Its own processes run in it: whoever else claims the address is wrong, or gone.
            Some(Ok(own)) => return self.whole(own, addresses),
            Some(Err((namespace, pod))) => return Err(Unpaired::Anothers { namespace, pod }),
            None => claims.retain(|id| anothers(*id, &spec.uid, self.desired, self.seen).is_none()),
        }
        if let Some(why) = self.awaits(spec, addresses) {
            return Err(why);
        }
        let shared = |other: &PodSpec| other.addresses.iter().copied().find(|ip| addresses.contains(&ip.to_canonical()));
        let mut others = self.waiting.iter().filter(|other| other.uid != spec.uid);
        if let Some((other, address)) = others.find_map(|other| Some((other, shared(other)?))) {
            return Err(Unpaired::SameAddress {
                pod: other.to_string(),
                address,
                namespace: None,
            });
        }
        match claims[..] {
            [] => Ok(None),
            [id] => self.whole(id, addresses),
            [first, second, ..] => Err(Unpaired::Two(first, second)),
        }
    }

    /// A namespace that has one address of a pod is the pod's if it has all.
    fn whole(&self, id: NetnsId, addresses: &[IpAddr]) -> Result<Option<NetnsId>, Unpaired> {
        let there = self.free.iter().find(|(i, _)| *i == id).map(|(_, there)| there);
        match addresses.iter().find(|ip| !there.is_some_and(|t| t.contains(ip))) {
            None => Ok(Some(id)),
            Some(missing) => Err(Unpaired::Lacks {
                namespace: id,
                missing: *missing,
            }),
        }
    }
}

impl Held<'_> {
    /// Why this is not another pod's, if it has one of these addresses.
    fn why(&self, addresses: &[IpAddr]) -> Option<Unpaired> {
        let (namespace, address) = (self.id, *addresses.iter().find(|ip| self.there.contains(ip))?);
        Some(match self.leaves {
            true => Unpaired::LetGo { namespace, address },
            false => Unpaired::SameAddress {
                pod: self.pod.to_string(),
                address,
                namespace: Some(namespace),
            },
        })
    }
}

/// Of the namespaces with a pod's address the one in which its processes run, the oldest of them where there are several; or,
/// where there is one alone, the pod that it is of. `None` where processes tell nothing: they cannot be seen, or are of a UID
/// that a kubelet has given to a pod of its own.
fn by_processes(
    spec: &PodSpec,
    claims: &[NetnsId],
    desired: &[PodSpec],
    seen: &BTreeMap<NetnsId, Seen>,
) -> Option<Result<NetnsId, (NetnsId, String)>> {
    let whose = |id: &NetnsId| seen.get(id)?.whose.as_ref();
    let own = claims.iter().filter(|id| whose(id).is_some_and(|w| w.pod == spec.uid));
    if let Some(own) = own.min_by_key(|id| whose(id).map(|w| w.started)) {
        return Some(Ok(*own));
    }
    let [id] = claims else { return None };
    anothers(*id, &spec.uid, desired, seen).map(|other| Err((*id, other)))
}

/// The other pod that a namespace is of, by its processes: one that is meant to be in the mesh, or one that is not. The UIDs that the
/// API server gives have dashes. What has none is of a file of the kubelet's, whose pod is known under another UID: that may be this one.
pub(super) fn anothers(id: NetnsId, uid: &PodUid, desired: &[PodSpec], seen: &BTreeMap<NetnsId, Seen>) -> Option<String> {
    let whose = seen.get(&id)?.whose.as_ref().filter(|whose| whose.pod != *uid)?;
    let known = desired.iter().find(|d| d.uid == whose.pod).map(ToString::to_string);
    known.or_else(|| whose.pod.as_str().contains('-').then(|| format!("the pod {}", whose.pod)))
}

#[cfg(test)]
mod tests {
    use ambient_core::Capture;

    use super::*;
    use crate::{find::Whose, pods::Birth};

    fn spec(uid: &str, address: &str) -> PodSpec {
        PodSpec {
            uid: uid.into(),
            namespace: "shop".into(),
            name: uid.into(),
            service_account: "default".into(),
            addresses: vec![address.parse().unwrap()],
            capture: Capture::default(),
            has_run: true,
        }
    }

    fn id(ino: u64) -> NetnsId {
        NetnsId { dev: 4, ino }
    }

    /// Inode, address, and the pod and start of the oldest process.
    type At<'a> = (u64, &'a str, Option<(&'a str, u64)>);

    fn namespaces(of: &[At<'_>]) -> BTreeMap<NetnsId, Seen> {
        let seen = |(ino, address, whose): &At<'_>| {
            let whose = whose.map(|(pod, started)| Whose {
                pod: pod.into(),
                started,
                pid: 1,
            });
            let seen = Seen {
                addresses: vec![address.parse().unwrap()],
                left_behind: None,
                birth: Birth::Running,
                whose,
            };
            (id(*ino), seen)
        };
        of.iter().map(seen).collect()
    }

    fn paired(desired: &[PodSpec], seen: &BTreeMap<NetnsId, Seen>) -> (BTreeMap<String, u64>, BTreeMap<String, String>) {
        let found = pair(desired, seen, |_| None, |_| false, |_, _| false, |_, _| false);
        let pairs = found.pairs.into_iter().map(|(id, spec)| (spec.uid.to_string(), id.ino));
        let unpaired = found.unpaired.into_iter().map(|(uid, why)| (uid.to_string(), why.to_string()));
        (pairs.collect(), unpaired.collect())
    }

    #[test]
    fn of_several_namespaces_with_its_address_a_pod_has_the_one_its_processes_run_in() {
        let desired = [spec("a", "10.0.0.2")];
        let (pairs, unpaired) = paired(&desired, &namespaces(&[(7, "10.0.0.2", None), (8, "10.0.0.2", None)]));
        assert!(pairs.is_empty() && unpaired["a"].contains("two namespaces"));
        let (pairs, _) = paired(&desired, &namespaces(&[(7, "10.0.0.2", None), (8, "10.0.0.2", Some(("a", 5)))]));
        assert_eq!(pairs["a"], 8);
        let several = namespaces(&[
            (7, "10.0.0.2", Some(("a", 9))),
            (8, "10.0.0.2", Some(("a", 5))),
            (9, "10.0.0.9", Some(("a", 1))),
        ]);
        assert_eq!(
            paired(&desired, &several).0["a"],
            8,
            "the oldest process's, among those with the address"
        );
        // A process elsewhere is no reason: the address must be there.
        let (pairs, unpaired) = paired(&desired, &namespaces(&[(9, "10.0.0.9", Some(("a", 1)))]));
        assert!(pairs.is_empty() && unpaired["a"].contains("no network namespace"), "{unpaired:?}");
    }

    #[test]
    fn a_namespace_without_one_of_its_addresses_is_not_a_pods() {
        let mut pod = spec("a", "10.0.0.2");
        pod.addresses.push("fd00::2".parse().unwrap());
        // Not by its processes either: it may not be wired up yet.
        for whose in [None, Some(("a", 5))] {
            let mut seen = namespaces(&[(7, "10.0.0.2", whose)]);
            let (pairs, unpaired) = paired(std::slice::from_ref(&pod), &seen);
            assert!(pairs.is_empty() && unpaired["a"].contains("fd00::2"), "{unpaired:?}");
            seen.values_mut().for_each(|seen| seen.addresses.push("fd00::2".parse().unwrap()));
            assert_eq!(paired(std::slice::from_ref(&pod), &seen).0["a"], 7);
        }
    }

    #[test]
    fn what_is_another_pods_by_its_processes_is_not_given_away() {
        let desired = [spec("new", "10.0.0.2"), spec("old", "10.0.0.2")];
        // Both claim the address: one of them has processes where it is.
        let (pairs, unpaired) = paired(&desired, &namespaces(&[(7, "10.0.0.2", Some(("new", 5)))]));
        assert_eq!(pairs, BTreeMap::from([("new".to_owned(), 7)]));
        assert!(
            unpaired["old"].contains("shop/new (new), whose processes run in it"),
            "{unpaired:?}"
        );
        // Each has its own.
        let both = namespaces(&[(7, "10.0.0.2", Some(("new", 5))), (8, "10.0.0.2", Some(("old", 3)))]);
        assert_eq!(
            paired(&desired, &both).0,
            BTreeMap::from([("new".to_owned(), 7), ("old".to_owned(), 8)])
        );
        // It is not in the mesh.
        let stranger = "2f4b1c3a-0d51-4a5e-9a2b-6a7c8d9e0f10";
        let squatted = namespaces(&[(7, "10.0.0.2", Some((stranger, 5)))]);
        let (pairs, unpaired) = paired(&[spec("victim", "10.0.0.2")], &squatted);
        assert!(pairs.is_empty() && unpaired["victim"].contains(stranger), "{unpaired:?}");
        let beside_its_own = namespaces(&[(7, "10.0.0.2", Some((stranger, 5))), (8, "10.0.0.2", None)]);
        assert_eq!(paired(&[spec("victim", "10.0.0.2")], &beside_its_own).0["victim"], 8);
        // Nobody knows the UID, and it has no dashes: a kubelet's own pod has another in its groups.
        let (pairs, _) = paired(&[spec("mirror", "10.0.0.2")], &namespaces(&[(7, "10.0.0.2", Some(("0123", 5)))]));
        assert_eq!(pairs["mirror"], 7);
    }
}
