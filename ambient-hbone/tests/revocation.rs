//! Trust that changes while tunnels stand, and certificates that end under them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambient_core::{Identity, Observer, observe::Event};
use ambient_hbone::{
    AcceptError, BoxFuture, BoxedIo, ConnectError, Destination, Dial, Pool, Server, Session, Speaker, SpeakerKey, Stream, StreamError,
    TunnelLost,
};
use ambient_tls::{ChainError, PeerError};
use http::HeaderMap;
use rcgen::{CertificateParams, SerialNumber};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use support::{Ca, Held, identity, provider};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, Semaphore},
    task::JoinHandle,
    time::timeout,
};

/// A wall clock that a test sets.
#[derive(Debug)]
struct Clock(AtomicU64);

impl Clock {
    fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

/// Two callees, `stock` and `till`, behind one server at the far end of pipes; both echo.
struct Mesh {
    ca: Ca,
    /// What the pool holds and trusts, and what the server does.
    near: Arc<Held>,
    far: Arc<Held>,
    clock: Arc<Clock>,
    server: Server,
    pipes: Arc<Pipes>,
    pool: Pool,
    reasons: Arc<Reasons>,
}

/// What both ends tell an observer, by the types of the reasons.
#[derive(Default)]
struct Reasons {
    dialled: Mutex<Vec<Option<ConnectError>>>,
    refused: Mutex<Vec<PeerError>>,
    closed: Mutex<Vec<TunnelLost>>,
}

impl Observer for Reasons {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::HandshakeEnded { error, .. } => {
                let error = error.map(|error| error.downcast_ref().cloned().unwrap());
                self.dialled.lock().unwrap().push(error);
            }
            Event::HandshakeRefused { reason } => {
                assert!(reason.downcast_ref::<AcceptError>().is_some(), "{reason}");
                self.refused.lock().unwrap().extend(PeerError::of(*reason).cloned());
            }
            Event::TunnelClosed { reason, .. } => self.closed.lock().unwrap().push(reason.downcast_ref().cloned().unwrap()),
            _ => {}
        }
    }
}

struct Pipes {
    server: Server,
    callees: HashMap<SocketAddr, Identity>,
    dials: AtomicUsize,
    /// Holds dials up while it has no permits.
    gate: Semaphore,
    waiting: Notify,
    ends: Arc<Mutex<Vec<TunnelLost>>>,
    refusals: Arc<Mutex<Vec<AcceptError>>>,
}

impl Dial for Pipes {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            self.dials.fetch_add(1, Ordering::Relaxed);
            self.waiting.notify_one();
            drop(self.gate.acquire().await.unwrap());
            let (near, far) = tokio::io::duplex(64 << 10);
            let (server, callee) = (self.server.clone(), self.callees[&peer].clone());
            let (ends, refusals) = (self.ends.clone(), self.refusals.clone());
            tokio::spawn(async move {
                match server.accept(far, &callee).await {
                    Ok(session) => {
                        let lost = serve(session).await;
                        ends.lock().unwrap().push(lost);
                    }
                    Err(e) => refusals.lock().unwrap().push(e),
                }
            });
            Ok(Box::new(near) as BoxedIo)
        })
    }
}

/// Echoes each stream until the tunnel ends; then waits a little before it lets the session go, as a slow owner might.
async fn serve(mut session: Session) -> TunnelLost {
    while let Some(request) = session.next().await {
        tokio::spawn(async move {
            let (mut from, mut to) = request.accept(HeaderMap::new()).unwrap().into_split();
            if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                let _ = to.shutdown().await;
            }
        });
    }
    let lost = session.lost().unwrap().clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop(session);
    });
    lost
}

