//! The tunnel port as proxies of other nodes find it, some of them hostile.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use ambient_control::{
    Change, Issuer,
    ca::{self, DirectoryCa, Target},
};
use ambient_core::{
    Authority, Credential, Credentials, Identity, Service, TrustBundles, TrustDomain, Workload, WorkloadKind, headers, mesh::Update, ports,
};
use ambient_hbone::{BoxFuture, BoxedIo, ConnectError, Destination, Dial, Pool, Speaker, Stream};
use ambient_testkit::{World, ca::Ca, harness::Outcome};
use ambient_tls::Accepted;
use rustls::{NamedGroup, crypto::CryptoProvider};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use crate::{
    mesh::{Family, LABELLED, Mesh, PATIENCE, Way, until},
    telemetry::Silent,
    ways::at,
};

/// Refuses one port of a pod.
const NOT_THIS_PORT: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-this-port, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ['9999']}}]}]
";

pub(crate) fn peers_are_answered_by_status(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    mesh.apply("policy", NOT_THIS_PORT);
    let peer = Peer::of_the_mesh(&mesh)?;
    for family in [Family::V4, Family::V6] {
        let (a, b) = (mesh.a.ip(family), mesh.b.ip(family));
        let denied = mesh.b.listen_at(SocketAddr::new(b, 9999));
        let served = mesh.b.listen(family);
        let elsewhere = mesh.a.listen_at(SocketAddr::new(a, served.address().port()));
        let status = |to: SocketAddr| peer.answer(&mesh, b, to).unwrap();
        // One that is cut the moment after it was let in sees no status.
        until("the policy to be in force", || {
            matches!(peer.answer(&mesh, b, denied.address()), Ok(401)).then_some(())
        });
        // Those that came before it.
        while !denied.is_lonely() {}

        for _ in 0..2 {
            assert_eq!(status(denied.address()), 401, "denied");
            assert_eq!(status(elsewhere.address()), 400, "the address of another pod");
            assert_eq!(status(mesh.c.deserted(family)), 400, "an address outside of the mesh");
            assert_eq!(status(SocketAddr::new(b, 1)), 503, "nobody listens");
            for port in [ports::HBONE, ports::INBOUND_PLAINTEXT, ports::OUTBOUND] {
                assert_eq!(status(SocketAddr::new(b, port)), 503, "the proxy's own port {port}");
            }
        }
        assert!(denied.is_lonely() && elsewhere.is_lonely() && served.is_lonely());

        // The same peer is answered where it may, and the application sees the address it has.
        let mut stream = peer.run(&mesh, peer.connect(b, served.address()))?;
        let mut application = served.accept();
        assert_eq!(application.peer_addr()?.ip(), mesh.c.ip(family));
        application.write_all(b"pong")?;
        let mut heard = [0; 4];
        peer.run(&mesh, async {
            stream.write_all(b"ping").await?;
            stream.read_exact(&mut heard).await
        })?;
        assert_eq!(&heard, b"pong");
        application.read_exact(&mut heard)?;
        assert_eq!(&heard, b"ping");
        // Whatever is in it, a tunnel is one socket.
        let sockets = || mesh.metric("istio_tcp_sockets_open", &[("reporter", "destination")]);
        let before = sockets();
        let mut more = Vec::new();
        for _ in 0..3 {
            more.push((peer.run(&mesh, peer.connect(b, served.address()))?, served.accept()));
        }
        assert!(sockets() < before + 3, "{before} and {}", sockets());
    }
    Ok(())
}

