//! Sets of policies of ten rules each, and those who connect.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ambient_authz::{Action, Clause, Match, Policies, Policy, Rule, Scope, ServiceAccount, StringMatch, policy::Update};
use ambient_core::{Identity, Workload};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::random::Random;

/// How a rule is written, given its number.
pub(crate) type Write = fn(&mut Random, usize) -> Rule;

/// As many policies, all of the mesh.
pub(crate) fn policies(count: usize, write: Write) -> impl Iterator<Item = Policy> {
    let mut random = Random(count as u64);
    (0..count).map(move |number| policy(number, &mut random, write))
}

fn policy(number: usize, random: &mut Random, write: Write) -> Policy {
    let namespace = format!("team-{}", number % 1000);
    Policy {
        key: format!("{namespace}/policy-{number}").as_str().into(),
        namespace: namespace.as_str().into(),
        scope: Scope::Global,
        action: if number.is_multiple_of(2) { Action::Deny } else { Action::Allow },
        rules: (0..10).map(|rule| write(random, number * 10 + rule)).collect(),
        dry_run: false,
    }
}

/// The same, in force.
pub(crate) fn in_force(count: usize, write: Write) -> Policies {
    Policies::default().apply(policies(count, write).map(|policy| Update::Set(policy.into())))
}

/// The same, of which each applies to a workload in one of some scopes, in turn: those of a selector are listed by it.
pub(crate) fn scoped(count: usize, write: Write, scopes: &[Scope]) -> (Policies, Workload) {
    let mut stock = Workload::new("uid", "shop", "stock");
    let updates = policies(count, write).enumerate().map(|(number, mut policy)| {
        policy.scope = scopes[number % scopes.len()];
        match policy.scope {
            Scope::Global => {}
            Scope::Namespace => policy.namespace = stock.namespace.clone(),
            Scope::Selector => stock.policies.push(policy.key.clone()),
        }
        Update::Set(policy.into())
    });
    let updates: Vec<_> = updates.collect();
    (Policies::default().apply(updates), stock)
}

fn rule(found: Match) -> Rule {
    Rule {
        clauses: vec![found.into()],
    }
}

/// One of 100,000 identities, 60 to 100 bytes long without their scheme.
fn principal(number: usize) -> String {
    let padding = "abcdefghijklmnopqrstuvwxyz0123456789abcdef";
    let padding = &padding[..number * 31 % 40];
    format!(
        "cluster.local/ns/team-{:03}-of-the-mesh/sa/service-{number:06}-x{padding}",
        number % 1000
    )
}

/// Who connects: any of the identities that rules name.
pub(crate) fn peer(random: &mut Random) -> Identity {
    let id = format!("spiffe://{}", principal(random.below(100_000)));
    id.parse().unwrap_or_else(|_| panic!("{id}"))
}

/// Where from: any address of 10.0.0.0/8.
pub(crate) fn address(random: &mut Random) -> IpAddr {
    [10, random.below(256) as u8, random.below(256) as u8, random.below(256) as u8].into()
}

/// What most meshes have: an identity may, or may not, reach a port. Nobody connects to these ports.
pub(crate) fn ordinary(random: &mut Random, _: usize) -> Rule {
    rule(Match {
        principals: vec![StringMatch::Exact(principal(random.below(100_000)).into())],
        destination_ports: vec![9000 + random.below(8) as u16],
        ..Match::default()
    })
}

/// 50,000 names, a third each whole, beginning and end of a principal, and 50,000 blocks; each rule asks for one of each,
/// and for a port that nobody connects to.
pub(crate) fn names_and_blocks(random: &mut Random, _: usize) -> Rule {
    let number = random.below(50_000);
    let whole = principal(number * 2);
    let name = match number % 3 {
        0 => StringMatch::Exact(whole.into()),
        1 => StringMatch::Prefix(whole[..whole.len() - 1 - number % 8].into()),
        _ => StringMatch::Suffix(whole[14 + number % 8..].into()),
    };
    rule(Match {
        principals: vec![name],
        source_ips: vec![block(random.below(50_000))],
        destination_ports: vec![9000 + random.below(8) as u16],
        ..Match::default()
    })
}

/// One of 50,000 blocks in 10.0.0.0/8, of 16 to 28 bits.
fn block(number: usize) -> IpNet {
    let bits = 0x0a00_0000 | (number as u32).wrapping_mul(0x9e37_79b1) >> 8;
    let length = if number < 256 { 16 } else { 20 + (number % 9) as u8 };
    let net = Ipv4Net::new(bits.into(), length).unwrap_or_else(|_| panic!("{length}"));
    net.trunc().into()
}

