//! Listings of rules that somebody keeps changing.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use ambient_redirect::{
    linux::{Difference, Inside, Mark, Sockets},
    netlink::{Batch, Cmp, Expr, Family, MetaKey, NftRule, Nftables, Routing, Verdict},
    plan::{Options, Plan},
};
use ambient_testkit::{World, harness::Outcome};
use socket2::{Domain, Socket, Type};

use crate::node::Node;

const RULES: usize = 60;
const LISTINGS: usize = 3000;
const LOOPBACK: u32 = 1;

pub(crate) fn more_rules_in_a_table_than_are_listed_are_an_error(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let mut nftables = pod.run(|| Nftables::open().unwrap())?;
    let mut add = |count| {
        let mut batch = Batch::default();
        batch.add_table(Family::Inet, "listed", b"");
        batch.add_chain(Family::Inet, "listed", "c");
        for _ in 0..count {
            batch.add_rule(Family::Inet, "listed", "c", &[Expr::Verdict(Verdict::Accept)]);
        }
        nftables.commit(batch, None).unwrap();
    };
    (0..20).for_each(|_| add(500));
    let rules = || pod.run(|| Nftables::open().unwrap().rules(Family::Inet, "listed")).unwrap();
    assert_eq!(rules()?.len(), 10_000);
    add(1);
    let error = rules().unwrap_err();
    assert!(
        error.too_large() && error.to_string().contains("10000 rules in table listed"),
        "{error}"
    );
    Ok(())
}

/// Two sets of rules take turns, all of one or all of the other, and between them come transactions that fail half way. A
/// listing must be the one or the other.
pub(crate) fn a_listing_under_changes_is_right_or_refused(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let sets = [1u32, 2].map(|set| (0..RULES as u32).map(|n| rule(set << 16 | n)).collect::<Vec<_>>());
    let replace = |nftables: &mut Nftables, set: &[Vec<Expr>], fails: bool| {
        let mut batch = Batch::default();
        batch.add_table(Family::Inet, "listed", b"");
        batch.add_chain(Family::Inet, "listed", "c");
        batch.flush_table(Family::Inet, "listed");
        for rule in set {
            batch.add_rule(Family::Inet, "listed", "c", rule);
        }
        if fails {
            batch.delete_table(Family::Inet, "there is none");
        }
        assert_eq!(nftables.commit(batch, None).is_err(), fails);
    };
    let open = || pod.run(|| Nftables::open().unwrap()).unwrap();
    replace(&mut open(), &sets[0], false);
    let (stop, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut right, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut nftables = open();
            while !stop.load(Ordering::Relaxed) {
                let n = changes.fetch_add(1, Ordering::Relaxed);
                replace(&mut nftables, &sets[n % 2], n % 3 == 0);
                // Now fast, now with pauses in which a listing fits.
                if n % 64 == 0 {
                    thread::sleep(std::time::Duration::from_millis(2));
                }
            }
        });
        let mut nftables = open();
        for _ in 0..LISTINGS {
            match nftables.rules(Family::Inet, "listed") {
                Ok(rules) => {
                    assert!(sets.iter().any(|set| is(&rules, set)), "{} rules, of neither set", rules.len());
                    right += 1;
                }
                Err(e) => {
                    assert!(e.interrupted(), "{e}");
                    refused += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "{right} listings right, {refused} refused, {} changes",
        changes.load(Ordering::Relaxed)
    );
    assert!(right > 0 && changes.load(Ordering::Relaxed) > 100);

    // And a plan is not found missing because of what somebody does to a table of his own.
    let (plan, mark) = (Plan::new(&Options::default()), Mark::new("node-1", &"a".into()));
    let mut inside = Inside::open(&pod)?;
    inside.apply(&plan, &mark)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut nftables = open();
            while !stop.load(Ordering::Relaxed) {
                replace(&mut nftables, &sets[0], false);
            }
        });
        for _ in 0..200 {
            // All but the listeners, which are not there.
            match inside.apply(&plan, &mark) {
                Ok(differences) => assert_eq!(differences, []),
                Err(e) => assert!(
                    e.to_string().contains("kept changing") || e.to_string().contains("being listed"),
                    "{e}"
                ),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Addresses come and go while a capture is verified, each another one; from one that has gone nothing can be answered, and nothing is.
pub(crate) fn an_address_that_goes_diverts_nothing(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let (plan, mark) = (Plan::new(&Options::default()), Mark::new("node-1", &"a".into()));
    let mut inside = Inside::open(&pod)?;
    inside.apply(&plan, &mark)?;
    let (stop, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let diverted = thread::scope(|scope| {
        scope.spawn(|| {
            let mut routing = pod.run(|| Routing::open().unwrap()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let n = changes.fetch_add(1, Ordering::Relaxed);
                let ip = Ipv4Addr::new(10, 9, (n >> 8) as u8, n as u8).into();
                routing.add_address(LOOPBACK, ip, 32).unwrap();
                routing.delete_address(LOOPBACK, ip, 32).unwrap();
            }
        });
        let verified = (0..LISTINGS).map(|_| inside.verify(&plan, &mark));
        let is_diverted = |differences: &Vec<Difference>| differences.iter().any(|d| matches!(d, Difference::Diverted(_)));
        let diverted = verified.flatten().filter(is_diverted).count();
        stop.store(true, Ordering::Relaxed);
        diverted
    });
    let changes = changes.load(Ordering::Relaxed);
    assert!(changes > LISTINGS / 10, "{changes} changes");
    assert_eq!(diverted, 0, "of {LISTINGS}, while {changes} addresses came and went");
    Ok(())
}

/// A process of the pod's that may do so gives its listener the proxy's mark: it is not the proxy's for that.
pub(crate) fn the_proxys_mark_makes_no_listener_the_proxys(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let options = Options {
        dns: false,
        ..Options::default()
    };
    let (plan, mark) = (Plan::new(&options), Mark::new("node-1", &"a".into()));
    let mut inside = Inside::open(&pod)?;
    inside.apply(&plan, &mark)?;
    node.run(async {
        let sockets = Sockets::new().unwrap();
        let at = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let mut ours = Vec::new();
        for port in [15_001, 15_008] {
            ours.push(sockets.tcp_listener(&pod, at(port), 16).await.unwrap());
        }
        let theirs = pod.run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            socket.set_mark(0x539).unwrap();
            socket.bind(&at(15_006).into()).unwrap();
            socket.listen(16).unwrap();
            socket
        });
        let port = plan.listeners.iter().find(|port| port.port == 15_006).unwrap();
        let differences = inside.verify(&plan, &mark).unwrap();
        assert!(differences.contains(&Difference::ForeignListener(*port)), "{differences:?}");
        drop(theirs);
        ours.push(sockets.tcp_listener(&pod, at(15_006), 16).await.unwrap());
        assert_eq!(inside.verify(&plan, &mark).unwrap(), []);
    })
}

fn rule(mark: u32) -> Vec<Expr> {
    vec![
        Expr::Meta {
            key: MetaKey::Mark,
            reg: 1,
        },
        Expr::Cmp {
            op: Cmp::Equal,
            reg: 1,
            data: mark.to_ne_bytes().to_vec(),
        },
        Expr::Counter,
        Expr::Verdict(Verdict::Return),
    ]
}

fn is(rules: &[NftRule], set: &[Vec<Expr>]) -> bool {
    rules.len() == set.len() && rules.iter().zip(set).all(|(rule, wanted)| rule.is(wanted))
}
