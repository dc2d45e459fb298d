//! When captures are verified.

use super::*;

/// Two pods, of which the second joins so much later, both in.
fn joined_apart(by: Duration) -> Node {
    let mut node = Node::new(&[]);
    node.see(&[(1, 0), (2, 1)]);
    node.want(&[0]);
    while !node.steps().is_empty() {
        node.end(0, true);
    }
    node.now += by;
    node.want(&[0, 1]);
    while !node.steps().is_empty() {
        node.end(0, true);
    }
    assert!(node.pods.states().iter().all(|s| matches!(s.state, State::In { .. })));
    node
}

#[test]
fn what_is_due_soon_is_verified_along_with_what_is_due_and_nothing_later_than_it_should() {
    let every = Timing::default().verify_every;
    for (by, together) in [(Duration::from_millis(900), 2), (Duration::from_millis(1100), 1)] {
        let mut node = joined_apart(by);
        let due = node.pods.timeout().unwrap();
        assert_eq!(due - (node.now - by), every, "the first is waited for, and not longer");
        node.now = due;
        node.poll();
        assert_eq!(node.steps(), vec![Step::Verify; together]);
        while !node.steps().is_empty() {
            node.end(0, true);
        }
        let next = node.pods.timeout().unwrap() - node.now;
        let expected = if together == 2 { every } else { by };
        assert_eq!(next, expected);
    }
}

#[test]
fn each_is_begun_before_any_is_begun_again() {
    let mut node = joined_apart(Duration::ZERO);
    let changed = |node: &mut Node| {
        node.now += Duration::from_secs(1);
        for n in [1, 2] {
            node.pods.handle_changed(id(n));
        }
    };
    changed(&mut node);
    let begun = |node: &mut Node| match node.pods.poll(node.now) {
        Some(Output::Do(action)) => Some(action.namespace.ino),
        _ => None,
    };
    assert_eq!(begun(&mut node), Some(1));
    let wall = SystemTime::UNIX_EPOCH;
    node.pods
        .handle_done(node.now, wall, id(1), Step::Verify, Done::Well(Report::default()));
    // The first is due again, and the second has not had its turn.
    changed(&mut node);
    assert_eq!(begun(&mut node), Some(2));
    assert_eq!(begun(&mut node), Some(1));
    assert_eq!(begun(&mut node), None);
}

#[test]
fn a_verification_that_finds_nothing_is_nothing_to_tell() {
    let mut node = joined_apart(Duration::ZERO);
    node.pods.changed();
    let before = node.pods.states();
    node.now = node.pods.timeout().unwrap();
    node.poll();
    while !node.steps().is_empty() {
        node.end(0, true);
    }
    assert!(!node.pods.changed());
    assert_eq!(node.pods.states(), before);
    // What it finds is told.
    let kept = Arc::from([Kept {
        direction: Direction::Inbound,
        local: "10.0.0.2:80".parse().unwrap(),
        remote: "10.0.0.9:40000".parse().unwrap(),
        since: SystemTime::UNIX_EPOCH,
        device: 0,
        cookie: 1,
    }]);
    node.now = node.pods.timeout().unwrap();
    node.poll();
    node.world.under_way.clear();
    let found = Report {
        kept: Some(kept),
        ..Report::default()
    };
    node.pods
        .handle_done(node.now, SystemTime::UNIX_EPOCH, id(1), Step::Verify, Done::Well(found));
    assert!(node.pods.changed());
    assert_eq!(node.pods.states()[0].kept.len(), 1);
}
