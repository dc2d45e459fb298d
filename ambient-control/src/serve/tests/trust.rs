//! Whom to trust, and who is revoked, as nodes hear of it.

use std::sync::OnceLock;

use ambient_core::{Credential, TrustBundles};
use ambient_tls::{Accepted, Configs};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{joining::HOUR, *};
use crate::{
    ca::{Authority, Request, RequestError, Rotation, Target, Whom},
    istiod::MemoryConfig,
};

impl Running {
    fn authority(&self) -> Authority {
        Authority::open(self.scratch.path().join("ca")).unwrap()
    }

    fn trusting(&self, endpoint: Endpoint, node: &str, memory: Option<MemoryConfig>) -> State {
        let asker = Asker {
            node: node.into(),
            ..Asker::default()
        };
        let config = StateConfig {
            trust: true,
            memory,
            ..StateConfig::new(endpoint, asker)
        };
        State::connect(config).unwrap()
    }
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

/// Waits until a node is told of so many roots and lists.
async fn told(state: &mut State, roots: usize, lists: usize) -> Arc<TrustBundles> {
    loop {
        for change in next(state).await.changes {
            if let Change::Trust(trust) = change
                && (trust.roots(&domain()).len(), trust.crls(&domain()).len()) == (roots, lists)
            {
                return trust;
            }
        }
    }
}

/// Whether a client is accepted by a server and the other way round, with the trust of each.
async fn shake(client: (&Arc<Credential>, &Arc<TrustBundles>), server: (&Arc<Credential>, &Arc<TrustBundles>)) -> bool {
    let configs = [Configs::new(provider()), Configs::new(provider())];
    let trust = [configs[0].trust(client.1), configs[1].trust(server.1)];
    let accepted = Accepted::any_of([server.0.identity.clone()]);
    let connecting = tokio_rustls::TlsConnector::from(configs[0].client(client.0, &trust[0], accepted).unwrap());
    let accepting = tokio_rustls::TlsAcceptor::from(configs[1].server(server.0, &trust[1], &Accepted::AnyWorkload).unwrap());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = rustls_pki_types::ServerName::try_from("peer").unwrap();
    let client = async {
        let mut stream = connecting.connect(name, near).await.ok()?;
        stream.write_all(b"?").await.ok()?;
        stream.flush().await.ok()?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await.ok()
    };
    let server = async {
        let mut stream = accepting.accept(far).await.ok()?;
        stream.read_u8().await.ok()?;
        stream.write_all(b"!").await.ok()?;
        stream.flush().await.ok()
    };
    let (client, server) = tokio::join!(client, server);
    client.is_some() && server.is_some()
}

#[tokio::test]
async fn who_is_revoked_is_told_to_nodes_and_nobody_else_is_disturbed() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Always);
    let endpoint = running.joining("node-1", &token, HOUR);
    let memory = running.scratch.path().join("memory");
    let mut state = running.trusting(endpoint.clone(), "node-1", Some(MemoryConfig::new(&memory)));
    // As ztunnel asks: it knows of no such type.
    let mut plain = running.state(running.endpoint("node-2"), "node-2");
    let before = told(&mut state, 1, 0).await;
    while !next(&mut plain).await.synced {}
    let certificates = Certificates::new(CertificatesConfig::new(endpoint)).unwrap();
    let cart = certificates.issue(&identity("cart")).await.unwrap();
    assert!(shake((&cart, &before), (&cart, &before)).await);

    let begun = tokio::time::Instant::now();
    running.authority().revoke(&Target::Identity(identity("cart")), now()).unwrap();
    let after = told(&mut state, 1, 1).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!shake((&cart, &after), (&cart, &after)).await, "a revoked peer is accepted");
    let error = certificates.issue(&identity("cart")).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { why, .. } if why.contains("was revoked")),
        "{error}"
    );
    running.change("later").await;
    let batch = next(&mut plain).await;
    assert!(
        batch.changes.len() == 1 && matches!(batch.changes[0], Change::Mesh(_)) && batch.faults.is_empty(),
        "{batch:?}"
    );
    assert_eq!(running.counts.cut(), 0);

    // A restart while the control plane is away knows it from its disk, where it is a moment later.
    let list = after.crls(&TrustDomain::default())[0].clone();
    let is_kept = || {
        let kept = std::fs::read(memory.join("istiod.state")).unwrap();
        kept.windows(list.len()).any(|bytes| bytes == list)
    };
    let kept = async {
        while !is_kept() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), kept).await.expect("it is kept in time");
    drop(state);
    let away = Endpoint {
        roots: Roots::File(running.scratch.path().join("nowhere")),
        ..running.showing("none")
    };
    let mut state = running.trusting(away, "node-1", Some(MemoryConfig::new(&memory)));
    let remembered = told(&mut state, 1, 1).await;
    assert_eq!(remembered, after);
    assert!(state.last_heard().unwrap().age(now()).is_some());
}

