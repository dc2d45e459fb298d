use ambient_authz::{Action, Match, Policy, Rule, Scope, StringMatch, policy};
use ambient_control::{Batch, Change};
use ambient_core::{Workload, mesh::Update};

use super::*;
use crate::{clock, state::State};

mod kinds;

fn server(name: &str) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("c//Pod/shop/{name}"), "shop", name);
    workload.pod = Some(name.into());
    Arc::new(workload)
}

fn subject(name: &str) -> Subject {
    Subject {
        server: Arc::new(Server {
            pod: name.into(),
            identity: server(name).identity().unwrap(),
        }),
        workload: server(name).uid.clone(),
        peer: Arc::new(Peer::plaintext()),
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    }
}

/// An ALLOW that admits nobody.
fn allow_nothing(scope: Scope) -> Change {
    let policy = Policy {
        key: "shop/allow-nothing".into(),
        namespace: "shop".into(),
        scope,
        action: Action::Allow,
        rules: vec![],
        dry_run: false,
    };
    Change::Policy(policy::Update::Set(Arc::new(policy)))
}

/// Gives how many connections were asked again.
fn apply(state: &State, watch: &Watch, changes: Vec<Change>) -> usize {
    let changed = state.apply(
        Batch {
            changes,
            synced: true,
            faults: Arc::from([]),
            ..Batch::default()
        },
        clock::steady(),
    );
    watch.recheck(&state.current().unwrap(), &changed)
}

fn is_cut(watched: &mut Watched) -> Option<String> {
    match watched.poll_cut(&Context::from_waker(Waker::noop())) {
        Poll::Ready(why) => Some(why),
        Poll::Pending => None,
    }
}

#[test]
fn a_new_policy_cuts_what_it_refuses_and_says_so() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(server("cart")))]);
    let mut cut = watch.register(subject("cart"));
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(server("other")))]);
    assert_eq!(is_cut(&mut cut), None);
    apply(&state, &watch, vec![allow_nothing(Scope::Namespace)]);
    assert_eq!(is_cut(&mut cut).as_deref(), Some("allow policies exist, but none allowed"));
}

#[test]
fn attaching_a_policy_to_a_workload_cuts_its_connections_only() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    let both = ["cart", "stock"].map(|name| Change::Mesh(Update::Workload(server(name))));
    apply(&state, &watch, both.into_iter().chain([allow_nothing(Scope::Selector)]).collect());
    let mut cart = watch.register(subject("cart"));
    let mut stock = watch.register(subject("stock"));
    let attached = Workload {
        policies: vec!["shop/allow-nothing".into()],
        ..Workload::clone(&server("cart"))
    };
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(Arc::new(attached)))]);
    assert!(is_cut(&mut cart).is_some());
    assert_eq!(is_cut(&mut stock), None);
}

fn listing(name: &str, policies: &[&str]) -> Change {
    let listing = Workload {
        policies: policies.iter().map(|key| (*key).into()).collect(),
        ..Workload::clone(&server(name))
    };
    Change::Mesh(Update::Workload(Arc::new(listing)))
}