/// Every field is asked for and given, the same in all rules; and in each rule one of them, always another, is refused.
pub(crate) fn every_field(random: &mut Random, number: usize) -> Rule {
    let mut found = Match {
        namespaces: vec![StringMatch::Exact(NAMESPACE.into())],
        principals: vec![StringMatch::Prefix("cluster.local/".into())],
        trust_domains: vec![StringMatch::Exact("cluster.local".into())],
        service_accounts: vec![ServiceAccount {
            namespace: NAMESPACE.into(),
            name: "caller".into(),
        }],
        source_ips: vec![IpNet::from(Ipv4Net::new_assert([10, 0, 0, 0].into(), 8))],
        destination_ips: vec![IpNet::from(Ipv4Net::new_assert([10, 0, 0, 0].into(), 8))],
        destination_ports: vec![8080],
        ..Match::default()
    };
    let other: Arc<str> = format!("other-{}", number % 50_000).into();
    match random.below(5) {
        0 => found.not_namespaces = vec![StringMatch::Exact(NAMESPACE.into()), StringMatch::Exact(other)],
        1 => found.not_principals = vec![StringMatch::Suffix("/caller".into()), StringMatch::Exact(other)],
        2 => found.not_source_ips = vec![IpNet::from(Ipv4Net::new_assert([10, 1, 0, 0].into(), 16))],
        3 => found.not_destination_ports = vec![8080, 1 + number as u16 % 8000],
        _ => found.not_trust_domains = vec![StringMatch::Prefix("cluster".into()), StringMatch::Exact(other)],
    }
    rule(found)
}

/// Everything that a rule asks for is given: one of the many beginnings of a name, and of the many blocks around an
/// address; and another of them is refused.
pub(crate) fn nested(random: &mut Random, number: usize) -> Rule {
    let mut found = Match {
        namespaces: vec![StringMatch::Prefix(NAMESPACE[..random.below(NAMESPACE.len())].into())],
        principals: vec![StringMatch::Prefix(PRINCIPAL[..random.below(PRINCIPAL.len())].into())],
        trust_domains: vec![StringMatch::Exact("cluster.local".into())],
        source_ips: vec![wide(random, [10, 1, 2, 3])],
        destination_ips: vec![wide(random, [10, 9, 8, 7])],
        destination_ports: vec![8080],
        ..Match::default()
    };
    let other: Arc<str> = format!("other-{number}").into();
    match random.below(5) {
        0 => found.not_namespaces = vec![StringMatch::Exact(NAMESPACE.into()), StringMatch::Exact(other)],
        1 => found.not_principals = vec![StringMatch::Prefix(PRINCIPAL[..random.below(PRINCIPAL.len())].into())],
        2 => found.not_source_ips = vec![wide(random, [10, 1, 2, 3])],
        3 => found.not_destination_ports = vec![8080, 1 + number as u16 % 8000],
        _ => {
            found.not_service_accounts = vec![ServiceAccount {
                namespace: NAMESPACE.into(),
                name: "caller".into(),
            }];
        }
    }
    rule(found)
}

/// All rules ask for the same, which is given, and each refuses the port in its own list of ports.
pub(crate) fn refused_port(_: &mut Random, number: usize) -> Rule {
    rule(Match {
        principals: vec![StringMatch::Exact(PRINCIPAL.into())],
        not_destination_ports: vec![8080, (number % 60_000) as u16],
        ..Match::default()
    })
}

/// Each rule asks for the peer's name twice, and the second time for another as well as its own field's.
pub(crate) fn asked_twice(_: &mut Random, number: usize) -> Rule {
    let named = |text: String| Match {
        principals: vec![StringMatch::Exact(text.as_str().into())],
        ..Match::default()
    };
    Rule {
        clauses: vec![named(PRINCIPAL.into()).into(), named(format!("nobody-{}", number % 1000)).into()],
    }
}

/// Clauses of eight and of nine matches, which are not multiplied out: all of the first hit, none of the second does.
pub(crate) fn not_multiplied(_: &mut Random, number: usize) -> Rule {
    let matches = |count: usize, port: u16| Clause {
        matches: (0..count)
            .map(|i| Match {
                principals: vec![StringMatch::Prefix(PRINCIPAL[..20 + i].into())],
                destination_ports: vec![port],
                ..Match::default()
            })
            .collect(),
    };
    Rule {
        clauses: vec![matches(8, 8080), matches(9, 1 + (number % 1000) as u16)],
    }
}

