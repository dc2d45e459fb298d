//! ZDS over real sockets, with real namespaces: both ends against each other, and each against peers that misbehave.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]

#[path = "support/links.rs"]
mod links;
#[path = "support/mesh.rs"]
#[allow(dead_code, reason = "another test needs more of it")]
mod mesh;
#[path = "support/node.rs"]
#[allow(dead_code, reason = "another test needs more of it")]
mod node;

use std::{
    fs::File,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ambient_core::PodUid;
use ambient_redirect::{
    BoxFuture, PodSpec, Proxy, ProxyError,
    linux::{Netns, SeqPacket, SeqPacketListener},
    plan::Options,
    zds::{
        Client, ClientConfig, ClientState, Server, ServerConfig, agent,
        wire::{Ack, Hello, Request, WorkloadInfo},
        workloads::Readiness,
    },
};
use ambient_testkit::{
    World,
    harness::{self, Outcome},
};
use mesh::{Log, Running};
use node::{Node, spec};
use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

fn main() -> ExitCode {
    harness::main(&[
        ("an_enrolment_drives_a_proxy_of_others", an_enrolment_drives_a_proxy_of_others),
        ("an_agents_restart_ends_nothing", an_agents_restart_ends_nothing),
        ("a_proxys_restart_is_told_all", a_proxys_restart_is_told_all),
        ("an_upgrade_hands_over_and_falls_back", an_upgrade_hands_over_and_falls_back),
        ("without_a_proxy_it_is_said_so", without_a_proxy_it_is_said_so),
        ("a_refusal_is_passed_on", a_refusal_is_passed_on),
        (
            "a_proxy_that_errs_loses_its_connection_alone",
            a_proxy_that_errs_loses_its_connection_alone,
        ),
        (
            "an_agent_that_errs_loses_its_connection_alone",
            an_agent_that_errs_loses_its_connection_alone,
        ),
        (
            "a_pod_that_is_nowhere_keeps_no_other_from_being_served",
            a_pod_that_is_nowhere_keeps_no_other_from_being_served,
        ),
        ("what_hangs_is_let_go", what_hangs_is_let_go),
        (
            "a_pod_that_is_never_answered_for_holds_up_no_other",
            a_pod_that_is_never_answered_for_holds_up_no_other,
        ),
        ("strangers_are_refused_at_both_ends", links::strangers_are_refused_at_both_ends),
        (
            "only_a_dead_socket_of_ours_is_replaced",
            links::only_a_dead_socket_of_ours_is_replaced,
        ),
        (
            "a_packets_descriptors_are_never_lost_or_leaked",
            links::a_packets_descriptors_are_never_lost_or_leaked,
        ),
    ])
}

/// Serves nothing, and remembers what it was asked.
struct Recorder {
    name: &'static str,
    log: Log,
    refuses: Option<&'static str>,
}

impl Recorder {
    fn new(name: &'static str, log: &Log) -> Arc<Self> {
        Arc::new(Self {
            name,
            log: log.clone(),
            refuses: None,
        })
    }
}

impl Proxy for Recorder {
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>> {
        Box::pin(async move {
            let who = format!("{}/{} as {}", pod.namespace, pod.name, pod.service_account);
            self.log.push(format!("{} add {} {who} in {}", self.name, pod.uid, namespace.id()));
            self.refuses.map_or(Ok(()), |why| {
                Err(ProxyError {
                    what: "listening on port 15001".into(),
                    source: io::Error::other(why),
                })
            })
        })
    }

    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move { self.log.push(format!("{} cut {uid}", self.name)) })
    }

    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move { self.log.push(format!("{} remove {uid}", self.name)) })
    }
}

fn path(world: &World) -> PathBuf {
    world.netns_dir().with_file_name("zds.sock")
}

fn quick() -> agent::Timing {
    agent::Timing {
        hello: Duration::from_millis(300),
        ack: Duration::from_millis(700),
        again: Duration::from_millis(200),
        grace: Duration::from_secs(2),
    }
}

