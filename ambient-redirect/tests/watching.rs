//! What becomes of a capture that somebody breaks by hand, watched on the wire; and what is refused with a remedy.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

#[path = "support/heard.rs"]
mod heard;
#[path = "support/listing.rs"]
mod listing;
#[path = "support/mesh.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod mesh;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod node;
#[path = "support/routed.rs"]
mod routed;
#[path = "support/theirs.rs"]
mod theirs;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use ambient_redirect::{
    Config,
    linux::{Inside, Mark, Netns, Sockets, Way, preflight},
    netlink::{BaseChain, Batch, ChainKind, Expr, Family, Hook, Nftables, Sockets as Listed, Transport, Verdict},
    plan::{Options, Plan},
    pods::{PodState, State},
};
use ambient_testkit::{
    Capture, Namespace, Output, Program, World,
    harness::{self, Outcome},
};
use mesh::{Log, Running, is_in, namespace_of};
use node::{Node, spec};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use tokio::time::sleep;

fn main() -> ExitCode {
    harness::main(&[
        (
            "a_flush_by_hand_is_repaired_under_traffic",
            a_flush_by_hand_is_repaired_under_traffic,
        ),
        (
            "what_went_around_meanwhile_is_counted_and_reset",
            what_went_around_meanwhile_is_counted_and_reset,
        ),
        ("a_repair_tells_what_the_wire_has_seen", a_repair_tells_what_the_wire_has_seen),
        ("one_slow_pod_holds_up_no_other", one_slow_pod_holds_up_no_other),
        ("routing_taken_by_hand_comes_back", routed::routing_taken_by_hand_comes_back),
        ("what_goes_with_its_device_comes_back", routed::what_goes_with_its_device_comes_back),
        ("what_changes_unheard_is_put_right", routed::what_changes_unheard_is_put_right),
        (
            "replies_that_others_route_elsewhere_are_no_capture",
            routed::replies_that_others_route_elsewhere_are_no_capture,
        ),
        (
            "what_others_route_elsewhere_in_part_is_told",
            routed::what_others_route_elsewhere_in_part_is_told,
        ),
        ("a_route_beside_the_proxys_is_told", routed::a_route_beside_the_proxys_is_told),
        (
            "a_route_of_somebody_elses_makes_room_and_is_told",
            routed::a_route_of_somebody_elses_makes_room_and_is_told,
        ),
        ("what_nft_changes_by_hand_is_put_right", what_nft_changes_by_hand_is_put_right),
        ("nft_reads_what_is_in_force", nft_reads_what_is_in_force),
        (
            "a_listener_of_ours_that_dies_is_missed_at_once",
            a_listener_of_ours_that_dies_is_missed_at_once,
        ),
        (
            "a_listener_of_ours_that_dies_unheard_is_missed_in_time",
            a_listener_of_ours_that_dies_unheard_is_missed_in_time,
        ),
        (
            "a_listener_of_another_process_is_missed_in_time",
            a_listener_of_another_process_is_missed_in_time,
        ),
        ("a_port_and_a_mark_do_not_make_the_proxy", a_port_and_a_mark_do_not_make_the_proxy),
        (
            "a_proxy_that_does_not_answer_is_no_capture",
            a_proxy_that_does_not_answer_is_no_capture,
        ),
        (
            "a_namespace_behind_the_same_name_is_noticed",
            a_namespace_behind_the_same_name_is_noticed,
        ),
        (
            "rules_of_somebody_else_in_the_way_are_noticed_when_they_come",
            theirs::rules_of_somebody_else_in_the_way_are_noticed_when_they_come,
        ),
        (
            "a_port_that_somebody_else_takes_is_refused_and_told",
            theirs::a_port_that_somebody_else_takes_is_refused_and_told,
        ),
        (
            "what_others_translate_within_the_pod_goes_on",
            theirs::what_others_translate_within_the_pod_goes_on,
        ),
        (
            "what_others_translate_of_a_new_pod_is_refused_too",
            theirs::what_others_translate_of_a_new_pod_is_refused_too,
        ),
        (
            "where_that_is_asked_for_others_have_what_they_translate",
            theirs::where_that_is_asked_for_others_have_what_they_translate,
        ),
        ("what_others_write_by_hand_is_read", theirs::what_others_write_by_hand_is_read),
        ("what_comes_in_is_proven_where_it_can_be", what_comes_in_is_proven_where_it_can_be),
        (
            "without_privilege_it_is_said_what_is_missing",
            without_privilege_it_is_said_what_is_missing,
        ),
        (
            "more_rules_in_a_table_than_are_listed_are_an_error",
            listing::more_rules_in_a_table_than_are_listed_are_an_error,
        ),
        (
            "a_listing_under_changes_is_right_or_refused",
            listing::a_listing_under_changes_is_right_or_refused,
        ),
        (
            "the_proxys_mark_makes_no_listener_the_proxys",
            listing::the_proxys_mark_makes_no_listener_the_proxys,
        ),
        (
            "an_address_that_goes_diverts_nothing",
            listing::an_address_that_goes_diverts_nothing,
        ),
    ])
}

