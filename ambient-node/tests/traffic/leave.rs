//! How a pod leaves the mesh.

use std::{
    collections::BTreeSet,
    error::Error,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ambient_core::ports;
use ambient_redirect::{
    netlink::{Family as NftFamily, Nftables, Routing, Sockets, Transport},
    plan::ROUTE_TABLE,
};
use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, LABELLED, Listener, Mesh, Pair, Place, Way, ending, pod, until};

const NOT_LABELLED: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
const STRICT: &str = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: shop},
    spec: {mtls: {mode: STRICT}}}";
const IN_THE_MESH: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}";

/// What is captured ends when its two ends want it, through the proxy; what is new goes as if there had never been a mesh, and
/// nobody is refused in between.
pub(crate) fn what_a_pod_that_leaves_has_open_goes_on(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let mut open: Vec<_> = Way::ALL
        .into_iter()
        .flat_map(|way| [Family::V4, Family::V6].map(|family| (way, mesh.open(way, family))))
        .collect();
    mesh.apply("namespace", NOT_LABELLED);
    let listener = mesh.c.listen(Family::V4);
    until("plaintext", || {
        let client = mesh.a.connect(listener.address()).unwrap();
        let seen = listener.accept();
        (seen.peer_addr().unwrap() == client.local_addr().unwrap()).then_some(())
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        for (way, pair) in &mut open {
            pair.converse().map_err(|e| format!("{way}: {e}"))?;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(has_tables(&mesh), "what translates them stands");
    for (way, mut pair) in open {
        pair.client.shutdown(Shutdown::Write)?;
        assert_eq!(ending(&mut pair.server), "end", "{way}");
        pair.server.shutdown(Shutdown::Write)?;
        assert_eq!(ending(&mut pair.client), "end", "{way}");
    }
    until("all to be gone", || (!has_tables(&mesh)).then_some(()));
    Ok(())
}

/// Transfers in both directions at once, and connections on which nothing is said: those from before the pods join outlive that and
/// the pods' leaving, and those that were captured outlive the leaving. Every byte arrives, once and in its place.
pub(crate) fn what_is_long_and_what_is_idle_goes_on_as_pods_join_and_leave(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply("namespace", NOT_LABELLED);
    until("all to be gone", || (!has_tables(&mesh)).then_some(()));
    let enough = AtomicBool::new(false);
    let open = |listening: &Listener, way: Way| -> io::Result<Pair> {
        let client = mesh.ends(way).0.connect(listening.address())?;
        let server = listening.accept();
        Ok(Pair { client, server })
    };
    let listening: Vec<_> = Way::ALL
        .into_iter()
        .flat_map(|way| [Family::V4, Family::V6].map(|family| (way, mesh.ends(way).1.listen(family))))
        .collect();
    thread::scope(|scope| -> Outcome {
        let _ends = Ends(&enough);
        let (mut idle, mut long) = (Vec::new(), Vec::new());
        for joined in [false, true] {
            for (way, listener) in &listening {
                idle.push((*way, joined, open(listener, *way)?));
                let Pair { client, server } = open(listener, *way)?;
                for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
                    let enough = &enough;
                    let ends = (scope.spawn(move || pour(from, enough)), scope.spawn(move || drink(to)));
                    long.push((*way, joined, ends));
                }
            }
            thread::sleep(Duration::from_millis(300));
            if joined {
                mesh.apply("namespace", NOT_LABELLED);
                until("redirection to end", || (!stands(&mesh.a).redirects).then_some(()));
            } else {
                mesh.apply("namespace", IN_THE_MESH);
                // Of those between the two pods each pod has an end.
                let kept = listening.len() as u64 * 2 + 4;
                until("capture", || (mesh.metric("ambient_connections_kept", &[]) == kept).then_some(()));
            }
            thread::sleep(Duration::from_millis(500));
        }
        for (way, joined, pair) in &mut idle {
            pair.converse().map_err(|e| format!("{way}, captured: {joined}: {e}"))?;
        }
        enough.store(true, Ordering::Relaxed);
        for (way, joined, (poured, drunk)) in long {
            let (poured, drunk) = (poured.join().unwrap(), drunk.join().unwrap());
            let (poured, drunk) = (
                poured.map_err(|e| format!("{way}, captured: {joined}: {e}"))?,
                drunk.map_err(|e| format!("{way}, captured: {joined}: {e}"))?,
            );
            assert!(
                poured > 0 && poured == drunk,
                "{way}, captured: {joined}: {poured} written, {drunk} read"
            );
        }
        Ok(())
    })
}

/// Writes numbers, one after the other, until it is enough; gives how many.
fn pour(mut to: TcpStream, enough: &AtomicBool) -> io::Result<u64> {
    let mut next = 0u64;
    while !enough.load(Ordering::Relaxed) {
        let some: Vec<u8> = (next..next + 2048).flat_map(u64::to_be_bytes).collect();
        to.write_all(&some)?;
        next += 2048;
        // There are many, and others have the processor too.
        thread::sleep(Duration::from_millis(10));
    }
    to.shutdown(Shutdown::Write)?;
    Ok(next)
}

/// Reads them, until their end; gives how many came in their order.
fn drink(from: TcpStream) -> io::Result<u64> {
    let (mut from, mut number, mut next) = (BufReader::with_capacity(1 << 16, from), [0; 8], 0u64);
    while !from.fill_buf()?.is_empty() {
        from.read_exact(&mut number)?;
        assert_eq!(u64::from_be_bytes(number), next);
        next += 1;
    }
    Ok(next)
}

/// Nothing is redirected any more; then the listeners close, once nothing has come for 100 ms; then, when the last captured
/// connection has ended, the tables go; then the routing. At no moment is a later one gone while an earlier one stands.
pub(crate) fn what_a_pod_that_leaves_had_goes_in_its_order(world: &World) -> Outcome {
    for _ in 0..10 {
        if goes_in_its_order(world)? {
            return Ok(());
        }
    }
    Err("this machine is too slow to knock often enough".into())
}

/// Whether somebody knocked all the time that was meant to: else it says nothing.
fn goes_in_its_order(world: &World) -> Result<bool, Box<dyn Error>> {
    let mesh = Mesh::start(world)?;
    let mut open = mesh.open(Way::Outbound, Family::V4);
    open.converse()?;
    let hbone = SocketAddr::new(mesh.a.ip(Family::V4), ports::HBONE);
    let [enough_knocks, enough_samples] = [AtomicBool::new(false), AtomicBool::new(false)];
    thread::scope(|scope| {
        // Else what fails here would wait for them for ever.
        let _ends = [&enough_knocks, &enough_samples].map(Ends);
        let sampling = scope.spawn(|| {
            let mut seen = vec![stands(&mesh.a)];
            while !enough_samples.load(Ordering::Relaxed) {
                let now = stands(&mesh.a);
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        // To this port nothing is ever redirected: a pod that leaves or not, who comes finds the listener.
        let knocking = scope.spawn(|| {
            let mut last = Instant::now();
            while !enough_knocks.load(Ordering::Relaxed) {
                let (before, now) = (last, Instant::now());
                last = now;
                if let Err(error) = mesh.c.connect(hbone) {
                    assert!(now - before > QUIET, "refused {:?} after one that was taken: {error}", now - before);
                    return None;
                }
                thread::sleep(Duration::from_millis(10));
            }
            Some(last)
        });
        mesh.apply("namespace", NOT_LABELLED);
        until("redirection to end", || (!stands(&mesh.a).redirects).then_some(()));
        thread::sleep(QUIET * 6);
        let listens = stands(&mesh.a).listens.contains(&ports::HBONE);
        enough_knocks.store(true, Ordering::Relaxed);
        let Some(last) = knocking.join().unwrap() else {
            return Ok(false);
        };
        assert!(listens, "somebody comes all the time");
        until("the listeners to close", || stands(&mesh.a).listens.is_empty().then_some(()));
        let after = last.elapsed();
        assert!(after >= QUIET, "closed {after:?} after somebody came");
        for _ in 0..20 {
            open.converse().unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        let before = stands(&mesh.a);
        assert!(before.tables > 0 && before.routing, "{before:?}");
        drop(open);
        until("all to be gone", || stands(&mesh.a).is_nothing().then_some(()));
        enough_samples.store(true, Ordering::Relaxed);
        let seen = sampling.join().unwrap();
        for now in &seen {
            assert!(now.routing || now.tables == 0, "tables without routing: {now:?}");
            assert!(now.tables > 0 || now.listens.is_empty(), "listeners without tables: {now:?}");
            assert!(
                !now.redirects || now.listens.len() == CAPTURE.len(),
                "redirected to nobody: {now:?}"
            );
        }
        let stages = |stage: fn(&Stands) -> bool| assert!(seen.iter().any(stage), "{seen:#?}");
        stages(|now| now.redirects);
        stages(|now| !now.redirects && now.listens.contains(&ports::HBONE));
        stages(|now| now.listens.is_empty() && now.tables > 0);
        Ok(true)
    })
}

/// Says that something is to end, at the latest when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What stands of a pod's capture.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stands {
    routing: bool,
    tables: usize,
    listens: BTreeSet<u16>,
    redirects: bool,
}

impl Stands {
    fn is_nothing(&self) -> bool {
        !self.routing && self.tables == 0 && self.listens.is_empty() && !self.redirects
    }
}

/// In the order in which they are to be gone last: whatever is seen of one, what is seen of those after it is not older.
fn stands(pod: &Place) -> Stands {
    let look = || {
        let (mut routing, mut nftables) = (Routing::open().unwrap(), Nftables::open().unwrap());
        let rule = routing.rules().unwrap().iter().any(|rule| rule.table == ROUTE_TABLE);
        let routing = rule || !routing.routes(ROUTE_TABLE).unwrap().is_empty();
        let tables = nftables.tables().unwrap().len();
        let listeners = Sockets::open().unwrap().listeners(Transport::Tcp).unwrap();
        let listens = listeners.iter().map(|listener| listener.local.port());
        let listens = listens.filter(|port| CAPTURE.contains(port)).collect();
        // Where there is no such table there is no rule.
        let rules = nftables.rules(NftFamily::Inet, "ambient-nat").unwrap_or_default();
        Stands {
            routing,
            tables,
            listens,
            redirects: rules.iter().any(|rule| rule.steps().iter().any(|step| step == "redir")),
        }
    };
    pod.namespace.run(look).unwrap()
}

const CAPTURE: [u16; 3] = [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE];
const QUIET: Duration = Duration::from_millis(100);

pub(crate) fn a_pod_that_is_back_before_it_left_is_served(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let mut old = mesh.open(Way::Tunnel, Family::V4);
    for _ in 0..3 {
        mesh.apply("namespace", NOT_LABELLED);
        let listener = mesh.c.listen(Family::V4);
        let is_plain = || {
            let client = mesh.a.connect(listener.address()).unwrap();
            let own = client.local_addr().unwrap();
            listener.accept().peer_addr().unwrap() == own
        };
        until("plaintext", || is_plain().then_some(()));
        thread::sleep(Duration::from_millis(150));
        mesh.apply("namespace", IN_THE_MESH);
        until("capture", || (!is_plain()).then_some(()));
        // The server first: what comes from the client would have the way back marked anew.
        old.retort()?;
        old.converse()?;
        mesh.open(Way::Inbound, Family::V6).converse()?;
    }
    Ok(())
}

/// What a pod keeps that it has opened itself ends as well once policy refuses it: whoever has it open at the server's side,
/// kept or taken in plaintext, asks. The node of the client's side need not know what the other is called, nor its policies.
pub(crate) fn what_a_pod_keeps_to_another_is_closed_at_the_others_side(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let member = |name: &str, meant: bool| {
        let place = if name == "a" { &mesh.a } else { &mesh.b };
        let mode = if meant { "ambient" } else { "none" };
        let label = format!("labels: {{istio.io/dataplane-mode: {mode}, app: {name}}}");
        let text = pod(name, place).replace(&format!("labels: {{app: {name}}}"), &label);
        assert!(text.contains(&label));
        mesh.apply(&format!("pod-{name}"), &text);
    };
    let kept = |count: u64| {
        until("what is kept to be counted", || {
            (mesh.metric("ambient_connections_kept", &[]) == count).then_some(())
        })
    };
    let captured = |name: &str, is: bool| {
        until("capture", || {
            let (_, page) = mesh.page(ports::ADMIN, &format!("/pods?pod={LABELLED}/{name}&format=json")).ok()?;
            let told: serde_json::Value = serde_json::from_str(&page).ok()?;
            let outside = told["state"] == "outside";
            (if is { told["state"] == "in" } else { outside }).then_some(())
        });
    };
    for (family, server_first) in [(Family::V4, true), (Family::V6, false)] {
        for name in ["a", "b"] {
            member(name, false);
            captured(name, false);
        }
        // The server goes on listening: by that it is known who opened a connection.
        let listener = mesh.b.listen(family);
        let connect = || -> io::Result<Pair> {
            let client = mesh.a.connect(listener.address())?;
            Ok(Pair {
                client,
                server: listener.accept(),
            })
        };
        let mut open = vec![("kept at both sides", connect()?)];
        if server_first {
            member("b", true);
            captured("b", true);
            open.push(("taken in plaintext", connect()?));
        }
        member("a", true);
        captured("a", true);
        member("b", true);
        captured("b", true);
        kept(if server_first { 3 } else { 2 });
        for (what, pair) in &mut open {
            pair.converse().map_err(|e| format!("{what}: {e}"))?;
        }
        mesh.apply("strict", STRICT);
        for (what, pair) in &mut open {
            assert_eq!(ending(&mut pair.client), "reset", "{what}");
            assert_ne!(ending(&mut pair.server), "end", "{what}");
        }
        kept(0);
        mesh.delete("strict");
    }
    Ok(())
}

/// What was open when its pod joined goes on until a policy would refuse whoever speaks there without an identity.
pub(crate) fn what_was_kept_is_closed_by_policy(world: &World) -> Outcome {
    let mut mesh = Mesh::start(world)?;
    // The pods leave and are back, so that these are from before.
    mesh.apply("namespace", NOT_LABELLED);
    until("all to be gone", || (!has_tables(&mesh)).then_some(()));
    // Most servers go on listening: by that it is known who opened a connection.
    let ways = [Way::Inbound, Way::Outbound].into_iter();
    let listening: Vec<_> = ways
        .flat_map(|way| [Family::V4, Family::V6].map(|family| (way, mesh.ends(way).1.listen(family))))
        .collect();
    let mut open = Vec::new();
    for (way, listener) in &listening {
        let client = mesh.ends(*way).0.connect(listener.address())?;
        let server = listener.accept();
        open.push((*way, Pair { client, server }));
    }
    // Where the server does not, its port tells: no client is given such a one.
    let (client, server) = mesh.ends(Way::Inbound);
    let listener = server.listen_at(SocketAddr::new(server.ip(Family::V4), 9090));
    let client = client.connect(listener.address())?;
    let server = listener.accept();
    drop(listener);
    open.push((Way::Inbound, Pair { client, server }));
    mesh.apply("namespace", IN_THE_MESH);
    until("capture", || (mesh.metric("ambient_connections_kept", &[]) == 5).then_some(()));
    for (way, pair) in &mut open {
        pair.converse().map_err(|e| format!("{way}: {e}"))?;
    }
    mesh.apply(
        "somebody-else",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: other, namespace: shop},
          spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [192.0.2.0/24]}}]}]}}",
    );
    thread::sleep(Duration::from_millis(600));
    for (way, pair) in &mut open {
        pair.converse().map_err(|e| format!("{way}: {e}"))?;
    }
    mesh.apply("strict", STRICT);
    for (way, pair) in &mut open {
        match way {
            Way::Inbound => {
                assert_eq!(ending(&mut pair.client), "reset", "{way}");
                assert_ne!(ending(&mut pair.server), "end", "{way}");
            }
            _ => pair.converse().map_err(|e| format!("{way}: {e}"))?,
        }
    }
    // Counted once they are closed, which their ends may see before.
    until("what was closed to be counted", || {
        (mesh.metric("ambient_connections_kept_closed_total", &[]) == 3).then_some(())
    });
    until("the list to be right", || {
        (mesh.metric("ambient_connections_kept", &[]) == 2).then_some(())
    });
    mesh.stop().result()?;
    Ok(())
}

