//! Addresses that somebody claims who is not their pod.

use std::{net::Ipv4Addr, sync::Arc};

use ambient_redirect::{
    linux::{Inside, Mark, Netns},
    netlink::{Route, Routing},
    plan::{Options, Plan},
    pods::{Cause, State, Unpaired},
};
use ambient_testkit::{World, harness::Outcome};

use crate::{
    mesh::{Log, Running, namespace_of as paired},
    node::{Node, spec},
};

/// Somebody gives himself the address of the next pod: at every look before that pod is told of he is the only one who has it.
pub(crate) fn whoever_has_claimed_an_address_before_its_pod_does_not_become_that_pod(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let _other = node.pod("other", "10.0.0.9", "fd00::9")?;
    let thief = world.namespace("thief")?;
    // Of his own one, which he keeps.
    thief.add_address("lo", "10.0.0.7/32".parse::<ipnet::IpNet>()?)?;
    thief.add_address("lo", "10.0.0.2/32".parse::<ipnet::IpNet>()?)?;
    let victim = world.namespace("victim")?;
    node.run(async {
        let log = Log::default();
        let mut running = Running::start(node.config(), &log);
        let other = spec("other", &["10.0.0.9"]);
        // All that are there have been looked into by then.
        running.want(std::slice::from_ref(&other));
        running.until_in(&["other"]).await;
        // As by its network plugin; then its status says so.
        let own: Arc<Netns> = node.join(&victim, "10.0.0.2", "fd00::2").unwrap();
        running.want(&[other, spec("victim", &["10.0.0.2"])]);
        running
            .until("that two have it", |states| {
                let two = |s: &State| matches!(s, State::Pairing { why: Unpaired::Two(..) });
                states.iter().any(|s| s.spec.uid.as_str() == "victim" && two(&s.state))
            })
            .await;
        assert_eq!(log.count("add victim"), 0, "{:#?}", log.lines());
        let give_up = || Routing::open()?.delete_address(1, [10, 0, 0, 2].into(), 32);
        thief.run(give_up).unwrap().unwrap();
        running.until_in(&["victim"]).await;
        assert_eq!(paired(&running.states.borrow(), "victim"), Some(own.id()));
        running.stop().await;
    })
}

/// Whoever may give himself addresses and routes may give himself any number.
pub(crate) fn what_is_more_than_is_read_is_told_and_holds_up_no_other(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let _other = node.pod("other", "10.0.0.9", "fd00::9")?;
    let many = node.pod("many", "10.0.0.2", "fd00::2")?;
    // Some hundreds are nothing out of the way, nor are some thousand routes.
    let numbered = |n: u32| Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 0).to_bits() + n);
    let add = |addresses: std::ops::Range<u32>, routes: std::ops::Range<u32>| {
        let work = || {
            let mut routing = Routing::open().unwrap();
            addresses.for_each(|n| routing.add_address(1, numbered(n).into(), 32).unwrap());
            for n in routes {
                let to = ipnet::Ipv4Net::new(numbered(n), 32).unwrap();
                routing.add_route(&Route::to(to.into()).dev(1).table(77)).unwrap();
            }
        };
        many.run(work).unwrap();
    };
    let apply = || {
        let mut inside = Inside::open(&many).unwrap();
        let applied = inside.apply(&Plan::new(&Options::default()), &Mark::new("node-2", &"a".into()));
        inside.clear().map_err(|e| e.to_string())?;
        applied.map_err(|e| e.to_string())
    };
    add(0..500, 0..5000);
    apply().unwrap();
    add(500..4000, 0..0);
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec("many", &["10.0.0.2"]), spec("other", &["10.0.0.9"])]);
        running.until_in(&["other"]).await;
        let is_told = |s: &State| matches!(s, State::Pairing { why: Unpaired::Unseen(Cause::Other(why)) } if why.contains("KiB"));
        running
            .until("that it is told", |states| {
                states.iter().any(|s| s.spec.uid.as_str() == "many" && is_told(&s.state))
            })
            .await;
        running.stop().await;
    })?;
    let fewer = || (500..4000).for_each(|n| Routing::open().unwrap().delete_address(1, numbered(n).into(), 32).unwrap());
    many.run(fewer).unwrap();
    apply().unwrap();
    add(0..0, 5000..20_000);
    let why = apply().unwrap_err();
    assert!(why.contains("listing routes") && why.contains("KiB"), "{why}");
    Ok(())
}
