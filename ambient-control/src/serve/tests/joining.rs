//! How nodes come to be known, and how that ends.

use ambient_core::PrivateKey;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::*;
use crate::{
    ca::{RequestError, Whom},
    istiod::{
        KeepNode, Membership, MembershipConfig, NodeCredential,
        fake::{FastClock, Relay},
    },
};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

impl Running {
    /// Where it is, for a node that exchanges a token for a certificate.
    pub(super) fn joining(&self, node: &str, token: &str, ttl: Duration) -> Endpoint {
        self.kept_by(node, token, ttl, None)
    }

    fn kept_by(&self, node: &str, token: &str, ttl: Duration, keep: Option<Box<dyn KeepNode>>) -> Endpoint {
        let endpoint = self.showing(token);
        let config = MembershipConfig {
            ttl,
            keep,
            ..MembershipConfig::new(endpoint.clone(), node)
        };
        Endpoint {
            token: None,
            membership: Some(Arc::new(Membership::start(config).unwrap())),
            ..endpoint
        }
    }

    pub(super) async fn change(&self, name: &str) {
        let batch = Batch {
            changes: vec![pod(name, "node-9")],
            synced: true,
            ..Batch::default()
        };
        self.feed.send(batch).await.unwrap();
    }
}

pub(super) async fn synced(state: &mut State) {
    while !next(state).await.synced {}
}

/// The batch that makes it whole.
async fn first_whole(state: &mut State) -> Batch {
    loop {
        let batch = next(state).await;
        if batch.synced {
            return batch;
        }
    }
}

/// Waits for a fault with these words.
pub(super) async fn fault(state: &mut State, words: &str) {
    let waited = timeout(Duration::from_secs(20), async {
        while !next(state).await.faults.iter().any(|fault| fault.what.contains(words)) {}
    });
    waited.await.unwrap_or_else(|_| panic!("nothing says {words:?}"));
}

/// Waits for a change that brings a workload of this name.
async fn told_of(state: &mut State, name: &str) {
    let brings = |batch: &Batch| {
        let of_name = |change: &Change| matches!(change, Change::Mesh(Update::Workload(workload)) if *workload.name == *name);
        batch.changes.iter().any(of_name)
    };
    while !brings(&next(state).await) {}
}

#[tokio::test]
async fn a_token_is_exchanged_for_a_certificate_that_stands_for_itself() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Always);
    let endpoint = running.joining("node-1", &token, HOUR);
    let mut state = running.state(endpoint.clone(), "node-1");
    synced(&mut state).await;
    let given = running.nodes.certificates(now()).unwrap();
    assert_eq!((given.len(), &*given[0].node), (1, "node-1"));
    assert!(given[0].expires <= nodes::seconds(now()) + HOUR.as_secs());
    let until = state.known_until().expect("it is known by a certificate");
    assert_eq!(until().map(nodes::seconds), Some(given[0].expires));
    // The token's end is none of the certificate's.
    let id = running.nodes.tokens(now()).unwrap()[0].id.clone();
    running.nodes.revoke_token(&id, now()).unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    running.change("later").await;
    told_of(&mut state, "later").await;
    assert_eq!(running.counts.cut(), 0);
    let certificates = Certificates::new(CertificatesConfig::new(endpoint.clone())).unwrap();
    assert_eq!(certificates.issue(&identity("cart")).await.unwrap().identity, identity("cart"));
    assert!(matches!(
        certificates.issue(&identity("stock")).await,
        Err(IssueError::Refused { .. })
    ));
    let foreign = "spiffe://other.example/ns/shop/sa/cart".parse().unwrap();
    let error = certificates.issue(&foreign).await.unwrap_err().to_string();
    assert!(
        error.contains("of another trust domain than this mesh, which is cluster.local"),
        "{error}"
    );
    let reports = Reports::new(endpoint).unwrap();
    reports.report(&"uid-cart".into(), &[], true).await.unwrap();
    assert!(reports.report(&"uid-stock".into(), &[], true).await.is_err());
    assert_eq!(running.counts.joined(), 1);
}