impl Mesh {
    fn new() -> Self {
        let ca = Ca::new("cluster.local");
        let [near, far] = [0, 1].map(|_| Arc::new(Held::default()));
        near.trust_in(&ca);
        far.trust_in(&ca);
        for (account, serial) in [("cart", CART), ("other", OTHER)] {
            near.hold(ca.issue_as(&identity(account), numbered(serial)));
        }
        for (account, serial) in [("stock", STOCK), ("till", TILL)] {
            far.hold(ca.issue_as(&identity(account), numbered(serial)));
        }
        let clock = Arc::new(Clock(AtomicU64::new(NOW)));
        let reasons = Arc::new(Reasons::default());
        let server = Server::builder(far.clone(), provider())
            .observer(reasons.clone())
            .time(clock.clone())
            .build();
        let pipes = Arc::new(Pipes {
            server: server.clone(),
            callees: ["stock", "till"].map(|account| (peer(account), identity(account))).into(),
            dials: AtomicUsize::new(0),
            gate: Semaphore::new(PERMITS as usize),
            waiting: Notify::new(),
            ends: Arc::default(),
            refusals: Arc::default(),
        });
        let pool = Pool::builder(pipes.clone(), near.clone(), provider())
            .observer(reasons.clone())
            .time(clock.clone())
            .build();
        Self {
            ca,
            near,
            far,
            clock,
            server,
            pipes,
            pool,
            reasons,
        }
    }

    async fn connect(&self, from: &str, to: &str) -> Result<Stream, ConnectError> {
        let speaker = Speaker::new(from, identity(from));
        let destination = Destination::new(peer(to), "10.0.2.2:8080".parse().unwrap(), [identity(to)]);
        self.pool.connect(&speaker, &destination).await
    }

    fn dials(&self) -> usize {
        self.pipes.dials.load(Ordering::Relaxed)
    }

    /// Why the tunnels of the server have ended so far, once there are this many.
    async fn ends(&self, count: usize) -> Vec<TunnelLost> {
        let enough = async {
            while self.pipes.ends.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LIMIT, enough).await.unwrap();
        self.pipes.ends.lock().unwrap().clone()
    }
}

fn numbered(serial: u64) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.serial_number = Some(SerialNumber::from(serial))
}

fn peer(account: &str) -> SocketAddr {
    let last = if account == "stock" { 2 } else { 3 };
    SocketAddr::from(([10, 0, 2, last], 15008))
}

async fn echoes(stream: &mut Stream) {
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    timeout(LIMIT, stream.read_exact(&mut echo)).await.unwrap().unwrap();
}

/// How a stream ends that nobody has finished: never in good order. Waits in a read, as most do.
fn end(mut stream: Stream) -> JoinHandle<TunnelLost> {
    tokio::spawn(async move {
        let read = timeout(LIMIT, stream.read(&mut [0; 16])).await.unwrap();
        let error = read.expect_err("a cut stream must not look complete");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let lost = |error: &io::Error| match StreamError::of(error) {
            Some(StreamError::Lost { source }) => source.clone(),
            other => panic!("{other:?}"),
        };
        let written = stream.write(b"more").await.unwrap_err();
        assert_eq!(lost(&error).to_string(), lost(&written).to_string());
        lost(&error)
    })
}

fn is_revoked(lost: &TunnelLost, account: &str, serial: &str) -> bool {
    let named = |id: &ambient_core::SpiffeId| id == identity(account).spiffe_id();
    matches!(lost, TunnelLost::PeerRevoked { id, certificate } if named(id) && certificate.serial() == serial)
}

