//! What is given to a node elsewhere, and to a workload.

use super::*;

#[test]
fn a_node_elsewhere_signs_with_what_it_was_given_until_that_ends() {
    let mut mesh = Mesh::new();
    let away = mesh.dir.parent().unwrap().join("away");
    let given = mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
    assert_eq!(given.expires, seconds(mesh.now + HOUR));
    let key = given.files.last().unwrap();
    assert!(key.starts_with(away.join("intermediates/far")));
    assert_eq!((mode(&away), mode(key)), (0o700, 0o600));
    assert!(!away.join("root-key.pem").exists());
    let far = mesh.node_in(&away, "far").unwrap();
    let near = mesh.node("near");
    let credential = mesh.issue(&far, "cart");
    assert_eq!(credential.not_after, mesh.now + HOUR);
    mesh.verify(&mesh.trust(&near), &credential).unwrap();
    mesh.verify(&mesh.trust(&far), &mesh.issue(&near, "cart")).unwrap();
    // It vouches for no host, makes no other intermediate, and is nobody else's.
    let error = far.issue_to_server(&["istiod.istio-system.svc".into()]).unwrap_err();
    assert!(error.to_string().contains("root-key.pem"), "{error}");
    let error = mesh.node_in(&away, "other").unwrap_err();
    assert!(
        error.to_string().contains("of the node other is here") && error.to_string().contains("(there are some of far)"),
        "{error}"
    );
    let elsewhere = Authority::open(&away).unwrap();
    let error = elsewhere.rotate(DAY, mesh.now).unwrap_err();
    assert!(matches!(error, OpenError::NoRootKey { .. }), "{error}");
    // Both it and the root's holder can revoke what it has signed.
    let done = elsewhere.revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    assert_eq!(done.certificates.len(), 1);
    assert!(mesh.is_revoked(&mesh.trust(&far), &credential));
    let error = elsewhere.revoke(&Target::Node("far".into()), mesh.now).unwrap_err();
    assert!(
        matches!(error, OpenError::Left { done: 0, .. }) && error.to_string().contains("where the root's key is"),
        "{error}"
    );
    mesh.authority().revoke(&Target::Node("far".into()), mesh.now).unwrap();
    assert!(mesh.is_revoked(&mesh.trust(&near), &credential));
    // Carried there again before the end: the same process goes on.
    mesh.now += HOUR / 2;
    mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
    let next = mesh.issue(&far, "stock");
    mesh.verify(&mesh.trust(&near), &next).unwrap();
    mesh.now += 2 * HOUR;
    let error = far.sign(&id("stock"), mesh.now).unwrap_err();
    assert!(error.to_string().contains("issue another where the root's key is"), "{error}");
    // Another authority's directory is left alone, and so is one with a root's key.
    let other = mesh.dir.parent().unwrap().join("other");
    Authority::init(&other, TrustDomain::default(), mesh.now).unwrap();
    let error = mesh.authority().issue_to_node("far", HOUR, &other, mesh.now).unwrap_err();
    assert!(matches!(error, OpenError::Exists { .. }), "{error}");
    let error = mesh.authority().issue_to_node("far", HOUR, &mesh.dir, mesh.now).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. } | OpenError::Unsafe { .. }), "{error}");
}

