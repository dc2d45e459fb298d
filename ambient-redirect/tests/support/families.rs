//! Pods of one family of addresses.

use std::{error::Error, net::IpAddr, sync::Arc};

use ambient_redirect::{
    linux::{Netns, Proof, Way},
    netlink::{Batch, Family, Nftables},
    pods::State,
};
use ambient_testkit::{End, World, harness::Outcome, link};
use ipnet::IpNet;

use crate::{
    ask,
    mesh::{Log, Running},
    node::{Node, spec},
};

/// One that has nothing but IPv6, and one for which IPv6 is switched off: each is captured, proven by connections of what it has, and
/// mended.
pub(crate) fn a_pod_of_one_family_is_captured_and_proven(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (six, four) = (pod(world, &node, "six", "fd00::2")?, pod(world, &node, "four", "10.0.0.3")?);
    four.run(|| {
        for device in ["all", "default", "lo", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
        }
    })?;
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec("six", &["fd00::2"]), spec("four", &["10.0.0.3"])]);
        running.until_in(&["six", "four"]).await;
        let proof = |uid: &str| -> Option<Proof> {
            let states = running.states.borrow();
            let state = states.iter().find(|s| s.spec.uid.as_str() == uid)?;
            match state.state {
                State::In { proof, .. } => Some(proof),
                _ => None,
            }
        };
        let (of_six, of_four) = (proof("six").unwrap(), proof("four").unwrap());
        let known = Some(Way::Recognised);
        // An IPv4 connection has nowhere to go, and nobody is asked for one that comes in.
        assert_eq!((of_six.outbound.v4, of_six.inbound.v4), (Some(Way::Listed), None));
        assert_eq!((of_six.outbound.v6, of_six.inbound.v6), (known, known), "{of_six}");
        assert_eq!((of_four.outbound.v4, of_four.inbound.v4), (known, known), "{of_four}");
        assert_eq!((of_four.outbound.v6, of_four.inbound.v6), (None, None));
        for round in 0..2 {
            for (from, to, word) in [
                (&six, "[fd00::1]:8081", "out [fd00::1]:8081 from fd00::2"),
                (&node.netns, "[fd00::2]:8081", "in [fd00::2]:8081 from fd00::1"),
                (&four, "10.0.0.1:8081", "out 10.0.0.1:8081 from 10.0.0.3"),
                (&node.netns, "10.0.0.3:8081", "in 10.0.0.3:8081 from 10.0.0.1"),
            ] {
                assert_eq!(ask(from, to).await.unwrap(), word, "round {round}");
            }
            if round == 0 {
                flush(&six);
                flush(&four);
                running
                    .until("both to be mended", |states| states.iter().all(|s| s.repairs > 0))
                    .await;
            }
        }
        assert_eq!(running.log.count("refused"), 0, "{:#?}", running.log.lines());
        running.stop().await;
    })
}

/// IPv6 is switched off in a pod that is captured, and on again: the other family stays captured meanwhile, and of what comes back
/// nothing goes around, though the kernel has taken its route and its routing rule along.
pub(crate) fn a_family_that_goes_and_comes_back_is_captured_again(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let named = world.namespace("a")?;
    let pod = node.join(&named, "10.0.0.2", "fd00::2")?;
    let (own, via): (IpAddr, IpAddr) = ("fd00::2".parse()?, "fd00::1".parse()?);
    let switch_off = |off: bool| {
        let write = || {
            for device in ["all", "default", "lo", "eth0"] {
                std::fs::write(
                    format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"),
                    if off { "1" } else { "0" },
                )
                .unwrap();
            }
        };
        pod.run(write).unwrap();
    };
    node.run(async {
        for at in ["10.0.0.1:80", "[fd00::1]:80"] {
            let server = std::net::TcpListener::bind(at).unwrap();
            std::thread::spawn(move || {
                for stream in server.incoming().flatten() {
                    let _ = std::io::Write::write_all(&mut &stream, b"plain");
                }
            });
        }
        let mut running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        for round in 0..2 {
            switch_off(true);
            for _ in 0..10 {
                assert_eq!(
                    ask(&pod, "10.0.0.1:80").await.unwrap(),
                    "out 10.0.0.1:80 from 10.0.0.2",
                    "round {round}"
                );
                assert!(ask(&pod, "[fd00::1]:80").await.is_err());
            }
            switch_off(false);
            named.add_address("eth0", IpNet::from(own)).unwrap();
            named.add_route("::/0".parse::<IpNet>().unwrap(), Some(via), "eth0").unwrap();
            let back = async {
                loop {
                    match ask(&pod, "[fd00::1]:80").await {
                        Ok(text) if text.is_empty() => {}
                        Ok(text) => return assert_eq!(text, "out [fd00::1]:80 from fd00::2", "round {round}"),
                        Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                    }
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(5), back)
                .await
                .expect("it is captured again");
            running.until_in(&["a"]).await;
            // What comes in as well.
            assert_eq!(ask(&node.netns, "[fd00::2]:8081").await.unwrap(), "in [fd00::2]:8081 from fd00::1");
        }
        running.stop().await;
    })
}

fn pod(world: &World, node: &Node, name: &str, own: &str) -> Result<Arc<Netns>, Box<dyn Error>> {
    let pod = world.namespace(name)?;
    let own = IpNet::from(own.parse::<IpAddr>()?);
    let (via, every) = match own.addr() {
        IpAddr::V4(_) => ("10.0.0.1", "0.0.0.0/0"),
        IpAddr::V6(_) => ("fd00::1", "::/0"),
    };
    let via: IpAddr = via.parse()?;
    link(
        &End::new(&pod, "eth0").address(own),
        &End::new(&node.namespace, name).address(IpNet::from(via)),
    )?;
    node.namespace.add_route(own, None, name)?;
    pod.add_route(every.parse::<IpNet>()?, Some(via), "eth0")?;
    Ok(Arc::new(Netns::open(pod.path())?))
}

fn flush(pod: &Arc<Netns>) {
    pod.run(|| {
        let mut batch = Batch::default();
        batch.flush_table(Family::Inet, "ambient-nat");
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}
