//! A decision allocates nothing, whichever way it takes.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::sync::Arc;

use ambient_authz::{
    Action, Conn, Decision, Match, Peer, Policies, Policy, Rule, Scope, StringMatch, decide, decide_again,
    policy::{Unreadable, Update},
};
use ambient_core::{Identity, Workload};
use ambient_testkit::allocations::{Counting, of_this_thread};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn policy(key: &str, scope: Scope, action: Action, found: Match) -> Update {
    Update::Set(Arc::new(Policy {
        key: key.into(),
        namespace: "shop".into(),
        scope,
        action,
        rules: vec![Rule {
            clauses: vec![found.into()],
        }],
        dry_run: false,
    }))
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

/// Decides, and asserts that nothing was allocated.
fn decided(policies: &Policies, workload: &Workload, peer: &Peer) -> Decision {
    let conn = Conn {
        peer,
        source: "10.0.1.2".parse().unwrap(),
        destination: "10.0.2.2:8080".parse().unwrap(),
    };
    let before = of_this_thread();
    let decision = decide(policies, workload, &conn);
    let again = decide_again(policies, workload, &conn);
    assert_eq!(of_this_thread() - before, 0, "{decision}");
    assert_eq!(decision, again);
    let target = policies.target(&Arc::new(workload.clone()));
    let before = of_this_thread();
    let at_target = target.decide(policies, &conn);
    let again = target.decide_again(policies, &conn);
    assert_eq!(of_this_thread() - before, 0, "{decision}");
    assert_eq!([&at_target, &again], [&decision; 2]);
    decision
}

#[test]
fn a_decision_allocates_nothing() {
    let cart: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let mut stock = Workload::new("uid", "shop", "stock");
    let from_cart = Match {
        principals: exact(cart.principal()),
        ..Match::default()
    };
    let from_far = Match {
        source_ips: vec!["192.0.2.0/24".parse().unwrap()],
        ..Match::default()
    };
    let policies = Policies::default().apply([
        policy("shop/cart", Scope::Namespace, Action::Allow, from_cart.clone()),
        policy("shop/far", Scope::Selector, Action::Deny, from_far),
    ]);
    let peer = policies.resolve(Some(&cart));
    assert!(decided(&policies, &stock, &peer).is_allow());
    assert!(!decided(&policies, &stock, &Peer::plaintext()).is_allow());
    assert!(
        decided(&policies, &stock, &Peer::from(cart.clone())).is_allow(),
        "a stale one costs a look-up, and no memory"
    );

    stock.policies = vec!["shop/far".into()];
    assert!(decided(&policies, &stock, &peer).is_allow());
    stock.policies.push("shop/late".into());
    assert!(!decided(&policies, &stock, &peer).is_allow());
    stock.policies = (0..40).map(|i| format!("shop/late-{i}").as_str().into()).collect();
    assert!(!decided(&policies, &stock, &peer).is_allow());

    // More than are looked up without memory of their own, in the place of which a target is.
    let of_port = |port: u16| Match {
        destination_ports: vec![port],
        ..Match::default()
    };
    let many = (8000..11_000).map(|port| policy(&format!("shop/of-{port}"), Scope::Selector, Action::Deny, of_port(port)));
    let policies = policies.apply(many);
    stock.policies = (8000..11_000).map(|port| format!("shop/of-{port}").as_str().into()).collect();
    let target = policies.target(&Arc::new(stock.clone()));
    let conn = Conn {
        peer: &policies.resolve(Some(&cart)),
        source: "10.0.1.2".parse().unwrap(),
        destination: "10.0.2.2:8080".parse().unwrap(),
    };
    let before = of_this_thread();
    let denied = target.decide(&policies, &conn);
    assert_eq!(of_this_thread() - before, 0);
    assert_eq!(denied.to_string(), "explicitly denied by: shop/of-8080");

    // So many that match in all but one thing that bitmaps are gone over.
    let nearly = (0..2000).map(|i| {
        let found = Match {
            not_destination_ports: vec![8080, i],
            destination_ips: vec!["10.0.0.0/8".parse().unwrap()],
            ..from_cart.clone()
        };
        policy(&format!("shop/nearly-{i}"), Scope::Global, Action::Deny, found)
    });
    stock.policies.clear();
    let policies = policies.apply(nearly);
    let peer = policies.resolve(Some(&cart));
    assert!(decided(&policies, &stock, &peer).is_allow());
    let denied = policies.apply([policy("shop/cart-no-more", Scope::Namespace, Action::Deny, from_cart)]);
    assert!(!decided(&denied, &stock, &peer).is_allow());
}

#[test]
fn nor_does_one_that_names_what_cannot_be_read() {
    let unreadable = Update::Unreadable(Arc::new(Unreadable {
        key: "shop/broken".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        only_new: false,
        dry_run: false,
        error: "spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/33\" is neither an IP address nor a CIDR block".into(),
    }));
    let policies = Policies::default().apply([unreadable]);
    let stock = Workload::new("uid", "shop", "stock");
    let refused = decided(&policies, &stock, &Peer::plaintext());
    assert!(refused.to_string().starts_with("policy shop/broken cannot be read: spec.rules[0]"));
}

/// A peer that has hundreds of names, and was resolved against none of them; and where bitmaps are gone over for it.
#[test]
fn nor_does_one_on_a_peer_of_very_many_names() {
    let identity: Identity = format!("spiffe://cluster.local/ns/shop/sa/{}", "cart".repeat(60)).parse().unwrap();
    let name = identity.principal().to_owned();
    let beginnings = (0..name.len()).map(|at| {
        let found = Match {
            principals: vec![StringMatch::Prefix(name[..at].into()), StringMatch::Suffix(name[at..].into())],
            not_destination_ports: vec![8080],
            ..Match::default()
        };
        policy(&format!("shop/beginning-{at}"), Scope::Global, Action::Deny, found)
    });
    let policies = Policies::default().apply(beginnings);
    let stock = Workload::new("uid", "shop", "stock");
    for policies in [policies.by_bitmaps(), policies] {
        let stale = Peer::from(identity.clone());
        assert!(!policies.knows(&stale));
        for peer in [stale, policies.resolve(Some(&identity)), policies.resolve(None), Peer::plaintext()] {
            assert!(decided(&policies, &stock, &peer).is_allow());
        }
    }
}
