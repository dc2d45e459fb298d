//! Who has which address: the address plan of the cluster, and the addresses that a node gives to its pods.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// The IP families of a cluster, as its nodes, pods and DNS have addresses of them. `127.0.0.1` and `::1` are beside that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// Both, IPv4 first.
    #[default]
    Both,
    /// IPv4; IPv6 is switched off in every namespace.
    V4,
    /// IPv6; there is no IPv4 address but on the loopback devices.
    V6,
}

impl Families {
    /// Whether an address is of one of them.
    pub fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Both => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }

    /// Of a pair, what is of them.
    pub(crate) fn of(self, pair: Pair) -> Vec<IpAddr> {
        pair.both().into_iter().filter(|address| self.has(*address)).collect()
    }

    /// The cluster DNS, whose address every `resolv.conf` names.
    pub fn cluster_dns(self) -> IpAddr {
        match self {
            Self::Both | Self::V4 => CLUSTER_DNS.into(),
            Self::V6 => CLUSTER_DNS_V6.into(),
        }
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The cluster DNS, where there is IPv4.
pub const CLUSTER_DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const CLUSTER_DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10);

/// Where a pod's default route for IPv6 leads: the link-local address of its node's end of the veth pair.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The same for IPv4.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The address of a node (numbered from 1) on the link between the nodes.
pub(crate) fn node(number: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(172, 18, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, number.into()),
    }
}

/// The link-local address of a node on that link. Its own, of which no duplicate is looked for: until that was done,
/// the kernel would ask no neighbour for anybody.
pub(crate) fn node_link_local(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, number.into())
}

/// The networks of a node's pods.
pub(crate) fn pod_networks(node: u8) -> [IpNet; 2] {
    let first = pod(node, 0);
    [net(first.v4, 24), net(first.v6, 64)]
}

/// The networks of cluster IPs. A program of a node finds a way to them only if there is a route, though its packets
/// get another destination before they leave.
pub(crate) fn service_networks() -> [IpNet; 2] {
    [
        net(Ipv4Addr::new(10, 96, 0, 0), 16),
        net(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 64),
    ]
}

/// An address with the length of its prefix; longer than the family allows is the whole address.
pub(crate) fn net(address: impl Into<IpAddr>, prefix: u8) -> IpNet {
    let address = address.into();
    IpNet::new(address, prefix).unwrap_or_else(|_| IpNet::from(address))
}

fn pod(node: u8, host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 244, node, host),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host.into()),
    }
}

/// The addresses of one node's pods: the lowest free one is given first, so that an address comes back at once.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    node: u8,
    taken: BTreeSet<u8>,
}

impl Addresses {
    pub(crate) fn new(node: u8) -> Self {
        Self {
            node,
            taken: BTreeSet::new(),
        }
    }

    /// Takes the lowest free address of both families; `None` when all 250 are taken.
    pub(crate) fn take(&mut self) -> Option<Pair> {
        let host = (FIRST..=LAST).find(|host| !self.taken.contains(host))?;
        self.taken.insert(host);
        Some(pod(self.node, host))
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, pair: Pair) {
        self.taken.remove(&pair.v4.octets()[3]);
    }
}

const FIRST: u8 = 5;
const LAST: u8 = 254;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_address_comes_back() {
        let mut addresses = Addresses::new(2);
        let first = addresses.take().unwrap();
        assert_eq!(first.both().map(|a| a.to_string()), ["10.244.2.5", "fd00:10:244:2::5"]);
        let second = addresses.take().unwrap();
        assert_ne!(first, second);
        addresses.give_back(first);
        assert_eq!(addresses.take(), Some(first));
        assert_eq!((0..300).filter_map(|_| addresses.take()).count(), 248);
    }
}
