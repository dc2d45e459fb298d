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
    let found = Report {
        kept: Some(kept),
        ..Report::default()
    };
    node.done(Step::Verify, Done::Well(found));
    assert!(node.pods.changed());
    assert_eq!(node.pods.states()[0].kept.len(), 1);
}

#[test]
fn a_look_that_fails_is_made_again_after_the_pause() {
    let mut node = Node::with_one_in();
    node.changes(1);
    assert_eq!(node.steps(), [Step::Verify]);
    // What has changed was not seen.
    node.end(0, false);
    assert_eq!(node.steps(), []);
    let again = node.pods.timeout().unwrap();
    assert_eq!(again, node.now + Timing::default().pause, "and not when the next is due anyway");
    node.now = again;
    node.poll();
    assert_eq!(node.steps(), [Step::Verify]);
    node.end(0, true);
    node.now += Duration::from_secs(1);
    node.poll();
    assert_eq!(node.steps(), [], "once");
}

#[test]
fn what_holds_a_pod_and_fails_is_done_again_after_the_pause() {
    let mut node = Node::new(&[]);
    node.give(1, 0);
    node.end(0, true);
    assert_eq!(node.state("a"), Some(State::Waiting));
    node.changes(1);
    assert_eq!(node.steps(), [Step::Close]);
    node.end(0, false);
    let again = node.pods.timeout().unwrap();
    assert_eq!(again, node.now + Timing::default().pause);
    node.now = again;
    node.poll();
    assert_eq!(node.steps(), [Step::Close]);
}

/// The proxy was away for a moment, and a process of the pod took its port: what is redirected there ends at that process.
#[test]
fn a_captured_pod_of_which_a_port_of_the_proxys_is_taken_is_refused_until_it_is_free() {
    let mut node = Node::with_one_in();
    node.changes(1);
    let differs = Done::Differs {
        what: "a process of the pod listens on port 15006".into(),
        rules: false,
        listeners: true,
    };
    node.done(Step::Verify, differs);
    assert_eq!(node.steps(), [Step::Listen]);
    // By another proxy, as one that is about to end.
    node.done(Step::Listen, Done::Failed(Cause::PortTaken("in use".into())));
    assert_eq!(node.steps(), []);
    node.now += Duration::from_secs(1);
    node.poll();
    assert_eq!(node.steps(), [Step::Listen]);
    node.done(Step::Listen, Done::Usurped(Cause::PortTaken("in use".into())));
    assert_eq!(node.steps(), [Step::Close], "at once");
    node.end(0, true);
    assert!(node.pods.states()[0].closed && node.world.closed.contains(&id(1)));
    node.settle();
    assert!(matches!(node.state("a"), Some(State::In { .. })) && node.world.closed.is_empty());
    // Before it is captured nothing is redirected there: it goes on as it did.
    let mut node = Node::new(&[]);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    node.done(Step::Listen, Done::Usurped(Cause::PortTaken("in use".into())));
    assert_eq!(node.steps(), []);
}

#[test]
fn an_answer_that_nobody_waits_for_ends_nothing() {
    let mut node = Node::new(&[]);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    assert_eq!(node.steps(), [Step::Listen]);
    let stray = Done::Well(Report::default());
    node.pods.handle_done(node.now, SystemTime::UNIX_EPOCH, id(1), Step::Enforce, stray);
    node.now += Duration::from_secs(60);
    node.poll();
    node.end(0, true);
    assert_eq!(node.steps(), [Step::Enforce], "after its own answer, and once");
}

#[test]
fn durations_without_end_are_waited_for_and_nothing_else() {
    let never = Duration::MAX;
    let mut node = Node::new(&[]);
    node.pods = Pods::new(Timing {
        verify_every: never,
        pause: never,
        pause_most: never,
        verify_least: never,
        reuse: never,
        drain: never,
        wait: never,
        open: false,
    });
    node.pods.handle_announced(node.now, ["b".into()]);
    node.give(2, 2);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    node.finish();
    assert!(matches!(node.state("a"), Some(State::In { .. })), "{:?}", node.state("a"));
    node.now += Duration::from_secs(24 * 60 * 60);
    node.poll();
    assert!(node.world.under_way.is_empty(), "{:?}", node.steps());
    node.want(&[]);
    node.end(0, true);
    node.end(0, true);
    assert_eq!(node.steps(), [Step::Drain]);
    node.linger(0);
    assert!(node.world.under_way.is_empty(), "{:?}", node.steps());
}
