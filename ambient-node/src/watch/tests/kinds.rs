//! Every kind of change, and whom it cuts: what is cut is so when the change has been applied, and everybody else goes on.

use ambient_core::TrustDomain;

use super::*;

/// A workload that lists policies.
fn listing(name: &str, policies: &[&str]) -> Workload {
    Workload {
        policies: policies.iter().map(|&key| key.into()).collect(),
        ..Workload::clone(&server(name))
    }
}

fn is_now(workload: Workload) -> Change {
    Change::Mesh(Update::Workload(workload.into()))
}

/// A policy of one rule of one match; without one it has no rules.
fn policy(key: &str, scope: Scope, action: Action, found: Option<Match>) -> Policy {
    Policy {
        key: key.into(),
        namespace: "shop".into(),
        scope,
        action,
        rules: found
            .map(|found| Rule {
                clauses: vec![found.into()],
            })
            .into_iter()
            .collect(),
        dry_run: false,
    }
}

fn set(policy: Policy) -> Change {
    Change::Policy(policy::Update::Set(policy.into()))
}

/// From everybody's address.
fn anybody() -> Option<Match> {
    Some(Match {
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..Match::default()
    })
}

fn caller() -> Option<Match> {
    Some(Match {
        principals: vec![StringMatch::Exact(CALLER.strip_prefix("spiffe://").unwrap().into())],
        ..Match::default()
    })
}

/// Who has no identity: of such is what a PeerAuthentication that is STRICT becomes.
fn plaintext() -> Option<Match> {
    Some(Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    })
}

const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/caller";
const STRICT: &str = "istio-system/istio_converted_static_strict";
/// Two servers, each with a connection by tunnel and one in plaintext.
const ALL: [(&str, bool); 4] = [("cart", true), ("cart", false), ("stock", true), ("stock", false)];

/// Who is cut of [`ALL`] when `change` comes after `before`, and nothing after it; and how many were asked again at once.
async fn cut_by(before: Vec<Change>, change: Vec<Change>) -> (Vec<String>, usize) {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    let both = ["cart", "stock"].map(|name| is_now(listing(name, &[])));
    apply(&state, &watch, both.into_iter().chain(before).collect());
    let mut held = ALL.map(|(name, tunnelled)| {
        let peer = match tunnelled {
            true => Peer::from(CALLER.parse::<Identity>().unwrap()),
            false => Peer::plaintext(),
        };
        let subject = Subject {
            peer: Arc::new(peer),
            ..subject(name)
        };
        let target = state
            .current()
            .unwrap()
            .policies
            .target(&state.current().unwrap().mesh.workload(&subject.workload).unwrap().clone());
        let allowed = matches!(subject.decide(&state.current().unwrap(), &target), Decision::Allow(_));
        assert!(allowed, "{name} {tunnelled} is open before the change");
        watch.register(subject)
    });
    let asked = apply(&state, &watch, change);
    // What is listed and not there is waited for.
    tokio::time::advance(GRACE).await;
    watch.settle(&state.current().unwrap());
    let cut = ALL.iter().zip(&mut held).filter_map(|((name, tunnelled), cut)| {
        let how = if *tunnelled { "tunnel" } else { "plain" };
        is_cut(cut).map(|_| format!("{name} {how}"))
    });
    (cut.collect(), asked)
}