fn server(world: &World) -> (Arc<Server>, JoinHandle<()>) {
    let mut config = ServerConfig::new(path(world), Options::default());
    (config.timing, config.patience) = (quick(), Duration::from_secs(3));
    let server = Server::bind(config).unwrap();
    let running = server.clone();
    (server, tokio::spawn(async move { running.run().await }))
}

fn client(world: &World, proxy: Arc<dyn Proxy>) -> (JoinHandle<()>, watch::Receiver<ClientState>) {
    let mut config = ClientConfig::new(path(world));
    config.pause_most = Duration::from_millis(100);
    let client = Client::new(config);
    let state = client.state();
    (tokio::spawn(client.run(proxy)), state)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("waited for {what} in vain");
}

async fn until_ready(state: &mut watch::Receiver<ClientState>) {
    let ready = timeout(Duration::from_secs(10), state.wait_for(|state| state.readiness == Readiness::Ready))
        .await
        .is_ok();
    assert!(ready, "{:?}", state.borrow());
}

fn expect(server: &Server, uids: &[&str]) {
    server.expect(uids.iter().map(|uid| PodUid::from(*uid)).collect());
}

fn an_enrolment_drives_a_proxy_of_others(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let a = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let log = Log::default();
        let (server, serving) = server(world);
        let mut running = Running::start_with(node.config(), &log, server.clone());
        let following = {
            let (server, desired, states) = (server.clone(), running.desired.subscribe(), running.states.clone());
            tokio::spawn(async move { server.follow(desired, states).await })
        };
        running.want(&[spec("a", &["10.0.0.2", "fd00::2"])]);
        // The proxy comes later than the pod.
        sleep(Duration::from_millis(100)).await;
        let (proxy, mut state) = client(world, running.proxy.clone());
        running.until_in(&["a"]).await;
        until_ready(&mut state).await;
        assert_eq!(log.count("add a"), 1);
        let stream = connect(&a, "198.51.100.7:80").await;
        assert_eq!(stream, "out 198.51.100.7:80 from 10.0.0.2");

        running.want(&[]);
        running.until("release", |states| states.is_empty()).await;
        let lines = log.lines();
        let at = |line: &str| {
            lines
                .iter()
                .position(|l| l.starts_with(line))
                .unwrap_or_else(|| panic!("no {line} in {lines:#?}"))
        };
        assert!(at("withdrawn a") < at("cut a with rules"), "{lines:#?}");
        assert!(at("cut a with rules") < at("remove a"), "{lines:#?}");
        running.stop().await;
        timeout(Duration::from_secs(5), following).await.unwrap().unwrap();
        proxy.abort();
        serving.abort();
    })
}

async fn connect(from: &Arc<Netns>, to: &str) -> String {
    use std::io::Read as _;
    let (from, to) = (from.clone(), to.parse().unwrap());
    let asked = tokio::task::spawn_blocking(move || {
        from.run(|| {
            let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut told = String::new();
            stream.read_to_string(&mut told).unwrap();
            told
        })
        .unwrap()
    });
    asked.await.unwrap()
}

fn an_agents_restart_ends_nothing(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    node.run(async {
        let log = Log::default();
        let (first, serving) = server(world);
        expect(&first, &["a", "b"]);
        let (proxy, mut state) = client(world, Recorder::new("p", &log));
        first.add(&spec("a", &[]), a.clone()).await.unwrap();
        first.add(&spec("b", &[]), b).await.unwrap();
        until_ready(&mut state).await;
        assert_eq!(state.borrow().served, 2);
        serving.abort();
        let _ = serving.await;
        drop(first);
        until("the connection's end", || state.borrow().readiness == Readiness::Alone).await;
        assert!(state.borrow().trouble.is_some());

        // The next knows of both pods, and for longer than the grace of one's namespace only.
        let (second, serving) = server(world);
        expect(&second, &["a", "b"]);
        second.add(&spec("a", &[]), a).await.unwrap();
        until_ready(&mut state).await;
        assert_eq!(state.borrow().served, 2);
        let all = log.lines();
        assert_eq!(
            all.iter().filter(|line| line.contains("add")).count(),
            2,
            "what is served is not served anew: {all:#?}"
        );
        assert!(!all.iter().any(|line| line.contains("remove")), "{all:#?}");

        // What it was told to keep it can be told to let go.
        second.remove(&"b".into()).await;
        assert_eq!(log.count("p remove b"), 1);
        // What a third does not know of goes with its snapshot.
        serving.abort();
        let _ = serving.await;
        drop(second);
        let (third, serving) = server(world);
        expect(&third, &[]);
        log_has(&log, "p remove a").await;
        assert!(log.lines().iter().any(|line| line == "p cut a"), "what is open is cut first");
        until_ready(&mut state).await;
        drop(third);
        serving.abort();
        proxy.abort();
    })
}

