//! What another version of this has put into a namespace.

use std::{collections::BTreeSet, time::Duration};

use ambient_redirect::{
    linux::{Inside, Mark, Netns},
    netlink::{BaseChain, Batch, Chain, ChainKind, Expr, Family, Hook, Nftables},
    plan::{Options, Plan},
};
use ambient_testkit::{World, harness::Outcome};
use tokio::time::sleep;

use crate::{
    heard::ask,
    is_clean,
    mesh::{Log, Running},
    node::{self, Node, spec},
};
/// What an earlier version put there, or a later one before it was taken back: less than there is to be, and more.
pub(crate) fn what_another_version_of_this_left_is_put_right(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let log = Log::default();
    node.run(async {
        let running = Running::capturing(node.config(), &log, &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        running.kill().await;
        let chains = || pod.run(|| Nftables::open().unwrap().chains().unwrap()).unwrap();
        let before = chains();
        pod.run(|| {
            let mut nftables = Nftables::open().unwrap();
            let tables = nftables.tables().unwrap();
            let mark = &tables.iter().find(|t| t.name == "ambient-nat").unwrap().userdata;
            let first = BaseChain {
                kind: ChainKind::Nat,
                hook: Hook::Output,
                priority: -150,
            };
            let mut batch = Batch::default();
            batch.delete_table(Family::Inet, "ambient-guard");
            for table in ["ambient-nat", "ambient-later"] {
                batch.add_table(Family::Inet, table, mark);
                batch.add_base_chain(Family::Inet, table, "later", &first);
            }
            let mut rule = Expr::tcp_to("198.51.100.7".parse().unwrap(), 80);
            rule.extend(Expr::dnat("198.51.100.8:80".parse().unwrap()));
            batch.add_rule(Family::Inet, "ambient-nat", "later", &rule);
            nftables.commit(batch, None).unwrap();
        })
        .unwrap();
        let running = Running::capturing(node.config(), &log, &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        assert_eq!(ask(&pod, "198.51.100.7:80").await.unwrap(), "out 198.51.100.7:80 from 10.0.0.2");
        let names = |chains: &[Chain]| chains.iter().map(|c| format!("{} {}", c.table, c.name)).collect::<BTreeSet<_>>();
        assert_eq!(names(&chains()), names(&before));
        // One that comes later is found at once, told of, and taken away; what bears no mark of ours is nobody's of these.
        pod.run(|| {
            let mut nftables = Nftables::open().unwrap();
            let mark = nftables.table(Family::Inet, "ambient-nat").unwrap().unwrap().userdata;
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, "ambient-elsewhere", b"");
            batch.add_table(Family::Inet, "ambient-later", &mark);
            batch.add_base_chain(Family::Inet, "ambient-later", "later", &BaseChain::nat_output());
            nftables.commit(batch, None).unwrap();
        })
        .unwrap();
        running
            .until_logged("repaired a: table ambient-later is there and not wanted; put back: without table ambient-later")
            .await;
        assert_eq!(names(&chains()), names(&before));
        running.want(&[]);
        running.until_logged("released a").await;
        let left = pod.run(|| Nftables::open().unwrap().tables().unwrap()).unwrap();
        assert_eq!(left.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["ambient-elsewhere"]);
        running.stop().await;
    })
}

/// Nothing but tables that are not known here, of a pod that is not meant to be in the mesh any more.
pub(crate) fn what_a_later_version_left_for_nobody_goes(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let [pod, others] = [("a", "10.0.0.2", "fd00::2"), ("b", "10.0.0.3", "fd00::3")].map(|(name, v4, v6)| node.pod(name, v4, v6).unwrap());
    for (at, node) in [(&pod, node::NAME), (&others, "node-2")] {
        at.run(|| {
            let mut inside = Inside::open(&Netns::current().unwrap()).unwrap();
            inside
                .apply(&Plan::new(&Options::default()), &Mark::new(node, &"a".into()))
                .unwrap();
            let mut nftables = Nftables::open().unwrap();
            let mark = nftables.table(Family::Inet, "ambient-nat").unwrap().unwrap().userdata;
            inside.clear().unwrap();
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, "ambient-later", &mark);
            nftables.commit(batch, None).unwrap();
        })
        .unwrap();
    }
    node.run(async {
        let running = Running::start(node.config(), &Log::default());
        running.want(&[]);
        running.until_logged("withdrawn a").await;
        for _ in 0..500 {
            if is_clean(&pod) {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert!(is_clean(&pod));
        assert!(!is_clean(&others), "another node's");
        running.stop().await;
    })
}
