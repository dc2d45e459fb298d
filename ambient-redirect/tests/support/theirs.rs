//! What somebody else does to a pod's packets.

use std::{collections::BTreeSet, io::ErrorKind, net::SocketAddr, time::Duration};

use ambient_redirect::{
    linux::{Inside, Mark, Netns},
    netlink::{BaseChain, Batch, ChainKind, Expr, Family, Hook, Nftables},
    plan::{Options, Plan},
};
use ambient_testkit::{Capture, Namespace, Output, Program, World, harness::Outcome};
use tokio::time::{sleep, timeout};

use crate::{
    heard::ask,
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

/// A chain of somebody else's, with one rule, in a table of that name.
fn put(pod: &Netns, table: &str, base: &BaseChain, rule: &[Expr]) {
    pod.run(|| {
        let mut batch = Batch::default();
        batch.add_table(Family::Inet, table, b"");
        batch.add_base_chain(Family::Inet, table, "theirs", base);
        batch.add_rule(Family::Inet, table, "theirs", rule);
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}

fn take(pod: &Netns, table: &str) {
    pod.run(|| {
        let mut batch = Batch::default();
        batch.delete_table(Family::Inet, table);
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}

fn nat(hook: Hook, priority: i32) -> BaseChain {
    let kind = ChainKind::Nat;
    BaseChain { kind, hook, priority }
}

fn is_refused(answer: &std::io::Result<String>) -> bool {
    answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

/// All that is ours stands, and so does every proof; one port goes elsewhere by rules of somebody else, which the kernel asks
/// first. Nothing of it leaves the pod, and it is told whose rules they are.
pub(crate) fn a_port_that_somebody_else_takes_is_refused_and_told(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let wire = Capture::start(&node.namespace, "a")?;
    node.run(async {
        let mut running = Running::start(crate::untimed(&node), &Log::default());
        crate::serve_plain("[::]:5433");
        pod.run(|| crate::serve_plain("[::]:8081")).unwrap();
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        // Before ours by its priority, or as it has come later.
        for (table, priority) in [("early", -150), ("late", -100)] {
            for (to, instead) in [("10.0.0.1:5432", "10.0.0.1:5433"), ("[fd00::1]:5432", "[fd00::1]:5433")] {
                let aim: SocketAddr = to.parse().unwrap();
                let rule = [Expr::tcp_to(aim.ip(), 5432), Expr::dnat(instead.parse().unwrap())].concat();
                put(&pod, table, &nat(Hook::Output, priority), &rule);
                running.until("it to be told", |states| states[0].strangers.len() == 1).await;
                let told = running.states.borrow()[0].strangers[0].to_string();
                assert_eq!(
                    told,
                    format!("table inet {table}, chain theirs: of what goes out, TCP to port 5432 gets another destination, port 5433")
                );
                let refused = ask(&pod, to).await;
                assert!(is_refused(&refused), "{table} {to}: {refused:?}");
                let others = ask(&pod, &to.replace("5432", "80")).await.unwrap();
                assert!(others.starts_with("out"), "{others}");
                take(&pod, table);
                running.until("it to be forgotten", |states| states[0].strangers.is_empty()).await;
                let again = ask(&pod, to).await.unwrap();
                assert!(again.starts_with("out"), "{again}");
            }
            // What comes in, to be asked of policies.
            for to in ["10.0.0.2:8080", "[fd00::2]:8080"] {
                let aim: SocketAddr = to.parse().unwrap();
                let mut rule = Expr::tcp_to(aim.ip(), 8080);
                let data = 8081u16.to_be_bytes().to_vec();
                rule.extend([Expr::Immediate { reg: 1, data }, Expr::Redirect { port_reg: 1 }]);
                put(&pod, table, &nat(Hook::Prerouting, priority), &rule);
                running.until("it to be told", |states| states[0].strangers.len() == 1).await;
                let refused = ask(&node.netns, to).await;
                assert!(is_refused(&refused), "{table} {to}: {refused:?}");
                take(&pod, table);
                running.until("it to be forgotten", |states| states[0].strangers.is_empty()).await;
                let again = ask(&node.netns, to).await.unwrap();
                assert!(again.starts_with("in"), "{again}");
            }
        }
        let seen = wire.seen().unwrap();
        let ports = |c: &ambient_testkit::capture::Connection| c.server.port();
        assert!(seen.connections.iter().all(|c| ![5432, 5433].contains(&ports(c))), "{seen:?}");
        assert!(is_in(&running.states.borrow(), "a") && crate::stands(&pod));
        let log = running.stop().await;
        assert_eq!((log.count("refused"), log.count("withdrawn")), (0, 0), "{:#?}", log.lines());
    })
}

/// What stays in the pod is the pod's own affair; of what is usual nothing is said.
pub(crate) fn what_others_translate_within_the_pod_goes_on(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start(crate::untimed(&node), &Log::default());
        pod.run(|| crate::serve_plain("[::]:6432")).unwrap();
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        // As Docker has it: its resolver has a port that it chooses.
        let to_6432 = |aim: &str| Expr::tcp_to(aim.parse().unwrap(), 53);
        let resolver = [to_6432("127.0.0.11"), Expr::dnat("127.0.0.11:6432".parse().unwrap())].concat();
        put(&pod, "resolver", &nat(Hook::Output, -100), &resolver);
        for (table, to, stays) in [("v4", "10.0.0.1:5432", "127.0.0.1:6432"), ("v6", "[fd00::1]:5432", "[::1]:6432")] {
            let aim: SocketAddr = to.parse().unwrap();
            let rule = [Expr::tcp_to(aim.ip(), 5432), Expr::dnat(stays.parse().unwrap())].concat();
            put(&pod, table, &nat(Hook::Output, -150), &rule);
            running
                .until("it to be told", |states| {
                    let told = &states[0].strangers;
                    told.iter().any(|s| s.to_string().contains(&format!("table inet {table},")))
                })
                .await;
            assert_eq!(ask(&pod, to).await.unwrap(), "plain");
        }
        assert_eq!(ask(&pod, "127.0.0.11:53").await.unwrap(), "plain");
        let told = running.states.borrow()[0].strangers.clone();
        assert!(told.iter().all(|s| !s.to_string().contains("inet resolver")), "{told:?}");
        running.stop().await;
    })
}

/// Before a pod is captured it is refused, whatever others have translated by then.
pub(crate) fn what_others_translate_of_a_new_pod_is_refused_too(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        crate::serve_plain("[::]:5433");
        let rule = [
            Expr::tcp_to("10.0.0.1".parse().unwrap(), 5432),
            Expr::dnat("10.0.0.1:5433".parse().unwrap()),
        ]
        .concat();
        put(&pod, "theirs", &nat(Hook::Output, -150), &rule);
        assert_eq!(ask(&pod, "10.0.0.1:5432").await.unwrap(), "plain", "theirs is in force");
        let mut running = Running::start(node.config(), &Log::default());
        running.proxy.hold_up("a", true);
        running.want(&[]);
        running
            .hand_over
            .take(spec("a", &["10.0.0.2", "fd00::2"]), pod.clone())
            .await
            .unwrap();
        let refused = ask(&pod, "10.0.0.1:5432").await;
        assert!(is_refused(&refused), "{refused:?}");
        running.proxy.hold_up("a", false);
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        let refused = ask(&pod, "10.0.0.1:5432").await;
        assert!(is_refused(&refused), "{refused:?}");
        running.until("it to be told", |states| states[0].strangers.len() == 1).await;
        running.stop().await;
    })
}

/// Who prefers that to a refusal says so; it is told all the same.
pub(crate) fn where_that_is_asked_for_others_have_what_they_translate(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        crate::serve_plain("[::]:5433");
        let mut config = node.config();
        config.options.yields = true;
        let mut running = Running::capturing(config, &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        for (to, instead) in [("10.0.0.1:5432", "10.0.0.1:5433"), ("[fd00::1]:5432", "[fd00::1]:5433")] {
            let aim: SocketAddr = to.parse().unwrap();
            let rule = [Expr::tcp_to(aim.ip(), 5432), Expr::dnat(instead.parse().unwrap())].concat();
            put(&pod, "theirs", &nat(Hook::Output, -150), &rule);
            running.until("it to be told", |states| states[0].strangers.len() == 1).await;
            assert_eq!(ask(&pod, to).await.unwrap(), "plain");
            take(&pod, "theirs");
            running.until("it to be forgotten", |states| states[0].strangers.is_empty()).await;
        }
        running.stop().await;
    })
}

/// Runs a program in a namespace; `false` where the machine has none of that name.
fn by_hand(pod: &Namespace, line: &str) -> bool {
    let mut words = line.split(' ');
    let program = Program::new(words.next().unwrap()).args(words).stderr(Output::Inherit);
    let Ok(mut process) = pod.spawn(&program) else {
        return false;
    };
    assert!(process.wait(Duration::from_secs(20)).unwrap().unwrap().success(), "{line}");
    true
}

/// What is told of what the usual tools write, each by itself, beside a plan that is in force.
pub(crate) fn what_others_write_by_hand_is_read(world: &World) -> Outcome {
    let pod = world.namespace("pod")?;
    let plan = Plan::new(&Options::default());
    let mark = Mark::new("node-1", &"a".into());
    let mut inside = Inside::open(&Netns::open(pod.path())?)?;
    inside.apply(&plan, &mark)?;
    let cases: [(&str, &[&str]); 16] = [
        (
            "iptables-nft -t nat -A OUTPUT -p tcp --dport 5432 -j REDIRECT --to-ports 6432",
            &["table ip nat, chain OUTPUT: of what goes out, TCP to port 5432 is redirected to the pod itself"],
        ),
        (
            "iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:8080",
            &["table ip nat, chain PREROUTING: of what comes in, TCP to port 80 gets another destination"],
        ),
        (
            "iptables-nft -t nat -A OUTPUT -d 10.0.0.9/32 -p tcp -m multiport --dports 1,2 -j DNAT --to-destination 10.0.0.8",
            &["table ip nat, chain OUTPUT: of what goes out, TCP gets another destination"],
        ),
        (
            "ip6tables-nft -t nat -A OUTPUT -p tcp --dport 5432 -j REDIRECT --to-ports 6432",
            &["table ip6 nat, chain OUTPUT: of what goes out, TCP to port 5432 is redirected to the pod itself"],
        ),
        (
            "iptables-nft -t raw -A OUTPUT -p tcp --dport 5432 -j CT --notrack",
            &["table ip raw, chain OUTPUT: of what goes out, TCP to port 5432 is not tracked"],
        ),
        (
            "iptables-nft -t mangle -A OUTPUT -p tcp -j MARK --set-xmark 0x539/0xfff",
            &["table ip mangle, chain OUTPUT: of what goes out, TCP gets the mark 0x539, which is the proxy's"],
        ),
        (
            "iptables-nft -t mangle -A PREROUTING -p tcp --dport 80 -j TPROXY --on-port 9",
            &["table ip mangle, chain PREROUTING: of what comes in, TCP to port 80 is given to another socket"],
        ),
        ("iptables-nft -t mangle -A OUTPUT -p tcp -j MARK --set-xmark 0x10000/0x10000", &[]),
        // Docker's resolver, and what a Docker in the pod says to its own addresses.
        (
            "iptables-nft -t nat -A OUTPUT -d 127.0.0.11/32 -p tcp --dport 53 -j DNAT --to-destination 127.0.0.11:40000",
            &[],
        ),
        (
            "iptables-nft -t nat -A OUTPUT -d 127.0.0.11/32 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:40000",
            &[],
        ),
        (
            "iptables-nft -t nat -A OUTPUT -m addrtype --dst-type LOCAL -p tcp --dport 80 -j REDIRECT --to-ports 8080",
            &[],
        ),
        (
            "iptables-nft -t nat -A OUTPUT -o lo -p tcp --dport 80 -j REDIRECT --to-ports 8080",
            &[],
        ),
        ("iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE", &[]),
        ("iptables-nft -t filter -A OUTPUT -p tcp --dport 25 -j REJECT", &[]),
        (
            "nft table inet t { chain a { tcp dport 5432 redirect to :1 ; } ; chain o { type nat hook output priority -101 ; ip protocol vmap { tcp : jump a } ; } ; }",
            &["table inet t, chain a: of what goes out, TCP to port 5432 is redirected to the pod itself, port 1"],
        ),
        (
            "nft table ip t { chain o { type nat hook output priority -101 ; fib daddr type local redirect ; ip daddr 127.0.0.0/8 redirect ; oif lo redirect ; udp dport 514 redirect to :4 ; } ; }",
            &[],
        ),
    ];
    let mut missing = BTreeSet::new();
    for (line, wanted) in cases {
        if !by_hand(&pod, line) {
            missing.extend(line.split(' ').next());
            continue;
        }
        assert_eq!(
            inside
                .verify(&plan, &mark)?
                .iter()
                .filter(|d| !d.to_string().contains("listens"))
                .count(),
            0,
            "{line}"
        );
        let told: Vec<String> = inside.strangers().iter().map(ToString::to_string).collect();
        assert_eq!(told, wanted, "{line}");
        pod.run(|| {
            let mut nftables = Nftables::open().unwrap();
            let mut batch = Batch::default();
            let theirs = nftables.tables().unwrap();
            for table in theirs.iter().filter(|t| !t.name.starts_with("ambient-")) {
                batch.delete_table(table.family, &table.name);
            }
            nftables.commit(batch, None).unwrap();
        })?;
    }
    for program in missing {
        ambient_testkit::skipped(format_args!("rules as {program} writes them: it is not on this machine"));
    }
    Ok(())
}
