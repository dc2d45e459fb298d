//! A process that may do less than it could: nothing is let by, and it says what it lacks.

use std::sync::Arc;

use ambient_redirect::{
    linux::Netns,
    netlink::{Batch, Family, Nftables},
    pods::{Cause, State, Unpaired},
};
use ambient_testkit::{World, harness::Outcome, rights};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use crate::{
    mesh::{Log, Running, is_in},
    node::{Node, spec},
};

/// What somebody else does in a namespace, who has all rights.
fn as_another<T: Send>(pod: &Netns, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let all = || {
            let now = capabilities(None).unwrap();
            let effective = now.permitted;
            set_capabilities(None, CapabilitySets { effective, ..now }).unwrap();
            pod.run(work).unwrap()
        };
        scope.spawn(all).join().unwrap()
    })
}

/// A change that is none of ours, and has a capture looked at.
fn stir(pod: &Netns, table: &str) {
    as_another(pod, || {
        let mut batch = Batch::default();
        batch.add_table(Family::Inet, table, b"");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    });
}

/// What a pod's own process hears of somebody outside.
async fn hears(pod: &Arc<Netns>, to: &str) -> std::io::Result<String> {
    let (pod, to): (_, std::net::SocketAddr) = (pod.clone(), to.parse().unwrap());
    let asked = move || as_another(&pod, || crate::exchange(to));
    tokio::task::spawn_blocking(asked).await.unwrap()
}

fn why(running: &Running, uid: &str) -> String {
    let states = running.states.borrow();
    match states.iter().find(|s| s.spec.uid.as_str() == uid).map(|s| &s.state) {
        Some(State::Refused { error }) => error.to_string(),
        Some(State::Pairing { why }) => why.to_string(),
        other => format!("{other:?}"),
    }
}

/// One right is taken from a process that runs: what it cannot look at any more it says not to be captured, with what it lacks, and
/// nothing of it goes around; what it need not look at goes on; and with the right all is as before, without a hand.
pub(crate) fn a_process_that_loses_a_right_says_so_and_lets_nothing_by(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    let outcome = node.run(async {
        let server = std::net::TcpListener::bind("10.0.0.1:80").unwrap();
        std::thread::spawn(move || {
            for mut stream in server.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, b"plain");
            }
        });
        let mut running = Running::start(node.config(), &Log::default());
        let mut wanted = vec![spec("a", &["10.0.0.2", "fd00::2"]), spec("b", &["10.0.0.3", "fd00::3"])];
        running.want(&wanted);
        running.until_in(&["a", "b"]).await;
        for (round, (bit, named)) in [(NET_ADMIN, "CAP_NET_ADMIN"), (SYS_ADMIN, "CAP_SYS_ADMIN")].into_iter().enumerate() {
            tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
            rights::limit(!(1 << bit)).unwrap();
            stir(&a, &format!("stir-{round}"));
            running.until("it to be told", |states| !is_in(states, "a")).await;
            running
                .until("what is lacking", |states| {
                    let a = states.iter().find(|s| s.spec.uid.as_str() == "a");
                    a.is_some_and(
                        |a| matches!(&a.state, State::Refused { error } if matches!(&error.why, Cause::Rights(why) if why.contains(named))),
                    )
                })
                .await;
            println!("{named}: {}", why(&running, "a"));
            running.until_logged("withdrawn a").await;
            // Of the other nothing has changed, and what stands is seen without a right; unless the kernel has told of something there.
            let told = why(&running, "b");
            assert!(is_in(&running.states.borrow(), "b") || told.contains(named), "{told}");
            for pod in [&a, &b] {
                let heard = hears(pod, "10.0.0.1:80").await;
                assert!(heard.as_deref().map_or(true, |heard| heard.starts_with("out")), "{heard:?}");
            }
            // One that comes now is not found, and why is said.
            let name = format!("late-{round}");
            let (v4, v6) = (format!("10.0.0.{}", 10 + round), format!("fd00::{}", 10 + round));
            as_another(&node.netns, || node.pod(&name, &v4, &v6).map(drop).map_err(|e| e.to_string())).unwrap();
            wanted.push(spec(&name, &[&v4, &v6]));
            running.want(&wanted);
            running
                .until("why it is not found", |states| {
                    let late = states.iter().find(|s| *s.spec.uid.as_str() == *name);
                    late.is_some_and(
                        |late| matches!(&late.state, State::Pairing { why: Unpaired::Unseen(Cause::Rights(why)) } if why.contains(named)),
                    )
                })
                .await;
            rights::limit(u64::MAX).unwrap();
            running.until_in(&["a", "b", &name]).await;
            assert_eq!(hears(&a, "10.0.0.1:80").await.unwrap(), "out 10.0.0.1:80 from 10.0.0.2");
        }
        running.stop().await;
    });
    rights::limit(u64::MAX)?;
    outcome
}

const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
