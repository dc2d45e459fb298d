use std::sync::Arc;

use super::*;
use crate::{
    linux::{Difference, Listing, Mark},
    netlink::kernel::{Asked, Kernel},
    plan::{Options, Plan},
};

/// A namespace whose routing is a test's. The other sockets are those of the namespace in which the test runs, where nothing is changed;
/// `None` where the machine has no such sockets.
fn inside(kernel: &Kernel) -> Option<Inside> {
    let opened = Inside::here(Arc::default());
    let mut inside = opened.inspect_err(|error| eprintln!("skipped: {error}")).ok()?;
    inside.routing = kernel.routing();
    Some(inside)
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

#[test]
fn a_look_lists_addresses_rules_and_routes_once() {
    let kernel = kernel();
    let Some(mut inside) = inside(&kernel) else { return };
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
    let looked = inside.look(&plan, &mark, Listing::Descriptors);
    assert_eq!(listed(), [1, 1, 1], "where none are there");
    let lists = match looked {
        Ok(looked) => {
            assert!(!looked.differences.contains(&Difference::Rule(IpFamily::V4)), "{looked:?}");
            looked.lists
        }
        Err(_) => inside.lists().unwrap(),
    };
    listed();
    assert_eq!(routes(lists, &mut inside), BOTH.map(|family| (family, Segments::Loopback)));
    assert_eq!(listed(), [0, 1, 1], "what has become of them");
    let _ = inside.look(&plan, &mark, Listing::Descriptors);
    assert_eq!(listed(), [1, 1, 1], "where they stand");
    let lists = inside.lists().unwrap();
    listed();
    routes(lists, &mut inside);
    assert_eq!(listed(), [0, 0, 0], "where nothing is to be done");
    let _ = inside.dry_run(&plan, &mark);
    assert_eq!(listed(), [1, 1, 1], "for what would be");
}
