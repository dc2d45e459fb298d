//! Addresses that nobody has told, and whether the answer hangs on them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ambient_authz::{Conn, Policies, decide, explain::Field};
use ambient_core::Workload;

/// What is known of a connection's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) source: bool,
    pub(super) destination: bool,
}

/// What an answer comes to where addresses are not known.
#[derive(Debug)]
pub(super) enum Hangs {
    /// No address turns it.
    Not,
    /// These, which were not known, do.
    On(Vec<(Field, IpAddr)>),
    /// There are too many to try.
    Perhaps,
}

/// Whether other addresses than those that stand in a connection would turn the answer.
pub(super) fn hangs(policies: &Policies, workload: &Workload, conn: &Conn<'_>, known: Known) -> Hangs {
    let Some(places) = places(policies, conn, known) else {
        return Hangs::Perhaps;
    };
    let allowed = decide(policies, workload, conn).is_allow();
    let turning = places.iter().find(|other| decide(policies, workload, other).is_allow() != allowed);
    let Some(other) = turning else { return Hangs::Not };
    let differ = [
        (Field::SourceIps, other.source, conn.source),
        (Field::DestinationIps, other.destination.ip(), conn.destination.ip()),
    ];
    let turning = differ.into_iter().filter(|(_, other, own)| other != own);
    Hangs::On(turning.map(|(field, other, _)| (field, other)).collect())
}

/// A connection as it is, and with every other address in the place of one that is not known, as far as policies tell them apart; `None`
/// where these are too many.
///
/// What blocks an address is in changes at their beginnings and behind their ends alone, so these are all that there is to try.
pub(super) fn places<'a>(policies: &Policies, conn: &Conn<'a>, known: Known) -> Option<Vec<Conn<'a>>> {
    let (mut sources, mut destinations) = (BTreeSet::from([conn.source]), BTreeSet::from([conn.destination.ip()]));
    for policy in policies.iter().filter(|_| !(known.source && known.destination)) {
        let matches = policy
            .rules
            .iter()
            .flat_map(|rule| &rule.clauses)
            .flat_map(|clause| &clause.matches);
        for found in matches {
            if !known.source {
                let blocks = found.source_ips.iter().chain(&found.not_source_ips);
                blocks.for_each(|block| note(&mut sources, block.network(), block.broadcast()));
            }
            if !known.destination {
                let blocks = found.destination_ips.iter().chain(&found.not_destination_ips);
                blocks.for_each(|block| note(&mut destinations, block.network(), block.broadcast()));
            }
        }
        if sources.len() * destinations.len() > MOST_TRIED {
            return None;
        }
    }
    let each = sources.iter().flat_map(|source| {
        destinations.iter().map(|destination| Conn {
            peer: conn.peer,
            source: *source,
            destination: SocketAddr::new(*destination, conn.destination.port()),
        })
    });
    Some(each.collect())
}

/// Notes where a block begins, and where it is over.
fn note(edges: &mut BTreeSet<IpAddr>, first: IpAddr, last: IpAddr) {
    edges.insert(first);
    edges.extend(behind(last));
    // Of the other family nothing is in it.
    edges.insert(match first {
        IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
    });
}

/// The next address.
fn behind(last: IpAddr) -> Option<IpAddr> {
    match last {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

/// So many answers are tried before it is taken for open.
const MOST_TRIED: usize = 20_000;
