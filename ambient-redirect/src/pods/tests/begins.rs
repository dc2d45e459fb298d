//! What is known of a pod when it is first seen.

use super::*;

#[test]
fn what_is_handed_over_is_refused_until_it_is_proven() {
    let mut node = Node::new(&[]);
    node.give(1, 0);
    assert_eq!(node.steps(), [Step::Close]);
    node.end(0, true);
    assert_eq!(node.steps(), []);
    assert_eq!(node.state("a"), Some(State::Waiting));
    assert!(node.pods.is_closed(id(1)));
    // Somebody flushes what refuses.
    node.changes(1);
    assert_eq!(node.steps(), [Step::Close]);
    node.end(0, true);
    node.want(&[0]);
    let mut steps = Vec::new();
    while let Some(action) = node.world.under_way.values().next().cloned() {
        assert!(node.world.closed.contains(&id(1)) || steps.contains(&Step::Open), "{action:?}");
        steps.push(action.step);
        node.end(0, true);
    }
    assert_eq!(
        steps,
        [Step::Listen, Step::Enforce, Step::Prove, Step::Open, Step::Prove, Step::Announce]
    );
    let other = PodSpec {
        uid: "b".into(),
        ..spec(0)
    };
    let refused = node.pods.handle_given(node.now, id(1), &other);
    assert_eq!(
        refused.unwrap_err(),
        NotGiven::Taken(format!("the namespace {} is shop/a (a)'s", id(1)))
    );
    let refused = node.pods.handle_given(node.now, id(2), &spec(0));
    assert_eq!(
        refused.unwrap_err(),
        NotGiven::Elsewhere(id(1), format!("shop/a (a) is in the namespace {}", id(1)))
    );
    // What is being let go is in the way for a while only.
    node.want(&[]);
    for (n, pod) in [(1, &other), (1, &spec(0)), (2, &spec(0))] {
        let refused = node.pods.handle_given(node.now, id(n), pod);
        assert!(matches!(refused, Err(NotGiven::Passing(_))), "{n}: {refused:?}");
    }
    node.settle();
    assert!(node.pods.is_empty());
    // Somebody else had it a moment ago; whoever hands it over knows better.
    node.pods.handle_given(node.now, id(1), &other).unwrap();
}

#[test]
fn rules_of_others_are_in_the_way_for_as_long_as_they_stay() {
    let mut node = Node::new(&[(1, 2)]);
    node.see(&[(1, 0)]);
    let refused = node.pods.handle_given(node.now, id(1), &spec(0));
    assert!(
        matches!(&refused, Err(NotGiven::Passing(why)) if why.contains("holds rules of c")),
        "it is not known yet who is meant: {refused:?}"
    );
    // It is meant, and may turn out to be in this one.
    node.want(&[2]);
    let refused = node.pods.handle_given(node.now, id(1), &spec(0));
    assert!(
        matches!(&refused, Err(NotGiven::Taken(why)) if why.contains("holds rules of c")),
        "{refused:?}"
    );
    node.want(&[]);
    let refused = node.pods.handle_given(node.now, id(1), &spec(0));
    assert!(matches!(&refused, Err(NotGiven::Passing(_))), "{refused:?}");
    node.settle();
    node.pods.handle_given(node.now, id(1), &spec(0)).unwrap();
}

#[test]
fn what_is_found_before_it_is_handed_over_is_refused_from_then_on() {
    let mut node = Node::new(&[]);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    assert_eq!(node.steps(), [Step::Listen]);
    node.pods.handle_given(node.now, id(1), &spec(0)).unwrap();
    node.end(0, true);
    assert_eq!(node.steps(), [Step::Close]);
    node.end(0, true);
    assert!(node.pods.is_closed(id(1)));
    assert_eq!(node.steps(), [Step::Listen]);
    node.settle();
    assert!(matches!(node.state("a"), Some(State::In { .. })));
    assert!(node.world.closed.is_empty());
    // Later it changes nothing.
    node.pods.handle_given(node.now, id(1), &spec(0)).unwrap();
    node.poll();
    assert_eq!(node.steps(), []);
}

#[test]
fn what_an_earlier_process_announced_is_taken_over_or_taken_back() {
    // Nothing of its rules is left, which is a damage of a capture: they come before anything else.
    let mut node = Node::new(&[]);
    node.announced(&[0]);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    assert!(node.world.under_way.values().all(|a| a.step == Step::Enforce && a.enforced));
    node.settle();
    assert!(matches!(node.state("a"), Some(State::In { .. })));
    assert_eq!(node.world.announced, BTreeMap::from([("a".into(), id(1))]));

    // It cannot be captured any more: refused at once, and taken back in the end.
    let mut node = Node::new(&[]);
    node.announced(&[0]);
    node.see(&[(1, 0)]);
    node.want(&[0]);
    let begun = node.now;
    let mut closed = false;
    while node.world.announced.contains_key(&PodUid::from("a")) && node.now - begun < Duration::from_secs(60) {
        while let Some(action) = node.world.under_way.values().next().cloned() {
            closed |= action.step == Step::Close;
            node.end(0, matches!(action.step, Step::Close | Step::Withdraw | Step::Listen));
        }
        node.now += Duration::from_millis(500);
        node.poll();
    }
    let after = node.now - begun;
    assert!(
        closed && after >= Duration::from_secs(30) && after < Duration::from_secs(40),
        "{after:?}"
    );

    // It is not wanted, and nowhere.
    let mut node = Node::new(&[]);
    node.announced(&[0, 1]);
    node.see(&[]);
    assert!(node.world.under_way.is_empty(), "it is not known what is desired");
    node.want(&[1]);
    assert_eq!(node.steps(), [Step::Withdraw]);
    assert_eq!(
        node.pods.states().iter().find(|s| s.spec.uid.as_str() == "a").unwrap().namespace,
        None
    );
    node.settle();
    assert_eq!(node.state("a"), None);
    // Wanted it is waited for, but not for ever.
    assert!(node.world.announced.is_empty() && matches!(node.state("b"), Some(State::Pairing { .. })));
    node.see(&[(1, 1)]);
    node.settle();
    assert_eq!(node.world.announced, BTreeMap::from([("b".into(), id(1))]));
}