#[tokio::test]
async fn a_certificate_renews_itself_and_its_streams_go_on() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Always);
    let endpoint = running.joining("node-1", &token, Duration::from_secs(6));
    let mut state = running.state(endpoint, "node-1");
    synced(&mut state).await;
    let id = running.nodes.tokens(now()).unwrap()[0].id.clone();
    running.nodes.revoke_token(&id, now()).unwrap();
    let first = running.nodes.certificates(now()).unwrap()[0].clone();
    // Longer than several certificates are valid: only those that they were renewed by are good then.
    for second in 0..24 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        running.change(&format!("later-{second}")).await;
        told_of(&mut state, &format!("later-{second}")).await;
    }
    let good = running.nodes.certificates(now()).unwrap();
    assert!(!good.is_empty() && !good.contains(&first), "{good:?}");
    assert!(running.counts.joined() >= 3, "{}", running.counts.joined());
    assert_eq!((running.counts.refused(Refusal::Credential), running.counts.cut()), (0, 0));
}

/// What is in the way for now is nothing that a token would mend, and one that has ended is not what is wrong.
#[tokio::test]
async fn a_renewal_that_fails_for_now_is_not_tried_with_a_token_that_has_ended() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Always);
    let endpoint = running.joining("node-1", &token, Duration::from_secs(8));
    let membership = endpoint.membership.clone().unwrap();
    let mut state = running.state(endpoint, "node-1");
    synced(&mut state).await;
    let id = running.nodes.tokens(now()).unwrap()[0].id.clone();
    running.nodes.revoke_token(&id, now()).unwrap();
    // Nothing can be written in the place of this.
    let in_the_way = running.scratch.path().join("ca/nodes.new");
    std::fs::create_dir(&in_the_way).unwrap();
    membership.has_failed(1).await;
    assert_eq!(running.counts.refused(Refusal::Credential), 0);
    std::fs::remove_dir(&in_the_way).unwrap();
    timeout(Duration::from_secs(20), async {
        while running.counts.joined() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is renewed once there is nothing in the way");
    assert_eq!(running.counts.refused(Refusal::Credential), 0);
}

#[tokio::test]
async fn a_revoked_node_hears_nothing_more_and_gets_nothing_more() {
    let running = Running::start().await;
    let (one, two) = (
        running.token("node-1", HOUR, Use::Always),
        running.token("node-2", HOUR, Use::Always),
    );
    let endpoint = running.joining("node-1", &one, HOUR);
    let mut state = running.state(endpoint.clone(), "node-1");
    // One as ztunnel speaks, by the token alone.
    let mut plain = running.state(running.showing(&one), "node-1");
    let mut other = running.state(running.joining("node-2", &two, HOUR), "node-2");
    for state in [&mut state, &mut plain, &mut other] {
        synced(state).await;
    }
    let begun = tokio::time::Instant::now();
    let revoked = running.nodes.revoke("node-1", now()).unwrap();
    assert_eq!((revoked.tokens, revoked.certificates), (1, 1));
    fault(&mut state, "certificate is not known here, has ended, or was revoked").await;
    fault(&mut plain, "this token is none, has ended, or was revoked").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(running.counts.cut(), 2);
    // What comes after that is for others.
    running.change("later").await;
    told_of(&mut other, "later").await;
    let certificates = Certificates::new(CertificatesConfig::new(endpoint)).unwrap();
    assert!(certificates.issue(&identity("cart")).await.is_err());
    assert_eq!(running.nodes.certificates(now()).unwrap().len(), 1, "another was given");
    assert!(running.counts.refused(Refusal::Credential) > 0);
}

#[tokio::test]
async fn a_nodes_certificate_that_a_list_revokes_is_good_for_nothing() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Once);
    let mut state = running.state(running.joining("node-1", &token, HOUR), "node-1");
    synced(&mut state).await;
    let serial = running.nodes.certificates(now()).unwrap()[0].serial.clone();
    let authority = crate::ca::Authority::open(running.scratch.path().join("ca")).unwrap();
    let target = crate::ca::Target::Serial { serial, issuer: None };
    let begun = tokio::time::Instant::now();
    authority.revoke(&target, now()).unwrap();
    fault(&mut state, "revoked").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((running.counts.cut(), running.counts.joined()), (1, 1));
}

