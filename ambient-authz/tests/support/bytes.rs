//! Policies, workloads and connections out of bytes: whatever the bytes, there is a value, and the end of them is zeros.

use std::{net::IpAddr, sync::Arc};

use ambient_authz::{
    Action, Conn, Peer, Policies, Policy, Scope,
    policy::{Unreadable, Update},
    wire::{self, Address, Authorization, Clause, Match, Rule, ServiceAccount, StringMatch},
};
use ambient_core::{Identity, PolicyKey, Workload};

pub(crate) struct Bytes<'a>(&'a [u8]);

const TEXTS: [&str; 16] = [
    "",
    "a",
    "prod",
    "production",
    "td",
    "td2",
    "td/ns/a/sa/x",
    "td2/ns/prod/sa/x",
    "td/ns/prod",
    "/sa/x",
    "x",
    "y",
    "uction/sa/y",
    "cluster.local/ns/a/sa/x",
    "spiffe://td/ns/a/sa/x",
    "A",
];
const ADDRESSES: [&[u8]; 8] = [
    &[10, 0, 0, 1],
    &[10, 9, 9, 9],
    &[0, 0, 0, 0],
    &[192, 0, 2, 1],
    &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1],
    &[1, 2, 3],
    &[],
];
const LENGTHS: [u32; 12] = [0, 8, 16, 24, 32, 33, 64, 104, 128, 129, 256, 288];
const PORTS: [u32; 8] = [80, 8080, 443, 0, 65535, 65536, 65616, u32::MAX];
const KEYS: [&str; 6] = ["a/p", "a/q", "prod/p", "prod/q", "root/p", "root/q"];
const PEERS: [&str; 6] = [
    "",
    "spiffe://td/ns/a/sa/x",
    "spiffe://td/ns/production/sa/y",
    "spiffe://td2/ns/prod/sa/x",
    "spiffe://td2/ns/a/sa/y",
    "spiffe://cluster.local/ns/a/sa/x",
];
const IPS: [&str; 6] = ["10.0.0.1", "10.9.9.1", "192.0.2.1", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0"];

/// The two ends of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    peer: Peer,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl Ends {
    pub(crate) fn conn(&self) -> Conn<'_> {
        Conn {
            peer: &self.peer,
            source: self.source,
            destination: (self.destination, self.port).into(),
        }
    }
}