/// Whatever a peer writes of itself beside its certificate: policies and labels know it by that alone.
pub(crate) fn what_peers_write_is_believed_by_nobody(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let peer = Peer::of_the_mesh(&mesh)?;
    let listener = mesh.b.listen(Family::V4);
    let (client, peers) = (mesh.a.v4, mesh.c.v4);
    // One that the mesh knows, and of which the pod is no endpoint.
    let others = Service::new(LABELLED, "other.shop.svc.cluster.local");
    mesh.tell(vec![Update::Service(others.into())]);
    let host = |n: usize| {
        if n.is_multiple_of(2) {
            "other".to_owned()
        } else {
            format!("of-{n}")
        }
    };
    let lies = |n: usize| {
        [
            (
                "baggage",
                format!("k8s.namespace.name=shop,k8s.deployment.name=a-{n},service.name=a-{n},k8s.cluster.name=c-{n}"),
            ),
            (
                "forwarded",
                format!("for=\"{client}:{}\";host={}.shop.svc.cluster.local", 1024 + n, host(n)),
            ),
            ("x-forwarded-network", format!("network-{n}")),
            (
                "x-forwarded-client-cert",
                "By=spiffe://cluster.local/ns/shop/sa/b;URI=spiffe://cluster.local/ns/shop/sa/a".into(),
            ),
            ("x-forwarded-for", client.to_string()),
        ]
    };
    let asked = |n: usize| -> Result<u16, ConnectError> {
        let answered = peer.run(&mesh, peer.connect_saying(mesh.b.v4, listener.address(), &lies(n)));
        match answered {
            Ok(_) => Ok(200),
            Err(ConnectError::Refused { status, .. }) => Ok(status.as_u16()),
            Err(other) => Err(other),
        }
    };
    for (what, spec) in [
        ("a namespace", "rules: [{from: [{source: {namespaces: [shop]}}]}]".to_owned()),
        (
            "a principal",
            "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/a]}}]}]".into(),
        ),
        ("an address", format!("rules: [{{from: [{{source: {{ipBlocks: ['{client}']}}}}]}}]")),
        (
            "its own address",
            format!("action: DENY, rules: [{{from: [{{source: {{ipBlocks: ['{peers}']}}}}]}}]"),
        ),
    ] {
        mesh.apply(
            "policy",
            &format!("{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: one, namespace: shop}}, spec: {{{spec}}}}}"),
        );
        until("the policy to refuse", || matches!(asked(0), Ok(401)).then_some(()));
        assert_eq!(asked(1)?, 401, "{what}");
        mesh.delete("policy");
        until("the policy to be gone", || matches!(asked(0), Ok(200)).then_some(()));
    }
    while !listener.is_lonely() {}

    // However each of them ended.
    let named = |page: &str| -> BTreeSet<String> {
        let lines = page.lines().filter(|line| line.starts_with("istio_tcp_"));
        let labels = lines.filter_map(|line| Some(line.split_once('{')?.1.rsplit_once(' ')?.0));
        let labels = labels.map(|labels| {
            labels
                .split(',')
                .filter(|label| !label.starts_with("response_flags"))
                .collect::<Vec<_>>()
        });
        labels.map(|labels| labels.join(",")).collect()
    };
    let page = || mesh.page(ports::METRICS, "/metrics").unwrap().1;
    let before = named(&page());
    for n in 0..50 {
        assert_eq!(asked(n)?, 200);
    }
    let labels = [
        ("reporter", "destination"),
        ("source_principal", "spiffe://cluster.local/ns/elsewhere/sa/peer"),
        ("source_workload", "unknown"),
        // Of all that is told of it the one thing that TLS has proven.
        ("source_workload_namespace", "elsewhere"),
        ("source_canonical_service", "unknown"),
        ("source_cluster", "unknown"),
        ("destination_service", "unknown"),
        ("destination_workload", "b"),
    ];
    until("all to be counted", || {
        (mesh.metric("istio_tcp_connections_opened_total", &labels) >= 50).then_some(())
    });
    let after = page();
    assert_eq!(
        named(&after).difference(&before).collect::<Vec<_>>(),
        [""; 0],
        "a series for what was written"
    );
    for word in ["a-0", "c-0", "of-1", "other", "network-0"] {
        assert!(!after.contains(&format!("\"{word}")), "{word}");
    }
    Ok(())
}

