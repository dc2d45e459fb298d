use std::os::unix::fs::PermissionsExt;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn nodes(directory: &Path) -> Nodes {
    Nodes::new(directory, Arc::new(ambient_tls::provider()))
}

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn certificate(nodes: &Nodes, node: &str, der: &[u8], expires: SystemTime) -> NodeCertificate {
    NodeCertificate {
        node: node.into(),
        serial: "00".into(),
        since: 0,
        expires: seconds(expires),
        sha256: nodes.hash(der).unwrap(),
    }
}

fn join(proof: &Proof, key: &[u8], given: NodeCertificate, now: SystemTime) -> Join {
    Join {
        proof: proof.clone(),
        key: key.into(),
        given,
        now,
    }
}

#[test]
fn a_token_is_for_one_node_until_it_ends_or_is_revoked() {
    let scratch = tempfile::tempdir().unwrap();
    let (nodes, now) = (nodes(scratch.path()), start());
    let (one, two) = (
        nodes.create_token("node-1", HOUR, Use::Always, now).unwrap(),
        nodes.create_token("node-2", 2 * HOUR, Use::Always, now).unwrap(),
    );
    let node = |token: &str, at| {
        let known = nodes.known(&nodes.proof_of_token(token).unwrap(), at).unwrap();
        known.map(|known| known.node)
    };
    assert_eq!(node(&one, now).as_deref(), Some("node-1"));
    assert_eq!(node(&two, now).as_deref(), Some("node-2"));
    for other in ["", "ambient-", &one[..one.len() - 1], &format!("{one}0"), &one.to_uppercase()] {
        assert_eq!(node(other, now), None, "{other}");
    }
    assert_eq!(node(&one, now + HOUR), None);
    let kept = std::fs::read_to_string(scratch.path().join("tokens.json")).unwrap();
    assert!(!kept.contains(one.split_once('.').unwrap().1), "a secret is kept");
    let mode = std::fs::metadata(scratch.path().join("tokens.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Another process revokes it.
    let other = self::nodes(scratch.path());
    let id = other.tokens(now).unwrap()[1].id.clone();
    other.revoke_token(&id, now).unwrap();
    assert!(matches!(other.revoke_token(&id, now), Err(NodesError::Unknown { .. })));
    assert_eq!(node(&two, now), None);
    assert_eq!(nodes.tokens(now).unwrap().len(), 1);
    assert_eq!(nodes.tokens(now + HOUR).unwrap().len(), 0);
}

#[test]
fn a_token_may_be_good_without_end() {
    let scratch = tempfile::tempdir().unwrap();
    let nodes = nodes(scratch.path());
    let token = nodes.create_token("node-1", Duration::MAX, Use::Always, start()).unwrap();
    let proof = nodes.proof_of_token(&token).unwrap();
    let known = nodes.known(&proof, start() + 1000 * HOUR).unwrap().unwrap();
    assert_eq!((&*known.node, known.expires), ("node-1", u64::MAX));
}

#[test]
fn a_certificate_is_good_while_it_is_noted_and_a_revoked_node_has_none() {
    let scratch = tempfile::tempdir().unwrap();
    let (nodes, now) = (nodes(scratch.path()), start());
    let token = nodes
        .proof_of_token(&nodes.create_token("node-1", HOUR, Use::Always, now).unwrap())
        .unwrap();
    let other = nodes
        .proof_of_token(&nodes.create_token("node-2", HOUR, Use::Always, now).unwrap())
        .unwrap();
    let enrol = |proof: &Proof, node: &str, der: &[u8]| {
        let given = certificate(&nodes, node, der, now + HOUR);
        nodes.note(&[join(proof, b"a key", given, now)]).unwrap() == [true]
    };
    let by = |der: &[u8]| nodes.proof_of_certificate(der).unwrap();
    let node = |der: &[u8], at| nodes.known(&by(der), at).unwrap().map(|known| known.node);
    assert_eq!(node(b"one", now), None);
    assert!(enrol(&token, "node-1", b"one") && enrol(&other, "node-2", b"of another"));
    assert_eq!(node(b"one", now).as_deref(), Some("node-1"));
    assert_eq!(node(b"one", now + HOUR), None);
    // It renews itself, and after the node's revocation nothing of the node does.
    assert!(enrol(&by(b"one"), "node-1", b"two"));
    let revoked = nodes.revoke("node-1", now).unwrap();
    assert_eq!((revoked.tokens, revoked.certificates), (1, 2));
    for proof in [&token, &by(b"one"), &by(b"two")] {
        assert!(!enrol(proof, "node-1", b"three"), "{proof:?}");
    }
    assert_eq!(node(b"two", now), None);
    assert_eq!(node(b"of another", now).as_deref(), Some("node-2"));
    assert_eq!(nodes.revoke("node-1", now).unwrap(), RevokedNode::default());
    // A node that begins anew without end keeps its last few.
    for n in 0..3 * CERTIFICATES {
        assert!(enrol(&other, "node-2", format!("{n}").as_bytes()));
    }
    assert_eq!(nodes.certificates(now).unwrap().len(), CERTIFICATES);
    assert_eq!(node(b"0", now), None);
    assert!(node(format!("{}", 3 * CERTIFICATES - 1).as_bytes(), now).is_some());
}

#[test]
fn a_token_for_one_key_is_good_for_no_other() {
    let scratch = tempfile::tempdir().unwrap();
    let (nodes, now) = (nodes(scratch.path()), start());
    let token = nodes
        .proof_of_token(&nodes.create_token("node-1", HOUR, Use::Once, now).unwrap())
        .unwrap();
    assert!(nodes.known(&token, now).unwrap().unwrap().once);
    let enrol = |key: &[u8], der: &[u8]| {
        let given = certificate(&nodes, "node-1", der, now + HOUR);
        nodes.note(&[join(&token, key, given, now)]).unwrap() == [true]
    };
    assert!(enrol(b"a key", b"one"));
    // An answer that was lost on its way is asked for again.
    assert!(enrol(b"a key", b"two"));
    assert!(!enrol(b"a thief's key", b"three"));
    assert_eq!(nodes.certificates(now).unwrap().len(), 2);
}

#[test]
fn what_is_no_name_and_no_file_is_said_so() {
    let scratch = tempfile::tempdir().unwrap();
    let nodes = nodes(scratch.path());
    for node in ["", "a b", "../etc", "a/b", ".x", &"x".repeat(254)] {
        assert!(
            matches!(
                nodes.create_token(node, HOUR, Use::Always, UNIX_EPOCH),
                Err(NodesError::Node { .. })
            ),
            "{node}"
        );
    }
    assert_eq!(nodes.tokens(UNIX_EPOCH).unwrap(), []);
    std::fs::write(scratch.path().join("tokens.json"), "[{}]").unwrap();
    let proof = nodes.proof_of_token("x").unwrap();
    let error = nodes.known(&proof, UNIX_EPOCH).unwrap_err().to_string();
    assert!(error.contains("tokens.json") && error.contains("make new tokens"), "{error}");
}

#[test]
fn a_node_is_not_called_as_the_authority_calls_its_own() {
    let scratch = tempfile::tempdir().unwrap();
    let nodes = nodes(scratch.path());
    for name in ["control", "local"] {
        let error = nodes.create_token(name, HOUR, Use::Always, start()).unwrap_err();
        assert!(matches!(error, NodesError::File(OpenError::OwnName { .. })), "{error}");
    }
    nodes.create_token("local-1", HOUR, Use::Always, start()).unwrap();
    let error = nodes.revoke_token("00", start()).unwrap_err();
    assert!(error.to_string().contains("`ambient control tokens`"), "{error}");
}

/// As where a mount is lost: whom a file named is not revoked because it is gone, and what comes then does not make it so.
#[test]
fn a_file_that_goes_takes_nobody_away() {
    let scratch = tempfile::tempdir().unwrap();
    let (directory, away) = (scratch.path().join("ca"), scratch.path().join("away"));
    std::fs::create_dir(&directory).unwrap();
    let (nodes, now) = (nodes(&directory), start());
    let by = |der: &[u8]| nodes.proof_of_certificate(der).unwrap();
    assert_eq!(nodes.known(&by(b"one"), now).unwrap(), None, "nobody has joined yet");
    let token = nodes
        .proof_of_token(&nodes.create_token("node-1", HOUR, Use::Always, now).unwrap())
        .unwrap();
    let enrol = |der: &[u8]| nodes.note(&[join(&token, b"a key", certificate(&nodes, "node-1", der, now + HOUR), now)]);
    assert_eq!(enrol(b"one").unwrap(), [true]);
    let node = |der: &[u8]| nodes.known(&by(der), now).map(|known| known.map(|known| known.node));
    assert_eq!(node(b"one").unwrap().as_deref(), Some("node-1"));
    assert!(nodes.known(&token, now).unwrap().is_some());

    for empty in [false, true] {
        std::fs::rename(&directory, &away).unwrap();
        if empty {
            std::fs::create_dir(&directory).unwrap();
        }
        for error in [node(b"one").unwrap_err(), nodes.known(&token, now).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains(".json: it is gone: put it back"), "{error}");
        }
        enrol(b"two").unwrap_err();
        nodes.revoke("node-1", now).unwrap_err();
        // Who has read nothing of it knows nobody either where there is no directory, and says so.
        let fresh = self::nodes(&directory);
        assert_eq!(fresh.known(&by(b"one"), now).is_ok(), empty);
        if empty {
            std::fs::remove_file(directory.join(".lock")).unwrap();
            std::fs::remove_dir(&directory).unwrap();
        }
        std::fs::rename(&away, &directory).unwrap();
        assert_eq!(node(b"one").unwrap().as_deref(), Some("node-1"));
    }
    // Nobody is known any more only where that is said.
    std::fs::remove_file(directory.join("nodes.json")).unwrap();
    node(b"one").unwrap_err();
    directory::write(&directory.join("nodes.json"), 0o600, b"[]").unwrap();
    assert_eq!(node(b"one").unwrap(), None);
    assert_eq!(enrol(b"two").unwrap(), [true]);
}

/// However many come at the same time, and whatever comes of it: each is answered once what says so is on the disk.
#[tokio::test]
async fn those_who_join_at_the_same_time_are_noted_with_one_write() {
    const MANY: usize = 2 * CERTIFICATES;
    let scratch = tempfile::tempdir().unwrap();
    let (nodes, now) = (Arc::new(nodes(scratch.path())), start());
    let tokens = ["node-1", "node-2"].map(|node| nodes.create_token(node, HOUR, Use::Once, now).unwrap());
    let proofs = tokens.map(|token| nodes.proof_of_token(&token).unwrap());
    // Those of the one node come with the one key it has, and of the other each with its own.
    let joins = || {
        let (nodes, mut joins) = (nodes.clone(), tokio::task::JoinSet::new());
        for n in 0..MANY {
            let (nodes, proof) = (nodes.clone(), proofs[n % 2].clone());
            let key = if n % 2 == 0 { "the key".into() } else { format!("key {n}") };
            let given = certificate(&nodes, ["node-1", "node-2"][n % 2], format!("{n}").as_bytes(), now + HOUR);
            joins.spawn(async move {
                let hash = given.sha256.clone();
                let noted = nodes.enrol(join(&proof, key.as_bytes(), given, now)).await;
                let kept = std::fs::read_to_string(nodes.directory.join("nodes.json")).unwrap_or_default();
                noted.map(|noted| (noted, kept.contains(&hash)))
            });
        }
        joins
    };
    // Nobody is written before all have come, but for those with whom it is begun.
    let all = async || {
        let lock = nodes.lock().unwrap();
        let joins = joins();
        for _ in 0..2 * MANY {
            tokio::task::yield_now().await;
        }
        drop(lock);
        joins.join_all().await
    };
    let in_the_way = scratch.path().join("nodes.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let mut refusals: Vec<Arc<NodesError>> = all().await.into_iter().map(|noted| noted.unwrap_err()).collect();
    assert_eq!(refusals.len(), MANY);
    refusals.sort_by_key(Arc::as_ptr);
    refusals.dedup_by(|one, other| Arc::ptr_eq(one, other));
    assert!(refusals.len() <= 2, "{} writes for {MANY}", refusals.len());
    std::fs::remove_dir(&in_the_way).unwrap();

    let noted: Vec<(bool, bool)> = all().await.into_iter().map(Result::unwrap).collect();
    assert!(noted.len() == MANY && noted.iter().all(|(noted, kept)| noted == kept), "{noted:?}");
    let of = |node: &str| nodes.certificates(now).unwrap().iter().filter(|one| one.node == node).count();
    assert_eq!(
        (of("node-1"), of("node-2")),
        (CERTIFICATES, 1),
        "of another key than the first none is given"
    );
    assert_eq!(noted.iter().filter(|(noted, _)| *noted).count(), MANY / 2 + 1);
    // Whoever was the last has somebody to begin with.
    while nodes.joins().writes {
        tokio::task::yield_now().await;
    }
}