async fn log_has(log: &Log, line: &str) {
    until(line, || log.count(line) > 0).await;
}

fn a_proxys_restart_is_told_all(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let a = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let log = Log::default();
        let (server, serving) = server(world);
        expect(&server, &["a"]);
        let (proxy, mut state) = client(world, Recorder::new("p", &log));
        server.add(&spec("a", &[]), a.clone()).await.unwrap();
        until_ready(&mut state).await;
        let id = a.id();
        assert_eq!(log.lines(), [format!("p add a shop/pod-of-a as default in {id}")]);
        proxy.abort();
        let _ = proxy.await;
        until("the server's notice", || server.proxies().borrow().is_empty()).await;
        let (proxy, mut state) = client(world, Recorder::new("q", &log));
        until_ready(&mut state).await;
        assert_eq!(log.count(&format!("q add a shop/pod-of-a as default in {id}")), 1);
        until("the last answer", || {
            server.proxies().borrow().iter().all(|proxy| proxy.state.synced)
        })
        .await;
        let proxies = server.proxies().borrow().clone();
        assert_eq!(proxies.len(), 1);
        assert_eq!(proxies[0].state.served, 1, "{proxies:?}");
        assert_eq!(proxies[0].peer.pid, Some(std::process::id()));
        proxy.abort();
        serving.abort();
    })
}

fn an_upgrade_hands_over_and_falls_back(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    node.run(async {
        let log = Log::default();
        let (server, serving) = server(world);
        expect(&server, &["a"]);
        let (old, mut old_state) = client(world, Recorder::new("old", &log));
        server.add(&spec("a", &[]), a).await.unwrap();
        until_ready(&mut old_state).await;
        let (new, mut new_state) = client(world, Recorder::new("new", &log));
        until_ready(&mut new_state).await;
        assert_eq!(log.count("new add a"), 1, "each is told of every pod at its beginning");
        expect(&server, &["a", "b"]);
        server.add(&spec("b", &[]), b).await.unwrap();
        assert_eq!(
            (log.count("new add b"), log.count("old add b")),
            (1, 0),
            "a new pod is the newest proxy's"
        );
        server.remove(&"a".into()).await;
        assert_eq!((log.count("new remove a"), log.count("old remove a")), (1, 1), "all let go");
        // The upgrade is taken back.
        new.abort();
        log_has(&log, "old add b").await;
        until_ready(&mut old_state).await;
        old.abort();
        serving.abort();
    })
}

fn without_a_proxy_it_is_said_so(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let a = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let mut config = ServerConfig::new(path(world), Options::default());
        config.patience = Duration::from_millis(200);
        let server = Server::bind(config).unwrap();
        let running = server.clone();
        let serving = tokio::spawn(async move { running.run().await });
        expect(&server, &["a"]);
        let error = server.add(&spec("a", &[]), a.clone()).await.unwrap_err().to_string();
        let path = path(world);
        assert!(error.contains(&format!("no proxy is connected at {}", path.display())), "{error}");
        assert!(error.contains("INPOD_UDS"), "{error}");
        // Nor does anything hang: nobody serves it, so it is removed at once.
        timeout(Duration::from_secs(1), server.remove(&"a".into())).await.unwrap();
        let long = PodSpec {
            name: "n".repeat(1100).into(),
            ..spec("a", &[])
        };
        let error = server.add(&long, a).await.unwrap_err().to_string();
        assert!(error.contains("too long for a packet"), "{error}");
        serving.abort();
    })
}