/// By whichever way it is carried: issued into the node's own directory, or into another and copied over it.
#[test]
fn what_was_revoked_at_a_node_stays_so_when_it_is_issued_to_again() {
    for copied in [false, true] {
        let mesh = Mesh::new();
        let away = mesh.dir.parent().unwrap().join("away");
        let given = mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
        let (far, near) = (mesh.node_in(&away, "far").unwrap(), mesh.node("near"));
        let (cart, stock) = (mesh.issue(&far, "cart"), mesh.issue(&far, "stock"));
        let [there, above, here] = [&cart, &stock, &mesh.issue(&near, "web")].map(Clone::clone);
        let elsewhere = Authority::open(&away).unwrap();
        elsewhere.revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
        assert!(mesh.is_revoked(&mesh.trust(&far), &there));
        // The root's holder has a key of the same intermediate, and a list of it.
        let target = Target::Serial {
            serial: serial_of(&above, 0),
            issuer: Some(given.serial.clone()),
        };
        mesh.authority().revoke(&target, mesh.now).unwrap();
        mesh.authority().revoke(&Target::Identity(id("web")), mesh.now).unwrap();
        if copied {
            let stick = mesh.dir.parent().unwrap().join("stick");
            for given in mesh.authority().issue_to_node("far", HOUR, &stick, mesh.now).unwrap().files {
                fs::copy(&given, away.join(given.strip_prefix(&stick).unwrap())).unwrap();
            }
        } else {
            mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
            of_node::knows(&away, &mesh.dir, &serial_of(&there, 0), &serial_of(&above, 0));
        }
        let trust = mesh.trust(&far);
        for revoked in [&there, &above, &here] {
            assert!(mesh.is_revoked(&trust, revoked), "{} copied: {copied}", revoked.identity);
        }
        let good = mesh.issue(&far, "books");
        mesh.verify(&trust, &good).unwrap();
        // And what is revoked there after that takes nothing back either.
        elsewhere.revoke(&Target::Identity(id("books")), mesh.now).unwrap();
        for revoked in [&there, &above, &here, &good] {
            assert!(mesh.is_revoked(&mesh.trust(&far), revoked), "{} copied: {copied}", revoked.identity);
        }
        // Nothing is written again by whoever looks: processes that share the directory would wake each other.
        let written = fs::read(away.join("crl.pem")).unwrap();
        mesh.node_in(&away, "far").unwrap();
        assert_eq!(fs::read(away.join("crl.pem")).unwrap(), written);
    }
}

/// Whether a list's issuer has ended is not known by a clock that is ahead, also where something was revoked at the node itself.
#[test]
fn no_list_is_left_out_on_its_way_to_a_node_by_a_clock_that_is_ahead() {
    for own in [false, true] {
        let mut mesh = Mesh::new();
        let away = mesh.dir.parent().unwrap().join("away");
        mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
        let web = mesh.issue(&mesh.node("near"), "web");
        mesh.authority().revoke(&Target::Identity(id("web")), mesh.now).unwrap();
        if own {
            mesh.issue(&mesh.node_in(&away, "far").unwrap(), "cart");
            let there = Authority::open(&away).unwrap();
            there.revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
        }
        mesh.now += 8 * DAY;
        mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
        let lists = revoked::read_lists(&away).unwrap();
        let web = serial_of(&web, 0);
        assert!(lists.iter().any(|list| list.names_all(&[&web])), "with a record of its own: {own}");
    }
}

