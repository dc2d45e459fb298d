//! Virtual addresses for hosts of ServiceEntries that have none: made from their names, so that every node makes the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::kinds::ServiceEntry;

/// A host of a namespace.
pub(super) type Host = (Arc<str>, Arc<str>);

/// Who has which IPv4 address: of two the first by name. Of IPv6 addresses there are so many that nobody shares one.
#[derive(Debug, Default)]
pub(super) struct Vips {
    claims: BTreeMap<Ipv4Addr, BTreeMap<Host, BTreeSet<Arc<str>>>>,
}

impl Vips {
    /// A ServiceEntry asks for an address of a host, or no longer does. Gives the hosts whose addresses may be others now.
    pub(super) fn claim(&mut self, host: &Host, entry: &Arc<str>, there: bool) -> Vec<Host> {
        let ip = v4(host);
        let claims = self.claims.entry(ip).or_default();
        let before = claims.keys().next().cloned();
        if there {
            claims.entry(host.clone()).or_default().insert(entry.clone());
        } else if let Some(entries) = claims.get_mut(host) {
            entries.remove(entry);
            if entries.is_empty() {
                claims.remove(host);
            }
        }
        let after = claims.keys().next().cloned();
        if claims.is_empty() {
            self.claims.remove(&ip);
        }
        if before == after {
            return Vec::new();
        }
        before.into_iter().chain(after).collect()
    }

    /// The addresses of a host that asks for them.
    pub(super) fn of(&self, host: &Host) -> Vec<IpAddr> {
        let ip = v4(host);
        let has = self.claims.get(&ip).and_then(|claims| claims.keys().next()) == Some(host);
        has.then_some(IpAddr::V4(ip)).into_iter().chain([v6(host).into()]).collect()
    }

    /// Who has the IPv4 address that a host would have.
    pub(super) fn holder(&self, host: &Host) -> Option<&Host> {
        self.claims.get(&v4(host))?.keys().next().filter(|holder| *holder != host)
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }
}

/// The hosts of a ServiceEntry that are given addresses: Istio's rule, less those that a controller has seen to.
pub(super) fn wanting(entry: &ServiceEntry) -> impl Iterator<Item = &String> {
    let own = !entry.spec.addresses.is_empty();
    let declined = entry
        .metadata
        .label(ENABLE)
        .is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let may = !own && !declined && entry.resolution() != super::kinds::Resolution::None;
    let hosts = entry.spec.hosts.iter().filter(move |_| may);
    hosts.filter(|host| (!host.starts_with('*') || entry.is_dynamic()) && given(entry, host).next().is_none())
}

/// The addresses that a controller has given a host.
pub(super) fn given<'a>(entry: &'a ServiceEntry, host: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
    let of_host = entry.status.addresses.iter().filter(move |a| {
        // A service has its host in small letters, whatever it is written in.
        let of = a.host.as_deref();
        of.is_some_and(|of| of.eq_ignore_ascii_case(host))
    });
    of_host.filter_map(|a| a.value.parse().ok())
}

/// In 240.240.0.0/16, as Istio's are.
fn v4(host: &Host) -> Ipv4Addr {
    // Neither the first address nor the last.
    let at = u16::try_from(hash(host) % 65_534).unwrap_or(0) + 1;
    let [high, low] = at.to_be_bytes();
    Ipv4Addr::new(240, 240, high, low)
}

/// In 2001:2::/48, as Istio's are.
fn v6(host: &Host) -> Ipv6Addr {
    let low = u128::from(hash(host).max(1));
    Ipv6Addr::from_bits(0x2001_0002_u128 << 96 | low)
}

/// FNV-1a: the same in every process, whoever built it.
fn hash((namespace, host): &Host) -> u64 {
    let bytes = namespace.bytes().chain([b'/']).chain(host.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const ENABLE: &str = "networking.istio.io/enable-autoallocate-ip";