fn a_refusal_is_passed_on(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    node.run(async {
        let log = Log::default();
        let (server, serving) = server(world);
        expect(&server, &["a"]);
        let refusing = Arc::new(Recorder {
            refuses: Some("Address in use"),
            ..Recorder {
                name: "p",
                log: log.clone(),
                refuses: None,
            }
        });
        let (proxy, state) = client(world, refusing);
        let error = server.add(&spec("a", &[]), a).await.unwrap_err().to_string();
        assert!(
            error.contains("the proxy refuses it: listening on port 15001: Address in use"),
            "{error}"
        );
        // The connection goes on, the next is asked, the first is asked again, and the proxy is not ready.
        let error = server.add(&spec("b", &[]), b).await.unwrap_err().to_string();
        assert!(error.contains("Address in use"), "{error}");
        until("another attempt", || log.count("p add a") >= 2).await;
        until("what is pending to be told", || match &state.borrow().readiness {
            Readiness::Pending(pods, 2) => pods.iter().all(|(_, why)| why.to_string().contains("Address in use")),
            _ => false,
        })
        .await;
        assert_eq!(server.proxies().borrow()[0].state.refused.len(), 2);
        server.remove(&"a".into()).await;
        proxy.abort();
        serving.abort();
    })
}

async fn hello(world: &World) -> SeqPacket {
    let link = SeqPacket::connect(&path(world)).unwrap();
    link.send(&Hello { version: 1 }.encode(), None).await.unwrap();
    link
}

/// Receives until the other end closes.
async fn closes(link: &SeqPacket) {
    timeout(Duration::from_secs(5), async {
        while let Ok(Some(_)) = link.receive(4096).await {}
    })
    .await
    .expect("the connection stays");
}

fn a_proxy_that_errs_loses_its_connection_alone(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let a = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let log = Log::default();
        let (server, serving) = server(world);
        expect(&server, &["a"]);
        let (proxy, mut state) = client(world, Recorder::new("p", &log));
        server.add(&spec("a", &[]), a).await.unwrap();
        until_ready(&mut state).await;

        let file = File::open("/dev/null").unwrap();
        let (ack, garbage) = (Ack::well().encode(), b"\x0a\xff".to_vec());
        let cases: [(&str, &[u8], Option<BorrowedFd<'_>>, bool); 6] = [
            ("another version", &Hello { version: 2 }.encode(), None, false),
            ("no version", b"\x10\x01", None, false),
            ("no greeting", &garbage, None, false),
            ("garbage for an answer", &garbage, None, true),
            ("an answer with a descriptor", &ack, Some(file.as_fd()), true),
            ("a longer answer than any", &[0x0a; 20_000], None, true),
        ];
        for (what, packet, descriptor, greets) in cases {
            let link = SeqPacket::connect(&path(world)).unwrap();
            if greets {
                link.send(&Hello { version: 1 }.encode(), None).await.unwrap();
                // The pod, of which each is told.
                let told = link.receive(4096).await.unwrap().unwrap();
                assert_eq!(told.descriptors.len(), 1);
                assert!(matches!(Request::decode(&told.bytes), Ok(Request::Add { .. })), "{what}");
            }
            link.send(packet, descriptor).await.unwrap();
            closes(&link).await;
            assert_eq!(state.borrow().readiness, Readiness::Ready, "{what}");
        }
        // An answer that nothing was asked for.
        let link = hello(world).await;
        for _ in 0..2 {
            link.receive(4096).await.unwrap().unwrap();
            link.send(&ack, None).await.unwrap();
        }
        link.send(&ack, None).await.unwrap();
        closes(&link).await;
        until("one proxy", || server.proxies().borrow().len() == 1).await;
        assert_eq!(
            log.lines().len(),
            1,
            "the other proxy has heard nothing of all that: {:#?}",
            log.lines()
        );
        proxy.abort();
        serving.abort();
    })
}

/// An agent's end of a connection, by hand.
async fn accept(listener: &SeqPacketListener) -> SeqPacket {
    let link = timeout(Duration::from_secs(10), listener.accept()).await.unwrap().unwrap();
    let greeting = link.receive(1024).await.unwrap().unwrap();
    assert_eq!(greeting.bytes, [0x08, 0x01]);
    link
}