/// Asks an address from a namespace, again and again, until it is stopped; counts by whom it was answered.
struct Traffic {
    stop: Arc<AtomicBool>,
    captured: Arc<AtomicUsize>,
    around: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn start(from: &Arc<Netns>, to: &str) -> Self {
        let (from, to): (_, SocketAddr) = (from.clone(), to.parse().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let (captured, around) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (stopped, of_proxy, of_server) = (stop.clone(), captured.clone(), around.clone());
        let ask = move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else {
                    continue;
                };
                let mut text = String::new();
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.read_to_string(&mut text);
                match text.as_str() {
                    "plain" => of_server.fetch_add(1, Ordering::Relaxed),
                    text if text.starts_with("out") => of_proxy.fetch_add(1, Ordering::Relaxed),
                    _ => 0,
                };
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let thread = std::thread::spawn(move || from.run(ask).unwrap());
        Self {
            stop,
            captured,
            around,
            thread,
        }
    }

    async fn until_captured(&self, more: usize) {
        let before = self.captured.load(Ordering::Relaxed);
        for _ in 0..2000 {
            if self.captured.load(Ordering::Relaxed) >= before + more {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("no traffic through the proxy");
    }

    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.around.load(Ordering::Relaxed)
    }
}

/// Answers whoever gets through to it.
fn serve_plain(at: &str) {
    let server = TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let _ = stream.unwrap().write_all(b"plain");
        }
    });
}

/// Deletes every table, as `nft flush ruleset` does.
fn flush_ruleset(namespace: &Netns) {
    namespace
        .run(|| {
            let mut nftables = Nftables::open().unwrap();
            let mut batch = Batch::default();
            for table in nftables.tables().unwrap() {
                batch.delete_table(table.family, &table.name);
            }
            nftables.commit(batch, None).unwrap();
        })
        .unwrap();
}

#[expect(clippy::disallowed_methods, reason = "the time from damage to repair is what is tested")]
async fn until_repaired(running: &Running, count: usize, what: &str) -> Duration {
    let begun = Instant::now();
    while running.log.count("repaired a") < count {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:#?}", running.log.lines());
        sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

fn stands(pod: &Netns) -> bool {
    let mut inside = Inside::open(pod).unwrap();
    let mark = Mark::new(node::NAME, &"a".into());
    inside.verify(&Plan::new(&Options::default()), &mark).unwrap().is_empty()
}

fn a_flush_by_hand_is_repaired_under_traffic(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let wire = Capture::start(&node.namespace, "a")?;
    node.run(async {
        serve_plain("10.0.0.1:80");
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let traffic = Traffic::start(&pod, "10.0.0.1:80");
        traffic.until_captured(50).await;
        let in_the_clear = |wire: &Capture| {
            let seen = wire.seen().unwrap();
            let from_pod = |c: &&ambient_testkit::capture::Connection| c.server.port() == 80 && c.opened;
            seen.connections.iter().filter(from_pod).count()
        };
        assert_eq!(in_the_clear(&wire), 0);
        for round in 1..=3 {
            sleep(Duration::from_millis(120)).await;
            flush_ruleset(&pod);
            let took = until_repaired(&running, round, "the flush").await;
            println!("repaired in {took:?}");
            assert!(took < Duration::from_secs(1), "{took:?}");
            assert!(stands(&pod));
            wire.clear().unwrap();
            traffic.until_captured(50).await;
            assert_eq!(in_the_clear(&wire), 0, "after the repair nothing goes around");
        }
        assert_eq!(running.log.count("withdrawn"), 0);
        println!("{} went around in three moments", traffic.stop());
        running.stop().await;
    })
}

/// Connections that are opened in the moment in which there are no rules, and then say nothing: one of the pod's and one to it.
/// Beside them one that is captured, and those are counted that are not.
fn what_went_around_meanwhile_is_counted_and_reset(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        serve_plain("10.0.0.1:80");
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let silent = TcpListener::bind("10.0.0.1:81").unwrap();
        let application = pod.run(|| TcpListener::bind("10.0.0.2:8080").unwrap()).unwrap();
        sleep(Duration::from_millis(120)).await;
        let pause = running.states.borrow()[0].repairs;
        // Nothing here gives the enrolment a turn, so that both go around.
        flush_ruleset(&pod);
        let outbound = pod.run(|| TcpStream::connect("10.0.0.1:81").unwrap()).unwrap();
        let inbound = TcpStream::connect("10.0.0.2:8080").unwrap();
        let (_held, _also) = (silent.accept().unwrap(), application.accept().unwrap());
        until_repaired(&running, 1, "the flush").await;
        running.until_logged("repaired a").await;
        let repaired: Vec<String> = running.log.lines().into_iter().filter(|l| l.starts_with("repaired a")).collect();
        assert!(repaired[0].ends_with("around 2"), "{repaired:#?}");
        let repair = running.states.borrow()[0].mended.clone().unwrap();
        assert!(
            repair.held <= repair.noticed && repair.noticed <= repair.repaired && repair.around == 2,
            "{repair:?}"
        );
        assert_eq!((pause, running.states.borrow()[0].repairs), (0, 1));
        for mut stream in [outbound, inbound] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let heard = tokio::task::spawn_blocking(move || stream.read(&mut [0]).map_err(|e| e.kind()))
                .await
                .unwrap();
            assert!(
                matches!(heard, Err(ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)),
                "{heard:?}"
            );
        }
        running.stop().await;
    })
}

