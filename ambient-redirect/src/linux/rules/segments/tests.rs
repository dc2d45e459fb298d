use std::sync::Arc;

use super::*;
use crate::{
    linux::{Difference, Listing, Mark},
    netlink::kernel::{Asked, Kernel},
    plan::{Options, Plan},
};

/// A namespace whose routing is a test's. The other sockets are those of the namespace in which the test runs, where nothing is changed;
/// Whoever runs these has a kernel with such sockets, as who redirects must have.
fn inside(kernel: &Kernel) -> Inside {
    let mut inside = Inside::here(Arc::default()).unwrap();
    inside.routing = kernel.routing();
    inside
}

/// As of a pod of both families, with what captures.
fn kernel() -> Kernel {
    let kernel = Kernel::default();
    {
        let mut state = kernel.state();
        state.addresses = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for family in BOTH {
            let (every, via) = match family {
                IpFamily::V4 => ("0.0.0.0/0", "10.0.0.1"),
                IpFamily::V6 => ("::/0", "fd00::1"),
            };
            let main = Policy {
                ipv6: family == IpFamily::V6,
                priority: 32_766,
                leads_to: LeadsTo::Table(MAIN),
                ..Policy::default()
            };
            state.policies.extend([Policy::from(super::super::routing_rule(family)), main]);
            let default = Route::to(every.parse().unwrap()).via(via.parse().unwrap()).dev(2);
            state.routes.extend([super::super::route(family), default]);
        }
    }
    kernel
}

fn keep(inside: &mut Inside, wanted: &[IpFamily]) {
    let lists = inside.lists().unwrap();
    inside.look_at_segments(wanted, &lists);
    inside.keep_segments_alone(wanted, lists);
}

fn has_rule(kernel: &Kernel, family: IpFamily) -> bool {
    kernel.state().policies.contains(&rule(family))
}

/// Longer than anything is tried that is given up.
const LOOKS: usize = 3 * TRIES as usize;

#[test]
fn what_is_not_to_be_is_taken_away_however_often_that_was_refused() {
    let kernel = kernel();
    let mut inside = inside(&kernel);
    keep(&mut inside, &BOTH);
    assert!(BOTH.into_iter().all(|family| has_rule(&kernel, family)));
    assert_eq!(inside.segments(), BOTH.map(|family| (family, Segments::Loopback)));
    kernel.state().refused.insert(Asked::DeleteRule);
    // Of one it is taken away as something is kept, and the other stays. Whoever is to have no others is not looked at for what goes
    // around.
    for _ in 0..LOOKS {
        keep(&mut inside, &BOTH[1..]);
        assert_eq!(kernel.count(Asked::DeleteRule), 1, "once at a look");
        let [(IpFamily::V4, Segments::Left(_)), (IpFamily::V6, Segments::Loopback)] = inside.segments() else {
            panic!("{:?}", inside.segments());
        };
        let lists = inside.lists().unwrap();
        assert_eq!(inside.are_new(&BOTH[1..], &lists), []);
    }
    assert!(has_rule(&kernel, IpFamily::V4));
    kernel.state().refused.clear();
    keep(&mut inside, &BOTH[1..]);
    assert!(!has_rule(&kernel, IpFamily::V4) && has_rule(&kernel, IpFamily::V6));
    assert_eq!(inside.segments(), [(IpFamily::V6, Segments::Loopback)]);
    assert!(!inside.segments_differ());
}

#[test]
fn what_is_given_up_is_taken_away_however_often_that_was_refused() {
    let kernel = kernel();
    let mut inside = inside(&kernel);
    let wanted = &BOTH[..1];
    keep(&mut inside, wanted);
    // Another route, which cannot be made, and now the rule cannot be taken away either.
    let more = Route::to("192.0.2.0/24".parse().unwrap()).via([10, 0, 0, 9].into()).dev(2);
    kernel.state().routes.push(more);
    kernel.state().refused.extend([Asked::MakeRoute, Asked::DeleteRule]);
    for look in 1..=LOOKS {
        keep(&mut inside, wanted);
        assert!(has_rule(&kernel, IpFamily::V4));
        let is_left = matches!(inside.segments(), [(IpFamily::V4, Segments::Left(_))]);
        assert!(is_left, "at look {look}: {:?}", inside.segments());
    }
    kernel.count(Asked::MakeRoute);
    kernel.state().refused.remove(&Asked::DeleteRule);
    keep(&mut inside, wanted);
    assert_eq!(kernel.count(Asked::MakeRoute), 0, "what was given up is not tried again");
    assert!(!has_rule(&kernel, IpFamily::V4));
    assert!(
        matches!(inside.segments(), [(IpFamily::V4, Segments::Link(Aside::Refused(_)))]),
        "{:?}",
        inside.segments()
    );
    // Until it would be something else.
    let lists = inside.lists().unwrap();
    assert_eq!(inside.are_new(wanted, &lists), []);
    kernel.state().refused.clear();
    kernel.state().routes.pop();
    let lists = inside.lists().unwrap();
    inside.look_at_segments(wanted, &lists);
    assert_eq!(inside.are_new(wanted, &lists), wanted);
    keep(&mut inside, wanted);
    assert!(has_rule(&kernel, IpFamily::V4));
    assert_eq!(inside.segments(), [(IpFamily::V4, Segments::Loopback)]);
}