impl<'a> Bytes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of a few, and so in most lists none.
    fn few<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = match self.byte() {
            200..=239 => 1,
            240..=251 => 2,
            252.. => 3,
            _ => 0,
        };
        (0..count).map(|_| one(self)).collect()
    }

    fn several<T>(&mut self, most: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.byte() % (most + 1);
        (0..count).map(|_| one(self)).collect()
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    fn text(&mut self) -> String {
        match self.byte() {
            255 => {
                let length = usize::from(self.byte()).min(self.0.len());
                let (text, rest) = self.0.split_at(length);
                self.0 = rest;
                String::from_utf8_lossy(text).into_owned()
            }
            at => TEXTS[usize::from(at) % TEXTS.len()].into(),
        }
    }

    fn string(&mut self) -> StringMatch {
        match self.byte() % 8 {
            0..=2 => StringMatch::Exact(self.text()),
            3 | 4 => StringMatch::Prefix(self.text()),
            5 => StringMatch::Suffix(self.text()),
            6 => StringMatch::Presence,
            _ => StringMatch::Unset,
        }
    }

    fn account(&mut self) -> ServiceAccount {
        ServiceAccount {
            namespace: self.text(),
            service_account: self.text(),
        }
    }

    fn address(&mut self) -> Address {
        Address {
            address: self.of(&ADDRESSES).into(),
            length: self.of(&LENGTHS),
        }
    }

    fn one_match(&mut self) -> Match {
        Match {
            namespaces: self.few(Self::string),
            not_namespaces: self.few(Self::string),
            principals: self.few(Self::string),
            not_principals: self.few(Self::string),
            source_ips: self.few(Self::address),
            not_source_ips: self.few(Self::address),
            destination_ips: self.few(Self::address),
            not_destination_ips: self.few(Self::address),
            destination_ports: self.few(|b| b.of(&PORTS)),
            not_destination_ports: self.few(|b| b.of(&PORTS)),
            service_accounts: self.few(Self::account),
            not_service_accounts: self.few(Self::account),
        }
    }

    fn rule(&mut self) -> Rule {
        Rule {
            clauses: self.several(3, |b| Clause {
                matches: b.several(2, Self::one_match),
            }),
        }
    }

    fn key(&mut self) -> (&'static str, &'static str) {
        self.of(&KEYS).split_once('/').unwrap_or_default()
    }

    pub(crate) fn authorization(&mut self) -> Authorization {
        let (namespace, name) = self.key();
        Authorization {
            name: name.into(),
            namespace: namespace.into(),
            scope: match self.byte() {
                255 => 3,
                other => i32::from(other % 3),
            },
            action: match self.byte() {
                255 => -1,
                other => i32::from(other % 2),
            },
            dry_run: self.byte() % 8 == 7,
            rules: self.several(3, Self::rule),
        }
    }

    /// What the model holds beyond the wire is put in as well.
    pub(crate) fn policy(&mut self) -> Option<Policy> {
        let mut policy = wire::read(&self.authorization(), &wire::Settings::istio_exact()).ok()?;
        for found in policy.rules.iter_mut().flat_map(|r| &mut r.clauses).flat_map(|c| &mut c.matches) {
            let domain = |b: &mut Self| ambient_authz::StringMatch::Exact(b.of(&["td", "td2"]).into());
            found.trust_domains = self.few(domain);
            found.not_trust_domains = self.few(domain);
        }
        Some(policy)
    }

    pub(crate) fn policies(&mut self) -> Policies {
        let empty = match self.byte() % 2 {
            0 => Policies::default(),
            _ => Policies::istio_exact(),
        };
        let updates = self.several(8, |b| match b.byte() % 16 {
            13 => {
                let (namespace, name) = b.key();
                Some(Update::Remove(format!("{namespace}/{name}").into()))
            }
            what @ 14.. => {
                let (namespace, name) = b.key();
                let unreadable = Arc::new(Unreadable {
                    key: format!("{namespace}/{name}").into(),
                    namespace: namespace.into(),
                    scope: b.of(&[Scope::Global, Scope::Namespace, Scope::Selector]),
                    only_new: b.byte() % 2 == 1,
                    dry_run: false,
                    error: "no".into(),
                });
                Some(match what {
                    14 => Update::Unreadable(unreadable),
                    _ => Update::Kept(unreadable),
                })
            }
            _ => b.policy().map(|p| Update::Set(p.into())),
        });
        empty.apply(updates.into_iter().flatten())
    }

    pub(crate) fn workload(&mut self) -> Workload {
        let mut workload = Workload::new("uid", self.of(&["a", "prod", "root", "other"]), "w");
        workload.policies = self.several(3, |b| PolicyKey::from(b.of(&KEYS)));
        workload
    }

    pub(crate) fn ends(&mut self) -> Ends {
        let ip = |text: &str| text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        Ends {
            peer: Peer::from(self.of(&PEERS).parse::<Identity>().ok()),
            source: ip(self.of(&IPS)),
            destination: ip(self.of(&IPS)),
            port: self.of(&[80, 8080, 0, 65535]),
        }
    }
}

/// A policy that matches every connection.
pub(crate) fn everything(key: &str, action: Action) -> Policy {
    Policy {
        key: key.into(),
        namespace: key.split('/').next().unwrap_or_default().into(),
        scope: Scope::Global,
        action,
        rules: vec![ambient_authz::Rule::default()],
        dry_run: false,
    }
}