pub(crate) fn a_pod_that_ends_is_drained_from_the_start(world: &World) -> Outcome {
    // With one thread there is one tunnel at a time to a pod.
    let mesh = Mesh::start_with(world, |config| config.workers = 1)?;
    let mut open = mesh.open(Way::Tunnel, Family::V4);
    open.converse()?;
    let mut first = mesh.open(Way::Tunnel, Family::V4);
    first.converse()?;
    assert_eq!(tunnels(&mesh), 1, "they share one");
    let ends = pod("b", &mesh.b).replace("uid: uid-of-b,", "uid: uid-of-b, deletionTimestamp: '2026-11-23T20:00:00Z',");
    assert!(ends.contains("deletionTimestamp"));
    mesh.apply("pod-b", &ends);
    until("what comes next to go by a new tunnel", || {
        let mut next = mesh.open(Way::Tunnel, Family::V4);
        next.converse().unwrap();
        (tunnels(&mesh) == 2).then_some(())
    });
    // What was open goes on for as long as it likes, and its tunnel goes with it.
    open.converse()?;
    first.converse()?;
    drop(open);
    first.converse()?;
    drop(first);
    until("the first tunnel to end", || (tunnels(&mesh) < 2).then_some(()));
    Ok(())
}

/// Connections that stand at the pod's port of tunnels.
fn tunnels(mesh: &Mesh) -> usize {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let table = mesh
        .b
        .namespace
        .run(|| read("/proc/thread-self/net/tcp") + &read("/proc/thread-self/net/tcp6"))
        .unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 15008, and the state in which a connection stands.
    lines
        .filter(|parts| matches!(parts[..], [_, local, _, "01", ..] if local.ends_with(":3AA0")))
        .count()
}