/// What comes through a gateway says who it is: labels know it where the mesh knows one of which that is so, and nobody else.
pub(crate) fn who_comes_through_a_gateway_is_looked_up(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let peer = Peer::of_the_mesh(&mesh)?;
    let listener = mesh.b.listen(Family::V4);
    let behind = |account: &str, owner: &str| Workload {
        network: "far".into(),
        network_gateway: Some(at("far", mesh.c.v4)),
        service_account: account.into(),
        cluster: "c2".into(),
        kind: WorkloadKind::Deployment,
        workload_name: owner.into(),
        canonical_name: format!("{owner}-service").as_str().into(),
        canonical_revision: "v7".into(),
        ..Workload::new(&format!("c2//Pod/elsewhere/{owner}-1"), "elsewhere", &format!("{owner}-1"))
    };
    let (own, others) = (behind("peer", "own"), behind("another", "others"));
    mesh.tell(vec![Update::Workload(own.clone().into()), Update::Workload(others.clone().into())]);
    let counted = |workload: &str, service: &str| {
        let labels = [
            ("reporter", "destination"),
            ("source_principal", "spiffe://cluster.local/ns/elsewhere/sa/peer"),
            ("source_workload", workload),
            ("source_canonical_service", service),
        ];
        mesh.metric("istio_tcp_connections_opened_total", &labels)
    };
    let say = |baggage: String, network: &str| {
        let headers = [("baggage", baggage), ("x-forwarded-network", network.to_owned())];
        peer.run(&mesh, peer.connect_saying(mesh.b.v4, listener.address(), &headers))
    };
    until("it to be known", || {
        say(headers::baggage(&own), "far").ok()?;
        (counted("own", "own-service") > 0).then_some(())
    });
    let (known, unknown) = (counted("own", "own-service"), counted("unknown", "unknown"));
    // Somebody else, one that is not quite so, and one whose address is said to be its own.
    say(headers::baggage(&others), "far")?;
    say(headers::baggage(&own).replace("v7", "v8"), "far")?;
    say(headers::baggage(&own), "")?;
    until("the others to be counted", || {
        (counted("unknown", "unknown") >= unknown + 3).then_some(())
    });
    assert_eq!(counted("own", "own-service"), known);
    assert_eq!(counted("others", "others-service"), 0);
    Ok(())
}

pub(crate) fn peers_of_another_ca_are_refused(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let listener = mesh.b.listen(Family::V4);
    let before = mesh.metric("ambient_handshakes_refused_total", &[]);
    let stranger = Peer::of_another_ca(&mesh)?;
    let refused = stranger.run(&mesh, async { stranger.connect(mesh.b.v4, listener.address()).await.unwrap_err() });
    // TLS 1.3 tells a client of its refusal only after its own half of the handshake.
    assert!(
        matches!(refused, ConnectError::Handshake { .. } | ConnectError::Lost { .. }),
        "{refused:?}"
    );
    let counted = || mesh.metric("ambient_handshakes_refused_total", &[]) - before;
    until("the refusal to be counted", || (counted() > 0).then_some(()));
    // What is no TLS at all, and who says nothing: neither reaches anybody.
    let mut plain = mesh.c.connect(SocketAddr::new(mesh.b.v4, ports::HBONE))?;
    // In one piece: the refusal may come before a second one.
    plain.write_all(format!("CONNECT {} HTTP/1.1\r\n\r\n", listener.address()).as_bytes())?;
    let mut alert = Vec::new();
    let _ = plain.read_to_end(&mut alert);
    assert!(!alert.starts_with(b"HTTP"), "{alert:?}");
    until("that refusal to be counted", || (counted() > 1).then_some(()));
    thread::sleep(Duration::from_millis(100));
    assert!(listener.is_lonely(), "the application was connected to");
    Ok(())
}