/// Policies and the workloads that list them come one after the other, in whichever order.
#[tokio::test(start_paused = true)]
async fn a_policy_that_is_listed_and_not_there_cuts_nobody_before_it_had_its_time() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    let deny_others = |port| {
        let policy = Policy {
            key: "shop/deny".into(),
            namespace: "shop".into(),
            scope: Scope::Selector,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![
                    Match {
                        destination_ports: vec![port],
                        ..Match::default()
                    }
                    .into(),
                ],
            }],
            dry_run: false,
        };
        Change::Policy(policy::Update::Set(Arc::new(policy)))
    };
    let gone = || Change::Policy(policy::Update::Remove("shop/deny".into()));
    apply(&state, &watch, vec![listing("cart", &[])]);
    let refuses_new = |state: &State| {
        let snapshot = state.current().unwrap();
        let target = snapshot.policies.target(snapshot.mesh.workload(&server("cart").uid).unwrap());
        matches!(subject("cart").decide(&snapshot, &target), Decision::Deny(Denial::NotArrived(_)))
    };
    // First the workload, then the policy; and the same back, as it is taken away.
    let mut live = watch.register(subject("cart"));
    apply(&state, &watch, vec![listing("cart", &["shop/deny"])]);
    assert!(is_cut(&mut live).is_none() && refuses_new(&state), "nobody new is let in");
    assert_eq!(watch.settles_at(), Some(Instant::now() + GRACE));
    apply(&state, &watch, vec![deny_others(81)]);
    assert_eq!((is_cut(&mut live), watch.settles_at()), (None, None));
    apply(&state, &watch, vec![gone()]);
    assert!(is_cut(&mut live).is_none() && refuses_new(&state));
    apply(&state, &watch, vec![listing("cart", &[])]);
    assert_eq!((is_cut(&mut live), watch.settles_at()), (None, None));
    // What it says when it comes counts at once.
    apply(&state, &watch, vec![listing("cart", &["shop/deny"])]);
    apply(&state, &watch, vec![deny_others(80)]);
    assert!(is_cut(&mut live).is_some_and(|why| why.contains("explicitly denied")));

    // Each pod has its own time, and what changes meanwhile puts nothing off.
    apply(&state, &watch, vec![gone(), listing("cart", &[]), listing("stock", &[])]);
    let mut live = ["cart", "stock"].map(|name| watch.register(subject(name)));
    apply(&state, &watch, vec![listing("cart", &["shop/deny"])]);
    let due = watch.settles_at().unwrap();
    tokio::time::advance(GRACE / 2).await;
    apply(&state, &watch, vec![listing("stock", &["shop/deny"])]);
    apply(&state, &watch, vec![listing("cart", &["shop/deny", "shop/never"])]);
    assert_eq!(watch.settles_at(), Some(due));
    watch.settle(&state.current().unwrap());
    assert_eq!(live.each_mut().map(is_cut), [None, None]);
    tokio::time::advance(GRACE / 2).await;
    watch.settle(&state.current().unwrap());
    let [cart, stock] = live.each_mut().map(is_cut);
    assert!(cart.is_some_and(|why| why.contains("has not arrived")) && stock.is_none());
    assert_eq!(watch.settles_at(), Some(due + GRACE / 2));
    tokio::time::advance(GRACE).await;
    watch.settle(&state.current().unwrap());
    assert!(is_cut(&mut live[1]).is_some() && watch.settles_at().is_none());
}

#[test]
fn a_pod_that_is_gone_takes_its_connections_along() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(server("cart")))]);
    let mut cut = watch.register(subject("cart"));
    apply(
        &state,
        &watch,
        vec![Change::Mesh(Update::RemoveWorkload(server("cart").uid.clone()))],
    );
    assert!(is_cut(&mut cut).is_some_and(|why| why.contains("not in the mesh's state")));
}

#[test]
fn a_pod_that_becomes_somebody_else_takes_its_connections_along() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(server("cart")))]);
    let mut cut = watch.register(subject("cart"));
    let renamed = Workload {
        service_account: "other".into(),
        ..Workload::clone(&server("cart"))
    };
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(Arc::new(renamed)))]);
    assert!(is_cut(&mut cut).is_some_and(|why| why.contains("no longer")));
}

#[test]
fn who_waits_for_the_word_is_woken_by_it_wherever_it_is_awaited() {
    struct Count(AtomicU64);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(server("cart")))]);
    let mut cut = watch.register(subject("cart"));
    let [first, second] = [0, 0].map(|count| Arc::new(Count(AtomicU64::new(count))));
    for count in [&first, &second, &second] {
        assert!(cut.poll_cut(&Context::from_waker(&count.clone().into())).is_pending());
    }
    apply(&state, &watch, vec![allow_nothing(Scope::Namespace)]);
    assert_eq!([first, second].map(|count| count.0.load(Ordering::Relaxed)), [0, 1]);
    assert!(is_cut(&mut cut).is_some());
}