#[test]
fn what_has_changed_while_it_was_put_is_taken_away_and_not_told_to_be_left() {
    let kernel = kernel();
    let mut inside = inside(&kernel);
    for refused in [None, Some(Asked::DeleteRoute)] {
        let lists = inside.lists().unwrap();
        let taken = kernel.state().routes.clone();
        kernel.state().routes.retain(|route| route.table != MAIN);
        kernel.state().refused.extend(refused);
        inside.look_at_segments(&BOTH, &lists);
        inside.keep_segments_alone(&BOTH, lists);
        // Routes without a rule lead nobody anywhere, if they cannot be taken away.
        assert!(!BOTH.into_iter().any(|family| has_rule(&kernel, family)), "{refused:?}");
        assert_eq!(
            inside.segments(),
            BOTH.map(|family| (family, Segments::Link(Aside::NoRoute))),
            "{refused:?}"
        );
        assert_eq!(inside.segments_differ(), refused.is_some());
        kernel.state().refused.clear();
        kernel.state().routes = taken;
    }
}

#[test]
fn a_route_that_cannot_be_taken_away_leads_nobody_anywhere() {
    let kernel = kernel();
    let mut inside = inside(&kernel);
    let more = Route::to("192.0.2.0/24".parse().unwrap()).via([10, 0, 0, 9].into()).dev(2);
    kernel.state().routes.push(more);
    keep(&mut inside, &BOTH);
    kernel
        .state()
        .routes
        .retain(|route| route.table != MAIN || route.gateway != Some([10, 0, 0, 9].into()));
    kernel.state().refused.insert(Asked::DeleteRoute);
    keep(&mut inside, &BOTH);
    assert!(!has_rule(&kernel, IpFamily::V4) && has_rule(&kernel, IpFamily::V6));
    let [
        (IpFamily::V4, Segments::Link(Aside::Refused(_))),
        (IpFamily::V6, Segments::Loopback),
    ] = inside.segments()
    else {
        panic!("{:?}", inside.segments());
    };
}

#[test]
fn the_families_of_a_kernel_without_routing_rules_are_known() {
    let kernel = kernel();
    kernel.state().refused.extend([Asked::ListRules, Asked::ListRoutes]);
    assert_eq!(inside(&kernel).families(&BOTH).unwrap(), BOTH);
    kernel.state().addresses.pop();
    assert_eq!(inside(&kernel).families(&BOTH).unwrap(), BOTH[..1]);
}

#[test]
fn a_look_lists_addresses_rules_and_routes_once() {
    let kernel = kernel();
    let mut inside = inside(&kernel);
    let plan = Plan::new(&Options {
        loopback_segments: true,
        ..Options::default()
    });
    let mark = Mark::new("node-1", &"a".into());
    let listed = || [Asked::ListAddresses, Asked::ListRules, Asked::ListRoutes].map(|what| kernel.count(what));
    let routes = |lists: Lists, inside: &mut Inside| {
        inside.keep_segments_alone(&plan.segments, lists);
        inside.segments().to_vec()
    };
    // Whoever may not list tables is told so after this.
    let looked = |inside: &mut Inside| match inside.look(&plan, &mark, Listing::Descriptors) {
        Ok(looked) => {
            assert!(!looked.differences.contains(&Difference::Rule(IpFamily::V4)), "{looked:?}");
            (listed(), looked.lists)
        }
        Err(ApplyError::Kernel(error)) if error.forbidden() => (listed(), inside.lists().unwrap()),
        Err(error) => panic!("{error}"),
    };
    let (by_look, lists) = looked(&mut inside);
    assert_eq!(by_look, [1, 1, 1], "where none are there");
    listed();
    assert_eq!(routes(lists, &mut inside), BOTH.map(|family| (family, Segments::Loopback)));
    assert_eq!(listed(), [0, 1, 1], "what has become of them");
    let (by_look, lists) = looked(&mut inside);
    assert_eq!(by_look, [1, 1, 1], "where they stand");
    listed();
    let would = inside.segments_would_change(&plan.segments, &lists).unwrap();
    let stays = |(family, would): &Would| matches!(would, Ok(Change::Stays)) && BOTH.contains(family);
    assert!(would.len() == 2 && would.iter().all(stays), "{would:?}");
    assert_eq!(listed(), [0, 0, 0], "for what would be of what is listed");
    routes(lists, &mut inside);
    assert_eq!(listed(), [0, 0, 0], "where nothing is to be done");
}