#[tokio::test]
async fn a_client_leaves_a_peer_that_is_revoked_and_no_other() {
    let mesh = Mesh::new();
    let mut streams = Vec::new();
    for (from, to) in [("cart", "stock"), ("other", "stock"), ("cart", "till"), ("other", "till")] {
        let mut stream = mesh.connect(from, to).await.unwrap();
        echoes(&mut stream).await;
        streams.push(stream);
    }
    let [a, b, mut c, mut d] = <[Stream; 4]>::try_from(streams).unwrap();
    mesh.near.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[STOCK, 77])]);
    let (a, b) = (end(a), end(b));
    let told = tokio::time::Instant::now();
    let rechecked = mesh.pool.recheck();
    assert_eq!((rechecked.ended, rechecked.faults.len()), (2, 0));
    for lost in [a.await.unwrap(), b.await.unwrap()] {
        assert!(is_revoked(&lost, "stock", "03"), "{lost}");
        assert_eq!(lost.origin(), ambient_core::Origin::Peer);
    }
    assert!(told.elapsed() < SOON, "{:?}", told.elapsed());
    // There they see a lost connection.
    for lost in mesh.ends(2).await {
        assert!(matches!(lost, TunnelLost::Io { .. }), "{lost}");
    }
    echoes(&mut c).await;
    echoes(&mut d).await;
    assert_eq!(mesh.pool.recheck().ended, 0, "each is ended once");

    let refused = mesh.connect("cart", "stock").await.unwrap_err();
    let ConnectError::WrongPeer { source, .. } = &refused else {
        panic!("{refused}")
    };
    assert!(
        matches!(source, PeerError::Chain { source: ChainError::Revoked(certificate), .. } if certificate.serial() == "03"),
        "{refused}"
    );
    assert!(refused.to_string().contains("is revoked by its issuer"), "{refused}");
    echoes(&mut mesh.connect("cart", "till").await.unwrap()).await;
    assert_eq!(mesh.dials(), 5, "the last stream went into the tunnel that stood");
}

#[tokio::test]
async fn a_server_cuts_a_peer_that_is_revoked_and_no_other() {
    let mesh = Mesh::new();
    let mut cart = mesh.connect("cart", "stock").await.unwrap();
    let mut other = mesh.connect("other", "stock").await.unwrap();
    echoes(&mut cart).await;
    echoes(&mut other).await;
    mesh.far.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[CART])]);
    let told = tokio::time::Instant::now();
    assert_eq!(mesh.server.recheck().ended, 1);
    let ends = mesh.ends(1).await;
    assert!(told.elapsed() < SOON, "{:?}", told.elapsed());
    assert!(is_revoked(&ends[0], "cart", "01"), "{}", ends[0]);
    // The client sees a lost connection, although the server's owner still holds the session.
    assert!(matches!(end(cart).await.unwrap(), TunnelLost::Io { .. }));
    echoes(&mut other).await;

    mesh.connect("cart", "stock").await.unwrap_err();
    let refusals = mesh.pipes.refusals.lock().unwrap();
    let [AcceptError::Peer(PeerError::Chain { id, source })] = &refusals[..] else {
        panic!("{refusals:?}")
    };
    assert!(
        matches!(source, ChainError::Revoked(_)) && id == identity("cart").spiffe_id(),
        "{id}: {source}"
    );
}

#[tokio::test]
async fn a_server_keeps_no_trace_of_sessions_that_are_gone() {
    let mesh = Mesh::new();
    let gone = || format!("{:?}", mesh.server).contains("sessions: 0,");
    assert!(gone());
    let mut stream = mesh.connect("cart", "stock").await.unwrap();
    echoes(&mut stream).await;
    assert!(!gone());
    mesh.pool.forget(&SpeakerKey::new("cart"));
    mesh.ends(1).await;
    // One that ended and that its owner holds still counts.
    assert!(!gone());
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(gone());
    // Nor of a handshake that was refused.
    mesh.far.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[CART])]);
    mesh.connect("cart", "stock").await.unwrap_err();
    assert!(gone());
}

