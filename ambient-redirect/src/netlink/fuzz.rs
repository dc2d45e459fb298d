//! What the fuzz target runs, and what the replay of its corpus runs too: every reader of the kernel's answers. No API: only
//! `fuzz/` sees it.

use super::{
    codec, conntrack, diag,
    nftables::{self, expr, sets, theirs},
    redirected, routing, socket,
};
use crate::netlink::{Connection, Listener, NftRule, Policy, Route, Table, Transport};

#[cfg(test)]
mod tests;

/// Any bytes, as a datagram: each of its messages is an answer to every question that is ever asked. What is read of a message
/// takes no more than a small multiple of its bytes, and what is written again is read as the same.
pub fn answers(datagram: &[u8]) {
    let mut read = 0;
    for message in codec::messages(datagram) {
        read += message.payload.len() + codec::HEADER;
        // An errno and words, as every answer may be one.
        let words = socket::outcome(WHAT, message).err().map_or(0, |error| error.to_string().len());
        assert!(words <= 3 * message.payload.len() + 300, "{words} bytes of words");
        rules(message.payload);
        routes(message.payload);
        connections(message.payload);
    }
    assert!(read <= datagram.len(), "no byte is read twice");
}

fn rules(payload: &[u8]) {
    if let Ok(Table { name, userdata, .. }) = nftables::read_table(WHAT, payload) {
        assert!(name.len() <= 3 * payload.len() && userdata.len() <= payload.len());
    }
    if let Ok(chain) = nftables::read_chain(WHAT, payload) {
        assert!(chain.table.len() + chain.name.len() <= 6 * payload.len());
    }
    if let Ok(rule) = nftables::read_rule(WHAT, payload) {
        held_against_itself(&rule, payload.len());
    }
    for (_, element) in codec::attributes(payload) {
        let _ = sets::read_address(element);
    }
}

/// What is listed is what it is, and says nothing that was not listed.
fn held_against_itself(rule: &NftRule, length: usize) {
    let comparable = expr::comparable(&rule.expressions);
    assert!(comparable == expr::comparable(&rule.expressions));
    let values = comparable
        .iter()
        .flat_map(|(_, attributes)| attributes)
        .map(|(_, value)| value.len());
    assert!(values.sum::<usize>() <= length, "values are parts of what was listed");
    let reading = theirs::read(&rule.expressions);
    assert!(reading.leads_to.iter().map(String::len).sum::<usize>() <= 3 * length);
    let names: usize = comparable.iter().map(|(name, _)| name.len()).sum();
    assert!(names <= 3 * length);
}

fn routes(payload: &[u8]) {
    if let Ok(link) = routing::read_link(payload) {
        assert!(link.name.len() <= 3 * payload.len());
    }
    let _ = routing::read_address(WHAT, payload);
    if let Ok(Some(route)) = routing::read_route(WHAT, payload) {
        let whole = Route {
            destination: route.destination.trunc(),
            // What else it says is not written.
            says_more: false,
            ..route
        };
        let written = routing::route_message(0, 0, &whole);
        let again = routing::read_route(WHAT, &written.bytes()[codec::HEADER..]);
        assert!(again.is_ok_and(|again| again == Some(whole)));
    }
    if let Ok(policy) = routing::policies::read(WHAT, payload) {
        // A device has a short name, and a net is written without what is beyond its prefix.
        let is_named = policy.input.as_ref().is_none_or(|name| name.len() < 16);
        let is_whole = is_named && !policy.asks_more && policy.from.is_none() && policy.to.is_none();
        let policy = Policy {
            input: policy.input.filter(|_| is_named),
            ..policy
        };
        let written = routing::policies::message(0, 0, &policy);
        let again = routing::policies::read(WHAT, &written.bytes()[codec::HEADER..]);
        assert!(again.is_ok_and(|again| !is_whole || again == policy));
    }
}

fn connections(payload: &[u8]) {
    for transport in [Transport::Tcp, Transport::Udp] {
        if let Ok(Some(Listener { local, .. })) = diag::read(WHAT, transport, payload) {
            assert!(payload.len() >= 72, "{local} of nothing");
        }
    }
    if let Ok(Some(Connection { local, remote, .. })) = diag::read_connection(WHAT, payload) {
        assert_eq!(local.ip(), local.ip().to_canonical());
        assert_eq!(remote.ip(), remote.ip().to_canonical());
    }
    if let Some(attributes) = payload.get(4..) {
        let tracked = conntrack::read(attributes);
        let destination = redirected::destination(attributes);
        assert!(tracked.is_none_or(|tracked| destination == Some(tracked.destination)));
    }
}

const WHAT: &str = "reading an answer";
