use std::sync::Arc;

use ambient_core::{Identity, Workload};

use super::*;
use crate::{Action, Conn, Match, Peer, Policies, Policy, Rule, Scope, StringMatch, decide, policy::Update};

/// A step of a sequence that is the same in every run.
fn below(state: &mut u64, bound: usize) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % bound
}

fn text(state: &mut u64) -> StringMatch {
    let whole = ["td/ns/a/sa/x", "td/ns/b/sa/x", "td/ns/a/sa/y"][below(state, 3)];
    let at = 1 + below(state, whole.len() - 1);
    match below(state, 4) {
        0 => StringMatch::Exact(whole.into()),
        1 => StringMatch::Presence,
        2 => StringMatch::Prefix(whole[..at].into()),
        _ => StringMatch::Suffix(whole[at..].into()),
    }
}

/// One that seldom matches, and is found by a port that all others ask for too, or in clauses.
fn rule(state: &mut u64, once_in: usize) -> Rule {
    let mut found = Match {
        destination_ports: vec![80],
        ..Match::default()
    };
    if below(state, once_in) > 0 {
        found.not_source_ips = vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
    }
    match below(state, 5) {
        0 => found.principals = vec![text(state)],
        1 => found.not_principals = vec![text(state)],
        2 => found.principals = vec![text(state), text(state)],
        3 => found.namespaces = vec![StringMatch::Exact(["a", "b"][below(state, 2)].into())],
        _ => found.not_trust_domains = vec![StringMatch::Exact(["td", "other"][below(state, 2)].into())],
    }
    if below(state, 8) > 0 {
        return Rule {
            clauses: vec![found.into()],
        };
    }
    let other = Match {
        principals: vec![text(state)],
        ..Match::default()
    };
    Rule {
        clauses: vec![found.into(), other.into()],
    }
}

fn policy(state: &mut u64, number: usize) -> Update {
    // A DENY policy that matches ends everything.
    let once_in = if number.is_multiple_of(2) { 4000 } else { 100 };
    let policy = Policy {
        key: format!("a/p{number:02}").into(),
        namespace: "a".into(),
        scope: Scope::Global,
        action: if number.is_multiple_of(2) { Action::Deny } else { Action::Allow },
        rules: (0..150).map(|_| rule(state, once_in)).collect(),
        dry_run: false,
    };
    Update::Set(policy.into())
}

/// Also where some blocks, or all, have changed since.
#[test]
fn decisions_are_what_they_are_without_it() {
    let mut state = 7;
    let updates: Vec<_> = (0..60).map(|number| policy(&mut state, number)).collect();
    let mut without = Policies::default().apply(updates.clone());
    // Of who has no names it is kept with these.
    let mut policies = Policies::default().by_bitmaps().apply(updates);
    let identities = ["spiffe://td/ns/a/sa/x", "spiffe://td/ns/b/sa/x", "spiffe://other/ns/c/sa/z"];
    let identities = identities.map(|id| Some(id.parse::<Identity>().unwrap())).into_iter().chain([None]);
    let identities: Vec<Option<Identity>> = identities.collect();
    let keeping = |policies: &Policies, identity: &Option<Identity>| {
        let mut peer = policies.names_of(identity.as_ref());
        let made = Passing::made(policies.index(), peer.names(), None, None);
        peer.pass(Some(made.unwrap()));
        peer
    };
    let mut peers: Vec<_> = identities.iter().map(|identity| keeping(&policies, identity)).collect();
    let stock = Workload::new("uid", "a", "stock");
    let (mut allowed, mut asked, mut partly) = (0, 0, 0);
    for round in 0..40 {
        for (peer, identity) in peers.iter_mut().zip(&identities) {
            for source in ["10.0.0.1", "192.0.2.1"] {
                let bare = Peer::from(identity.clone());
                let conn = |peer| Conn {
                    peer,
                    source: source.parse().unwrap(),
                    destination: "10.0.0.2:80".parse().unwrap(),
                };
                let wanted = decide(&without, &stock, &conn(&bare));
                assert_eq!(decide(&policies, &stock, &conn(&bare)), wanted, "round {round}");
                assert_eq!(decide(&policies, &stock, &conn(peer)), wanted, "round {round}");
                (allowed, asked) = (allowed + usize::from(wanted.is_allow()), asked + 1);
            }
            let (index, kept) = (policies.index(), peer.passing().unwrap());
            let present = (0..index.rows.blocks() as u32)
                .filter(|block| kept.at(index, *block).is_some())
                .count();
            partly += usize::from(present > 0 && !kept.is_whole(index));
            if below(&mut state, 6) == 0 {
                *peer = keeping(&policies, identity);
            }
        }
        let number = below(&mut state, 60);
        let update = match below(&mut state, 3) {
            0 => Update::Remove(format!("a/p{number:02}").as_str().into()),
            _ => policy(&mut state, number),
        };
        without = without.apply([update.clone()]);
        policies = policies.apply([update]);
        assert!(policies.nobody().passing().is_some_and(|kept| kept.is_whole(policies.index())));
        assert!(without.nobody().passing().is_none());
    }
    assert!(
        policies.index().rows.blocks() > 2 && partly > 10 && (1..asked).contains(&allowed),
        "{partly} {allowed} of {asked}"
    );
}

/// Of ports, and of policies that workloads list.
#[test]
fn crowds_are_counted_as_they_come_and_go() {
    let mut state = 3;
    let mut listed = policy(&mut state, 0);
    if let Update::Set(policy) = &mut listed {
        let policy = Arc::make_mut(policy);
        policy.scope = Scope::Selector;
        policy.rules = vec![Rule { clauses: Vec::new() }; CROWD + 1];
    }
    let mut of_port = policy(&mut state, 1);
    if let Update::Set(policy) = &mut of_port {
        let found = Match {
            destination_ports: vec![80],
            ..Match::default()
        };
        let clauses = vec![found.into()];
        Arc::make_mut(policy).rules = vec![Rule { clauses }; CROWD + 1];
    }
    let both = Policies::default().apply([listed.clone(), of_port]);
    let one = both.apply([Update::Remove("a/p01".into())]);
    let none = one.apply([Update::Remove("a/p00".into())]);
    assert_eq!([&one, &none].map(|policies| policies.index().crowded), [1, 0]);
    assert_eq!(both.index().crowded, 2);
    assert_eq!(none.apply([listed]).index().crowded, 1);
}

#[test]
fn what_peers_keep_is_bounded_and_given_back() {
    let room = Arc::new(Room::default());
    let taken: Vec<_> = std::iter::from_fn(|| room.take(MOST_HELD / 8)).collect();
    assert_eq!(taken.len(), 8);
    assert!(room.take(1).is_none());
    drop(taken);
    assert!(room.take(MOST_HELD).is_some());
}
