//! Random policies, workloads and connections, drawn from so few values that they meet.

use std::{net::IpAddr, sync::Arc};

use ambient_authz::{
    Action, Clause, Match, Policy, Rule, Scope, ServiceAccount, StringMatch,
    policy::{Unreadable, Update},
};
use ambient_core::{Identity, PolicyKey, Workload};

/// Numbers that look random and are the same for the same seed (the generator known as SplitMix64).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound as u64) as usize
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn few<T>(&mut self, sparse: usize, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        if !self.once_in(sparse) {
            return Vec::new();
        }
        (0..1 + self.below(most)).map(|_| one(self)).collect()
    }
}

/// How policies are drawn.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// How many keys there are.
    pub(crate) keys: usize,
    pub(crate) most_rules: usize,
    /// A field is used once in so many.
    pub(crate) sparse: usize,
}

pub(crate) fn update(random: &mut Random, shape: Shape) -> Update {
    let key = key(random, shape);
    match random.below(16) {
        0 => Update::Unreadable(unreadable(random, key).into()),
        1 => Update::Kept(unreadable(random, key).into()),
        2 | 3 => Update::Remove(key),
        _ => Update::Set(policy(random, shape, key).into()),
    }
}

fn key(random: &mut Random, shape: Shape) -> PolicyKey {
    // In an order that is not that of the numbers.
    let number = random.below(shape.keys);
    if number == 1 {
        return "a/converted_peer_authentication_p".into();
    }
    format!("{}/p{}", NAMESPACES[number % NAMESPACES.len()], number * 7919 % 1000)
        .as_str()
        .into()
}

fn unreadable(random: &mut Random, key: PolicyKey) -> Unreadable {
    Unreadable {
        namespace: namespace_of(&key),
        key,
        // Seldom the whole mesh: nothing else would be seen.
        scope: if random.once_in(8) {
            Scope::Global
        } else {
            random.of(&[Scope::Namespace, Scope::Selector])
        },
        only_new: random.once_in(2),
        dry_run: random.once_in(5),
        error: format!("no {}", random.below(2)),
    }
}

fn namespace_of(key: &PolicyKey) -> Arc<str> {
    key.as_str().split('/').next().unwrap_or_default().into()
}

fn policy(random: &mut Random, shape: Shape, key: PolicyKey) -> Policy {
    let rules = random.below(shape.most_rules + 1);
    Policy {
        namespace: namespace_of(&key),
        key,
        scope: random.of(&[Scope::Global, Scope::Namespace, Scope::Selector]),
        action: random.of(&[Action::Allow, Action::Deny]),
        rules: (0..rules).map(|_| rule(random, shape)).collect(),
        dry_run: random.once_in(5),
    }
}

fn rule(random: &mut Random, shape: Shape) -> Rule {
    let clauses = if random.once_in(12) { 0 } else { 1 + random.below(3) };
    Rule {
        clauses: (0..clauses).map(|_| clause(random, shape)).collect(),
    }
}

fn clause(random: &mut Random, shape: Shape) -> Clause {
    let matches = match random.below(24) {
        0 => 0,
        // With others these are not multiplied out, and the latter stand in several blocks where those are small.
        1 => 9,
        2 => 14,
        3..7 => 2,
        _ => 1,
    };
    let mut matches: Vec<_> = (0..matches).map(|_| one_match(random, shape)).collect();
    if random.once_in(2) {
        // All ask about the same field.
        matches.iter_mut().for_each(|one| one.destination_ports = vec![port(random)]);
    }
    Clause { matches }
}