/// What a repair tells, held against a capture on the pod's wire while there is traffic: what was opened in the clear lies between
/// its times, and of that it counts what stood at the repair, which is what is reset.
#[expect(clippy::disallowed_methods, reason = "the times that are told are held against the clock")]
fn a_repair_tells_what_the_wire_has_seen(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    let wire = Capture::start(&node.namespace, "a")?;
    node.run(async {
        serve_plain("10.0.0.1:80");
        let silent = TcpListener::bind("[::]:81").unwrap();
        let application = pod.run(|| TcpListener::bind("[::]:8080").unwrap()).unwrap();
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let traffic = Traffic::start(&pod, "10.0.0.1:80");
        traffic.until_captured(20).await;
        for round in 1..=3usize {
            sleep(Duration::from_millis(150)).await;
            wire.clear().unwrap();
            let before = SystemTime::now();
            // Nothing here gives the enrolment a turn until all of them stand.
            flush_ruleset(&pod);
            let mut open = Vec::new();
            for _ in 0..round {
                for to in ["10.0.0.1:81", "[fd00::1]:81"] {
                    open.push(pod.run(|| TcpStream::connect(to).unwrap()).unwrap());
                    open.push(silent.accept().unwrap().0);
                }
                open.push(TcpStream::connect("[fd00::2]:8080").unwrap());
                open.push(application.accept().unwrap().0);
            }
            // One that ends before anybody can look.
            drop(pod.run(|| TcpStream::connect("10.0.0.1:81").unwrap()).unwrap());
            drop(silent.accept().unwrap());
            let last = SystemTime::now();
            until_repaired(&running, round, "the flush").await;
            traffic.until_captured(20).await;
            let seen = wire.seen().unwrap();
            let of = |port: u16| {
                let plain = seen.connections.iter().filter(move |c| c.server.port() == port && c.opened);
                (plain.clone().count(), plain.filter(|c| c.reset).count())
            };
            assert_eq!((of(81), of(8080)), ((2 * round + 1, 2 * round), (round, round)));
            let repair = running.states.borrow()[0].mended.clone().unwrap();
            // Of the traffic beside, one may stand at the repair.
            let (reset, told) = (of(81).1 + of(8080).1 + of(80).1, usize::try_from(repair.around).unwrap());
            assert!(
                (3 * round..=reset.max(3 * round + 1)).contains(&told),
                "{repair:?} and {reset} reset"
            );
            assert!(
                repair.held <= before && before <= repair.noticed && last <= repair.repaired && repair.repaired <= SystemTime::now(),
                "{before:?} {last:?} {repair:?}"
            );
            // Nothing is counted twice.
            drop(open);
        }
        traffic.stop();
        running.stop().await;
    })
}

