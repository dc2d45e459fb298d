//! Pods that have more open than is held of them at a time.

use ambient_redirect::{
    Config, ExistingConnections,
    netlink::{Batch, Family, Nftables},
};
use ambient_testkit::{World, harness::Outcome};

use crate::{
    mesh::{Log, Running},
    node::{Node, spec},
    peers::{Pair, echo, open_all},
};

const ADDRESSES: [&str; 2] = ["10.0.0.2", "fd00::2"];

fn keeping(node: &Node, kept_most: usize) -> Config {
    Config {
        kept_most,
        ..node.config()
    }
}

/// Which of these are kept goes on; whatever else there is has been reset.
fn sorted(running: &Running, pairs: Vec<Pair>) -> Vec<Pair> {
    let kept = running.states.borrow()[0].kept.clone();
    let is_kept = |pair: &Pair| kept.iter().any(|k| (k.local, k.remote) == (pair.pods, pair.others));
    let (mut kept, mut others): (Vec<_>, Vec<_>) = pairs.into_iter().partition(is_kept);
    for pair in &mut kept {
        pair.converse().unwrap_or_else(|e| panic!("{pair:?}: {e}"));
    }
    for pair in &mut others {
        assert!(pair.is_cut(), "{pair:?}");
    }
    kept
}

pub(crate) fn of_many_open_connections_some_are_kept_and_the_rest_is_reset_and_told(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", ADDRESSES[0], ADDRESSES[1])?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let open = open_all(&node, &pod);
        let mut running = Running::start(keeping(&node, 3), &Log::default());
        running.want(&[spec("a", &ADDRESSES)]);
        running.until_in(&["a"]).await;
        let said = running.states.borrow()[0].said.clone().unwrap();
        assert!(
            said.ends_with("; 5 open connections are reset, as more are not kept of a pod"),
            "{said}"
        );
        let kept = sorted(&running, open);
        assert_eq!(kept.len(), 3);
        // The next process knows them, and keeps fewer.
        running.kill().await;
        let mut running = Running::start(keeping(&node, 2), &Log::default());
        running.want(&[spec("a", &ADDRESSES)]);
        running.until_in(&["a"]).await;
        let mut kept = sorted(&running, kept);
        assert_eq!(kept.len(), 2);
        assert_eq!(running.states.borrow()[0].strays, 0, "they were let be open");
        drop(kept.pop());
        running.until("the end of one", |states| states[0].kept.len() == 1).await;
        assert_eq!(sorted(&running, kept).len(), 1);
        running.stop().await;
    })
}

pub(crate) fn what_is_open_is_closed_if_asked_however_much_it_is(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", ADDRESSES[0], ADDRESSES[1])?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let open = open_all(&node, &pod);
        let config = Config {
            existing: ExistingConnections::Close,
            ..keeping(&node, 1)
        };
        let mut running = Running::start(config, &Log::default());
        running.want(&[spec("a", &ADDRESSES)]);
        running.until_in(&["a"]).await;
        assert_eq!(sorted(&running, open).len(), 0);
        running.stop().await;
    })
}

/// Tracked or not.
pub(crate) fn what_went_around_is_reset_however_much_it_is(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", ADDRESSES[0], ADDRESSES[1])?;
    echo(&node.netns);
    echo(&pod);
    node.run(async {
        let mut kept = open_all(&node, &pod);
        kept.truncate(2);
        let mut running = Running::capturing(keeping(&node, 2), &Log::default(), &[spec("a", &ADDRESSES)]).await;
        for (round, damage) in [Batch::flush_table, Batch::delete_table].into_iter().enumerate() {
            // Nothing comes between: what puts it back is in the same thread.
            pod.run(|| break_all(damage)).unwrap();
            let strays = open_all(&node, &pod);
            let (count, repairs) = (strays.len(), round as u64 + 1);
            running.until("the repair", |states| states[0].repairs == repairs).await;
            assert!(sorted(&running, strays).is_empty(), "all of them are cut");
            assert_eq!(running.states.borrow()[0].strays, ((round + 1) * count) as u64);
        }
        assert_eq!(sorted(&running, kept).len(), 2);
        running.stop().await;
    })
}

fn break_all(damage: fn(&mut Batch, Family, &str)) {
    let mut batch = Batch::default();
    for table in ["ambient-nat", "ambient-mangle", "ambient-raw", "ambient-guard"] {
        damage(&mut batch, Family::Inet, table);
    }
    Nftables::open().unwrap().commit(batch, None).unwrap();
}