#[tokio::test]
async fn an_identity_that_is_withdrawn_ends_its_tunnels_at_either_end_and_no_others() {
    let mesh = Mesh::new();
    let mut streams = Vec::new();
    for (from, to) in [("cart", "stock"), ("other", "stock"), ("other", "till")] {
        let mut stream = mesh.connect(from, to).await.unwrap();
        echoes(&mut stream).await;
        streams.push(stream);
    }
    let [cart, other, mut last] = <[Stream; 3]>::try_from(streams).unwrap();
    let cart = end(cart);
    assert_eq!(mesh.pool.withdraw(&identity("cart")), 1);
    let lost = cart.await.unwrap();
    assert!(matches!(lost, TunnelLost::IdentityWithdrawn), "{lost}");
    assert_eq!(lost.origin(), ambient_core::Origin::Control);
    assert_eq!(mesh.pool.withdraw(&identity("cart")), 0, "each is ended once");
    // The end that was withdrawn knows why, the other sees a lost connection.
    let other = end(other);
    assert_eq!(mesh.server.withdraw(&identity("stock")), 1);
    assert!(matches!(other.await.unwrap(), TunnelLost::Io { .. }));
    let ends = mesh.ends(2).await;
    assert!(ends.iter().any(|lost| matches!(lost, TunnelLost::IdentityWithdrawn)), "{ends:?}");
    echoes(&mut last).await;
    // It is for whoever holds the credentials to have none: with one all goes on.
    echoes(&mut mesh.connect("cart", "stock").await.unwrap()).await;
}

#[tokio::test]
async fn an_observer_is_told_why_in_errors_that_it_can_ask() {
    let mesh = Mesh::new();
    let mut stream = mesh.connect("cart", "stock").await.unwrap();
    echoes(&mut stream).await;
    mesh.pool.withdraw(&identity("cart"));
    end(stream).await.unwrap();
    mesh.ends(1).await;
    let closed = mesh.reasons.closed.lock().unwrap().clone();
    assert!(matches!(closed[..], [TunnelLost::IdentityWithdrawn]), "{closed:?}");

    // A peer that this end refuses, then one that the other end does.
    mesh.near.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[STOCK])]);
    mesh.connect("other", "stock").await.unwrap_err();
    let dialled = mesh.reasons.dialled.lock().unwrap().clone();
    let [None, Some(ConnectError::WrongPeer { source, .. })] = &dialled[..] else {
        panic!("{dialled:?}")
    };
    assert!(matches!(source, PeerError::Chain { .. }), "{source}");
    mesh.far.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[OTHER])]);
    if let Ok(stream) = mesh.connect("other", "till").await {
        end(stream).await.unwrap();
    }
    let both = async {
        while mesh.pipes.refusals.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, both).await.unwrap();
    let refused = mesh.reasons.refused.lock().unwrap().clone();
    assert!(
        matches!(&refused[..], [PeerError::Chain { source: ChainError::Revoked(certificate), .. }] if certificate.serial() == "02"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_dial_under_way_does_not_slip_through() {
    let mesh = Arc::new(Mesh::new());
    let gate = mesh.pipes.gate.acquire_many(PERMITS).await.unwrap();
    let connecting = tokio::spawn({
        let mesh = mesh.clone();
        async move { mesh.connect("cart", "stock").await.map(drop) }
    });
    // Its trust was chosen before it dialled.
    timeout(LIMIT, mesh.pipes.waiting.notified()).await.unwrap();
    mesh.near.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[STOCK])]);
    assert_eq!(mesh.pool.recheck().ended, 0);
    drop(gate);
    let refused = timeout(LIMIT, connecting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, ConnectError::WrongPeer { .. }), "{refused}");
}

