//! Whose an address is that somebody claims.

use super::*;

fn seen(places: &[(u64, &[usize])]) -> BTreeMap<NetnsId, Seen> {
    let seen = |(n, addresses): &(u64, &[usize])| {
        let seen = Seen {
            addresses: addresses.iter().map(|index| address_of(*index)).collect(),
            left_behind: None,
            birth: Birth::Running,
            whose: None,
        };
        (id(*n), seen)
    };
    places.iter().map(seen).collect()
}

/// As whoever drives it does.
fn look(node: &mut Node, places: &[(u64, &[usize])]) {
    node.pods.look_begins();
    node.pods.handle_namespaces(node.now, seen(places));
    node.poll();
}

fn desire(node: &mut Node, which: &[usize]) {
    node.known = true;
    let specs: Vec<PodSpec> = which.iter().map(|i| spec(*i)).collect();
    node.pods.handle_desired(node.now, Some(specs.into()));
    node.poll();
}

/// In 2 somebody has given himself all addresses that pods may get.
#[test]
fn a_claim_from_before_a_pod_was_told_of_counts_for_nothing() {
    let mut node = Node::new(&[]);
    look(&mut node, &[(1, &[]), (2, &[0, 1, 2])]);
    desire(&mut node, &[0]);
    assert!(node.world.under_way.is_empty() && node.pods.wants_look(), "{:?}", node.steps());
    assert_eq!(node.state("a"), Some(State::Joining), "nobody has to do anything about it");
    // A look that was begun before says nothing either.
    node.pods.handle_namespaces(node.now, seen(&[(1, &[]), (2, &[0, 1, 2])]));
    node.poll();
    assert!(node.world.under_way.is_empty() && node.pods.wants_look());
    assert!(node.pods.look_begins(), "addresses are read again");
    assert!(!node.pods.wants_look(), "one look, and not one after another");
    node.pods.handle_namespaces(node.now, seen(&[(1, &[0]), (2, &[0, 1, 2])]));
    node.poll();
    let why = Unpaired::Two(id(1), id(2));
    assert_eq!(node.state("a"), Some(State::Pairing { why }), "both claim it now");
    assert!(node.world.under_way.is_empty());
    look(&mut node, &[(1, &[0]), (2, &[1, 2])]);
    assert_eq!(node.world.under_way.keys().collect::<Vec<_>>(), [&id(1)]);
}

#[test]
fn a_look_for_which_descriptors_were_short_gives_no_pod_a_namespace() {
    let mut node = Node::new(&[]);
    desire(&mut node, &[0]);
    // The pod's own could not be looked into.
    node.pods.look_begins();
    node.pods.handle_shortage(node.now);
    node.pods.handle_namespaces(node.now, seen(&[(1, &[]), (2, &[0, 1])]));
    node.poll();
    assert!(node.world.under_way.is_empty());
    assert!(!node.pods.wants_look(), "in its time, and not at once");
    assert_eq!(node.state("a"), Some(State::Pairing { why: Unpaired::NotLooked }));
    look(&mut node, &[(1, &[0]), (2, &[1])]);
    assert_eq!(node.world.under_way.keys().collect::<Vec<_>>(), [&id(1)]);
}

/// Whether something is told of in the look, or it fails altogether.
#[test]
fn a_pod_that_a_look_in_part_does_not_show_says_what_was_short() {
    for fails in [false, true] {
        let mut node = Node::new(&[]);
        look(&mut node, &[(1, &[0]), (2, &[1])]);
        desire(&mut node, &[0]);
        node.pods.changed();
        let short = || Some(Cause::from("Too many open files (os error 24)"));
        node.pods.look_begins();
        node.pods.handle_unseen(node.now, short());
        assert_eq!(node.state("a"), Some(State::Joining), "it is being looked at");
        node.pods.handle_shortage(node.now);
        if !fails {
            node.pods.handle_namespaces(node.now, seen(&[(1, &[0]), (2, &[1])]));
        }
        assert!(node.pods.changed());
        assert_eq!(node.state("a").map(|s| why(&s)), short().map(Unpaired::Unseen));
        node.pods.look_begins();
        node.pods.handle_unseen(node.now, None);
        node.pods.handle_namespaces(node.now, seen(&[(1, &[0]), (2, &[1])]));
        assert_eq!(node.pods.namespace_of(&"a".into()), Some(id(1)));
    }
}