/// Such clauses too, of which the second asks for the name in some matches and for the port in the others, in each with
/// something else that is not given.
pub(crate) fn crossed(random: &mut Random, number: usize) -> Rule {
    let mut rule = not_multiplied(random, number);
    for (i, one) in rule.clauses[1].matches.iter_mut().enumerate().filter(|(i, _)| i % 2 == 1) {
        one.principals = vec![StringMatch::Exact(format!("nobody-{i}").as_str().into())];
        one.destination_ports = vec![8080];
    }
    rule
}

/// Such clauses again, of which all of the first are given, and of the second every match is found by a beginning of the
/// name, and asks for a namespace too that nobody is in.
pub(crate) fn crossed_given(random: &mut Random, number: usize) -> Rule {
    let mut rule = not_multiplied(random, number);
    for one in &mut rule.clauses[1].matches {
        *one = Match {
            principals: vec![StringMatch::Prefix(PRINCIPAL[..random.below(PRINCIPAL.len())].into())],
            namespaces: vec![StringMatch::Exact("nobodys".into())],
            ..Match::default()
        };
    }
    rule
}

/// Clauses of so many matches that no block holds them: all of the first are given, and of the second each but for the namespace.
pub(crate) fn long_clauses(random: &mut Random, _: usize) -> Rule {
    let mut of = |namespace: Option<&str>| Clause {
        matches: (0..2100)
            .map(|_| Match {
                principals: vec![StringMatch::Prefix(PRINCIPAL[..random.below(PRINCIPAL.len())].into())],
                source_ips: vec![wide(random, [10, 1, 2, 3])],
                namespaces: namespace.map(|name| StringMatch::Exact(name.into())).into_iter().collect(),
                ..Match::default()
            })
            .collect(),
    };
    Rule {
        clauses: vec![of(None), of(Some("nobodys"))],
    }
}

/// Each rule is found by a beginning of the name, and asks for another name as well, which more rules ask for.
pub(crate) fn twice_given(random: &mut Random, number: usize) -> Rule {
    let named = |wanted: StringMatch| Match {
        principals: vec![wanted],
        ..Match::default()
    };
    let given = StringMatch::Prefix(PRINCIPAL[..random.below(PRINCIPAL.len())].into());
    let other = StringMatch::Exact(format!("nobody-{}", number % 20).as_str().into());
    Rule {
        clauses: vec![named(given).into(), named(other).into()],
    }
}

/// Every list of a match is in use, with values of every sort: what a rule asks for is given but for one field, or of what it
/// refuses one.
pub(crate) fn every_list(random: &mut Random, number: usize) -> Rule {
    let account = |name: &str| ServiceAccount {
        namespace: NAMESPACE.into(),
        name: name.into(),
    };
    let nobody = || StringMatch::Exact("nobody".into());
    let mut found = Match {
        namespaces: vec![part(random, NAMESPACE)],
        not_namespaces: vec![nobody()],
        principals: vec![part(random, PRINCIPAL)],
        not_principals: vec![nobody()],
        trust_domains: vec![part(random, "cluster.local")],
        not_trust_domains: vec![nobody()],
        service_accounts: vec![account("caller")],
        not_service_accounts: vec![account("nobody")],
        source_ips: vec![wide(random, [10, 1, 2, 3])],
        not_source_ips: vec![wide(random, [172, 16, 1, 1])],
        destination_ips: vec![wide(random, [10, 9, 8, 7])],
        not_destination_ips: vec![wide(random, [172, 16, 1, 1])],
        destination_ports: vec![8080],
        not_destination_ports: vec![1 + (number % 8000) as u16],
    };
    match random.below(14) {
        0 => found.namespaces = vec![nobody()],
        1 => found.not_namespaces = vec![part(random, NAMESPACE)],
        2 => found.principals = vec![nobody()],
        3 => found.not_principals = vec![part(random, PRINCIPAL)],
        4 => found.trust_domains = vec![nobody()],
        5 => found.not_trust_domains = vec![part(random, "cluster.local")],
        6 => found.service_accounts = vec![account("nobody")],
        7 => found.not_service_accounts = vec![account("caller")],
        8 => found.source_ips = vec![IpNet::from(Ipv4Net::new_assert([172, 16, 0, 0].into(), 12))],
        9 => found.not_source_ips = vec![wide(random, [10, 1, 2, 3])],
        10 => found.destination_ips = vec![IpNet::from(Ipv4Net::new_assert([172, 16, 0, 0].into(), 12))],
        11 => found.not_destination_ips = vec![wide(random, [10, 9, 8, 7])],
        12 => found.destination_ports = vec![9000],
        _ => found.not_destination_ports = vec![8080],
    }
    rule(found)
}