#[tokio::test]
async fn a_stream_ends_with_the_token_that_it_was_opened_by() {
    let running = Running::start().await;
    let short = running.token("node-1", Duration::from_secs(3), Use::Always);
    let mut state = running.state(running.showing(&short), "node-1");
    let mut other = running.state(running.endpoint("node-2"), "node-2");
    synced(&mut state).await;
    synced(&mut other).await;
    let begun = tokio::time::Instant::now();
    fault(&mut state, "this token was good until ").await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    running.change("later").await;
    told_of(&mut other, "later").await;
    assert_eq!(running.counts.cut(), 1);
}

#[tokio::test]
async fn a_token_for_one_key_makes_one_member_and_is_shown_for_nothing_else() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Once);
    let mut plain = running.state(running.showing(&token), "node-1");
    fault(&mut plain, "good for a node's certificate alone").await;
    let mut first = running.state(running.joining("node-1", &token, HOUR), "node-1");
    synced(&mut first).await;
    let mut thief = running.state(running.joining("node-1", &token, HOUR), "node-1");
    fault(&mut thief, "its token was used for another key").await;
    assert_eq!(running.nodes.certificates(now()).unwrap().len(), 1);
    // The first is not harmed.
    running.change("later").await;
    told_of(&mut first, "later").await;
}

#[tokio::test]
async fn a_token_makes_a_member_of_its_own_node_alone() {
    let running = Running::start().await;
    let token = running.token("node-1", HOUR, Use::Always);
    let begun = tokio::time::Instant::now();
    let mut state = running.state(running.joining("node-2", &token, HOUR), "node-2");
    fault(&mut state, "the token is for the node node-1, and not for node-2").await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "what an attempt has come to is told at once"
    );
    let mut none = running.state(running.joining("node-2", "ambient-0.0", HOUR), "node-2");
    fault(
        &mut none,
        "this token is none, has ended, or was revoked: `ambient control token NODE` makes another",
    )
    .await;
    // Who vouches for it is another.
    let scratch = tempfile::tempdir().unwrap();
    let other = DirectoryCa::open(scratch.path().join("ca"), TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
    let endpoint = Endpoint {
        roots: Roots::Pem(other.roots_pem()),
        ..running.endpoint("node-1")
    };
    let mut lost = running.state(endpoint, "node-1");
    fault(&mut lost, "is of an authority that is not among those from the configuration").await;
}

