//! Who listens on the proxy's ports. A pod may have as many sockets that listen as it likes, and none of them is held.

use std::collections::{BTreeSet, HashSet};

use super::{ApplyError, Difference, Inside, is_marked};
use crate::{
    netlink::{Listener, Transport},
    plan::{IpFamily, Port, Protocol},
};

impl Inside {
    /// Which ports the proxy does not listen on, or somebody else does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn unserved(&mut self, ports: &[Port], families: &[IpFamily]) -> Result<Vec<Difference>, ApplyError> {
        let made = self.own.listeners();
        let is_proxys = |l: &Listener| match made.is_empty() {
            true => is_marked(l.mark),
            false => made.contains(&l.inode),
        };
        let mut found = Served::default();
        for transport in transports(ports) {
            found = self.sockets.gather_listeners(transport, found, |found, l| {
                if made.contains(&l.inode) {
                    found.open.insert(l.inode);
                }
                let Some(port) = ports.iter().find(|port| l.is_at(**port)) else {
                    return;
                };
                match is_proxys(&l) {
                    true => found.served.extend(families.iter().filter(|f| l.serves(**f)).map(|f| (*port, *f))),
                    false => drop(found.foreign.insert(*port)),
                }
            })?;
        }
        let mut differences = Vec::new();
        for port in ports {
            differences.extend(found.foreign.contains(port).then_some(Difference::ForeignListener(*port)));
            let lacking = families.iter().filter(|family| !found.served.contains(&(*port, **family)));
            differences.extend(lacking.map(|family| Difference::Listener(*port, *family)));
        }
        if transports(ports).count() == TRANSPORTS.len() {
            let closed: Vec<u32> = made.into_iter().filter(|inode| !found.open.contains(inode)).collect();
            self.own.closed(&closed);
        }
        Ok(differences)
    }

    /// A port on which somebody listens without the mark that every proxy's sockets bear.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) fn usurped(&mut self, ports: &[Port]) -> Result<Option<Difference>, ApplyError> {
        let mut taken: BTreeSet<Port> = BTreeSet::new();
        for transport in TRANSPORTS {
            taken = self.sockets.gather_listeners(transport, taken, |taken, l| {
                // A kernel that tells of no mark tells of nobody's.
                let is_strange = l.mark.is_some() && !is_marked(l.mark);
                taken.extend(ports.iter().filter(|port| is_strange && l.is_at(**port)));
            })?;
        }
        Ok(ports
            .iter()
            .find(|port| taken.contains(port))
            .copied()
            .map(Difference::ForeignListener))
    }
}

/// What was found of the proxy's ports, of however many sockets that listen.
#[derive(Clone, Debug, Default)]
struct Served {
    /// Where somebody else listens.
    foreign: BTreeSet<Port>,
    /// Where the proxy does.
    served: BTreeSet<(Port, IpFamily)>,
    /// Of the sockets that were made to listen, those that do.
    open: HashSet<u32>,
}

/// By which these ports are.
fn transports(ports: &[Port]) -> impl Iterator<Item = Transport> {
    let udp = ports.iter().any(|port| port.protocol == Protocol::Udp);
    TRANSPORTS.into_iter().filter(move |transport| udp || *transport == Transport::Tcp)
}

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];