/// The same, where every second rule asks about each text from both sides, for something that is not there beside.
pub(crate) fn both_sides(random: &mut Random, number: usize) -> Rule {
    let mut rule = every_list(random, number);
    if number.is_multiple_of(2) {
        let found = &mut rule.clauses[0].matches[0];
        for texts in [&mut found.namespaces, &mut found.principals, &mut found.trust_domains] {
            let beside = match texts[0] {
                StringMatch::Suffix(_) => StringMatch::Prefix("nobody".into()),
                _ => StringMatch::Suffix("/nobody".into()),
            };
            texts.push(beside);
        }
    }
    rule
}

/// What all rules ask for is given, and one thing refused, and besides each of the many beginnings, ends and blocks around
/// what a connection has is asked for by some rules, and refused by some.
pub(crate) fn few_each(random: &mut Random, number: usize) -> Rule {
    let mut rule = every_field(random, number);
    if !number.is_multiple_of(60) {
        return rule;
    }
    let found = &mut rule.clauses[0].matches[0];
    let any = |random: &mut Random, text: &str| {
        let at = random.below(text.len());
        match random.once_in(2) {
            true => StringMatch::Prefix(text[..at].into()),
            false => StringMatch::Suffix(text[at..].into()),
        }
    };
    match random.below(10) {
        0 => found.namespaces = vec![any(random, NAMESPACE)],
        1 | 2 => found.principals = vec![any(random, PRINCIPAL)],
        3 => found.trust_domains = vec![any(random, "cluster.local")],
        4 => found.source_ips = vec![wide(random, [10, 1, 2, 3])],
        5 => found.destination_ips = vec![wide(random, [10, 9, 8, 7])],
        6 => found.not_namespaces = vec![any(random, NAMESPACE)],
        7 | 8 => found.not_principals = vec![any(random, PRINCIPAL)],
        _ => found.not_source_ips = vec![wide(random, [10, 1, 2, 3])],
    }
    rule
}

/// Nothing is asked of names, and every rule asks for blocks at either end, of each of the 129 lengths that there are, and refuses
/// some; one thing fails.
pub(crate) fn addresses(random: &mut Random, number: usize) -> Rule {
    let mut found = Match {
        source_ips: vec![around(random, SOURCE)],
        not_source_ips: vec![around(random, ELSEWHERE)],
        destination_ips: vec![around(random, DESTINATION)],
        not_destination_ips: vec![around(random, ELSEWHERE)],
        destination_ports: vec![8080],
        not_destination_ports: vec![1 + (number % 8000) as u16],
        ..Match::default()
    };
    match random.below(6) {
        0 => found.source_ips = vec![around(random, ELSEWHERE)],
        1 => found.not_source_ips = vec![around(random, SOURCE)],
        2 => found.destination_ips = vec![around(random, ELSEWHERE)],
        3 => found.not_destination_ips = vec![around(random, DESTINATION)],
        4 => found.destination_ports = vec![9000],
        _ => found.not_destination_ports = vec![8080],
    }
    rule(found)
}

/// All rules ask for the same, which is given, and refuse the port; and each of the blocks around both addresses is asked for by so
/// few rules, and refused by so few, that they would be read one by one.
pub(crate) fn few_addresses(random: &mut Random, number: usize) -> Rule {
    let mut found = Match {
        source_ips: vec![IpNet::from(Ipv6Net::new_assert(SOURCE, 16))],
        destination_ips: vec![IpNet::from(Ipv6Net::new_assert(DESTINATION, 16))],
        not_destination_ports: vec![8080],
        ..Match::default()
    };
    if number.is_multiple_of(40) {
        match random.below(4) {
            0 => found.source_ips = vec![around(random, SOURCE)],
            1 => found.not_source_ips = vec![around(random, SOURCE)],
            2 => found.destination_ips = vec![around(random, DESTINATION)],
            _ => found.not_destination_ips = vec![around(random, DESTINATION)],
        }
    }
    rule(found)
}

