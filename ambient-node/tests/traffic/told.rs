//! A node whose pods another's agent enrols: told over ZDS, by an agent that shares no line with this project.

use std::{
    cell::RefCell,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use ambient_core::{TunnelProtocol, Workload, mesh::Update, ports};
use ambient_node::OwnPod;
use ambient_redirect::{
    linux::{Inside, Mark, Netns},
    plan::{Options, Plan},
};
use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Mesh, NODE, Pair, Place, Way, until};

const ADMIN: u16 = ports::ADMIN;
const READINESS: u16 = ports::READINESS;

/// The agent's process.
pub(crate) struct Agent {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Agent {
    /// `None`, and a line that says so, where there is no Python.
    pub(crate) fn start(socket: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traffic/agent.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut process) = command.spawn() else {
            ambient_testkit::skipped("told by another's agent: python3 is not here: install Python 3.9 or later");
            return None;
        };
        let (commands, answers) = (process.stdin.take()?, BufReader::new(process.stdout.take()?));
        let mut agent = Self {
            process,
            commands,
            answers,
        };
        assert_eq!(agent.answer(), "listening");
        Some(agent)
    }

    pub(crate) fn say(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn add(&mut self, world: &World, pod: &str, place: &str) -> String {
        let place = world.netns_dir().join(place);
        self.say(&format!("add uid-of-{pod} shop {pod} {pod} {}", place.display()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Rules as an agent makes them before it tells of a pod.
pub(crate) fn make_rules(world: &World, pod: &str) {
    let namespace = Netns::open(world.netns_dir().join(pod)).unwrap();
    let plan = Plan::new(&Options {
        dns: false,
        ..Options::default()
    });
    let mark = Mark::new("an-agent", &format!("uid-of-{pod}").as_str().into());
    Inside::open(&namespace).unwrap().apply(&plan, &mark).unwrap();
}

pub(crate) fn an_agent_of_others_is_obeyed(world: &World) -> Outcome {
    let socket = world.scratch_dir().join("zds.sock");
    let Some(agent) = Agent::start(&socket) else { return Ok(()) };
    let agent = RefCell::new(agent);
    let mesh = Mesh::start_told(
        world,
        |config| {
            config.zds = Some(socket);
            // It is not looked at.
            config.netns_dir = "/nowhere".into();
            make_rules(world, "a");
            make_rules(world, "b");
        },
        |mesh| {
            let mut agent = agent.borrow_mut();
            let (status, text) = mesh.page_patiently(READINESS, "/healthz/ready");
            assert!(
                status == 500 && text.contains("no node agent") || text.contains("not named all pods"),
                "{text}"
            );
            assert_eq!(agent.say("accept"), "ok");
            assert_eq!(agent.add(world, "a", "a"), "ok");
            assert_eq!(agent.add(world, "b", "b"), "ok");
            let (status, text) = mesh.page_patiently(READINESS, "/healthz/ready");
            assert!(status == 500 && text.contains("not named all pods"), "{text}");
            assert_eq!(agent.say("snapshot"), "ok");
        },
    )?;
    let mut agent = agent.into_inner();
    until("readiness", || {
        (mesh.page(READINESS, "/healthz/ready").ok()?.0 == 200).then_some(())
    });
    let mut open = Way::ALL.map(|way| (way, mesh.open(way, Family::V4)));
    let mut converse = |when: &str| {
        for (way, pair) in &mut open {
            pair.converse().unwrap_or_else(|error| panic!("{way}, {when}: {error}"));
        }
    };
    converse("at first");
    assert_eq!(agent.add(world, "a", "a"), "ok");
    converse("told again");

    // Whatever it says that is no message costs it its connection, and no pod anything; what is no network namespace is one
    // pod's affair.
    let (none, file) = ("", " /dev/null");
    let two = format!(" {0} {0}", world.netns_dir().join("c").display());
    let refused = agent.say(&format!("add uid-of-c shop c c{file}"));
    assert!(refused.contains("no network namespace"), "{refused}");
    converse("beside a pod that is nowhere");
    // Whoever asks is told that it was named, and why it is not served.
    assert!(agent.say(&format!("add uid-of-b shop b b{file}")).contains("no network namespace"));
    let (_, text) = mesh.page(ADMIN, "/pods?pod=b").unwrap();
    assert!(
        text.contains("wrong: the node agent has named it") && text.contains("no network namespace"),
        "{text}"
    );
    converse("beside one that is served elsewhere");
    assert_eq!(agent.add(world, "b", "b"), "ok");
    until("nothing to be wrong with it", || {
        mesh.page(ADMIN, "/pods?pod=b").ok()?.1.contains("nothing is wrong").then_some(())
    });
    assert_eq!(agent.say("del uid-of-c"), "ok");
    for (what, says) in [
        (format!("add uid-of-c shop c c{none}"), "no network namespace for pod"),
        (format!("add uid-of-c shop c c{two}"), "2 descriptors"),
        ("raw 0aff".into(), "not understood"),
        ("raw 4200".into(), "not understood"),
        ("snapshot".into(), "after the snapshot's end"),
        ("keep uid-of-a".into(), "after the snapshot's end"),
    ] {
        let refused = agent.say(&what);
        assert!(refused.contains(says), "{what}: {refused}");
        assert_eq!(agent.say("next"), "closed", "{what}");
        converse(&what);
        // It comes back by itself, and is told all anew.
        assert_eq!(agent.say("accept"), "ok", "{what}");
        assert_eq!(agent.add(world, "a", "a"), "ok");
        assert_eq!(agent.say("keep uid-of-b"), "ok");
        assert_eq!(agent.say("snapshot"), "ok");
    }
    converse("after all that");

    // The agent is away for a moment.
    assert_eq!(agent.say("close"), "ok");
    converse("without an agent");
    assert_eq!(agent.say("accept"), "ok");
    let refused = agent.add(world, "c", "b");
    assert!(refused.contains("that of pod uid-of-b"), "{refused}");
    assert_eq!(agent.say("del uid-of-c"), "ok");
    assert_eq!(agent.say("keep uid-of-a"), "ok");
    assert_eq!(agent.say("keep uid-of-b"), "ok");
    assert_eq!(agent.say("snapshot"), "ok");
    converse("and with the next");
    until("readiness", || {
        (mesh.page(READINESS, "/healthz/ready").ok()?.0 == 200).then_some(())
    });

    // A pod that goes is served no more; its rules are the agent's.
    assert_eq!(agent.say("del uid-of-b"), "ok");
    let listener = mesh.b.listen(Family::V4);
    assert_ne!(mesh.c.attempt(listener.address()), "end");
    assert!(listener.is_lonely());
    Ok(())
}

/// Refuses whoever is not `b`.
const FOR_B_ALONE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: for-b-alone, namespace: mesh-system}
spec: {action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/b]}}]}]}
";