async fn ask(link: &SeqPacket, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> String {
    link.send(packet, descriptor).await.unwrap();
    heard(link).await
}

/// The answer to a request; empty where it is that all is well.
async fn heard(link: &SeqPacket) -> String {
    let answer = timeout(Duration::from_secs(10), link.receive(1024)).await.unwrap().unwrap();
    Ack::decode(&answer.expect("an answer").bytes).unwrap().error
}

/// What no end of ours sends.
fn send_many(link: &SeqPacket, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(9))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(link, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn add(uid: &str) -> Vec<u8> {
    let info = WorkloadInfo {
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "sa".into(),
    };
    Request::Add {
        uid: uid.into(),
        info: Some(info),
    }
    .encode()
}

fn an_agent_that_errs_loses_its_connection_alone(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    node.run(async {
        let log = Log::default();
        let listener = SeqPacketListener::bind(&path(world)).unwrap();
        let (proxy, mut state) = client(world, Recorder::new("p", &log));
        let link = accept(&listener).await;
        assert_eq!(ask(&link, &add("a"), Some(a.as_fd())).await, "");
        assert_eq!(ask(&link, &add("a"), Some(a.as_fd())).await, "", "again is as good as once");
        assert_eq!(ask(&link, &Request::SnapshotSent.encode(), None).await, "");
        until_ready(&mut state).await;
        // Two pods in one namespace: the first keeps it.
        let refused = ask(&link, &add("b"), Some(a.as_fd())).await;
        assert!(refused.contains("that of pod a"), "{refused}");
        assert_eq!(ask(&link, &add("b"), Some(b.as_fd())).await, "");
        assert_eq!(ask(&link, &Request::Del { uid: "b".into() }.encode(), None).await, "");
        assert_eq!(log.count("p remove b"), 1);
        drop(link);

        let keep = Request::Keep { uid: "a".into() }.encode();
        let no_info = Request::Add {
            uid: "b".into(),
            info: None,
        }
        .encode();
        let snapshot = Request::SnapshotSent.encode();
        let cases: [(&str, Vec<u8>, Option<BorrowedFd<'_>>, &str); 8] = [
            ("garbage", b"\x0a\xff".to_vec(), None, "not understood"),
            (
                "a packet that ends within a text",
                add("b")[..9].to_vec(),
                Some(b.as_fd()),
                "ends within a field",
            ),
            ("an unknown message", b"\x42\x00".to_vec(), None, "not understood"),
            ("no descriptor", add("b"), None, "no network namespace for pod b"),
            ("nobody's name", no_info, Some(b.as_fd()), "no Kubernetes namespace"),
            ("a descriptor too many", keep.clone(), Some(b.as_fd()), "1 descriptors"),
            ("a second snapshot", snapshot.clone(), None, "after the snapshot's end"),
            ("a late keep", keep.clone(), None, "after the snapshot's end"),
        ];
        for (what, packet, descriptor, says) in cases {
            let link = accept(&listener).await;
            assert_eq!(ask(&link, &keep, None).await, "", "{what}");
            if says.contains("after") {
                assert_eq!(ask(&link, &snapshot, None).await, "", "{what}");
            }
            let refused = ask(&link, &packet, descriptor).await;
            assert!(refused.contains(says), "{what}: {refused}");
            closes(&link).await;
        }
        // Longer than any request.
        let link = accept(&listener).await;
        link.send(&[0x0a; 5000], None).await.unwrap();
        closes(&link).await;
        // Two namespaces for one pod; and more than are taken.
        let link = accept(&listener).await;
        send_many(&link, &add("b"), &[a.as_fd(), b.as_fd()]);
        let refused = heard(&link).await;
        assert!(refused.contains("2 descriptors with pod b"), "{refused}");
        closes(&link).await;
        let link = accept(&listener).await;
        send_many(&link, &add("b"), &[a.as_fd(); 9]);
        closes(&link).await;
        until("what is wrong to be told", || {
            let state = state.borrow();
            state.trouble.as_ref().is_some_and(|why| why.contains("more than 4 descriptors"))
        })
        .await;
        assert_eq!(state.borrow().served, 1, "what is served is served still");
        let link = accept(&listener).await;
        assert_eq!(ask(&link, &keep, None).await, "");
        assert_eq!(ask(&link, &snapshot, None).await, "");
        until_ready(&mut state).await;
        let expected = ["p add a", "p add b", "p cut b", "p remove b"];
        let lines = log.lines();
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        assert!(
            lines.iter().zip(expected).all(|(line, expected)| line.starts_with(expected)),
            "{lines:#?}"
        );
        // Another namespace for a pod is where it is from then on.
        assert_eq!(ask(&link, &add("a"), Some(b.as_fd())).await, "");
        assert!(log.lines().last().unwrap().ends_with(&b.id().to_string()));
        proxy.abort();
    })
}

/// Where an agent sends what is no pod's namespace, that pod is refused and named; others are served over the same connection.
fn a_pod_that_is_nowhere_keeps_no_other_from_being_served(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    node.run(async {
        let log = Log::default();
        let listener = SeqPacketListener::bind(&path(world)).unwrap();
        let (proxy, mut state) = client(world, Recorder::new("p", &log));
        let link = accept(&listener).await;
        let (file, mounts) = (File::open("/dev/null").unwrap(), File::open("/proc/self/ns/mnt").unwrap());
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        // Of the first process, which not every machine lets others look at.
        let first = Netns::open("/proc/1/ns/net")
            .inspect_err(|why| println!("not asked here: {why}"))
            .ok();
        let nodes = |own: &Netns| format!("the node's own network namespace {} for pod a", own.id());
        let mut cases: Vec<(BorrowedFd<'_>, String)> = vec![
            (
                file.as_fd(),
                "no network namespace for pod a: /dev/null is not a network namespace; a bind mount of /proc/PID/ns/net is needed".into(),
            ),
            (mounts.as_fd(), "no network namespace for pod a: mnt:[".into()),
            (socket.as_fd(), "no network namespace for pod a: socket:[".into()),
            (node.netns.as_fd(), nodes(&node.netns)),
        ];
        cases.extend(first.iter().map(|first| (first.as_fd(), nodes(first))));
        for (n, (descriptor, says)) in cases.iter().enumerate() {
            let refused = ask(&link, &add("a"), Some(*descriptor)).await;
            assert!(refused.contains(says), "{refused}");
            // Before the snapshot's end and after it.
            let uid = format!("b{n}");
            assert_eq!(ask(&link, &add(&uid), Some(b.as_fd())).await, "", "{says}");
            if n == 2 {
                assert_eq!(ask(&link, &Request::SnapshotSent.encode(), None).await, "");
            }
            assert_eq!(ask(&link, &Request::Del { uid: uid.as_str().into() }.encode(), None).await, "");
        }
        let pending = |state: &ClientState, says: &str| match &state.readiness {
            Readiness::Pending(pods, 1) => pods[0].0.as_str() == "a" && pods[0].1.to_string().contains(says),
            _ => false,
        };
        until("the pod to be told of", || pending(&state.borrow(), "the node's own")).await;
        assert_eq!(log.count("p add a"), 0, "nothing is served there: {:#?}", log.lines());
        // Named where it is, it is served; and what is said wrongly of it later ends nothing.
        assert_eq!(ask(&link, &add("a"), Some(a.as_fd())).await, "");
        until_ready(&mut state).await;
        let refused = ask(&link, &add("a"), Some(node.netns.as_fd())).await;
        assert!(refused.contains("the node's own"), "{refused}");
        until("the pod to be told of", || pending(&state.borrow(), "the node's own")).await;
        assert_eq!((log.count("p add a"), log.count("p cut a"), state.borrow().served), (1, 0, 1));
        // Until its namespace is another's.
        assert_eq!(ask(&link, &add("c"), Some(a.as_fd())).await, "");
        assert_eq!((log.count("p cut a"), log.count("p remove a"), log.count("p add c")), (1, 1, 1));
        assert_eq!(ask(&link, &Request::Del { uid: "a".into() }.encode(), None).await, "");
        until_ready(&mut state).await;
        proxy.abort();
    })
}

fn what_hangs_is_let_go(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let (a, b) = (node.pod("a", "10.0.0.2", "fd00::2")?, node.pod("b", "10.0.0.3", "fd00::3")?);
    node.run(async {
        let log = Log::default();
        let (server, serving) = server(world);
        expect(&server, &["a", "b"]);
        let silent = SeqPacket::connect(&path(world)).unwrap();
        let hanging = hello(world).await;
        let more = timeout(Duration::from_millis(100), hanging.receive(1024)).await;
        assert!(more.is_err(), "something has come before anything is wanted");
        closes(&silent).await;
        // It is told of a pod and does not answer; then it does, too late.
        let adding = {
            let (server, a) = (server.clone(), a.clone());
            tokio::spawn(async move { server.add(&spec("a", &[]), a).await })
        };
        let told = hanging.receive(1024).await.unwrap().unwrap();
        assert!(matches!(Request::decode(&told.bytes), Ok(Request::Add { .. })));
        closes(&hanging).await;
        let _ = hanging.send(&Ack::well().encode(), None).await;
        let (proxy, mut state) = client(world, Recorder::new("p", &log));
        adding.await.unwrap().expect("the next proxy's answer is as good");
        server.add(&spec("b", &[]), b).await.unwrap();
        until_ready(&mut state).await;
        assert_eq!(log.lines().len(), 2);
        proxy.abort();
        serving.abort();
    })
}

/// A proxy that takes what it is told, but for a pod at which it hangs; it comes back whenever it has lost its connection.
async fn hang_at(world: World, uid: &'static str, connections: Arc<AtomicUsize>) {
    loop {
        let Ok(link) = SeqPacket::connect(&path(&world)) else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        connections.fetch_add(1, Ordering::Relaxed);
        link.send(&Hello { version: 1 }.encode(), None).await.unwrap();
        while let Ok(Some(told)) = link.receive(4096).await {
            let asked = Request::decode(&told.bytes).unwrap();
            if !matches!(&asked, Request::Add { uid: told, .. } if told.as_str() == uid) {
                let _ = link.send(&Ack::well().encode(), None).await;
            }
        }
    }
}

/// The first in the order of their names, of 250.
fn a_pod_that_is_never_answered_for_holds_up_no_other(world: &World) -> Outcome {
    let node = Node::new(world)?;
    let a = node.pod("a", "10.0.0.2", "fd00::2")?;
    node.run(async {
        let (server, serving) = server(world);
        let uids: Vec<String> = (0..250).map(|n| format!("p{n:03}")).collect();
        expect(&server, &uids.iter().map(String::as_str).collect::<Vec<_>>());
        let connections = Arc::new(AtomicUsize::new(0));
        let proxy = tokio::spawn(hang_at(world.clone(), "p000", connections.clone()));
        let mut adding = JoinSet::new();
        for uid in uids {
            let (server, a) = (server.clone(), a.clone());
            adding.spawn(async move { (server.add(&spec(&uid, &[]), a).await, uid) });
        }
        while let Some(added) = adding.join_next().await {
            let (added, uid) = added.unwrap();
            assert_eq!(added.is_err(), uid == "p000", "{uid}: {added:?}");
        }
        // One that comes later too, and without waiting for the one that hangs each time.
        let (begun, before) = (tokio::time::Instant::now(), connections.load(Ordering::Relaxed));
        for n in 0..20 {
            server.add(&spec(&format!("q{n}"), &[]), a.clone()).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        let (took, lost) = (begun.elapsed(), connections.load(Ordering::Relaxed) - before);
        assert!(lost <= 4, "{lost} connections were lost in {took:?}");
        until("the others' snapshot to be whole", || {
            server.proxies().borrow().last().is_some_and(|proxy| proxy.state.synced)
        })
        .await;
        // It is no suspect once it is elsewhere, or has gone.
        server.remove(&"p000".into()).await;
        let quiet = connections.load(Ordering::Relaxed);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(connections.load(Ordering::Relaxed), quiet);
        proxy.abort();
        serving.abort();
    })
}
