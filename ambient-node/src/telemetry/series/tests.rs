use std::sync::Arc;

use ambient_core::{Workload, mesh::Update};

use super::*;
use crate::telemetry::ends::Direction;

fn ends(source: &Arc<Workload>, destination: &Arc<Workload>) -> Ends {
    Ends {
        direction: Direction::Outbound,
        source: "10.0.0.1:1".parse().unwrap(),
        source_workload: Some(source.clone()),
        source_identity: None,
        application: "10.0.0.2:80".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        hbone: None,
        service: None,
        destination_workload: Some(destination.clone()),
        destination_identity: None,
        waypoint: false,
        double: false,
        mutual_tls: true,
        local: false,
        retries: 0,
        avoided: 0,
        guessed: false,
    }
}

fn workload(name: &str, owner: &str) -> Arc<Workload> {
    let mut workload = Workload::new(&format!("uid-of-{name}"), "shop", name);
    workload.workload_name = owner.into();
    workload.canonical_name = owner.into();
    Arc::new(workload)
}

#[test]
fn series_go_with_their_workloads_once_nothing_is_open_and_some_time_has_passed() {
    let [a, b, new] = [("a-0", "a"), ("b-0", "b"), ("b-1", "b")].map(|(name, owner)| workload(name, owner));
    let whole = Mesh::default().apply([&a, &b].map(|w| Update::Workload(w.clone())));
    let traffic = Traffic::new(100);
    let start = clock::steady();
    let opened = traffic.opened(&ends(&a, &b), start);
    let later = start + 2 * KEPT;
    assert_eq!(traffic.sweep(&whole, later), 1, "both are there");

    let without = whole.apply([Update::RemoveWorkload(b.uid.clone())]);
    assert_eq!(traffic.sweep(&without, later), 1, "something is open");
    traffic.closed(&opened, &ends(&a, &b), Flag::Connect, later);
    drop(opened);
    assert_eq!(
        traffic.sweep(&without, later + KEPT / 2),
        2,
        "it was told of a moment ago: as opened, and as failed"
    );
    assert_eq!(traffic.sweep(&whole, later + 2 * KEPT), 2, "both are there again");

    // Another pod of the same owner: the same series, and it speaks of that one now.
    let renewed = without.apply([Update::Workload(new.clone())]);
    let opened = traffic.opened(&ends(&a, &new), later);
    traffic.closed(&opened, &ends(&a, &new), Flag::None, later);
    drop(opened);
    assert_eq!(
        traffic.sweep(&renewed, later + 2 * KEPT),
        1,
        "only what speaks of the one who is gone has gone"
    );
    let left = traffic.all();
    assert_eq!(left[0].1.opened.load(Ordering::Relaxed), 2);
    drop(left);
    assert_eq!(traffic.sweep(&Mesh::default(), later + 2 * KEPT), 0);
}

/// As those of other clusters that come once: the mesh knows nobody who could go, and the room would be theirs for ever.
#[test]
fn where_room_is_short_what_was_not_in_use_for_longest_goes() {
    let server = workload("server", "server");
    let mesh = Mesh::default().apply([Update::Workload(server.clone())]);
    let traffic = Traffic::new(8);
    let start = clock::steady();
    let of = |n: u64| Ends {
        source_workload: None,
        source_identity: Some(format!("spiffe://cluster.local/ns/far/sa/{n}").parse().unwrap()),
        ..ends(&server, &server)
    };
    let at = |n: u64| start + Duration::from_secs(n);
    let stands = traffic.opened(&of(0), start);
    for n in 1..8 {
        let opened = traffic.opened(&of(n), at(n));
        traffic.closed(&opened, &of(n), Flag::None, at(n));
    }
    let who = || {
        let all = traffic.all().into_iter();
        let mut who: Vec<_> = (0..9)
            .filter(|n| all.clone().any(|(labels, _)| *labels == TrafficLabels::new(&of(*n), Flag::None)))
            .collect();
        who.sort_unstable();
        who
    };
    assert_eq!(
        traffic.sweep(&mesh, at(1) + KEPT - Duration::from_secs(1)),
        8,
        "all were in use a moment ago"
    );
    assert_eq!(traffic.sweep(&mesh, at(1) + KEPT), 7);
    // A quarter of the room is to be free, and what is open stays.
    assert_eq!(traffic.sweep(&mesh, at(8) + KEPT), 6);
    assert_eq!(who(), [0, 3, 4, 5, 6, 7]);
    assert_eq!(traffic.sweep(&mesh, at(8) + 2 * KEPT), 6, "there is room");
    drop(traffic.opened(&of(8), at(8)));
    assert_eq!((who().len(), traffic.folded.get()), (7, 0));
    drop(stands);
}

#[test]
fn what_is_held_is_not_let_go() {
    let (a, b) = (workload("a", "a"), workload("b", "b"));
    let traffic = Traffic::new(100);
    let start = clock::steady();
    let opened = traffic.opened(&ends(&a, &b), start);
    traffic.closed(&opened, &ends(&a, &b), Flag::None, start);
    // Somebody is about to count under it.
    assert_eq!(traffic.sweep(&Mesh::default(), start + KEPT), 1);
    drop(opened);
    assert_eq!(traffic.sweep(&Mesh::default(), start + KEPT), 0);
    // The room is free again.
    assert!(traffic.find(&TrafficLabels::new(&ends(&a, &b), Flag::None), 1).is_some());
}

#[test]
fn opened_and_closed_agree_whatever_the_flags() {
    let (a, b) = (workload("a", "a"), workload("b", "b"));
    let traffic = Traffic::new(1);
    let start = clock::steady();
    for flag in [Flag::None, Flag::Deny, Flag::Connect, Flag::Tls] {
        let opened = traffic.opened(&ends(&a, &b), start);
        opened.carried(1, 1);
        traffic.closed(&opened, &ends(&a, &b), flag, start);
    }
    let sum = |of: fn(&Series) -> &AtomicU64| -> u64 { traffic.all().iter().map(|(_, series)| of(series).load(Ordering::Relaxed)).sum() };
    assert_eq!(sum(|s| &s.opened), 4);
    assert_eq!((sum(|s| &s.closed), sum(|s| &s.failed), sum(|s| &s.sent)), (4, 3, 4));
    assert_eq!(sum(|s| &s.open), 0);
    // One set has room, the other flags are folded into one.
    assert_eq!((traffic.all().len(), traffic.folded.get()), (2, 3));
}