/// Whatever becomes of the files while streams come and go: what was read of them before counts, and each is told.
#[tokio::test]
async fn files_of_token_and_roots_may_vanish_and_come_back() {
    let running = Running::start().await;
    let (token, roots) = (running.scratch.path().join("token"), running.scratch.path().join("node-root.pem"));
    let good = running.token("node-1", HOUR, Use::Always);
    let endpoint = Endpoint {
        roots: Roots::File(roots.clone()),
        token: Some(Token::File(token.clone())),
        ..running.showing("")
    };
    // Neither is there yet: each is named, with what to do.
    let mut state = running.state(endpoint.clone(), "node-1");
    fault(
        &mut state,
        "node-root.pem: No such file or directory (os error 2): put the PEM certificates there",
    )
    .await;
    std::fs::write(&roots, &running.root).unwrap();
    fault(&mut state, "token: No such file or directory (os error 2): put a token there").await;
    std::fs::write(&token, &good).unwrap();
    let mut batch = next(&mut state).await;
    while !batch.synced || !batch.faults.is_empty() {
        batch = next(&mut state).await;
    }
    // Now they break, one after the other. A new stream and a new certificate are had all the same.
    let torn = running.root[..running.root.len() / 2].to_owned();
    let breaks: [(&std::path::Path, Option<&str>, &str); 6] = [
        (&token, None, "token: No such file"),
        (&token, Some(" \n"), "token: it is empty"),
        (&token, Some("a\u{1}b"), "token: it holds what cannot be sent"),
        (&roots, None, "node-root.pem: No such file"),
        (&roots, Some(""), "node-root.pem: it holds no root certificate"),
        (&roots, Some(&torn), "node-root.pem: it is no PEM"),
    ];
    for (n, (path, holds, words)) in breaks.into_iter().enumerate() {
        match holds {
            None => std::fs::remove_file(path).unwrap(),
            Some(text) => std::fs::write(path, text).unwrap(),
        }
        let mut again = running.state(endpoint.clone(), "node-1");
        let batch = first_whole(&mut again).await;
        let told = &batch.faults[..];
        assert!(told.len() == 1 && told[0].what.contains(words), "{words}: {told:?}");
        assert!(told[0].what.contains("; what was there before is used"), "{told:?}");
        let certificates = Certificates::new(CertificatesConfig::new(endpoint.clone())).unwrap();
        certificates.issue(&identity("cart")).await.unwrap();
        assert_eq!(
            certificates.faults(),
            [told[0].what.clone()],
            "also where state comes from elsewhere"
        );
        let whole = if path == token { &good } else { &running.root };
        std::fs::write(path, whole).unwrap();
        let mut again = running.state(endpoint.clone(), "node-1");
        let batch = first_whole(&mut again).await;
        assert!(batch.faults.is_empty(), "{n}: {batch:?}");
        assert!(certificates.faults().is_empty());
    }
    // Another token that can be sent is sent; who refuses it does not know the file, so that is named here.
    std::fs::write(&token, "ambient-0.0").unwrap();
    let mut other = running.state(endpoint.clone(), "node-1");
    fault(&mut other, &format!("shown was the token from {}", token.display())).await;
    let certificates = Certificates::new(CertificatesConfig::new(endpoint)).unwrap();
    let error = certificates.issue(&identity("cart")).await.unwrap_err().to_string();
    assert!(error.contains(&format!("shown was the token from {}", token.display())), "{error}");
    std::fs::write(&token, &good).unwrap();
    synced(&mut other).await;
    // The first stream has gone on all the while.
    running.change("later").await;
    told_of(&mut state, "later").await;
    assert_eq!(running.counts.cut(), 0);
}

/// A port where nobody listens, until somebody does: then it leads to the control plane.
async fn away() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

