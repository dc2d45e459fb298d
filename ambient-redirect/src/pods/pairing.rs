//! Which namespace is which pod's, by addresses.

use std::{collections::BTreeMap, net::IpAddr};

use ambient_core::PodUid;

use super::Seen;
use crate::{PodSpec, linux::NetnsId};

pub(super) struct Found {
    pub(super) pairs: Vec<(NetnsId, PodSpec)>,
    pub(super) unpaired: BTreeMap<PodUid, String>,
}

/// Pairs pods that have no namespace with namespaces that have no pod. A pairing that stands is never questioned: whoever
/// can give himself another's address could else put that pod outside the mesh.
pub(super) fn pair(
    desired: &[PodSpec],
    seen: &BTreeMap<NetnsId, Seen>,
    taken: impl Fn(NetnsId) -> bool,
    placed: impl Fn(&PodUid) -> bool,
    too_early: impl Fn(NetnsId, &PodUid) -> bool,
) -> Found {
    let mut found = Found {
        pairs: Vec::new(),
        unpaired: BTreeMap::new(),
    };
    let waiting: Vec<&PodSpec> = desired.iter().filter(|d| !placed(&d.uid)).collect();
    let free: Vec<(NetnsId, Vec<IpAddr>)> = seen
        .iter()
        .filter(|(id, _)| !taken(**id))
        .map(|(id, s)| (*id, s.addresses.iter().map(IpAddr::to_canonical).collect()))
        .collect();

    for spec in &waiting {
        let addresses: Vec<IpAddr> = spec.addresses.iter().map(IpAddr::to_canonical).collect();
        let verdict = place(spec, &addresses, &waiting, &free).and_then(|id| {
            if too_early(id, &spec.uid) {
                Err("its namespace served another pod until now".into())
            } else {
                Ok(id)
            }
        });
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

fn place(spec: &PodSpec, addresses: &[IpAddr], waiting: &[&PodSpec], free: &[(NetnsId, Vec<IpAddr>)]) -> Result<NetnsId, String> {
    if addresses.is_empty() {
        return Err("it has no address yet".into());
    }
    if let Some(everyones) = addresses.iter().find(|ip| ip.is_loopback() || ip.is_unspecified()) {
        return Err(format!("{everyones} is no pod's address"));
    }
    let same = |other: &&&PodSpec| other.uid != spec.uid && other.addresses.iter().any(|ip| addresses.contains(&ip.to_canonical()));
    if let Some(other) = waiting.iter().find(same) {
        return Err(format!("{other} has the same address"));
    }
    let claims: Vec<NetnsId> = free
        .iter()
        .filter(|(_, there)| addresses.iter().any(|ip| there.contains(ip)))
        .map(|(id, _)| *id)
        .collect();
    match claims[..] {
        [] => Err("no network namespace with its addresses is to be seen".into()),
        [id] => {
            let there = free.iter().find(|(i, _)| *i == id).map(|(_, there)| there);
            match addresses.iter().find(|ip| !there.is_some_and(|t| t.contains(ip))) {
                None => Ok(id),
                Some(missing) => Err(format!("the namespace {id} lacks its address {missing}")),
            }
        }
        [first, second, ..] => Err(format!("two namespaces, {first} and {second}, have its address")),
    }
}