/// The same of the beginnings and the ends of names as long as Kubernetes lets them be: there are some 800.
pub(crate) fn few_names(random: &mut Random, number: usize) -> Rule {
    let mut found = Match {
        principals: vec![StringMatch::Prefix("cluster.local/".into())],
        namespaces: vec![StringMatch::Prefix("team".into())],
        not_destination_ports: vec![8080],
        ..Match::default()
    };
    if number.is_multiple_of(12) {
        let mut any = |text: &str| {
            let at = random.below(text.len());
            match random.once_in(2) {
                true => StringMatch::Prefix(text[..at].into()),
                false => StringMatch::Suffix(text[at..].into()),
            }
        };
        let principal = long_principal();
        match number / 12 % 4 {
            0 => found.principals = vec![any(&principal)],
            1 => found.not_principals = vec![any(&principal)],
            2 => found.namespaces = vec![any(LONG_NAMESPACE)],
            _ => found.not_namespaces = vec![any(LONG_NAMESPACE)],
        }
    }
    rule(found)
}

/// With a namespace of 63 letters, and an account of 253.
pub(crate) fn long_principal() -> String {
    format!("cluster.local/ns/{LONG_NAMESPACE}/sa/{}", "caller-".repeat(36) + "x")
}

/// A block around an address, of any length.
fn around(random: &mut Random, ip: Ipv6Addr) -> IpNet {
    let length = random.below(129) as u8;
    let net = Ipv6Net::new(ip, length).unwrap_or_else(|_| panic!("{length}"));
    // The whole of the addresses would be given in any case.
    match (length, ip == ELSEWHERE) {
        (0, true) => IpNet::from(Ipv6Net::new_assert(ELSEWHERE, 1)),
        _ => net.trunc().into(),
    }
}

/// All rules ask for the same blocks, each written in a way of its own, and refuse the port.
pub(crate) fn written_anew(random: &mut Random, _: usize) -> Rule {
    let mut any = |length| {
        let ip = [10, random.below(256) as u8, random.below(256) as u8, random.below(256) as u8];
        IpNet::from(Ipv4Net::new_assert(ip.into(), length))
    };
    rule(Match {
        source_ips: vec![any(8)],
        destination_ips: vec![any(8)],
        not_source_ips: vec![IpNet::from(Ipv4Net::new_assert([172, 16, 1, 1].into(), 12))],
        not_destination_ports: vec![8080],
        ..Match::default()
    })
}

/// Each rule asks twice about every field, as sources and conditions do together: once for what is given, and once for what
/// is but for one field.
pub(crate) fn sources_and_conditions(random: &mut Random, number: usize) -> Rule {
    let given = Match {
        namespaces: vec![part(random, NAMESPACE)],
        principals: vec![part(random, PRINCIPAL)],
        source_ips: vec![wide(random, [10, 1, 2, 3])],
        destination_ports: vec![8080],
        ..Match::default()
    };
    Rule {
        clauses: vec![given.into(), every_list(random, number).clauses.remove(0)],
    }
}

/// `every_list`, twice in each rule, as two sources are.
pub(crate) fn two_sources(random: &mut Random, number: usize) -> Rule {
    let mut both = every_list(random, number);
    let other = every_list(random, number + 1).clauses.remove(0);
    both.clauses[0].matches.extend(other.matches);
    both
}

/// `sources_and_conditions`, with four conditions more of which each is given.
pub(crate) fn many_conditions(random: &mut Random, number: usize) -> Rule {
    let mut rule = sources_and_conditions(random, number);
    for _ in 0..4 {
        let given = sources_and_conditions(random, number).clauses.remove(0);
        rule.clauses.insert(0, given);
    }
    rule
}

/// Something that a text has: itself, that it is there, or one of its beginnings or ends.
fn part(random: &mut Random, text: &str) -> StringMatch {
    let at = random.below(text.len());
    match random.below(6) {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Presence,
        2 | 3 => StringMatch::Prefix(text[..at].into()),
        _ => StringMatch::Suffix(text[at..].into()),
    }
}

/// Every rule matches.
pub(crate) fn all_match(_: &mut Random, _: usize) -> Rule {
    rule(Match {
        destination_ports: vec![8080],
        ..Match::default()
    })
}

fn wide(random: &mut Random, ip: [u8; 4]) -> IpNet {
    let length = 8 + random.below(25) as u8;
    let net = Ipv4Net::new(ip.into(), length).unwrap_or_else(|_| panic!("{length}"));
    net.trunc().into()
}

pub(crate) const NAMESPACE: &str = "team-042-of-the-mesh-that-is-watched";
pub(crate) const PRINCIPAL: &str = "cluster.local/ns/team-042-of-the-mesh-that-is-watched/sa/caller";
/// 63 letters.
const LONG_NAMESPACE: &str = "team-042-of-the-mesh-that-is-watched-by-all-of-its-neighbours-x";
pub(crate) const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7);
pub(crate) const DESTINATION: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 8, 7, 6, 5, 4, 3);
/// It shares no bit with those.
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 1, 1, 1, 1);