async fn lead(from: std::net::SocketAddr, to: u16) -> JoinHandle<()> {
    let listener = tokio::net::TcpListener::bind(from).await.unwrap();
    tokio::spawn(async move {
        let mut ways = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            ways.spawn(async move {
                if let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", to)).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    })
}

/// However long it was away: a node without a certificate looks for it as often as for anything else.
#[tokio::test]
async fn a_control_plane_that_is_back_is_found_by_who_has_no_certificate_yet() {
    let running = Running::start().await;
    let place = away().await;
    let relay = Relay::to(place).await;
    let token = running.token("node-1", HOUR, Use::Always);
    let mut endpoint = running.showing(&token);
    endpoint.address = format!("127.0.0.1:{}", relay.port);
    let membership = Membership::start(MembershipConfig::new(endpoint.clone(), "node-1")).unwrap();
    let endpoint = Endpoint {
        token: None,
        membership: Some(Arc::new(membership)),
        ..endpoint
    };
    let _clock = FastClock::begin();
    // Nobody waits: it is tried again by itself alone.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let made = relay.made.lock().unwrap().clone();
    let waits: Vec<_> = made.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let slack = 4 * FastClock::STEP;
    assert!(
        waits.len() > 8 && waits.iter().all(|wait| *wait <= Duration::from_secs(12) + slack),
        "{waits:?}"
    );
    let late = waits.iter().rev().take(3);
    assert!(late.clone().all(|wait| *wait >= Duration::from_secs(6) - slack), "{waits:?}");
    // Its state waits for it too, and goes on with the certificate.
    let mut state = running.state(endpoint, "node-1");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let _way = lead(place, running.port).await;
    let back = tokio::time::Instant::now();
    let whole = async { while !state.next().await.expect("a batch").synced {} };
    timeout(Duration::from_secs(60), whole).await.expect("it is found");
    assert!(back.elapsed() <= Duration::from_secs(12) + 4 * slack, "{:?}", back.elapsed());
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Option<NodeCredential>>>);

impl KeepNode for Memory {
    fn load(&self) -> Option<NodeCredential> {
        self.0.lock().unwrap().clone()
    }

    fn put(&self, credential: &NodeCredential) -> io::Result<()> {
        *self.0.lock().unwrap() = Some(credential.clone());
        Ok(())
    }

    fn wipe(&self) {
        self.0.lock().unwrap().take();
    }
}

/// As where a machine's clock is behind when it starts, and is set then.
#[tokio::test]
async fn a_certificate_that_was_kept_is_not_given_up_as_it_is_not_good_yet() {
    let running = Running::start().await;
    let memory = Memory::default();
    let token = running.token("node-1", HOUR, Use::Once);
    let join = || running.kept_by("node-1", &token, HOUR, Some(Box::new(memory.clone())));
    synced(&mut running.state(join(), "node-1")).await;
    let set = Duration::from_secs(3);
    memory.0.lock().unwrap().as_mut().expect("it was kept").not_before = now() + set;
    let mut state = running.state(join(), "node-1");
    fault(&mut state, "has given the node node-1 no certificate").await;
    synced(&mut state).await;
    assert_eq!(running.counts.joined(), 1, "it is the one that was kept");
    // One that has ended is of no use to anybody.
    memory.0.lock().unwrap().as_mut().expect("it is kept").not_after = now();
    drop(join());
    assert!(memory.load().is_none());
}

#[tokio::test]
async fn a_certificate_that_was_kept_needs_no_token() {
    let running = Running::start().await;
    let memory = Memory::default();
    let token = running.token("node-1", HOUR, Use::Once);
    let join = |node: &str| running.kept_by(node, &token, HOUR, Some(Box::new(memory.clone())));
    let mut state = running.state(join("node-1"), "node-1");
    synced(&mut state).await;
    drop(state);
    // Another process, with a token that is used up.
    let mut state = running.state(join("node-1"), "node-1");
    synced(&mut state).await;
    assert_eq!(running.counts.joined(), 1);
    drop(state);
    // Of another node it is none, and is wiped.
    let mut state = running.state(join("node-2"), "node-2");
    fault(&mut state, "").await;
    assert!(memory.load().is_none());
}

#[tokio::test]
async fn only_what_was_given_here_makes_a_node() {
    let running = Running::start().await;
    // As whoever has stolen an intermediate, or the root's key, would sign.
    let directory = running.scratch.path().join("ca");
    let ca = DirectoryCa::open_for(&directory, TrustDomain::default(), DirectoryCa::DEFAULT_TTL, "thief").unwrap();
    let forged = |id: &str, words: &'static str| {
        let id = id.parse().unwrap();
        let (key, csr) = crate::ca::request(&Whom::Id(&id)).unwrap();
        let credential = NodeCredential {
            chain: ca.sign_request(&id, &csr, HOUR).unwrap(),
            key: Arc::new(PrivateKey::from(key.serialize_der())),
            not_before: now(),
            not_after: now() + HOUR,
            roots: vec![CertificateDer::from_pem_slice(running.root.as_bytes()).unwrap().to_vec()],
        };
        let memory = Memory::default();
        memory.put(&credential).unwrap();
        (memory, credential, words)
    };
    let (memory, ..) = forged("spiffe://cluster.local/ambient/node/node-1", "");
    let mut state = running.state(running.kept_by("node-1", "none", HOUR, Some(Box::new(memory))), "node-1");
    fault(&mut state, "is not known here").await;
    // One of a workload does not do either, and nor does one of a stranger.
    let workload = forged("spiffe://cluster.local/ns/shop/sa/cart", "is no node of cluster.local");
    let stranger = {
        let scratch = tempfile::tempdir().unwrap();
        let other = DirectoryCa::open(scratch.path().join("ca"), TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
        let id = "spiffe://cluster.local/ambient/node/node-1".parse().unwrap();
        let (key, csr) = crate::ca::request(&Whom::Id(&id)).unwrap();
        let credential = NodeCredential {
            chain: other.sign_request(&id, &csr, HOUR).unwrap(),
            key: Arc::new(PrivateKey::from(key.serialize_der())),
            ..workload.1.clone()
        };
        (Memory::default(), credential, "the certificate of this connection:")
    };
    for (_, credential, words) in [workload, stranger] {
        let endpoint = running.showing("none");
        let refused = endpoint.join_as(&credential).await;
        assert!(refused.contains(words), "{refused}, and not {words}");
    }
    assert_eq!(running.counts.joined(), 0);
}

/// An authority of an embedder's own, such as one behind a KMS: slow, and at times away.
struct Elsewhere {
    ca: DirectoryCa,
    signed: Arc<Mutex<Vec<String>>>,
    away: Arc<std::sync::atomic::AtomicBool>,
}

impl Signer for Elsewhere {
    fn sign<'a>(&'a self, request: crate::ca::Request<'a>) -> BoxFuture<'a, Result<Vec<Vec<u8>>, RequestError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.away.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(RequestError::Signer { why: "it is away".into() });
            }
            self.signed.lock().unwrap().push(request.whom.to_string());
            self.ca.sign(request).await
        })
    }

    fn bundles(&self) -> Arc<ambient_core::TrustBundles> {
        self.ca.bundles()
    }
}