fn one_slow_pod_holds_up_no_other(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let mut specs = Vec::new();
    for n in 2..12 {
        let (v4, v6) = (format!("10.0.0.{n}"), format!("fd00::{n}"));
        node.pod(&format!("pod-{n}"), &v4, &v6)?;
        specs.push(spec(&format!("pod-{n}"), &[&v4, &v6]));
    }
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        // Its listeners come when it is let go, and not before.
        running.proxy.hold_up("pod-2", true);
        running.want(&specs);
        let others: Vec<String> = (3..12).map(|n| format!("pod-{n}")).collect();
        running.until_in(&others.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(!is_in(&running.states.borrow(), "pod-2"));
        running.proxy.hold_up("pod-2", false);
        running.until_in(&["pod-2"]).await;
        running.stop().await;
    })
}

/// No timer helps: it is the kernel that tells.
fn untimed(node: &Node) -> Config {
    Config {
        verify_every: Duration::from_secs(3600),
        ..node.config()
    }
}

/// Runs `nft` in a namespace and gives what it says; `None` where the machine has none.
fn nft(pod: &Namespace, arguments: &[&str]) -> Option<String> {
    let program = Program::new("nft").args(arguments).stdout(Output::Pipe).stderr(Output::Inherit);
    let mut process = match pod.spawn(&program) {
        Ok(process) => process,
        Err(e) => {
            println!("without nft: {e}");
            return None;
        }
    };
    let mut said = String::new();
    process.take_stdout().unwrap().read_to_string(&mut said).unwrap();
    assert!(
        process.wait(Duration::from_secs(20)).unwrap().unwrap().success(),
        "nft {arguments:?}"
    );
    Some(said)
}

fn what_nft_changes_by_hand_is_put_right(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let named = world.namespace("a")?;
    let pod = node.join(&named, "10.0.0.2", "fd00::2")?;
    node.run(async {
        let running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        let hands = [
            "flush ruleset",
            "flush table inet ambient-nat",
            "flush chain inet ambient-guard output",
            "delete table inet ambient-mangle",
            "add chain inet ambient-nat output { policy drop ; }",
            "add table inet ambient-nat { flags dormant ; }",
            "insert rule inet ambient-nat output accept",
            "add chain inet ambient-raw stranger",
        ];
        for (round, hand) in hands.into_iter().enumerate() {
            sleep(Duration::from_millis(120)).await;
            if nft(&named, &[hand]).is_none() {
                break;
            }
            until_repaired(&running, round + 1, hand).await;
            assert!(stands(&pod), "{hand}");
        }
        assert_eq!(running.log.count("withdrawn"), 0);
        running.stop().await;
    })
}

/// An oracle: what is put in by netlink is for `nft` what it is when `nft` has read it as text, and foreign tables are as
/// they were.
fn nft_reads_what_is_in_force(world: &World) -> Outcome {
    let (ours, theirs) = (world.namespace("ours")?, world.namespace("theirs")?);
    let foreign = "table inet theirs {\n comment \"theirs\"\n chain output {\n type nat hook output priority -90\n \
                   tcp dport 81 counter redirect to :82\n }\n }";
    if nft(&ours, &[foreign]).is_none() {
        return Ok(());
    }
    let list = |namespace: &Namespace, table: &str| nft(namespace, &["-nn", "-s", "list", "table", "inet", table]).unwrap();
    let handles = || nft(&ours, &["-a", "list", "table", "inet", "theirs"]).unwrap();
    let (before, text) = (handles(), list(&ours, "theirs"));
    for (ipv6, dns, probes) in [(true, true, true), (false, false, false)] {
        let plan = Plan::new(&Options {
            ipv6,
            dns,
            probes,
            ..Options::default()
        });
        let mut inside = Inside::open(&Netns::open(ours.path())?)?;
        inside.apply(&plan, &Mark::new("node-1", &"a".into()))?;
        let script = world.scratch_dir().join("plan.nft");
        std::fs::write(&script, format!("{plan}\n"))?;
        nft(&theirs, &["flush", "ruleset"]).unwrap();
        nft(&theirs, &["-f", script.to_str().unwrap()]).unwrap();
        for table in &plan.tables {
            let (is, read) = (list(&ours, table.name), list(&theirs, table.name));
            let without_comment = |text: &str| {
                text.lines()
                    .filter(|l| !l.trim().starts_with("comment "))
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            assert!(is.contains("comment \"ambient node "), "{is}");
            assert_eq!(without_comment(&is), without_comment(&read));
        }
        assert_eq!(
            (handles(), list(&ours, "theirs")),
            (before.clone(), text.clone()),
            "theirs is as it was"
        );
        inside.clear()?;
        assert_eq!(
            nft(&ours, &["-s", "list", "ruleset"]).unwrap().trim(),
            nft(&ours, &["-s", "list", "table", "inet", "theirs"]).unwrap().trim()
        );
        assert_eq!(
            (handles(), list(&ours, "theirs")),
            (before.clone(), text.clone()),
            "theirs is as it was"
        );
    }
    Ok(())
}

fn a_listener_of_ours_that_dies_is_missed_at_once(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        // No timer helps here: it is the proxy that tells.
        let config = Config {
            verify_every: Duration::from_secs(3600),
            ..node.config()
        };
        let running = Running::capturing(config, &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        sleep(Duration::from_millis(120)).await;
        running.proxy.die();
        until_repaired(&running, 1, "a listener").await;
        assert_eq!(running.log.count("repaired a: nobody listens"), 1, "{:#?}", running.log.lines());
        running.stop().await;
    })
}