/// A pod that the mesh has ceased to know while its peer was asked for: nothing drains.
pub(crate) fn who_is_gone_while_its_peer_is_asked_for_is_unknown(world: &World) -> Outcome {
    let of_peer = Arc::new(Mutex::new(None));
    let answering = of_peer.clone();
    let mesh = Mesh::start_on_demand(world, move |name| {
        let peer = answering.lock().unwrap().clone();
        let gone = Update::RemoveWorkload(format!("Kubernetes//Pod/{LABELLED}/b").as_str().into());
        peer.filter(|peer| name == peer)
            .map(|_: String| Change::Mesh(gone))
            .into_iter()
            .collect()
    })?;
    of_peer.lock().unwrap().replace(format!("/{}", mesh.c.v4));
    let peer = Peer::of_the_mesh(&mesh)?;
    let listener = mesh.b.listen(Family::V4);
    let failed = |reason| {
        mesh.metric(
            "ambient_connections_failed_total",
            &[("reporter", "destination"), ("reason", reason)],
        )
    };
    let before = ["drain", "unknown_workload"].map(failed);
    assert_eq!(peer.answer(&mesh, mesh.b.v4, listener.address())?, 503);
    until("it to be told of", || {
        (["drain", "unknown_workload"].map(failed) != before).then_some(())
    });
    assert_eq!(["drain", "unknown_workload"].map(failed), [before[0], before[1] + 1]);
    assert!(listener.is_lonely());
    Ok(())
}

/// A request of HTTP/2 that is none for a connection is answered, and told of as what else is refused.
pub(crate) fn what_is_no_connect_is_told_of(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let ca = DirectoryCa::open(&mesh.ca, TrustDomain::default(), DirectoryCa::DEFAULT_TTL)?;
    let identity = Identity::new(&TrustDomain::default(), "elsewhere", "peer")?;
    let credential = runtime()?.block_on(ca.issue(&identity))?;
    let config = ambient_tls::client_config(&Arc::new(ambient_tls::provider()), &credential, &ca.trust(), Accepted::AnyTrusted)?;
    let mut tcp = mesh.c.connect(SocketAddr::new(mesh.b.v4, ports::HBONE))?;
    let mut tls = rustls::ClientConnection::new(config, "b.shop".try_into()?)?;
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    let refused = || {
        let labels = [("reporter", "destination"), ("reason", "bad_request")];
        mesh.metric("ambient_connections_failed_total", &labels)
    };
    let before = refused();
    // The preface, no settings, and GET http://x/ by the static table.
    let get = *b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01x";
    stream.write_all(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], &get].concat())?;
    until("the request to be counted", || (refused() > before).then_some(()));
    // Frames until the headers of stream 1, of which the eighth name of the static table is `:status`.
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        stream.read_exact(&mut payload)?;
        if head[3] == 1 {
            assert_eq!((&payload[..5], head[8]), (&b"\x08\x03400"[..], 1));
            return Ok(());
        }
    }
}

/// A node that keeps to such keys alone serves its own pods and peers that have them, and nobody else.
pub(crate) fn without_post_quantum_keys_there_is_no_tunnel(world: &World) -> Outcome {
    let mesh = Mesh::start_with(world, |config| config.post_quantum_only = true)?;
    mesh.open(Way::Tunnel, Family::V4).converse()?;
    let listener = mesh.b.listen(Family::V4);
    let of_old = || {
        let all = ambient_tls::provider();
        let classical = all
            .kx_groups
            .iter()
            .copied()
            .filter(|group| group.name() != NamedGroup::X25519MLKEM768);
        CryptoProvider {
            kx_groups: classical.collect(),
            ..all.clone()
        }
    };
    assert_eq!(of_old().kx_groups.len(), 3);
    for (provider, answer) in [(of_old(), None), (ambient_tls::provider(), Some(200)), (of_old(), None)] {
        let peer = Peer::with(&mesh, provider)?;
        let answered = peer.answer(&mesh, mesh.b.v4, listener.address());
        assert_eq!(answered.as_ref().ok().copied(), answer, "{answered:?}");
        match answer {
            Some(_) => drop(listener.accept()),
            None => assert!(matches!(answered, Err(ConnectError::Handshake { .. })), "{answered:?}"),
        }
    }
    assert!(listener.is_lonely());
    Ok(())
}

