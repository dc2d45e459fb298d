//! Somebody who may give himself any address: a pod with CAP_NET_ADMIN outside of the mesh.

use super::*;

/// His namespace. It is there all the time, and no pod's.
pub(super) const SQUATTER: u64 = 4;
/// Of a namespace whose network is taken down, or not there yet: the place of its address.
pub(super) const NONE: usize = 3;

#[derive(Default)]
pub(super) struct Squatter {
    /// The addresses that he would have.
    pub(super) would: BTreeSet<IpAddr>,
    /// Those that a namespace was seen with since each pod was told to have them: a pod is told to have an address once its own
    /// namespace has it, and that keeps it until its network is taken down. Who alone has an address when a pod is told of is its pod,
    /// for all that can be known.
    may: BTreeSet<IpAddr>,
}

/// The addresses in the namespaces that are pods'.
type Owned = BTreeMap<NetnsId, Vec<IpAddr>>;

impl Squatter {
    /// Pods are told of, while this is known.
    pub(super) fn hears(&mut self, told: &[PodSpec], known: &Owned) {
        let is_there = |ip: &IpAddr| known.values().any(|addresses| addresses.contains(ip));
        let unseen: Vec<&IpAddr> = told.iter().flat_map(|spec| &spec.addresses).filter(|ip| !is_there(ip)).collect();
        self.may.retain(|ip| !unseen.contains(&ip));
    }

    /// A look comes after another, and does not tell of namespaces with some addresses; gives what is in his namespace. Of some the
    /// network is taken down.
    pub(super) fn follows(&mut self, before: &Owned, after: &Owned, untold: &[IpAddr], is_down: impl Fn(&NetnsId) -> bool) -> Seen {
        for (n, addresses) in after.iter().filter(|(n, _)| !is_down(n)) {
            let had = before.get(n).map_or(&[][..], |had| had);
            self.may.retain(|ip| !had.contains(ip) || addresses.contains(ip));
        }
        self.may.extend(after.values().flatten());
        let may: BTreeSet<IpAddr> = self.may.iter().chain(untold).copied().collect();
        Seen {
            addresses: self.would.intersection(&may).copied().chain([address_of(9)]).collect(),
            left_behind: None,
            birth: Birth::Running,
            whose: None,
        }
    }
}

impl Node {
    /// What is in namespaces but the squatter's. What has a pod of another address is not the next one's meanwhile.
    pub(super) fn owned(&self, seen: &BTreeMap<NetnsId, Seen>) -> Owned {
        let is_its = |n: &NetnsId, ip: &IpAddr| {
            let pod = self.pods.entries.get(n).map(|entry| &entry.pod.addresses);
            pod.is_none_or(|known| known.is_empty() || known.contains(ip))
        };
        let theirs = seen.iter().filter(|(n, _)| **n != id(SQUATTER));
        theirs
            .map(|(n, seen)| (*n, seen.addresses.iter().copied().filter(|ip| is_its(n, ip)).collect()))
            .collect()
    }
}