fn one_match(random: &mut Random, shape: Shape) -> Match {
    let (yes, no) = (shape.sparse, shape.sparse * 2);
    Match {
        namespaces: random.few(yes, 2, text),
        not_namespaces: random.few(no, 2, text),
        principals: random.few(yes, 3, text),
        not_principals: random.few(no, 2, text),
        trust_domains: random.few(no, 2, text),
        not_trust_domains: random.few(no, 1, text),
        service_accounts: random.few(yes, 2, account),
        not_service_accounts: random.few(no, 1, account),
        source_ips: random.few(yes, 2, block),
        not_source_ips: random.few(no, 2, block),
        destination_ips: random.few(yes, 2, block),
        not_destination_ips: random.few(no, 1, block),
        destination_ports: random.few(yes, 2, port),
        not_destination_ports: random.few(no, 2, port),
    }
}

fn text(random: &mut Random) -> StringMatch {
    let text: Arc<str> = random.of(&TEXTS).into();
    match random.below(8) {
        0..4 => StringMatch::Exact(text),
        4 | 5 => StringMatch::Prefix(text),
        6 => StringMatch::Suffix(text),
        _ => StringMatch::Presence,
    }
}

fn account(random: &mut Random) -> ServiceAccount {
    ServiceAccount {
        namespace: random.of(&NAMESPACES).into(),
        name: random.of(&["x", "y", "not-x"]).into(),
    }
}

fn block(random: &mut Random) -> ipnet::IpNet {
    let text = random.of(&BLOCKS);
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn port(random: &mut Random) -> u16 {
    random.of(&[0, 80, 8080, 9090, 65535])
}

pub(crate) fn workload(random: &mut Random, shape: Shape) -> Workload {
    let mut workload = Workload::new("uid", random.of(&["a", "prod", "elsewhere"]), "w");
    let listed = match random.below(8) {
        0..3 => 0,
        // More than a decision has room for at once.
        3 => 20.min(shape.keys * 2),
        4 => shape.keys / 2,
        _ => 1 + random.below(3),
    };
    workload.policies = (0..listed).map(|_| key(random, shape)).collect();
    workload
}

/// The ends of a connection: who, from where, to where.
pub(crate) type Ends = (Option<Identity>, IpAddr, IpAddr, u16);

pub(crate) fn ends(random: &mut Random) -> Ends {
    let identity = match random.below(6) {
        0 => None,
        _ => {
            let (domain, namespace) = (random.of(&["td", "td2"]), random.of(&NAMESPACES));
            let id = format!("spiffe://{domain}/ns/{namespace}/sa/{}", random.of(&["x", "y", "not-x"]));
            Some(id.parse().unwrap_or_else(|_| panic!("{id}")))
        }
    };
    let mut ip = || {
        let text = random.of(&["10.0.0.1", "10.9.9.1", "192.0.2.1", "fd00::1", "2001:db8::1", "::ffff:10.0.0.1"]);
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    };
    (identity, ip(), ip(), port(random))
}

const NAMESPACES: [&str; 4] = ["a", "prod", "production", "root"];

const TEXTS: [&str; 23] = [
    "",
    "a",
    "prod",
    "production",
    "td",
    "td2",
    "t",
    "td/ns/a/sa/x",
    "td2/ns/prod/sa/x",
    "td/ns/production/sa/y",
    "td/ns/prod",
    "/sa/x",
    "x",
    "uction/sa/y",
    "td2/ns/",
    "td/",
    "td/ns/",
    "td/ns/production",
    "td/ns/production/sa/",
    "/x",
    "prod/sa/x",
    "pr",
    "td/ns/production/sa/not-x and more",
];

const BLOCKS: [&str; 20] = [
    "10.0.0.0/8",
    "10.0.0.1/32",
    "10.0.0.2/32",
    "10.9.9.9/24",
    "10.9.9.1/24",
    "10.9.0.0/17",
    "0.0.0.0/0",
    "128.0.0.0/1",
    "::/0",
    "fd00::/8",
    "fd00::1/128",
    "2001:db8::/32",
    "::ffff:10.0.0.0/104",
    "192.0.2.0/31",
    "10.0.0.0/9",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/31",
    "fd00::/16",
    "fd00::/64",
];