#[test]
fn who_waited_for_the_word_before_is_let_go_of_outside_of_the_lock() {
    struct Looks(Arc<Live>, Arc<AtomicU64>);
    impl std::task::Wake for Looks {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Looks {
        fn drop(&mut self) {
            let is_free = self.0.0.try_lock().is_ok();
            self.1.fetch_add(u64::from(is_free), Ordering::Relaxed);
        }
    }
    let watch = Arc::new(Watch::default());
    let (mut cut, free) = (watch.register(subject("cart")), Arc::new(AtomicU64::new(0)));
    let first = Arc::new(Looks(cut.live.clone(), free.clone())).into();
    assert!(cut.poll_cut(&Context::from_waker(&first)).is_pending());
    drop(first);
    assert_eq!(is_cut(&mut cut), None);
    assert_eq!(free.load(Ordering::Relaxed), 1);
}

/// One of each connection is in memory as long as that stands.
#[test]
fn what_is_watched_is_small() {
    assert!(size_of::<Live>() <= 120, "{}", size_of::<Live>());
}

#[test]
fn what_has_ended_is_forgotten() {
    let watch = Arc::new(Watch::default());
    let held = watch.register(subject("cart"));
    drop(held);
    assert!(watch.live.lock().unwrap().is_empty());
}

#[test]
fn only_those_of_the_workloads_concerned_are_asked_again() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    let names: Vec<_> = (0..100).map(|i| format!("server-{i}")).collect();
    let servers = names.iter().map(|name| {
        let workload = Workload {
            policies: vec![format!("shop/of-{name}").as_str().into()],
            ..Workload::clone(&server(name))
        };
        Change::Mesh(Update::Workload(Arc::new(workload)))
    });
    apply(&state, &watch, servers.collect());
    let policy = |name: &str, principal: &str| {
        let found = Match {
            principals: vec![StringMatch::Exact(principal.into())],
            ..Match::default()
        };
        let policy = Policy {
            key: format!("shop/of-{name}").as_str().into(),
            namespace: "shop".into(),
            scope: Scope::Selector,
            action: Action::Deny,
            rules: vec![Rule {
                clauses: vec![found.into()],
            }],
            dry_run: false,
        };
        Change::Policy(policy::Update::Set(Arc::new(policy)))
    };
    apply(&state, &watch, names.iter().map(|name| policy(name, "nobody")).collect());
    let caller = "spiffe://cluster.local/ns/shop/sa/caller".parse::<Identity>().unwrap();
    let mut held: Vec<_> = (0..10_000)
        .map(|i| {
            let subject = Subject {
                peer: Arc::new(caller.clone().into()),
                ..subject(&names[i % 100])
            };
            watch.register(subject)
        })
        .collect();

    assert_eq!(apply(&state, &watch, vec![policy("server-7", "somebody")]), 100);
    assert!(held.iter_mut().all(|cut| is_cut(cut).is_none()));
    assert_eq!(apply(&state, &watch, vec![policy("server-7", "somebody")]), 0, "it came as it was");
    assert_eq!(apply(&state, &watch, vec![policy("server-7", caller.principal())]), 100);
    let cut = held.iter_mut().filter_map(is_cut).count();
    assert_eq!(cut, 100);
}

#[test]
fn what_is_asked_again_is_resolved_once() {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    apply(&state, &watch, vec![Change::Mesh(Update::Workload(server("cart")))]);
    let caller = "spiffe://cluster.local/ns/shop/sa/caller".parse::<Identity>().unwrap();
    let _held = watch.register(Subject {
        peer: Arc::new(caller.into()),
        ..subject("cart")
    });
    let found = Match {
        principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/other".into())],
        ..Match::default()
    };
    let policy = Policy {
        key: "shop/not-other".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Rule {
            clauses: vec![found.into()],
        }],
        dry_run: false,
    };
    assert_eq!(
        apply(&state, &watch, vec![Change::Policy(policy::Update::Set(Arc::new(policy)))]),
        1
    );
    let live = watch.live.lock().unwrap();
    let kept = live.values().flat_map(HashMap::values).next().unwrap();
    assert!(state.current().unwrap().policies.knows(&kept.locked().subject.peer));
}