#[test]
fn what_has_not_run_by_its_status_is_new_unless_something_runs_there() {
    let mut node = Node::new(&[]);
    node.see(&[(1, UNSTARTED)]);
    node.want(&[UNSTARTED]);
    let mut steps = Vec::new();
    while let Some(action) = node.world.under_way.values().next().cloned() {
        assert_eq!(action.unless_it_runs, action.step == Step::Close);
        steps.push(action.step);
        node.end(0, true);
        let open = steps.contains(&Step::Open);
        assert!(open || node.world.closed.contains(&id(1)), "{action:?}");
    }
    assert_eq!(
        steps,
        [
            Step::Close,
            Step::Listen,
            Step::Enforce,
            Step::Prove,
            Step::Open,
            Step::Prove,
            Step::Announce
        ]
    );
    // It has started, which is nothing that the proxy need be told.
    let started = PodSpec {
        has_run: true,
        ..spec(UNSTARTED)
    };
    node.pods.handle_desired(node.now, Some(Arc::from([started])));
    node.poll();
    assert_eq!(node.steps(), []);

    // Its status is late.
    let mut node = Node::new(&[]);
    node.see(&[(2, UNSTARTED)]);
    node.want(&[UNSTARTED]);
    assert_eq!(node.steps(), [Step::Close]);
    node.end(0, true);
    assert_eq!(node.steps(), [Step::Listen]);
    assert!(node.world.closed.is_empty() && !node.pods.is_closed(id(2)));
    node.settle();
    assert!(matches!(node.state("c"), Some(State::In { .. })));
    // What is refused later is refused whatever runs.
    node.world.rules.clear();
    node.changes(2);
    node.end(0, true);
    node.end(0, false);
    assert!(node.world.under_way.values().all(|a| a.step == Step::Close && !a.unless_it_runs));

    // Handed over it is new, whatever its status or its sockets say.
    let mut node = Node::new(&[]);
    node.see(&[(2, UNSTARTED)]);
    node.want(&[UNSTARTED]);
    node.pods.handle_given(node.now, id(2), &spec(UNSTARTED)).unwrap();
    node.end(0, true);
    assert!(node.world.under_way.values().all(|a| a.step == Step::Close && !a.unless_it_runs));
    node.end(0, true);
    assert!(node.pods.is_closed(id(2)));
}

#[test]
fn what_was_handed_over_and_is_never_wanted_is_let_go() {
    let mut node = Node::new(&[]);
    node.give(1, 0);
    node.end(0, true);
    node.want(&[]);
    node.settle();
    assert!(node.world.closed.is_empty() && node.pods.is_empty());
}

/// As a process finds it after the one before: rules of its pod's, which no process stands behind.
fn left(captures: bool, refuses: bool) -> BTreeMap<NetnsId, Seen> {
    let left = LeftBehind {
        pod: Some("a".into()),
        captures,
        refuses,
    };
    let seen = Seen {
        addresses: vec![address_of(0)],
        left_behind: Some(left),
        birth: Birth::Running,
        whose: None,
    };
    BTreeMap::from([(id(1), seen)])
}

#[test]
fn a_pod_that_was_refused_stays_so_across_a_restart_until_its_capture_is_proven() {
    for (open, captures) in [(false, true), (false, false), (true, true)] {
        let mut node = Node::new(&[]);
        node.pods = Pods::new(Timing { open, ..Timing::default() });
        node.known = true;
        node.world.closed.insert(id(1));
        node.pods.handle_desired(node.now, Some(Arc::from([spec(0)])));
        node.pods.look_begins();
        node.seen.insert(id(1), vec![address_of(0)]);
        node.pods.handle_namespaces(node.now, left(captures, true));
        node.poll();
        if open {
            assert!(node.world.under_way.values().all(|action| !action.closed), "by choice");
            continue;
        }
        assert!(node.pods.is_closed(id(1)) && node.pods.states()[0].closed);
        // Its capture cannot be proven: as before, it is refused.
        for _ in 0..20 {
            let action = node.world.under_way.values().next().cloned().unwrap();
            assert!(action.closed && !matches!(action.step, Step::Open | Step::Announce), "{action:?}");
            assert_eq!(action.enforced, captures || node.world.rules.contains_key(&id(1)), "{action:?}");
            node.end(0, action.step != Step::Prove);
            node.now += Duration::from_secs(6);
            node.poll();
        }
        assert!(node.world.closed.contains(&id(1)));
        node.settle();
        assert!(matches!(node.state("a"), Some(State::In { .. })) && node.world.closed.is_empty());
    }
}

#[test]
fn where_nothing_but_what_tracks_was_left_the_pod_joins_as_if_for_the_first_time() {
    for captures in [false, true] {
        let mut node = Node::new(&[]);
        node.known = true;
        node.pods.handle_desired(node.now, Some(Arc::from([spec(0)])));
        node.pods.look_begins();
        node.seen.insert(id(1), vec![address_of(0)]);
        node.pods.handle_namespaces(node.now, left(captures, false));
        node.poll();
        let action = node.world.under_way.values().next().unwrap();
        assert_eq!(
            action.enforced, captures,
            "what is open went around nothing that captured: {action:?}"
        );
        assert!(!action.closed);
    }
}