/// Live connections with a peer end when it is revoked, and it gets no new ones; whoever else there is does not notice.
pub(crate) fn a_peer_that_is_revoked_is_cut(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    whoever_is_revoked_is_cut(&mesh, |identity| {
        let authority = ca::Authority::open(&mesh.ca)?;
        authority.revoke(&Target::Identity(identity), std::time::SystemTime::now())?;
        Ok(())
    })
}

/// The same where the control plane says so and the node's own issuer does not.
pub(crate) fn a_peer_that_the_source_says_is_revoked_is_cut(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    whoever_is_revoked_is_cut(&mesh, |identity| {
        // In a copy of the authority, of which the node's issuer knows nothing.
        let copy = world.scratch_dir().join("copy-of-ca");
        let copied = std::process::Command::new("cp").arg("-a").args([&mesh.ca, &copy]).status()?;
        assert!(copied.success());
        let authority = ca::Authority::open(&copy)?;
        authority.revoke(&Target::Identity(identity), std::time::SystemTime::now())?;
        let told = DirectoryCa::open(&copy, TrustDomain::default(), DirectoryCa::DEFAULT_TTL)?.trust();
        assert_eq!(told.crls(&TrustDomain::default()).len(), 1);
        mesh.change(vec![Change::Trust(told)]);
        Ok(())
    })
}