fn has_tables(mesh: &Mesh) -> bool {
    let tables = |place: &Place| place.namespace.run(|| Nftables::open().unwrap().tables().unwrap().len()).unwrap();
    tables(&mesh.a) + tables(&mesh.b) > 0
}

/// What is open when the time is up is reset on both sides, also where nothing is said; nothing of it leaves the pod as it
/// is.
pub(crate) fn a_pod_that_leaves_is_cut_in_the_end(world: &World) -> Outcome {
    let mesh = Mesh::start_with(world, |config| config.leave = Duration::from_secs(1))?;
    let mut idle: Vec<_> = Way::ALL
        .into_iter()
        .flat_map(|way| [Family::V4, Family::V6].map(|family| (way, mesh.open(way, family))))
        .collect();
    for (_, pair) in &mut idle {
        pair.converse()?;
    }
    let busy: Vec<_> = Way::ALL.map(|way| (way, mesh.open(way, Family::V4))).into();
    mesh.apply("namespace", NOT_LABELLED);
    thread::scope(|scope| {
        for (way, pair) in &busy {
            scope.spawn(move || {
                let begun = Instant::now();
                while (&pair.client).write_all(&[7; 100]).is_ok() {
                    assert!(begun.elapsed() < Duration::from_secs(10), "{way} goes on");
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
    for (way, pair) in &mut idle {
        assert_eq!(ending(&mut pair.client), "reset", "the client, {way}");
        assert_eq!(ending(&mut pair.server), "reset", "the server, {way}");
    }
    // From then on it is outside, after nothing worse than a refusal.
    let listener = mesh.c.listen(Family::V4);
    until("plaintext", || match mesh.a.connect(listener.address()) {
        Ok(mut client) => {
            client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            listener.accept_unless(|| ending(&mut client) == "reset").map(drop)
        }
        Err(error) => {
            let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset];
            assert!(kinds.contains(&error.kind()), "{error}");
            None
        }
    });
    Ok(())
}