/// The proxy does not tell; its descriptors do.
fn a_listener_of_ours_that_dies_unheard_is_missed_in_time(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.proxy.be_silent();
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        // The first verification lists all; what is there later is another one.
        sleep(Duration::from_millis(1500)).await;
        running.proxy.die();
        until_repaired(&running, 1, "a listener").await;
        assert_eq!(running.log.count("repaired a: nobody listens"), 1, "{:#?}", running.log.lines());
        running.stop().await;
    })
}

fn a_listener_of_another_process_is_missed_in_time(world: &World) -> Outcome {
    assert!(Config::new("n", "/run/netns").verify_every <= Duration::from_secs(5));
    let node = Node::new(world)?;
    node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::start_apart(node.config(), &Log::default());
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        running.until_in(&["a"]).await;
        let state = running.states.borrow()[0].state.clone();
        let State::In { proof, .. } = state else { panic!("{state:?}") };
        assert_eq!(proof.outbound.v4, Some(Way::Accepted), "{proof}");
        running.proxy.die();
        until_repaired(&running, 1, "a listener").await;
        running.stop().await;
    })
}

fn a_port_and_a_mark_do_not_make_the_proxy(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        // A process of the pod takes the proxy's place: port, mark and all.
        running.proxy.stay_dead();
        let (sockets, same) = (Sockets::new().unwrap(), Arc::new(Netns::open(pod.path()).unwrap()));
        let mut theirs = Vec::new();
        for port in [15001, 15006, 15008] {
            let at = SocketAddr::new("::".parse().unwrap(), port);
            // What listened there ends in its turn.
            let listener = loop {
                match sockets.tcp_listener(&same, at, 16).await {
                    Err(e) if e.kind() == ErrorKind::AddrInUse => tokio::task::yield_now().await,
                    taken => break taken.unwrap(),
                }
            };
            theirs.push(listener);
        }
        let marked = pod.run(|| Listed::open().unwrap().listeners(Transport::Tcp).unwrap()).unwrap();
        assert!(marked.iter().any(|l| l.local.port() == 15001 && l.mark == Some(0x539)));
        running
            .until("it to be reported as not captured", |states| !is_in(states, "a"))
            .await;
        running.until_logged("withdrawn a").await;
        drop(theirs);
        running.proxy.live();
        running.until_in(&["a"]).await;
        running.stop().await;
    })
}

fn a_proxy_that_does_not_answer_is_no_capture(world: &World) -> Outcome {
    let node = Node::new(world)?;
    node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let config = Config {
            prove_every: Duration::ZERO,
            ..node.config()
        };
        let mut running = Running::capturing(config, &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        // It listens, and looks at nothing.
        running.proxy.hang(true);
        running
            .until("it to be reported as not captured", |states| !is_in(states, "a"))
            .await;
        running
            .until_logged("refused a: the capture cannot be proven: a connection from inside")
            .await;
        running.proxy.hang(false);
        running.until_in(&["a"]).await;
        running.stop().await;
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "that a name is missed when it goes, and not some time later, is what is tested"
)]
fn a_namespace_behind_the_same_name_is_noticed(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let name = world.namespace("a")?;
    let first = node.join(&name, "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut running = Running::capturing(node.config(), &Log::default(), &[spec("a", &["10.0.0.2", "fd00::2"])]).await;
        // Same name, same addresses, same pod; the old namespace lives on in this descriptor.
        name.delete().unwrap();
        let begun = Instant::now();
        running.until_logged("withdrawn a").await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        node.namespace.delete_interface("a").unwrap();
        let second = node.pod("a", "10.0.0.2", "fd00::2").unwrap();
        assert_ne!(first.id(), second.id());
        running
            .until("the new one", |states| {
                is_in(states, "a") && namespace_of(states, "a") == Some(second.id())
            })
            .await;
        let log = running.log.lines();
        let at = |line: &str| {
            log.iter()
                .position(|l| l.starts_with(line))
                .unwrap_or_else(|| panic!("no {line}: {log:#?}"))
        };
        assert!(at("withdrawn a") < at(&format!("add a {}", second.id())), "{log:#?}");
        assert!(stands(&second));
        running.stop().await;
    })
}