/// What a place has for an answer where the metrics are.
fn scrape(from: &Place, at: SocketAddr) -> io::Result<String> {
    let mut stream = from.connect(at)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: proxy\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn is_listening(mesh: &Mesh, at: SocketAddr) -> bool {
    mesh.node.run(|| TcpStream::connect(at).is_ok()).unwrap()
}

/// Tunnels are taken for as long as the mesh says so, and what is open goes on.
fn while_the_mesh_says_so(mesh: &Mesh, tunnels: SocketAddr, mut workload: Workload) -> Outcome {
    let mut say = |tunnel| {
        workload.tunnel = tunnel;
        mesh.tell(vec![Update::Workload(workload.clone().into())]);
        let takes = tunnel == TunnelProtocol::Hbone;
        until("its port", || {
            // It is closed once nothing has come for a while.
            thread::sleep(Duration::from_millis(if takes { 0 } else { 200 }));
            (is_listening(mesh, tunnels) == takes).then_some(())
        });
    };
    let app = mesh.node.run(|| TcpListener::bind(("::", 0)))??;
    let at = SocketAddr::new(tunnels.ip(), app.local_addr()?.port());
    let open = || -> io::Result<Pair> {
        let client = mesh.b.connect(at)?;
        let (server, peer) = app.accept()?;
        assert_eq!(
            peer.ip().to_canonical(),
            tunnels.ip(),
            "it has come as it was sent, and not by a tunnel"
        );
        Ok(Pair { client, server })
    };
    let mut pairs = vec![open()?];
    for back in [true, false] {
        say(TunnelProtocol::None);
        // A moment for what would be cut.
        thread::sleep(Duration::from_millis(200));
        pairs.iter_mut().try_for_each(Pair::converse)?;
        if back {
            say(TunnelProtocol::Hbone);
            pairs.push(open()?);
            pairs.iter_mut().try_for_each(Pair::converse)?;
        }
    }
    // All of it has ended, with its certificate, and it begins anew.
    drop(pairs);
    until("the certificate to be let go", || {
        let dump: serde_json::Value = serde_json::from_str(&mesh.page(ADMIN, "/config_dump").ok()?.1).ok()?;
        let held = dump["certificates"].as_array()?;
        let is_own = |one: &serde_json::Value| one["identity"].as_str().is_some_and(|id| id.ends_with("/sa/proxy"));
        (held.len() == 2 && !held.iter().any(is_own)).then_some(())
    });
    say(TunnelProtocol::Hbone);
    Ok(open()?.converse()?)
}

/// Metrics of the proxy are fetched through a tunnel, where the mesh says that its own pod takes any.
pub(crate) fn the_pod_of_the_proxy_itself_takes_tunnels(world: &World) -> Outcome {
    let socket = world.scratch_dir().join("zds.sock");
    let Some(agent) = Agent::start(&socket) else { return Ok(()) };
    let agent = RefCell::new(agent);
    let mut mesh = Mesh::start_told(
        world,
        |config| {
            config.zds = Some(socket);
            config.own_pod = Some(OwnPod {
                namespace: "mesh-system".into(),
                name: "proxy-x".into(),
                service_account: "proxy".into(),
            });
            make_rules(world, "a");
            make_rules(world, "b");
        },
        |mesh| {
            let mut agent = agent.borrow_mut();
            until("the node to start", || mesh.page(READINESS, "/healthz/ready").ok());
            assert_eq!(agent.say("accept"), "ok");
            assert_eq!(agent.add(world, "a", "a"), "ok");
            assert_eq!(agent.add(world, "b", "b"), "ok");
            assert_eq!(agent.say("snapshot"), "ok");
        },
    )?;
    let own: [SocketAddr; 2] = ["10.0.0.1:15020".parse()?, "[fd00::1]:15020".parse()?];
    let tunnels = SocketAddr::new(own[0].ip(), ports::HBONE);
    let mut workload = Workload::new("Kubernetes//Pod/mesh-system/proxy-x", "mesh-system", "proxy-x");
    workload.addresses = own.map(|at| at.ip()).to_vec();
    workload.service_account = "proxy".into();
    workload.workload_name = "proxy".into();
    workload.node = NODE.into();
    mesh.tell(vec![Update::Workload(workload.clone().into())]);
    // As it is, without a tunnel; and nothing is taken that nobody is told to send.
    until("the metrics, in plaintext", || {
        let answer = scrape(&mesh.a, own[0]).ok()?;
        answer.contains("destination_workload=\"proxy\"").then_some(())
    });
    assert!(!is_listening(&mesh, tunnels));

    // A port that is taken is waited for.
    let taken = mesh.node.run(|| TcpListener::bind(("::", ports::HBONE)))??;
    workload.tunnel = TunnelProtocol::Hbone;
    let issued = || mesh.metric("ambient_certificate_requests_total", &[("outcome", "issued")]);
    let before = issued();
    mesh.tell(vec![Update::Workload(workload.clone().into())]);
    // Only what it is told by the mesh can have come to it there: its dials are refused.
    until("the port to be tried", || scrape(&mesh.a, own[0]).is_err().then_some(()));
    drop(taken);
    let tunnelled = |reporter| {
        let labels = [
            ("reporter", reporter),
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/a"),
            ("destination_workload", "proxy"),
            ("destination_principal", "spiffe://cluster.local/ns/mesh-system/sa/proxy"),
            ("connection_security_policy", "mutual_tls"),
        ];
        mesh.metric("istio_tcp_connections_opened_total", &labels)
    };
    for (at, family) in own.into_iter().zip([Family::V4, Family::V6]) {
        let before = ["source", "destination"].map(tunnelled);
        let answer = until("the metrics, through a tunnel", || {
            scrape(&mesh.a, at).ok().filter(|answer| answer.starts_with("HTTP/1.0 200"))
        });
        assert!(answer.contains("# EOF"), "all of it, by {family:?}");
        let now = ["source", "destination"].map(tunnelled);
        assert!(now[0] > before[0] && now[1] > before[1], "{family:?}: {before:?}, then {now:?}");
    }
    assert_eq!(issued(), before + 1, "one certificate, however often the port was tried");
    // It is no pod that is captured.
    assert_eq!(mesh.metric("workload_manager_active_proxy_count", &[]), 2);
    let dump: serde_json::Value = serde_json::from_str(&mesh.page(ADMIN, "/config_dump")?.1)?;
    let served: Vec<_> = dump["workloadState"].as_object().ok_or("no pods")?.keys().collect();
    assert_eq!(served, ["uid-of-a", "uid-of-b"]);
    // Nothing that the process listens at on its loopback alone is reached by way of it, nor its tunnels by themselves.
    for port in [ADMIN, ports::HBONE] {
        assert!(scrape(&mesh.a, SocketAddr::new(own[0].ip(), port)).is_err(), "port {port}");
    }

    while_the_mesh_says_so(&mesh, tunnels, workload)?;

    // Policies of its namespace are its own.
    mesh.apply("policy", FOR_B_ALONE);
    until("the policy to refuse", || {
        scrape(&mesh.a, own[0]).ok().filter(String::is_empty).map(drop)
    });
    assert!(scrape(&mesh.b, own[0])?.starts_with("HTTP/1.0 200"));
    assert!(scrape(&mesh.c, own[0])?.starts_with("HTTP/1.0 200"), "nothing of it is captured");

    // It ends with the node.
    let stopping = mesh.stop();
    until("the node to end", || stopping.is_over().then_some(()));
    Ok(stopping.result()?)
}