fn whoever_is_revoked_is_cut(mesh: &Mesh, revoke: impl FnOnce(Identity) -> Outcome) -> Outcome {
    let listener = mesh.b.listen(Family::V4);
    let (revoked, other) = (Peer::of_the_mesh(mesh)?, Peer::named(mesh, "other")?);
    let open = |peer: &Peer| -> Result<_, ConnectError> {
        let stream = peer.run(mesh, peer.connect(mesh.b.v4, listener.address()))?;
        Ok((stream, listener.accept()))
    };
    let (mut cut, mut cut_application) = open(&revoked)?;
    let (mut kept, mut kept_application) = open(&other)?;
    // One that waits for its application as well.
    let silent = Silent::start(mesh)?;
    let before = mesh.metric("ambient_handshakes_refused_total", &[]);
    thread::scope(|waits| {
        let (namespace, connecting) = (&mesh.c.namespace, revoked.connect(mesh.b.v4, silent.address(mesh)));
        let waiting = waits.spawn(|| namespace.run(|| revoked.runtime.block_on(connecting)).unwrap());
        silent.is_dialled(mesh);
        revoke(revoked.speaker.identity.clone())?;
        assert!(waiting.join().unwrap().is_err());
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    let mut rest = Vec::new();
    let ended = revoked.run(mesh, async { timeout(PATIENCE, cut.read_to_end(&mut rest)).await })?;
    assert!(ended.is_err(), "it is a reset, and never looks complete");
    let mut nothing = [0; 1];
    assert!(!matches!(cut_application.read(&mut nothing), Ok(1..)));
    let refused = revoked.run(mesh, revoked.connect(mesh.b.v4, listener.address()));
    assert!(refused.is_err(), "{refused:?}");
    until("the refusal to be counted", || {
        (mesh.metric("ambient_handshakes_refused_total", &[]) > before).then_some(())
    });
    // What was refused, and not what was open until then: of both it is the reason.
    let by = ("reporter", "destination");
    until("all to be counted as revoked", || {
        let rejected = mesh.metric("istio_crl_policy_rejections_total", &[by]);
        let handshakes = mesh.metric("ambient_handshakes_refused_total", &[]) - before;
        let all = mesh.metric("ambient_connections_failed_total", &[by, ("reason", "cert_revoked")]);
        (rejected > 0 && rejected == handshakes && all == rejected + 2).then_some(())
    });
    assert_eq!(
        mesh.metric("ambient_connections_failed_total", &[by, ("reason", "client_reset")]),
        0
    );
    // The other one, in its tunnel and in a new one, and the pods among themselves.
    kept_application.write_all(b"pong")?;
    let mut heard = [0; 4];
    other.run(mesh, async {
        kept.write_all(b"ping").await?;
        kept.read_exact(&mut heard).await
    })?;
    assert_eq!(&heard, b"pong");
    let another = Peer::named(mesh, "another")?;
    open(&another)?;
    Ok(())
}

/// A peer that is connected and has not yet proven who it is when the node stops: it is served, as it could not be told to go elsewhere.
pub(crate) fn who_is_about_to_come_is_served_to_the_end(world: &World) -> Outcome {
    let mut mesh = Mesh::start_with(world, |config| config.drain = PATIENCE)?;
    let (dial, hesitation) = Hesitant::new();
    let peer = Peer::made(&mesh, "peer", ambient_tls::provider(), Arc::new(dial))?;
    let listener = mesh.b.listen(Family::V4);
    let (pod, at, namespace) = (mesh.b.v4, listener.address(), mesh.c.namespace.clone());
    let asking = thread::spawn(move || {
        let asked = namespace.run(|| {
            peer.runtime.block_on(async {
                let mut stream = peer.connect(pod, at).await.map_err(io::Error::other)?;
                stream.write_all(b"ping").await?;
                let mut heard = [0; 4];
                stream.read_exact(&mut heard).await.map(|_| heard)
            })
        });
        asked.unwrap()
    });
    hesitation.connected.recv_timeout(PATIENCE)?;
    let stopping = mesh.stop();
    // Several times as long as a node takes that waits for nothing.
    thread::sleep(Duration::from_millis(100));
    assert!(!stopping.is_over(), "it has gone while somebody was about to come");
    hesitation.go_on.send(()).unwrap();
    let mut application = listener.accept();
    let mut heard = [0; 4];
    application.read_exact(&mut heard)?;
    application.write_all(&heard)?;
    assert_eq!(&asking.join().unwrap()?, b"ping");
    drop(application);
    until("the node to end", || stopping.is_over().then_some(()));
    Ok(stopping.result()?)
}

/// A proxy outside of the node, which speaks from [`Mesh::c`].
struct Peer {
    pool: Pool,
    speaker: Speaker,
    expected: Identity,
    runtime: tokio::runtime::Runtime,
}

impl Peer {
    fn of_the_mesh(mesh: &Mesh) -> Result<Self, Box<dyn std::error::Error>> {
        Self::named(mesh, "peer")
    }

    fn named(mesh: &Mesh, account: &str) -> Result<Self, Box<dyn std::error::Error>> {
        Self::made(mesh, account, ambient_tls::provider(), Arc::new(Tcp))
    }

    fn with(mesh: &Mesh, provider: CryptoProvider) -> Result<Self, Box<dyn std::error::Error>> {
        Self::made(mesh, "peer", provider, Arc::new(Tcp))
    }

    fn made(mesh: &Mesh, account: &str, provider: CryptoProvider, dial: Arc<dyn Dial>) -> Result<Self, Box<dyn std::error::Error>> {
        let runtime = runtime()?;
        let domain = TrustDomain::default();
        let identity = Identity::new(&domain, "elsewhere", account)?;
        let ca = DirectoryCa::open(&mesh.ca, domain, DirectoryCa::DEFAULT_TTL)?;
        let credential = runtime.block_on(ca.issue(&identity))?;
        Self::new(runtime, credential, ca.trust(), provider, dial)
    }

    /// It trusts the mesh, and the mesh does not trust it, whatever it calls itself.
    fn of_another_ca(mesh: &Mesh) -> Result<Self, Box<dyn std::error::Error>> {
        let domain = TrustDomain::default();
        let credential = Ca::new(&domain)?.issue(&Identity::new(&domain, LABELLED, "a")?)?;
        let ca = DirectoryCa::open(&mesh.ca, domain, DirectoryCa::DEFAULT_TTL)?;
        Self::new(runtime()?, credential.into(), ca.trust(), ambient_tls::provider(), Arc::new(Tcp))
    }

    fn new(
        runtime: tokio::runtime::Runtime,
        credential: Arc<Credential>,
        trust: Arc<TrustBundles>,
        provider: CryptoProvider,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let speaker = Speaker::new("peer", credential.identity.clone());
        let held = Held(HashMap::from([(credential.identity.clone(), credential)]), trust);
        let guard = runtime.enter();
        let pool = Pool::builder(dial, Arc::new(held), Arc::new(provider)).build();
        drop(guard);
        Ok(Self {
            pool,
            speaker,
            expected: Identity::new(&TrustDomain::default(), LABELLED, "b")?,
            runtime,
        })
    }

    /// Runs in the peer's namespace.
    fn run<T: Send>(&self, mesh: &Mesh, work: impl Future<Output = T> + Send) -> T {
        mesh.c.namespace.run(|| self.runtime.block_on(work)).unwrap()
    }

    /// Asks the pod at an address for a connection to somewhere.
    async fn connect(&self, pod: IpAddr, to: SocketAddr) -> Result<Stream, ConnectError> {
        self.connect_saying(pod, to, &[]).await
    }

    /// The same with these headers.
    async fn connect_saying(&self, pod: IpAddr, to: SocketAddr, headers: &[(&'static str, String)]) -> Result<Stream, ConnectError> {
        let authority: Authority = to.to_string().parse().unwrap();
        let mut destination = Destination::new(SocketAddr::new(pod, ports::HBONE), authority, [self.expected.clone()]);
        for (name, value) in headers {
            destination.headers.insert(*name, value.parse().unwrap());
        }
        timeout(PATIENCE, self.pool.connect(&self.speaker, &destination)).await.unwrap()
    }

    /// The status of the answer; a connection that is accepted is ended at once.
    fn answer(&self, mesh: &Mesh, pod: IpAddr, to: SocketAddr) -> Result<u16, ConnectError> {
        match self.run(mesh, self.connect(pod, to)) {
            Ok(_) => Ok(200),
            Err(ConnectError::Refused { status, .. }) => Ok(status.as_u16()),
            Err(other) => Err(other),
        }
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

struct Held(HashMap<Identity, Arc<Credential>>, Arc<TrustBundles>);

impl Credentials for Held {
    fn credential(&self, identity: &Identity) -> Option<Arc<Credential>> {
        self.0.get(identity).cloned()
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.1.clone()
    }
}

struct Tcp;

impl Dial for Tcp {
    fn dial<'a>(&'a self, _: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(peer).await?) as BoxedIo) })
    }
}

/// Dials, tells of it, and goes on when it is told to.
struct Hesitant {
    connected: mpsc::Sender<()>,
    go_on: Mutex<Option<oneshot::Receiver<()>>>,
}

/// The other end of it.
struct Hesitation {
    connected: mpsc::Receiver<()>,
    go_on: oneshot::Sender<()>,
}

impl Hesitant {
    fn new() -> (Self, Hesitation) {
        let (tell, connected) = mpsc::channel();
        let (go_on, told) = oneshot::channel();
        let dial = Self {
            connected: tell,
            go_on: Mutex::new(Some(told)),
        };
        (dial, Hesitation { connected, go_on })
    }
}

impl Dial for Hesitant {
    fn dial<'a>(&'a self, speaker: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = Tcp.dial(speaker, peer).await?;
            let told = self.go_on.lock().unwrap().take();
            if let Some(told) = told {
                self.connected.send(()).map_err(io::Error::other)?;
                told.await.map_err(io::Error::other)?;
            }
            Ok(stream)
        })
    }
}