fn what_comes_in_is_proven_where_it_can_be(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (open, shut) = (node.pod("open", "10.0.0.2", "fd00::2")?, node.pod("shut", "10.0.0.3", "fd00::3")?);
    // A network policy: what the node sends to this pod is dropped before it is there.
    node.netns
        .run(|| {
            let mut batch = Batch::default();
            batch.add_table(Family::Inet, "policy", b"");
            let out = BaseChain {
                kind: ChainKind::Filter,
                hook: Hook::Output,
                priority: 0,
            };
            batch.add_base_chain(Family::Inet, "policy", "out", &out);
            for to in ["10.0.0.3", "fd00::3"] {
                let mut drops = Expr::tcp_to(to.parse::<IpAddr>().unwrap(), 15001);
                drops.push(Expr::Verdict(Verdict::Drop));
                batch.add_rule(Family::Inet, "policy", "out", &drops);
            }
            Nftables::open().unwrap().commit(batch, None).unwrap();
        })
        .unwrap();
    node.run(async {
        let mut running = Running::start(node.config(), &Log::default());
        running.want(&[spec("open", &["10.0.0.2", "fd00::2"]), spec("shut", &["10.0.0.3", "fd00::3"])]);
        running.until_in(&["open", "shut"]).await;
        let inbound = |states: &[PodState], uid: &str| {
            let state = states.iter().find(|s| s.spec.uid.as_str() == uid).map(|s| s.state.clone());
            match state {
                Some(State::In { proof, .. }) => (proof.inbound.v4, proof.inbound.v6),
                _ => (None, None),
            }
        };
        let (known, listed) = (Some(Way::Recognised), Some(Way::Listed));
        running
            .until("both proofs", |s| {
                inbound(s, "open") == (known, known) && inbound(s, "shut") == (listed, listed)
            })
            .await;
        assert_ne!(open.id(), shut.id());
        assert_eq!(
            running.log.count("refused") + running.log.count("repaired"),
            0,
            "{:#?}",
            running.log.lines()
        );
        running.stop().await;
    })
}

fn without_privilege_it_is_said_what_is_missing(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let pod = node.pod("a", "10.0.0.2", "fd00::2")?;
    // On a thread of its own: what it lets go of, and only it lacks.
    let without = |lost: CapabilitySet| {
        let pod = pod.clone();
        std::thread::spawn(move || {
            let now = capabilities(None).unwrap();
            let left = CapabilitySets {
                effective: now.effective - lost,
                ..now
            };
            set_capabilities(None, left).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let asked = runtime.block_on(preflight(&Options::default())).map_err(|e| e.to_string());
            let applied =
                Inside::open(&pod).and_then(|mut inside| inside.apply(&Plan::new(&Options::default()), &Mark::new("n", &"a".into())));
            (asked, applied.map_err(|e| e.to_string()))
        })
        .join()
        .unwrap()
    };
    let (asked, applied) = without(CapabilitySet::SYS_ADMIN);
    let (asked, applied) = (asked.unwrap_err(), applied.unwrap_err());
    assert!(
        asked.contains("cannot be made or entered") && asked.contains("give the process CAP_SYS_ADMIN"),
        "{asked}"
    );
    assert!(
        applied.contains(pod.path().to_str().unwrap()) && applied.contains("CAP_SYS_ADMIN"),
        "{applied}"
    );
    let (asked, applied) = without(CapabilitySet::NET_ADMIN);
    let (asked, applied) = (asked.unwrap_err(), applied.unwrap_err());
    assert!(asked.contains("give the process CAP_NET_ADMIN"), "{asked}");
    assert!(applied.contains("Operation not permitted"), "{applied}");
    let (asked, _) = without(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
    let asked = asked.unwrap_err();
    assert!(
        asked.contains("SO_MARK") && asked.contains("give the process CAP_NET_ADMIN"),
        "{asked}"
    );
    assert_eq!(without(CapabilitySet::empty()).0, Ok(()));
    Ok(())
}