#[tokio::test]
async fn a_handshake_under_way_does_not_slip_through() {
    let mesh = Mesh::new();
    let (near, far) = tokio::io::duplex(64 << 10);
    let stock = identity("stock");
    let accepting = mesh.server.accept(far, &stock);
    tokio::pin!(accepting);
    // It waits for the client's first word, with the trust of now.
    assert!(timeout(Duration::from_millis(20), &mut accepting).await.is_err());
    mesh.far.trust_only(&[&mesh.ca], &[&mesh.ca.crl(&[CART])]);
    assert_eq!(mesh.server.recheck().ended, 0);

    struct Once(Mutex<Option<BoxedIo>>);
    impl Dial for Once {
        fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
            let io = self.0.lock().unwrap().take();
            Box::pin(async move { io.ok_or_else(|| io::ErrorKind::ConnectionRefused.into()) })
        }
    }
    let once = Arc::new(Once(Mutex::new(Some(Box::new(near)))));
    let pool = Pool::builder(once, mesh.near.clone(), provider()).time(mesh.clock.clone()).build();
    let speaker = Speaker::new("cart", identity("cart"));
    let destination = Destination::new(peer("stock"), "10.0.2.2:8080".parse().unwrap(), [stock.clone()]);
    let connecting = tokio::spawn(async move { pool.connect(&speaker, &destination).await.map(drop) });
    let refused = timeout(LIMIT, accepting).await.unwrap().unwrap_err();
    let AcceptError::Peer(PeerError::Chain { source, .. }) = &refused else {
        panic!("{refused}")
    };
    assert!(
        matches!(source, ChainError::Revoked(certificate) if certificate.serial() == "01"),
        "{refused}"
    );
    timeout(LIMIT, connecting).await.unwrap().unwrap().unwrap_err();
}

#[tokio::test]
async fn a_crl_that_cannot_be_used_is_told_and_lifts_no_revocation() {
    let mesh = Mesh::new();
    let good = mesh.ca.crl(&[STOCK]);
    mesh.near.trust_only(&[&mesh.ca], &[&good]);
    mesh.pool.recheck();
    mesh.near.trust_only(&[&mesh.ca], &[b"no CRL"]);
    let faults = mesh.pool.recheck().faults;
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0]
            .to_string()
            .starts_with("trust domain cluster.local: CRL 1 cannot be used"),
        "{}",
        faults[0]
    );
    let refused = mesh.connect("cart", "stock").await.unwrap_err();
    assert!(refused.to_string().contains("is revoked"), "{refused}");
    echoes(&mut mesh.connect("cart", "till").await.unwrap()).await;
}

#[tokio::test]
async fn a_root_that_goes_cuts_no_tunnel_and_lets_no_new_one_in() {
    let mesh = Mesh::new();
    let mut stream = mesh.connect("cart", "stock").await.unwrap();
    let new = Ca::new("cluster.local");
    mesh.near.trust_only(&[&new], &[]);
    mesh.far.trust_only(&[&new], &[]);
    assert_eq!(mesh.pool.recheck().ended + mesh.server.recheck().ended, 0);
    echoes(&mut stream).await;
    let refused = mesh.connect("cart", "till").await.unwrap_err();
    assert!(matches!(refused, ConnectError::WrongPeer { .. }), "{refused}");
    // Even then a CRL reaches it.
    mesh.far.trust_only(&[&new], &[&mesh.ca.crl(&[CART])]);
    let ended = mesh.server.recheck();
    // Both authorities bear one name, and the root that is left has not signed it.
    assert_eq!((ended.ended, ended.faults.len()), (0, 1));
    let renamed = Ca::new("other.example");
    mesh.far.trust_only(&[&mesh.ca, &renamed], &[&mesh.ca.crl(&[CART])]);
    assert_eq!(mesh.server.recheck().ended, 1);
    assert!(is_revoked(&mesh.ends(1).await[0], "cart", "01"));
}

#[tokio::test]
async fn a_domains_root_vouches_for_no_other_domain() {
    let mesh = Mesh::new();
    let theirs = Ca::new("other.example");
    mesh.near.trust_in(&theirs);
    mesh.far.trust_in(&theirs);
    mesh.far.hold(theirs.issue(&identity("stock")));
    let refused = mesh.connect("cart", "stock").await.unwrap_err();
    assert!(
        matches!(
            refused,
            ConnectError::WrongPeer {
                source: PeerError::Chain { .. },
                ..
            }
        ),
        "{refused}"
    );
    mesh.near.hold(theirs.issue(&identity("cart")));
    mesh.connect("cart", "till").await.unwrap_err();
    let refusals = mesh.pipes.refusals.lock().unwrap();
    assert!(
        refusals
            .iter()
            .any(|refusal| matches!(refusal, AcceptError::Peer(PeerError::Chain { .. }))),
        "{refusals:?}"
    );
}

