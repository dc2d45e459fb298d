//! Both ends of ZDS against each other, in every order in which things can happen up to a depth, and in long random ones.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/zds_world.rs"]
mod zds_world;

use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;
use zds_world::{Babble, Event, Proxy, World};

/// Looks at every order of events up to a depth from a state on; every state settles.
fn explore(start: World, events: &[Event], depth: usize) -> usize {
    let (mut seen, mut frontier) = (HashSet::from([start.key()]), vec![start]);
    for _ in 0..depth {
        let mut next = Vec::new();
        for world in &frontier {
            for event in events.iter().filter(|event| world.may(**event)) {
                let mut then = world.clone();
                then.happen(*event);
                if seen.insert(then.key()) {
                    then.clone().settle();
                    next.push(then);
                }
            }
        }
        frontier = next;
    }
    seen.len()
}

fn after(proxies: usize, events: &[Event]) -> World {
    let mut world = World::new(proxies);
    for event in events {
        assert!(world.may(*event), "{event:?} cannot happen");
        world.happen(*event);
    }
    world
}

/// A proxy that serves pod a in namespace 1, and all is quiet.
fn quiet() -> World {
    settled(after(1, &[Event::Connect(0), Event::Want(0, 1)]), 0)
}

/// Once a proxy has been told all, and has done it.
fn settled(mut world: World, proxy: usize) -> World {
    while let Some(event) = [Event::Finish(proxy, true), Event::ToAgent(proxy), Event::ToProxy(proxy)]
        .into_iter()
        .find(|e| world.may(*e))
    {
        world.happen(event);
    }
    assert!(world.is_settled());
    world
}