#[test]
fn an_address_that_a_pod_gets_later_is_looked_for_anew() {
    let mut node = Node::new(&[]);
    look(&mut node, &[(1, &[]), (2, &[1])]);
    desire(&mut node, &[0]);
    look(&mut node, &[(1, &[]), (2, &[1])]);
    let moved = PodSpec {
        addresses: vec![address_of(1)],
        ..spec(0)
    };
    node.pods.handle_desired(node.now, Some(Arc::from([moved])));
    node.poll();
    assert!(node.world.under_way.is_empty() && node.pods.wants_look(), "{:?}", node.steps());
}

/// Its sandbox is gone, and it is meant still: as while it is being deleted.
#[test]
fn whoever_was_there_beside_a_pod_does_not_get_its_place() {
    for by_its_gone in [false, true] {
        let mut node = Node::new(&[]);
        look(&mut node, &[(1, &[0]), (2, &[1])]);
        desire(&mut node, &[0]);
        look(&mut node, &[(1, &[0]), (2, &[1])]);
        assert_eq!(node.world.under_way.keys().collect::<Vec<_>>(), [&id(1)]);
        let settle = |node: &mut Node, places: &[(u64, &[usize])]| {
            for _ in 0..20 {
                while !node.world.under_way.is_empty() {
                    node.end(0, true);
                }
                node.now += Duration::from_secs(1);
                look(node, places);
            }
        };
        settle(&mut node, &[(1, &[0]), (2, &[1])]);
        if by_its_gone {
            node.pods.handle_gone(node.now, id(1));
        }
        settle(&mut node, &[(2, &[0, 1])]);
        let why = Unpaired::Doubtful(id(2));
        assert_eq!(node.state("a"), Some(State::Pairing { why }));
        // What comes after is its own, and so is what bears its old name again.
        for own in [1, 3] {
            settle(&mut node, &[(2, &[0, 1])]);
            node.world.listening.clear();
            settle(&mut node, &[(2, &[1]), (own, &[0])]);
            assert!(matches!(node.state("a"), Some(State::In { .. })), "{own}: {:?}", node.state("a"));
            assert_eq!(node.pods.namespace_of(&"a".into()), Some(id(own)));
        }
    }
}

/// Both have its address, so that it has no namespace yet, when its own goes.
#[test]
fn whoever_claims_the_address_of_a_pod_that_waits_does_not_get_its_place() {
    let own_goes: [fn(&mut Node); 3] = [
        |node| look(node, &[(2, &[0, 1])]),
        |node| {
            node.pods.handle_gone(node.now, id(1));
            node.poll();
            look(node, &[(2, &[0, 1])]);
        },
        // Its network first, then its name.
        |node| {
            look(node, &[(1, &[]), (2, &[0, 1])]);
            assert!(node.world.under_way.is_empty(), "{:?}", node.steps());
            look(node, &[(2, &[0, 1])]);
        },
    ];
    for goes in own_goes {
        let mut node = Node::new(&[]);
        look(&mut node, &[(1, &[0]), (2, &[0, 1])]);
        desire(&mut node, &[0]);
        look(&mut node, &[(1, &[0]), (2, &[0, 1])]);
        assert_eq!(node.state("a").map(|s| why(&s)), Some(Unpaired::Two(id(1), id(2))));
        goes(&mut node);
        look(&mut node, &[(2, &[0, 1])]);
        assert!(node.world.under_way.is_empty(), "{:?}", node.steps());
        assert_eq!(node.state("a").map(|s| why(&s)), Some(Unpaired::Doubtful(id(2))));
        // What comes after is its own.
        look(&mut node, &[(2, &[1]), (3, &[0])]);
        assert_eq!(node.pods.namespace_of(&"a".into()), Some(id(3)));
    }
}

/// In 1 is one pod's namespace, which another of the same address gets after it: as of a kubelet's own pod that is given another UID.
#[test]
fn a_pod_waits_for_its_namespace_while_another_has_it_whoever_else_has_the_address() {
    let places: [(u64, &[usize]); 2] = [(1, &[0]), (2, &[0, 1])];
    for left_behind in [false, true] {
        let mut node = if left_behind { Node::new(&[(1, 0)]) } else { Node::with_one_in() };
        if left_behind {
            node.see(&[(1, 0)]);
            node.want(&[3]);
            assert_eq!(node.steps(), [Step::Withdraw]);
        } else {
            desire(&mut node, &[0, 3]);
            look(&mut node, &places);
            assert!(matches!(node.state("d").map(|s| why(&s)), Some(Unpaired::SameAddress { .. })));
            desire(&mut node, &[3]);
        }
        look(&mut node, &places);
        let let_go = |s: State| matches!(why(&s), Unpaired::LetGo { namespace, .. } if namespace == id(1));
        assert!(node.state("d").is_some_and(let_go), "{:?}", node.state("d"));
        for _ in 0..20 {
            node.end(0, true);
            look(&mut node, &places);
            node.now += Duration::from_secs(1);
        }
        assert_eq!(node.state("d").map(|s| why(&s)), Some(Unpaired::Two(id(1), id(2))));
        look(&mut node, &[(1, &[0]), (2, &[1])]);
        assert_eq!(node.pods.namespace_of(&"d".into()), Some(id(1)));
    }
}

