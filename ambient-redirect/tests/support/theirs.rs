//! What somebody else does to a pod's packets.

use std::time::Duration;

use ambient_redirect::netlink::{BaseChain, Batch, ChainKind, Expr, Family, Hook, Nftables};
use ambient_testkit::{World, harness::Outcome};
use tokio::time::{sleep, timeout};

use crate::{
    mesh::{Log, Running, is_in},
    node::{Node, spec},
};

/// All that is ours stands, and something else takes what the pod sends, of either family: connections alone show it.
pub(crate) fn rules_of_somebody_else_in_the_way_are_noticed_when_they_come(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        assert!(node.config().prove_every > Duration::from_secs(20), "no timer helps");
        let mut running = Running::start(crate::untimed(&node), &Log::default());
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        for (probe, theirs) in [("240.0.0.1", "10.0.0.2:9"), ("100::1", "[fd00::2]:9")] {
            running.until_in(&["a"]).await;
            sleep(Duration::from_millis(1200)).await;
            pod.run(|| {
                let mut batch = Batch::default();
                let first = BaseChain {
                    kind: ChainKind::Nat,
                    hook: Hook::Output,
                    priority: -150,
                };
                batch.add_table(Family::Inet, "theirs", b"");
                batch.add_base_chain(Family::Inet, "theirs", "output", &first);
                let mut rule = Expr::tcp_to(probe.parse().unwrap(), 15001);
                rule.extend(Expr::dnat(theirs.parse().unwrap()));
                batch.add_rule(Family::Inet, "theirs", "output", &rule);
                Nftables::open().unwrap().commit(batch, None).unwrap();
            })
            .unwrap();
            assert!(crate::stands(&pod), "nothing of ours is touched");
            let noticed = running.until("it to be reported as not captured", |states| !is_in(states, "a"));
            timeout(Duration::from_secs(2), noticed).await.expect("at once");
            running
                .until_logged("refused a: the capture cannot be proven: a connection from inside")
                .await;
            pod.run(|| {
                let mut batch = Batch::default();
                batch.delete_table(Family::Inet, "theirs");
                Nftables::open().unwrap().commit(batch, None).unwrap();
            })
            .unwrap();
        }
        running.until_in(&["a"]).await;
        running.stop().await;
    })
}