#[test]
fn a_first_connection_in_every_order() {
    let events = [
        Event::Connect(0),
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::Finish(0, true),
        Event::Finish(0, false),
        Event::Want(0, 1),
        Event::Want(1, 2),
        Event::Unwant(0),
        Event::Break(0),
        Event::Notice,
        Event::Lose(0),
        Event::Pass,
    ];
    let states = explore(World::new(1), &events, 8);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

#[test]
fn a_pod_moves_and_its_namespace_is_anothers() {
    let events = [
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::Finish(0, true),
        Event::Finish(0, false),
        Event::Want(0, 2),
        Event::Want(1, 1),
        Event::WantAnew(0),
        Event::Unwant(0),
        Event::Unwant(1),
        Event::Break(0),
        Event::Connect(0),
        Event::Pass,
    ];
    let states = explore(quiet(), &events, 7);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

#[test]
fn the_agent_restarts_in_every_order() {
    let events = [
        Event::RestartAgent,
        Event::Remember(0),
        Event::Connect(0),
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::Finish(0, true),
        Event::Want(1, 2),
        Event::Unwant(0),
        Event::Break(0),
        Event::Notice,
        Event::Pass,
    ];
    let states = explore(quiet(), &events, 8);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

#[test]
fn a_proxy_is_upgraded_in_every_order() {
    let mut start = quiet();
    start.proxies.push(Proxy::new());
    let events = [
        Event::Connect(1),
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::ToProxy(1),
        Event::ToAgent(1),
        Event::Finish(0, true),
        Event::Finish(1, true),
        Event::Want(1, 2),
        Event::Unwant(0),
        Event::Kill(0),
        Event::Kill(1),
        Event::Break(1),
        Event::Notice,
    ];
    let states = explore(start, &events, 7);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

/// Two proxies that have been told all, the second of them the newest.
fn two() -> World {
    let mut world = quiet();
    world.proxies.push(Proxy::new());
    world.happen(Event::Connect(1));
    settled(world, 1)
}

#[test]
fn the_agent_of_two_proxies_restarts_in_every_order() {
    let events = [
        Event::RestartAgent,
        Event::Remember(0),
        Event::Connect(0),
        Event::Connect(1),
        Event::ToProxy(0),
        Event::ToProxy(1),
        Event::ToAgent(0),
        Event::ToAgent(1),
        Event::Want(0, 2),
        Event::Unwant(0),
        Event::Kill(1),
        Event::Pass,
    ];
    // Its end and the proxies' return come first: what they are told then comes in every order.
    let mut start = two();
    start.happen(Event::RestartAgent);
    let states = explore(start, &events[1..], 8);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

#[test]
fn a_wrong_message_at_any_moment_ends_its_connection_alone() {
    let events = [
        Event::Connect(0),
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::Finish(0, true),
        Event::Want(0, 1),
        Event::Want(1, 2),
        Event::Unwant(0),
        Event::Garble(0),
        Event::Misplace(0),
        Event::Babble(0, Babble::Garbage),
        Event::Babble(0, Babble::Descriptor),
        Event::Babble(0, Babble::Unasked),
        Event::Notice,
        Event::Pass,
    ];
    let states = explore(World::new(1), &events, 7);
    println!("{states} states");
    assert!(states > 1000, "{states}");
    let events = [
        Event::Connect(1),
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::ToProxy(1),
        Event::ToAgent(1),
        Event::Finish(1, true),
        Event::Want(1, 2),
        Event::WantAnew(0),
        Event::Unwant(0),
        Event::Garble(0),
        Event::Garble(1),
        Event::Misplace(1),
        Event::Babble(0, Babble::Garbage),
        Event::Babble(1, Babble::Garbage),
        Event::Notice,
    ];
    let states = explore(two(), &events, 6);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

/// A proxy that refuses pod a, and a newer one that has ended by it twice: the pod is a suspect for longer than the refusal lasts.
fn refused_and_suspected() -> World {
    let begin = [
        Event::Want(0, 1),
        Event::Connect(0),
        Event::ToAgent(0),
        Event::ToProxy(0),
        Event::Finish(0, false),
        Event::ToAgent(0),
        Event::ToProxy(0),
        Event::ToAgent(0),
    ];
    let mut world = after(2, &begin);
    world.now += Duration::from_secs(1);
    for _ in 0..2 {
        for event in [Event::Connect(1), Event::ToAgent(1), Event::Break(1), Event::Notice] {
            world.happen(event);
        }
    }
    assert_eq!(world.agent.states()[0].refused.len(), 1, "{world:#?}");
    world.happen(Event::Connect(1));
    world.happen(Event::ToAgent(1));
    world
}

#[test]
fn what_one_refuses_and_another_ends_by_is_asked_for_in_time_and_not_before() {
    let events = [
        Event::Connect(1),
        Event::ToProxy(0),
        Event::ToAgent(0),
        Event::ToProxy(1),
        Event::ToAgent(1),
        Event::Finish(0, false),
        Event::Finish(1, true),
        Event::Finish(1, false),
        Event::Want(0, 2),
        Event::Unwant(0),
        Event::Break(1),
        Event::Notice,
        Event::Pass,
    ];
    let states = explore(refused_and_suspected(), &events, 7);
    println!("{states} states");
    assert!(states > 1000, "{states}");
}

#[test]
fn two_pods_that_change_places_are_both_served() {
    let mut world = World::new(2);
    for event in [
        Event::Want(0, 2),
        Event::Connect(1),
        Event::ToAgent(1),
        Event::ToProxy(1),
        Event::Finish(1, false),
        Event::Want(2, 1),
        Event::ToAgent(1),
        Event::Unwant(0),
        Event::Want(2, 2),
        Event::Want(0, 1),
    ] {
        assert!(world.may(event), "{event:?}");
        world.happen(event);
    }
    world.settle();
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..3usize, 1..4u64).prop_map(|(pod, n)| Event::Want(pod, n)),
        1 => (0..3usize).prop_map(Event::WantAnew),
        2 => (0..3usize).prop_map(Event::Unwant),
        1 => Just(Event::RestartAgent),
        2 => (0..3usize).prop_map(Event::Remember),
        3 => (0..2usize).prop_map(Event::Connect),
        8 => (0..2usize).prop_map(Event::ToProxy),
        8 => (0..2usize).prop_map(Event::ToAgent),
        1 => (0..2usize).prop_map(Event::Lose),
        1 => (0..2usize).prop_map(Event::Break),
        1 => Just(Event::Notice),
        6 => (0..2usize, proptest::bool::weighted(0.8)).prop_map(|(p, well)| Event::Finish(p, well)),
        1 => (0..2usize).prop_map(Event::Kill),
        1 => (0..2usize).prop_map(Event::Garble),
        1 => (0..2usize).prop_map(Event::Misplace),
        1 => (0..2usize, prop_oneof![Just(Babble::Garbage), Just(Babble::Descriptor), Just(Babble::Unasked)])
            .prop_map(|(p, what)| Event::Babble(p, what)),
        2 => Just(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn long_histories_settle(events in proptest::collection::vec(any_event(), 1..120)) {
        let mut world = World::new(2);
        for (n, event) in events.into_iter().enumerate() {
            if world.may(event) {
                world.happen(event);
                if n % 10 == 0 {
                    world.clone().settle();
                }
            }
        }
        world.settle();
    }
}
