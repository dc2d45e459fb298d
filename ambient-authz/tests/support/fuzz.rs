//! What the fuzz targets run, and what the replay of their corpora runs too.
#![allow(dead_code, reason = "each target runs one of these")]

use ambient_authz::{
    Conn, Decision, Denial, Peer, Policies, decide,
    kubernetes::{
        AuthorizationPolicy, Labels, PeerAuthentication, Resources, Selector, Settings,
        peer_authentication::{self, Mode},
    },
    policy::Update,
    wire::{self, Address, Authorization, StringMatch},
};
use ambient_core::{Identity, Workload};

use super::{bytes::Bytes, explained};

/// A digit that chooses how to read, and then a resource as YAML or JSON.
///
/// It ends in a policy or in an error that names its place, never in a panic. Decision and explanation agree. Read safely,
/// an error refuses everything in its scope but where the policy is in dry run, and a PeerAuthentication refuses plaintext on exactly the ports where it is
/// strict.
pub(crate) fn resources(data: &[u8]) {
    let Some((first, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut settings = match first & 1 {
        0 => Settings::default(),
        _ => Settings::istio_exact(),
    };
    if first & 2 != 0 {
        settings.trust_domain = "td".parse().expect("it is one");
        settings.trust_domain_aliases = vec!["td2".parse().expect("it is one")];
    }
    if first & 4 != 0 {
        settings.root_namespace = "default".into();
    }
    if let Some(policy) = parse::<AuthorizationPolicy>(text) {
        authorization(&policy, &settings);
    }
    if let Some(policy) = parse::<PeerAuthentication>(text) {
        authentication(&policy, &settings);
    }
}

/// YAML takes in JSON, but not with all the same limits.
fn parse<T: for<'de> serde::Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok().or_else(|| serde_saphyr::from_str(text).ok())
}

fn authorization(policy: &AuthorizationPolicy, settings: &Settings) {
    let mut resources = Resources::new(settings.clone());
    let read = resources.authorization(policy);
    assert!(read.as_ref().err().is_none_or(|error| !error.path.is_empty()));
    let in_dry_run = read.as_ref().is_err_and(|error| error.dry_run);
    let annotations = policy.metadata.annotations.as_ref();
    assert!(!in_dry_run || annotations.is_some_and(|all| all.contains_key("istio.io/dry-run")));
    let selector = policy.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let (policies, workload) = reached(&resources, &policy.metadata.namespace(), selector);
    for decision in ask(&policies, &workload, &[80, 8080]) {
        let refused = matches!(decision, Decision::Deny(Denial::Unreadable { .. }));
        assert_eq!(refused, read.is_err() && !in_dry_run && !settings.istio_exact);
    }
}

fn authentication(policy: &PeerAuthentication, settings: &Settings) {
    let mut resources = Resources::new(settings.clone());
    let read = resources.peer_authentication(policy);
    assert!(read.as_ref().err().is_none_or(|error| !error.path.is_empty()));
    let selector = policy.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let namespace = policy.metadata.namespace();
    let (policies, workload) = reached(&resources, &namespace, selector);
    let written = policy.spec.iter().flat_map(|spec| spec.port_level_mtls.iter().flatten());
    let mut ports: Vec<u16> = written.filter_map(|(port, _)| port.parse().ok()).take(4).collect();
    ports.push(1);
    let decisions = ask(&policies, &workload, &ports);
    if settings.istio_exact {
        return;
    }
    let set = match peer_authentication::read(policy, settings) {
        Ok(reading) => peer_authentication::Set::new(settings, [reading.object]),
        Err(_) => {
            let refused = |decision: &Decision| matches!(decision, Decision::Deny(Denial::Unreadable { .. }));
            // In the root namespace a selector selects nothing, so nothing can be refused by one there either.
            assert!(decisions.iter().all(refused));
            return;
        }
    };
    let labels = selector.map(|s| s.labels().clone()).unwrap_or_default();
    for port in ports {
        let strict = peer_authentication::effective(&set, &namespace, &labels, port) == Mode::Strict;
        let of_port = |peer: &Peer| decide(&policies, &workload, &conn(peer, port)).is_allow();
        assert_eq!(of_port(&Peer::plaintext()), !strict);
        assert!(of_port(&peers()[1]));
    }
}

/// A workload that is just what a resource is for.
fn reached(resources: &Resources, namespace: &str, selector: Option<&Selector>) -> (Policies, Workload) {
    let labels: Labels = selector.map(|s| s.labels().clone()).unwrap_or_default();
    let mut workload = Workload::new("uid", namespace, "w");
    workload.policies = resources.attached(namespace, &labels);
    (resources.policies(), workload)
}

fn ask(policies: &Policies, workload: &Workload, ports: &[u16]) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for peer in &peers() {
        for port in ports {
            decisions.push(explained::check(policies, workload, &conn(peer, *port)).decision);
        }
    }
    decisions
}