/// Connections are made all the while, between nodes that have heard of a stage and nodes that have not, and to the control
/// plane; what is of the stage before is renewed before the next one, as a day between them allows.
#[tokio::test]
async fn roots_change_while_connections_are_made_and_none_is_refused() {
    let running = Running::start().await;
    let (one, two) = (
        running.token("node-1", HOUR, Use::Always),
        running.token("node-2", HOUR, Use::Always),
    );
    let endpoints = [
        running.joining("node-1", &one, Duration::from_secs(8)),
        running.joining("node-2", &two, Duration::from_secs(8)),
    ];
    let mut states = [
        running.trusting(endpoints[0].clone(), "node-1", None),
        running.trusting(endpoints[1].clone(), "node-2", None),
    ];
    let mut trust = [told(&mut states[0], 1, 0).await, told(&mut states[1], 1, 0).await];
    let asking = |at: usize| Certificates::new(CertificatesConfig::new(endpoints[at].clone())).unwrap();
    let certificates = [asking(0), asking(1)];
    let names = [identity("cart"), identity("stock")];
    let mut made = 0;
    let mut held = [
        certificates[0].issue(&names[0]).await.unwrap(),
        certificates[1].issue(&names[1]).await.unwrap(),
    ];
    let mut stages = Vec::new();
    for (stage, roots) in [2, 2, 1].into_iter().enumerate() {
        stages.push(running.authority().rotate(Duration::ZERO, now()).unwrap());
        // The first node has heard, and has what is issued now; the second has not.
        let heard = match stage {
            // The same roots are trusted: nothing is told.
            1 => trust[0].clone(),
            _ => told(&mut states[0], roots, 0).await,
        };
        let renewed = certificates[0].issue(&names[0]).await.unwrap();
        for (credential, trusts) in [(&renewed, &heard), (&held[0], &trust[0]), (&renewed, &trust[0]), (&held[0], &heard)] {
            let other = (&held[1], &trust[1]);
            assert!(shake((credential, trusts), other).await, "{stages:?}: node-1 to node-2");
            assert!(shake(other, (credential, trusts)).await, "{stages:?}: node-2 to node-1");
            made += 2;
        }
        // Then the second follows. Its connection is new, so the control plane is accepted and accepts.
        let followed = match stage {
            1 => trust[1].clone(),
            _ => told(&mut states[1], roots, 0).await,
        };
        trust = [heard, followed];
        held = [
            certificates[0].issue(&names[0]).await.unwrap(),
            asking(1).issue(&names[1]).await.unwrap(),
        ];
        // Members are renewed, as they are at half their lives.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(
        matches!(
            &stages[..],
            [Rotation::Trusted { .. }, Rotation::Used { .. }, Rotation::Withdrawn { .. }]
        ),
        "{stages:?}"
    );
    // By the root alone that nobody had when it began: told on the way, and never copied.
    for at in [0, 1] {
        asking(at).issue(&names[at]).await.unwrap();
    }
    assert_eq!(made, 24);
    assert_eq!((running.counts.refused(Refusal::Credential), running.counts.cut()), (0, 0));
}

/// Signs, and has a node revoked before anybody hears of it.
struct Meanwhile(DirectoryCa, Arc<OnceLock<Nodes>>);

impl Signer for Meanwhile {
    fn sign<'a>(&'a self, request: Request<'a>) -> BoxFuture<'a, Result<Vec<Vec<u8>>, RequestError>> {
        Box::pin(async move {
            let signed = self.0.sign(request).await;
            if let (Whom::Id(_), Some(nodes)) = (request.whom, self.1.get()) {
                nodes.revoke("node-1", now()).unwrap();
            }
            signed
        })
    }

    fn bundles(&self) -> Arc<TrustBundles> {
        self.0.bundles()
    }
}

/// What was signed for a node is listed when it is revoked, and what is signed just then is given to nobody.
#[tokio::test]
async fn nothing_that_was_signed_for_a_node_outlives_it() {
    let revoking = Arc::<OnceLock<Nodes>>::default();
    let signs = revoking.clone();
    let running = Running::signed_by(move |ca| Arc::new(Meanwhile(ca, signs))).await;
    let token = running.token("node-1", HOUR, Use::Always);
    let certificates = Certificates::new(CertificatesConfig::new(running.showing(&token))).unwrap();
    let cart = certificates.issue(&identity("cart")).await.unwrap();
    revoking.set(Nodes::new(running.scratch.path().join("ca"), provider())).unwrap();
    let again = Certificates::new(CertificatesConfig::new(running.showing(&token))).unwrap();
    let error = again.issue(&identity("cart")).await.unwrap_err().to_string();
    assert!(error.contains("has ended, or was revoked"), "{error}");
    assert!(running.counts.refused(Refusal::Credential) >= 1);
    let revoked = running.authority().revoke(&Target::Node("node-1".into()), now()).unwrap();
    let names: Vec<_> = revoked.certificates.iter().map(|one| &*one.name).collect();
    assert_eq!(names, [identity("cart").as_str(); 2]);
    let (_, leaf) = x509_parser::parse_x509_certificate(&cart.chain[0]).unwrap();
    let listed = revoked.certificates.iter().any(|one| one.serial == format!("{:032x}", leaf.serial));
    assert!(listed, "{:?} not among {:?}", leaf.serial, revoked.certificates);
    // A node that shows a certificate has that listed too.
    let joins = running.joining("node-2", &running.token("node-2", HOUR, Use::Always), HOUR);
    let mut state = running.trusting(joins, "node-2", None);
    told(&mut state, 1, 1).await;
    let revoked = running.authority().revoke(&Target::Node("node-2".into()), now()).unwrap();
    assert_eq!(revoked.certificates[0].name, "spiffe://cluster.local/ambient/node/node-2");
}
