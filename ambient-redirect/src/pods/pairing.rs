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
/// can give himself another's address could else put that pod outside the mesh. `holder` says which pod a namespace has, and
/// whether it is leaving.
pub(super) fn pair<'a>(
    desired: &[PodSpec],
    seen: &BTreeMap<NetnsId, Seen>,
    holder: impl Fn(NetnsId) -> Option<(&'a PodSpec, bool)>,
    placed: impl Fn(&PodUid) -> bool,
    too_early: impl Fn(NetnsId, &PodUid) -> bool,
) -> Found {
    let mut found = Found {
        pairs: Vec::new(),
        unpaired: BTreeMap::new(),
    };
    let waiting: Vec<&PodSpec> = desired.iter().filter(|d| !placed(&d.uid)).collect();
    let canonical = |(id, seen): (&NetnsId, &Seen)| (*id, seen.addresses.iter().map(IpAddr::to_canonical).collect());
    let free: Vec<(NetnsId, Vec<IpAddr>)> = seen.iter().filter(|(id, _)| holder(**id).is_none()).map(canonical).collect();
    let held: Vec<(NetnsId, Vec<IpAddr>)> = seen.iter().filter(|(id, _)| holder(**id).is_some()).map(canonical).collect();

    for spec in &waiting {
        let addresses: Vec<IpAddr> = spec.addresses.iter().map(IpAddr::to_canonical).collect();
        let verdict = match place(spec, &addresses, &waiting, &free) {
            Ok(Some(id)) if too_early(id, &spec.uid) => Err("its namespace served another pod until now".into()),
            Ok(Some(id)) => Ok(id),
            Ok(None) => Err(lacking(&addresses, &held, &holder)),
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

/// Why a pod has no namespace, where none that is free has one of its addresses.
fn lacking<'a>(addresses: &[IpAddr], held: &[(NetnsId, Vec<IpAddr>)], holder: impl Fn(NetnsId) -> Option<(&'a PodSpec, bool)>) -> String {
    let claim = held.iter().find_map(|(id, there)| {
        let address = addresses.iter().find(|ip| there.contains(ip))?;
        Some((*id, address, holder(*id)?))
    });
    match claim {
        Some((id, address, (_, true))) => format!("the namespace {id} with its address {address} is being let go by another pod"),
        Some((id, address, (other, false))) => format!("{other} has the same address {address}, and the namespace {id}"),
        None => "no network namespace with its addresses is to be seen".into(),
    }
}

/// The free namespace that is a pod's; `None` where none has an address of it.
fn place(spec: &PodSpec, addresses: &[IpAddr], waiting: &[&PodSpec], free: &[(NetnsId, Vec<IpAddr>)]) -> Result<Option<NetnsId>, String> {
    if addresses.is_empty() {
        return Err("it has no address yet".into());
    }
    if let Some(everyones) = addresses.iter().find(|ip| ip.is_loopback() || ip.is_unspecified()) {
        return Err(format!("{everyones} is no pod's address"));
    }
    let shared = |other: &PodSpec| other.addresses.iter().copied().find(|ip| addresses.contains(&ip.to_canonical()));
    let mut others = waiting.iter().filter(|other| other.uid != spec.uid);
    if let Some((other, address)) = others.find_map(|other| Some((other, shared(other)?))) {
        return Err(format!("{other} has the same address {address}"));
    }
    let claims: Vec<NetnsId> = free
        .iter()
        .filter(|(_, there)| addresses.iter().any(|ip| there.contains(ip)))
        .map(|(id, _)| *id)
        .collect();
    match claims[..] {
        [] => Ok(None),
        [id] => {
            let there = free.iter().find(|(i, _)| *i == id).map(|(_, there)| there);
            match addresses.iter().find(|ip| !there.is_some_and(|t| t.contains(ip))) {
                None => Ok(Some(id)),
                Some(missing) => Err(format!("the namespace {id} lacks its address {missing}")),
            }
        }
        [first, second, ..] => Err(format!("two namespaces, {first} and {second}, have its address")),
    }
}