fn peers() -> [Peer; 3] {
    ["", "spiffe://td/ns/a/sa/x", "spiffe://cluster.local/ns/shop/sa/y"].map(|uri| Peer::from(uri.parse::<Identity>().ok()))
}

fn conn(peer: &Peer, port: u16) -> Conn<'_> {
    Conn {
        peer,
        source: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], port).into(),
    }
}

/// The wire form of one policy, what lists it, and some connections.
///
/// No panic, and no widening, which is this:
///
/// 1. The safe reading takes a policy if and only if all of it is well formed.
/// 2. Whatever it takes, the reading of ztunnel takes for the same policy; so on what is well formed the two never differ.
/// 3. Whatever else there is, a connection that passes where the policy was read safely (and refuses its scope where it
///    could not be) passes as well where it was read as ztunnel reads it. What ztunnel refuses is never let through.
///
/// Decision and explanation agree on both, and on whatever else there may be: unreadable, withdrawn, and in dry run.
pub(crate) fn wire(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let sent = bytes.authorization();
    let safe = wire::read(&sent, &wire::Settings::default());
    let exact = wire::read(&sent, &wire::Settings::istio_exact());
    assert_eq!(safe.is_ok(), well_formed(&sent), "{sent:?}");
    if let Ok(policy) = &safe {
        assert_eq!(exact.as_ref(), Ok(policy));
    }
    assert!(safe.as_ref().err().is_none_or(|error| !error.path.is_empty()));

    let others: Vec<_> = (0..bytes.byte() % 3).filter_map(|_| bytes.policy()).collect();
    let beside = || others.iter().map(|policy| Update::Set(policy.clone().into()));
    let safely = match safe {
        Ok(policy) => Update::Set(policy.into()),
        Err(error) => Update::Unreadable(error.unreadable().into()),
    };
    let key = safely.key().clone();
    // The other policies could go by the same name; this one is the last to come.
    let safely = Policies::default().apply(beside().filter(|u| *u.key() != key).chain([safely]));
    let exactly = exact.ok().map(|policy| Update::Set(policy.into()));
    let exactly = Policies::istio_exact().apply(beside().filter(|u| *u.key() != key).chain(exactly));
    for _ in 0..3 {
        let workload = bytes.workload();
        let ends = bytes.ends();
        let safe = explained::check(&safely, &workload, &ends.conn());
        let exact = explained::check(&exactly, &workload, &ends.conn());
        assert!(!safe.allowed || exact.allowed, "{safe}\n{exact}\n{sent:?}");
    }
    let any = bytes.policies();
    explained::check(&any, &bytes.workload(), &bytes.ends().conn());
}

/// Whether nothing in a policy would be dropped or cut.
fn well_formed(sent: &Authorization) -> bool {
    let head = (0..3).contains(&sent.scope) && (0..2).contains(&sent.action);
    let named = !sent.name.is_empty() && (sent.scope != 1 || !sent.namespace.is_empty());
    let mut matches = sent.rules.iter().flat_map(|r| &r.clauses).flat_map(|c| &c.matches);
    head && named
        && matches.all(|m| {
            let texts = [&m.namespaces, &m.not_namespaces, &m.principals, &m.not_principals];
            let blocks = [&m.source_ips, &m.not_source_ips, &m.destination_ips, &m.not_destination_ips];
            let ports = [&m.destination_ports, &m.not_destination_ports];
            texts.into_iter().flatten().all(|text| *text != StringMatch::Unset)
                && blocks.into_iter().flatten().all(is_block)
                && ports.into_iter().flatten().all(|port| *port <= 65535)
        })
}

fn is_block(sent: &Address) -> bool {
    matches!((sent.address.len(), sent.length), (4, 0..=32) | (16, 0..=128))
}