#[test]
fn who_is_revoked_at_the_root_is_so_at_a_node_elsewhere_once_it_is_issued_to_again() {
    let mesh = Mesh::new();
    let away = mesh.dir.parent().unwrap().join("away");
    mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
    let far = mesh.node_in(&away, "far").unwrap();
    mesh.node("near");
    mesh.node(CONTROL);
    let elsewhere = Authority::open(&away).unwrap();
    elsewhere.revoke(&Target::Identity(id("stock")), mesh.now).unwrap();
    let revoked = mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    assert_eq!((revoked.certificates, revoked.nodes), (vec![], vec!["far".into(), "near".into()]));
    mesh.issue(&far, "cart");
    let carry = || mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
    carry();
    let refused = |account: &str| matches!(far.sign(&id(account), mesh.now), Err(IssueError::Refused { .. }));
    assert!(refused("cart") && refused("stock"));
    assert_eq!(
        elsewhere.show(mesh.now).unwrap().barred,
        [id("cart").as_str(), id("stock").as_str()]
    );
    let error = elsewhere.lift(&id("cart")).unwrap_err().to_string();
    assert!(error.contains("lift it there, and issue to this node again"), "{error}");
    // What is lifted at the root is so too, and what was revoked at the node is the node's.
    let file = away.join("revoked-above.json");
    let before = fs::read(&file).unwrap();
    mesh.authority().lift(&id("cart")).unwrap();
    carry();
    assert!(!refused("cart") && refused("stock"));
    // That file alone is enough.
    fs::write(&file, before).unwrap();
    assert!(refused("cart"));
    // A node whose intermediates are all revoked signs nothing that counts.
    mesh.authority().revoke(&Target::Node("far".into()), mesh.now).unwrap();
    let revoked = mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    assert_eq!(revoked.nodes, ["near"]);
    // Nor is it signed with there, though it would live longer than the next.
    let given = mesh.authority().issue_to_node("far", HOUR / 2, &away, mesh.now).unwrap();
    assert_eq!(serial_of(&mesh.issue(&far, "books"), 1), given.serial);
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let mesh = Mesh::new();
    let out = mesh.dir.parent().unwrap().join("out");
    let authority = mesh.authority();
    let content = || {
        let files = walkdir(&mesh.dir);
        files
            .into_iter()
            .map(|file| fs::read(&file).map(|content| (file, content)).unwrap())
    };
    let before: Vec<_> = content().collect();
    for name in ["N 1/..", "", ".", "local"] {
        authority.issue_to_node(name, HOUR, &out, mesh.now).unwrap_err();
    }
    let foreign = "spiffe://other/ns/shop/sa/cart".parse().unwrap();
    authority.issue_to_workload(&foreign, HOUR, &out, mesh.now).unwrap_err();
    assert!(!out.exists());
    // Nor does a directory that holds the key of all get what is for one.
    for within in [
        mesh.dir.clone(),
        mesh.dir.join("issued"),
        mesh.dir.join("new/one"),
        mesh.dir.join("../ca/x"),
    ] {
        let errors = [
            authority.issue_to_node("far", HOUR, &within, mesh.now).unwrap_err(),
            authority.issue_to_workload(&id("cart"), HOUR, &within, mesh.now).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("outside of that"), "{error}");
        }
    }
    assert_eq!(content().collect::<Vec<_>>(), before);
}

fn walkdir(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .flat_map(|path| if path.is_dir() { walkdir(&path) } else { vec![path] })
        .collect();
    files.sort();
    files
}

#[test]
fn the_key_of_one_identity_is_not_written_over_that_of_another() {
    let mesh = Mesh::new();
    let out = mesh.dir.parent().unwrap().join("out");
    let authority = mesh.authority();
    let given = authority.issue_to_workload(&id("cart"), HOUR, &out, mesh.now).unwrap();
    // Its own is renewed where it is.
    let again = authority.issue_to_workload(&id("cart"), HOUR, &out, mesh.now).unwrap();
    assert_ne!(given.serial, again.serial);
    let key = fs::read(out.join("key.pem")).unwrap();
    let refused = |account: &str| {
        authority
            .issue_to_workload(&id(account), HOUR, &out, mesh.now)
            .unwrap_err()
            .to_string()
    };
    let error = refused("stock");
    assert!(error.contains("key.pem") && error.contains(id("cart").as_str()), "{error}");
    fs::remove_file(out.join("cert-chain.pem")).unwrap();
    let error = refused("cart");
    assert!(error.contains("key.pem") && error.contains("no certificate beside it"), "{error}");
    assert_eq!(fs::read(out.join("key.pem")).unwrap(), key);
    fs::remove_file(out.join("key.pem")).unwrap();
    authority.issue_to_workload(&id("stock"), HOUR, &out, mesh.now).unwrap();
}

/// What remedies name is what can be done.
#[test]
fn no_remedy_is_one_that_is_refused() {
    let mesh = Mesh::new();
    let away = mesh.dir.parent().unwrap().join("away");
    mesh.authority().issue_to_node("far", HOUR, &away, mesh.now).unwrap();
    for name in ["local", "control"] {
        let error = mesh.node_in(&away, name).unwrap_err().to_string();
        assert!(
            !error.contains("ca issue") && error.contains("do this where that key is"),
            "{error}"
        );
    }
    assert!(
        mesh.node_in(&away, "near")
            .unwrap_err()
            .to_string()
            .contains("ca issue --node near")
    );
    // A node whose intermediate has gone with its root signs for nobody.
    let nodes = || mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap().nodes;
    assert_eq!(nodes(), ["far"]);
    for _ in 0..3 {
        mesh.authority().rotate(Duration::ZERO, mesh.now).unwrap();
    }
    assert!(nodes().is_empty());
}
