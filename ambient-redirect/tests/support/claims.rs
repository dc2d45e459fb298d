//! Addresses that somebody claims who is not their pod.

use std::sync::Arc;

use ambient_redirect::{
    linux::Netns,
    netlink::Routing,
    pods::{State, Unpaired},
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