/// Makes the certificate of an account end at [`END`].
fn shorten(mesh: &Mesh, held: &Held, account: &str) {
    let ends = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    let mut credential = mesh.ca.issue_as(&identity(account), ends);
    credential.not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(END);
    held.hold(credential);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_ends_ends_its_tunnels_at_both_sides_and_no_others() {
    for (of_client, account) in [(true, "cart"), (false, "stock")] {
        let mesh = Mesh::new();
        shorten(&mesh, if of_client { &mesh.near } else { &mesh.far }, account);
        mesh.clock.set(END - 2);
        let mut ending = mesh.connect("cart", "stock").await.unwrap();
        let mut lasting = mesh.connect("other", "till").await.unwrap();
        echoes(&mut ending).await;
        mesh.clock.set(END);
        let ended = tokio::time::Instant::now();
        let client = end(ending).await.unwrap();
        assert!(ended.elapsed() <= Duration::from_secs(1), "{:?}", ended.elapsed());
        let server = mesh.ends(1).await.remove(0);
        // Who looks first cuts it for the other.
        let expired = [(&client, !of_client), (&server, of_client)];
        let expired: Vec<_> = expired
            .into_iter()
            .map(|(lost, expected)| match lost {
                TunnelLost::CertificateExpired { of_peer } => *of_peer == expected,
                TunnelLost::Io { .. } => false,
                other => panic!("{other}"),
            })
            .collect();
        assert!(expired.contains(&true), "{client}; {server}");
        echoes(&mut lasting).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_is_noticed_within_a_minute() {
    let mesh = Mesh::new();
    shorten(&mesh, &mesh.far, "stock");
    mesh.clock.set(END - 36_000);
    let mut stream = mesh.connect("cart", "stock").await.unwrap();
    echoes(&mut stream).await;
    let made = tokio::time::Instant::now();
    mesh.clock.set(END + 1);
    let error = stream.read(&mut [0; 16]).await.unwrap_err();
    assert!(matches!(StreamError::of(&error), Some(StreamError::Lost { .. })), "{error}");
    assert!(made.elapsed() <= Duration::from_secs(61), "{:?}", made.elapsed());
}

#[tokio::test(start_paused = true)]
async fn near_the_end_new_streams_go_into_a_new_tunnel_and_the_old_ones_go_on() {
    for of_client in [true, false] {
        let mesh = Mesh::new();
        let (held, account) = if of_client { (&mesh.near, "cart") } else { (&mesh.far, "stock") };
        shorten(&mesh, held, account);
        mesh.clock.set(END - 1000);
        let mut first = mesh.connect("cart", "stock").await.unwrap();
        let mut second = mesh.connect("cart", "stock").await.unwrap();
        assert_eq!(mesh.dials(), 1);
        mesh.clock.set(END - 250);
        tokio::time::sleep(Duration::from_secs(61)).await;
        let mut third = mesh.connect("cart", "stock").await.unwrap();
        assert_eq!(mesh.dials(), 2);
        for stream in [&mut first, &mut second, &mut third] {
            echoes(stream).await;
        }
    }
}

/// All that the gate has: more than there are dials.
const PERMITS: u32 = 1 << 10;
const CART: u64 = 1;
const OTHER: u64 = 2;
const STOCK: u64 = 3;
const TILL: u64 = 4;
/// In November 2026.
const NOW: u64 = 1_795_000_000;
/// The beginning of 2040.
const END: u64 = 2_208_988_800;
/// It takes a few milliseconds; the machine may be busy.
const SOON: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(10);
