//! IPv4 addresses written as IPv6 ones, in policies and in peers, through both doors and in both modes.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::net::{IpAddr, Ipv6Addr};

use ambient_authz::{
    Conn, Peer, Policies, Policy, decide,
    kubernetes::{self, AuthorizationPolicy},
    policy::Update,
    wire,
};
use ambient_core::Workload;
use serde_json::{Value, json};

const BLOCKS: [&str; 10] = [
    "10.0.0.0/8",
    "10.0.0.1",
    "0.0.0.0/0",
    "::ffff:10.0.0.0/104",
    "::ffff:10.0.0.1",
    "::ffff:0:0/96",
    // What is mapped is a part of these, and no peer is in that part.
    "::ffff:0:0/95",
    "::/0",
    "fd00::/8",
    "::10.0.0.1",
];
const ADDRESSES: [&str; 7] = [
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "10.9.9.9",
    "::ffff:192.0.2.1",
    "192.0.2.1",
    "fd00::1",
    "::10.0.0.1",
];

/// Whether a block holds an address; blocks that are written as mapped ones count as IPv4 if `canonical`.
fn hits(block: &str, address: IpAddr, canonical: bool) -> bool {
    let (base, length) = block.split_once('/').unwrap_or((block, ""));
    let base: IpAddr = base.parse().unwrap();
    let (base, bits) = match base {
        IpAddr::V4(base) => (u128::from(u32::from(base)), 32),
        IpAddr::V6(base) => (u128::from(base), 128),
    };
    let mut length = length.parse().unwrap_or(bits);
    let (mut base, mut bits) = (base, bits);
    if canonical && bits == 128 && length >= 96 && Ipv6Addr::from(base).to_ipv4_mapped().is_some() {
        (base, bits, length) = (base & u128::from(u32::MAX), 32, length - 96);
    }
    let (address, of) = match address.to_canonical() {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    of == bits && (length == 0 || (base ^ address) >> (bits - length) == 0)
}

/// Where a block can stand: whether it is about the source, and whether it is a negative.
const PLACES: [(bool, bool); 4] = [(true, false), (true, true), (false, false), (false, true)];

/// A policy by a Kubernetes resource: a source of its own where there is a field for it, and a condition.
fn resources(block: &str, (source, negative): (bool, bool), action: &str) -> Vec<Value> {
    let values = if negative { "notValues" } else { "values" };
    let key = if source { "source.ip" } else { "destination.ip" };
    let mut rules = vec![json!({ "when": [{ "key": key, values: [block] }] })];
    if source {
        let field = if negative { "notIpBlocks" } else { "ipBlocks" };
        rules.push(json!({ "from": [{ "source": { field: [block] } }] }));
    }
    let resource = |rule| {
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "shop" },
            "spec": { "action": action, "rules": [rule] },
        })
    };
    rules.into_iter().map(resource).collect()
}

/// The same as a control plane sends it: the bytes that are written.
fn sent(block: &str, (source, negative): (bool, bool), action: &str) -> wire::Authorization {
    let (base, length) = block.split_once('/').unwrap_or((block, ""));
    let address = match base.parse().unwrap() {
        IpAddr::V4(base) => base.octets().to_vec(),
        IpAddr::V6(base) => base.octets().to_vec(),
    };
    let length = length.parse().unwrap_or(address.len() as u32 * 8);
    let blocks = vec![wire::Address { address, length }];
    let found = match (source, negative) {
        (true, false) => wire::Match {
            source_ips: blocks,
            ..Default::default()
        },
        (true, true) => wire::Match {
            not_source_ips: blocks,
            ..Default::default()
        },
        (false, false) => wire::Match {
            destination_ips: blocks,
            ..Default::default()
        },
        (false, true) => wire::Match {
            not_destination_ips: blocks,
            ..Default::default()
        },
    };
    wire::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 1,
        action: (action == "DENY").into(),
        rules: vec![wire::Rule {
            clauses: vec![wire::Clause { matches: vec![found] }],
        }],
        dry_run: false,
    }
}

/// Asks about every address at the end that the block is about, and compares; gives how many that were.
fn compare(policy: Policy, exact: bool, block: &str, (source, negative): (bool, bool), action: &str, canonical: bool) -> usize {
    let empty = if exact { Policies::istio_exact() } else { Policies::default() };
    let policies = empty.apply([Update::Set(policy.into())]);
    let stock = Workload::new("uid", "shop", "stock");
    for address in ADDRESSES {
        let (here, other): (IpAddr, IpAddr) = (address.parse().unwrap(), "203.0.113.1".parse().unwrap());
        let (from, to) = if source { (here, other) } else { (other, here) };
        let conn = Conn {
            peer: &Peer::plaintext(),
            source: from,
            destination: (to, 80).into(),
        };
        let holds = hits(block, here, canonical) != negative;
        let allowed = decide(&policies, &stock, &conn).is_allow();
        assert_eq!(
            allowed,
            holds == (action == "ALLOW"),
            "{block} for {address}, exact {exact}, source {source}, negative {negative}, {action}"
        );
    }
    ADDRESSES.len()
}

/// Peers are compared by their IPv4 addresses however their socket writes them. A block that is written as a mapped one
/// means IPv4 in a resource; as istiod reads it, and on the wire, it is the sender's, and holds nobody.
#[test]
fn mapped_addresses_are_ipv4_and_mapped_blocks_only_where_they_are_read_safely() {
    let mut asked = 0;
    for (block, place, action) in BLOCKS.iter().flat_map(|block| {
        let places = PLACES.iter().map(move |place| (*block, *place));
        places.flat_map(|(block, place)| ["ALLOW", "DENY"].map(|action| (block, place, action)))
    }) {
        for exact in [false, true] {
            let settings = match exact {
                true => kubernetes::Settings::istio_exact(),
                false => kubernetes::Settings::default(),
            };
            for written in resources(block, place, action) {
                let resource: AuthorizationPolicy = serde_json::from_value(written).unwrap();
                let reading = kubernetes::read(&resource, &settings).unwrap();
                let canonical = !exact && block.starts_with("::ffff") && !block.ends_with("/95");
                assert_eq!(reading.warnings.len(), usize::from(canonical), "{block}: {:?}", reading.warnings);
                asked += compare(reading.policy.unwrap(), exact, block, place, action, !exact);
            }
            let settings = match exact {
                true => wire::Settings::istio_exact(),
                false => wire::Settings::default(),
            };
            let policy = wire::read(&sent(block, place, action), &settings).unwrap();
            asked += compare(policy, exact, block, place, action, false);
        }
    }
    assert!(asked > 2000, "{asked}");
}