#[tokio::test(start_paused = true)]
async fn changes_of_policies_cut_whom_they_refuse() {
    use Action::{Allow, Deny};
    let admits = || set(policy("shop/admits", Scope::Selector, Allow, anybody()));
    let nobody = || set(policy("shop/nobody", Scope::Selector, Allow, None));
    let denies = |scope, found| policy("shop/denies", scope, Deny, found);
    let listed = || is_now(listing("cart", &["shop/admits", "shop/nobody", "shop/denies"]));
    let only_wrong = |of: Option<Match>| of.map(|_| Match::default());
    let gone = |key: &str| Change::Policy(policy::Update::Remove(key.into()));
    let dry = Policy {
        dry_run: true,
        ..denies(Scope::Namespace, anybody())
    };
    for (what, before, change, cut, asked) in [
        (
            "an ALLOW that let them in goes",
            vec![listed(), admits(), nobody(), set(denies(Scope::Selector, None))],
            vec![gone("shop/admits")],
            &["cart plain", "cart tunnel"][..],
            2,
        ),
        (
            "an ALLOW changes to admit one of them",
            vec![is_now(listing("cart", &["shop/admits"])), admits()],
            vec![set(policy("shop/admits", Scope::Selector, Allow, caller()))],
            &["cart plain"],
            2,
        ),
        (
            "a DENY of one workload comes",
            vec![listed(), admits(), nobody(), set(denies(Scope::Selector, None))],
            vec![set(denies(Scope::Selector, caller()))],
            &["cart tunnel"],
            2,
        ),
        (
            "a DENY of a namespace comes",
            vec![],
            vec![set(denies(Scope::Namespace, caller()))],
            &["cart tunnel", "stock tunnel"],
            4,
        ),
        (
            "a DENY of the mesh comes",
            vec![],
            vec![set(denies(Scope::Global, plaintext()))],
            &["cart plain", "stock plain"],
            4,
        ),
        (
            "a DENY of another namespace comes",
            vec![],
            vec![set(Policy {
                namespace: "away".into(),
                ..denies(Scope::Namespace, anybody())
            })],
            &[],
            0,
        ),
        (
            "a DENY goes",
            vec![set(denies(Scope::Namespace, only_wrong(anybody())))],
            vec![gone("shop/denies")],
            &[],
            4,
        ),
        ("a DENY in dry run comes", vec![], vec![set(dry)], &[], 4),
        (
            "STRICT comes for one workload",
            vec![],
            vec![
                set(policy(STRICT, Scope::Selector, Deny, plaintext())),
                is_now(listing("cart", &[STRICT])),
            ],
            &["cart plain"],
            2,
        ),
        (
            "STRICT comes for a namespace",
            vec![],
            vec![set(policy("shop/strict", Scope::Namespace, Deny, plaintext()))],
            &["cart plain", "stock plain"],
            4,
        ),
    ] {
        let (mut seen, count) = cut_by(before, change).await;
        seen.sort_unstable();
        assert_eq!(
            (&seen[..], count),
            (&cut.iter().map(|&who| who.to_owned()).collect::<Vec<_>>()[..], asked),
            "{what}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn changes_of_workloads_cut_whom_they_refuse() {
    let admits = || set(policy("shop/admits", Scope::Selector, Action::Allow, anybody()));
    let nobody = || set(policy("shop/nobody", Scope::Selector, Action::Allow, None));
    let both = || is_now(listing("cart", &["shop/admits", "shop/nobody"]));
    let cart = || Workload::clone(&server("cart"));
    let all_of_cart = &["cart plain", "cart tunnel"][..];
    for (what, before, change, cut) in [
        (
            "labels no longer match what let them in",
            vec![both(), admits(), nobody()],
            is_now(listing("cart", &["shop/nobody"])),
            all_of_cart,
        ),
        (
            "labels match what lets nobody in",
            vec![nobody()],
            is_now(listing("cart", &["shop/nobody"])),
            all_of_cart,
        ),
        (
            "labels match what has not come",
            vec![],
            is_now(listing("cart", &["shop/not-come"])),
            all_of_cart,
        ),
        (
            "its account is another",
            vec![],
            is_now(Workload {
                service_account: "other".into(),
                ..cart()
            }),
            all_of_cart,
        ),
        (
            "its trust domain is another",
            vec![],
            is_now(Workload {
                trust_domain: "td2".parse::<TrustDomain>().unwrap(),
                ..cart()
            }),
            all_of_cart,
        ),
        ("it goes", vec![], Change::Mesh(Update::RemoveWorkload(cart().uid)), all_of_cart),
        (
            "its address is another",
            vec![],
            is_now(Workload {
                addresses: vec!["10.0.0.9".parse().unwrap()],
                ..cart()
            }),
            &[],
        ),
    ] {
        let (mut seen, count) = cut_by(before, vec![change]).await;
        seen.sort_unstable();
        assert_eq!(seen, cut, "{what}");
        assert_eq!(count, 2, "{what}: those of the other are not asked");
    }
}