#[tokio::test]
async fn an_authority_of_an_embedders_own_signs_all_of_it() {
    let (signed, away) = (
        Arc::<Mutex<Vec<String>>>::default(),
        Arc::<std::sync::atomic::AtomicBool>::default(),
    );
    let (signs, is_away) = (signed.clone(), away.clone());
    let running = Running::signed_by(move |ca| {
        Arc::new(Elsewhere {
            ca,
            signed: signs,
            away: is_away,
        })
    })
    .await;
    let token = running.token("node-1", HOUR, Use::Always);
    let endpoint = running.joining("node-1", &token, HOUR);
    let mut state = running.state(endpoint.clone(), "node-1");
    synced(&mut state).await;
    let certificates = Certificates::new(CertificatesConfig::new(endpoint)).unwrap();
    certificates.issue(&identity("cart")).await.unwrap();
    let has_signed = signed.lock().unwrap().clone();
    for name in [
        "localhost,127.0.0.1",
        "spiffe://cluster.local/ambient/node/node-1",
        identity("cart").as_str(),
    ] {
        assert!(has_signed.iter().any(|one| one == name), "{name}: {has_signed:?}");
    }
    away.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = certificates.issue(&identity("cart")).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Unavailable { why, .. } if why.contains("it is away")),
        "{error}"
    );
    // Once by the connection that was there, and by a new one.
    assert!(running.counts.refused(Refusal::Authority) >= 1);
    running.change("later").await;
    told_of(&mut state, "later").await;
}