/// As when a node starts again: a pod that it captures has given itself the address of another.
#[test]
fn what_a_captured_pod_gives_itself_keeps_no_other_out() {
    let mut node = Node::new(&[]);
    desire(&mut node, &[0, 1]);
    look(&mut node, &[(1, &[0]), (2, &[0, 1])]);
    assert_eq!(node.pods.namespace_of(&"b".into()), Some(id(2)));
    look(&mut node, &[(1, &[0]), (2, &[0, 1]), (3, &[])]);
    assert_eq!(node.pods.namespace_of(&"a".into()), Some(id(1)), "{:?}", node.state("a"));
}

#[test]
fn a_look_for_which_descriptors_were_short_gives_none_to_a_pod_for_which_two_were_seen() {
    let mut node = Node::new(&[]);
    desire(&mut node, &[0]);
    look(&mut node, &[(1, &[0]), (2, &[0])]);
    // The pod's own could not be looked into again.
    node.pods.look_begins();
    node.pods.handle_shortage(node.now);
    node.pods.handle_namespaces(node.now, seen(&[(1, &[1]), (2, &[0])]));
    node.poll();
    assert!(node.world.under_way.is_empty(), "{:?}", node.steps());
    look(&mut node, &[(1, &[0]), (2, &[1])]);
    assert_eq!(node.pods.namespace_of(&"a".into()), Some(id(1)));
}

fn why(state: &State) -> Unpaired {
    match state {
        State::Pairing { why } => why.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_beside_a_pod_and_is_handed_over_for_it_is_its_own() {
    let mut node = Node::new(&[]);
    node.pods = Pods::new(Timing {
        open: true,
        ..Timing::default()
    });
    look(&mut node, &[(1, &[0]), (2, &[1])]);
    desire(&mut node, &[0]);
    look(&mut node, &[(1, &[0]), (2, &[1])]);
    node.pods.handle_gone(node.now, id(1));
    for _ in 0..20 {
        node.poll();
        while !node.world.under_way.is_empty() {
            node.end(0, true);
        }
        node.now += Duration::from_secs(1);
    }
    node.pods.handle_given(node.now, id(2), &spec(0)).unwrap();
    look(&mut node, &[(2, &[0])]);
    assert_eq!(node.pods.namespace_of(&"a".into()), Some(id(2)), "{:?}", node.state("a"));
}

#[test]
fn what_lacks_a_namespace_says_why() {
    let why = |node: &Node, uid: &str| match node.state(uid) {
        Some(State::Pairing { why }) => why.to_string(),
        other => panic!("{other:?}"),
    };
    let mut node = Node::new(&[]);
    node.want(&[0]);
    assert_eq!(why(&node, "a"), "no network namespace has been looked into yet");
    node.see(&[]);
    assert_eq!(why(&node, "a"), "no network namespace with its addresses is to be seen");
    node.see(&[(1, 0)]);
    node.settle();
    // A second claims the address of the one that has it.
    node.want(&[0, 3]);
    assert!(matches!(node.state("a"), Some(State::In { .. })));
    assert_eq!(
        why(&node, "d"),
        format!("shop/a (a) has the same address 10.0.0.1, and the namespace {}", id(1))
    );
    // The first leaves; the second waits for its namespace.
    node.want(&[3]);
    assert!(why(&node, "d").contains("is being let go by another pod"), "{}", why(&node, "d"));
    // Neither has it.
    let mut node = Node::new(&[]);
    node.want(&[0, 3]);
    node.see(&[(1, 0)]);
    assert_eq!(why(&node, "a"), "shop/d (d) has the same address 10.0.0.1");
    assert_eq!(why(&node, "d"), "shop/a (a) has the same address 10.0.0.1");
}
