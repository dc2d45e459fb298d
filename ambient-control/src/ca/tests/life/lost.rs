//! What is lost or damaged of an authority's records is told, and nobody is trusted again for it.

use std::os::unix::fs::PermissionsExt as _;

use ambient_testkit::log::{Lines, heard_by};

use super::*;

#[test]
fn a_record_of_revocations_that_is_lost_lifts_none() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let cart = mesh.issue(&node, "cart");
    let authority = mesh.authority();
    // Nothing was revoked yet, and there is no record.
    assert!(!mesh.dir.join("revoked.json").exists());
    authority.show(mesh.now).unwrap();
    authority.revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    assert!(mesh.is_revoked(&mesh.trust(&node), &cart));
    let [record, lists] = ["revoked.json", "crl.pem"].map(|name| mesh.dir.join(name));
    let (copy, listed) = (fs::read(&record).unwrap(), fs::read(&lists).unwrap());
    fs::remove_file(&record).unwrap();

    let away = mesh.dir.parent().unwrap().join("away");
    let refused = [
        mesh.node_in(&mesh.dir, "a").err(),
        authority.show(mesh.now).err(),
        authority.revoke(&Target::Identity(id("stock")), mesh.now).err(),
        authority.lift(&id("cart")).err(),
        authority.issue_to_node("n1", HOUR, &away, mesh.now).err(),
        authority.issue_to_workload(&id("cart"), HOUR, &away, mesh.now).err(),
    ];
    for error in refused {
        let error = error.expect("it is refused").to_string();
        assert!(error.contains("revoked.json") && error.contains("put it back"), "{error}");
    }
    assert_eq!(fs::read(&lists).unwrap(), listed, "nothing is signed anew without it");
    // Who has it open goes on with what was read.
    assert!(matches!(node.sign(&id("cart"), mesh.now), Err(IssueError::Refused { .. })));
    assert!(mesh.is_revoked(&mesh.trust(&node), &cart));
    mesh.issue(&node, "stock");

    fs::write(&record, copy).unwrap();
    fs::set_permissions(&record, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(authority.show(mesh.now).unwrap().barred, [id("cart").as_str()]);
}

/// A revocation of an identity that has no certificate leaves lists of nobody.
#[test]
fn a_record_that_only_bars_is_missed_as_well() {
    let mesh = Mesh::new();
    mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    fs::remove_file(mesh.dir.join("revoked.json")).unwrap();
    let error = mesh.node_in(&mesh.dir, "a").unwrap_err().to_string();
    assert!(error.contains("revoked.json"), "{error}");
}

#[test]
fn what_cannot_be_read_of_what_was_issued_is_told() {
    let mut mesh = Mesh::new();
    let node = mesh.node("a");
    let (cart, stock) = (mesh.issue(&node, "cart"), mesh.issue(&node, "stock"));
    let record = mesh.dir.join("issued").join(format!("{}.jsonl", serial_of(&cart, 1)));
    let whole = fs::read_to_string(&record).unwrap();
    let authority = mesh.authority();
    assert_eq!(authority.show(mesh.now).unwrap().unreadable, []);
    fs::write(&record, whole.replacen("stock", "st\u{0}ck", 1)).unwrap();
    let told = [Unreadable {
        path: record.clone(),
        lines: 1,
        first: 2,
    }];
    let shown = authority.show(mesh.now).unwrap();
    assert_eq!((shown.issued.len(), &shown.unreadable[..]), (1, &told[..]));
    let done = authority.revoke(&Target::Identity(id("stock")), mesh.now).unwrap();
    assert_eq!((done.certificates.len(), &done.unreadable[..]), (0, &told[..]));
    let target = Target::Serial {
        serial: serial_of(&stock, 0),
        issuer: None,
    };
    let error = authority.revoke(&target, mesh.now).unwrap_err().to_string();
    assert!(error.contains("line 2 of") && error.contains("is not known"), "{error}");

    fs::write(&record, "").unwrap();
    let shown = authority.show(mesh.now).unwrap();
    assert!(shown.unreadable[0].to_string().ends_with(".jsonl is empty"), "{shown:?}");
    // It stays for as long as what it tells of may be valid.
    fs::write(&record, "garbage\n").unwrap();
    issued::tidy(&mesh.dir, mesh.now).unwrap();
    assert!(record.exists());
    mesh.now += 2 * DAY;
    issued::tidy(&mesh.dir, mesh.now).unwrap();
    assert!(!record.exists());
}

/// As where the disk was full, or the machine lost its power.
#[test]
fn a_record_that_was_cut_short_spoils_no_other() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let cart = mesh.issue(&node, "cart");
    let record = mesh.dir.join("issued").join(format!("{}.jsonl", serial_of(&cart, 1)));
    let whole = fs::read_to_string(&record).unwrap();
    fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    let stock = mesh.issue(&node, "stock");
    let shown = mesh.authority().show(mesh.now).unwrap();
    assert_eq!(
        shown.issued.iter().map(|one| &*one.serial).collect::<Vec<_>>(),
        [serial_of(&stock, 0)]
    );
    assert_eq!((shown.unreadable[0].lines, shown.unreadable[0].first), (1, 1));
    // Two at once may both have begun a line; nothing stands in the one between.
    let begun = fs::read_to_string(&record).unwrap() + "\n";
    fs::write(&record, begun).unwrap();
    mesh.issue(&node, "stock");
    let shown = mesh.authority().show(mesh.now).unwrap();
    assert_eq!((shown.issued.len(), shown.unreadable[0].lines), (2, 1));
}

#[test]
fn a_clock_that_is_ahead_forgets_no_revocation() {
    for ahead in [2 * DAY, 30 * DAY] {
        let mut mesh = Mesh::new();
        let node = mesh.node("a");
        let cart = mesh.issue(&node, "cart");
        mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
        let right = mesh.now;
        // Whatever is renewed meanwhile, and whoever is revoked.
        mesh.now += ahead;
        mesh.issue(&node, "stock");
        mesh.authority().revoke(&Target::Identity(id("stock")), mesh.now).unwrap();
        mesh.now += HOUR;
        mesh.issue(&mesh.node("b"), "stocks");
        mesh.now = right + HOUR;
        mesh.issue(&node, "books");
        assert!(mesh.is_revoked(&mesh.trust(&node), &cart), "{ahead:?}");
        assert!(mesh.is_revoked(&mesh.trust(&mesh.node("c")), &cart), "{ahead:?}");
        // Once it has ended, and as much time again has gone by, it is forgotten all the same.
        for _ in 0..3 {
            mesh.now += DAY;
            mesh.authority().revoke(&Target::Identity(id("nobody")), mesh.now).unwrap();
        }
        let shown = mesh.authority().show(mesh.now).unwrap();
        assert!(shown.revoked.iter().all(|one| one.serial != serial_of(&cart, 0)), "{ahead:?}");
    }
}

/// What came with an intermediate says who gets no certificate: it is missed.
#[test]
fn a_node_whose_record_of_above_is_lost_signs_nothing() {
    let mesh = Mesh::new();
    let away = mesh.dir.parent().unwrap().join("away");
    let authority = mesh.authority();
    authority.revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    authority.issue_to_node("far", DAY, &away, mesh.now).unwrap();
    let far = mesh.node_in(&away, "far").unwrap();
    fs::remove_file(away.join("revoked-above.json")).unwrap();
    let there = Authority::open(&away).unwrap();
    let refused = [
        mesh.node_in(&away, "far").err(),
        there.show(mesh.now).err(),
        there.revoke(&Target::Identity(id("stock")), mesh.now).err(),
    ];
    for error in refused {
        let error = error.expect("it is refused").to_string();
        assert!(
            error.contains("revoked-above.json: it is not here") && error.contains("ca issue --node"),
            "{error}"
        );
    }
    // Who has it open goes on with what was read.
    assert!(matches!(far.sign(&id("cart"), mesh.now), Err(IssueError::Refused { .. })));
    mesh.issue(&far, "books");
    authority.issue_to_node("far", DAY, &away, mesh.now).unwrap();
    let far = mesh.node_in(&away, "far").unwrap();
    assert!(matches!(far.sign(&id("cart"), mesh.now), Err(IssueError::Refused { .. })));
    // A directory of the root's whose key is kept elsewhere was given by nobody.
    fs::rename(mesh.dir.join("root-key.pem"), mesh.dir.parent().unwrap().join("kept")).unwrap();
    authority.show(mesh.now).unwrap();
}

/// Between two looks, as while somebody revokes: what cannot be read then may be that this very identity is barred.
#[test]
fn who_cannot_be_looked_for_among_the_barred_gets_nothing_until_that_is_told() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let revoking = directory::lock(&mesh.dir).unwrap();
    fs::write(mesh.dir.join("revoked.json"), "{").unwrap();
    let error = node.sign(&id("cart"), mesh.now).unwrap_err();
    assert!(
        matches!(&error, IssueError::Unavailable { why, .. } if why.contains("revoked.json")),
        "{error}"
    );
    drop(revoking);
    // A look has told that it cannot be read, and what was read before is in force.
    mesh.issue(&node, "cart");
}

/// Looks at it once a second, as a node does; what is logged meanwhile.
fn looks(mesh: &mut Mesh, node: &DirectoryCa, seconds: u64, lines: &Lines) -> Vec<String> {
    for _ in 0..seconds {
        mesh.now += Duration::from_secs(1);
        mesh.trust(node);
    }
    lines.take().into_iter().map(|line| line.message).collect()
}

#[test]
fn a_directory_that_is_gone_is_a_fault_until_it_is_back_and_fills_no_log() {
    let mut mesh = Mesh::new();
    let node = mesh.node("a");
    let lines = Lines::of("ca::present");
    let _guard = heard_by(lines.clone());
    assert!(looks(&mut mesh, &node, 2, &lines).is_empty() && node.faults().is_empty());
    let away = mesh.dir.parent().unwrap().join("away");
    fs::rename(&mesh.dir, &away).unwrap();
    let told = looks(&mut mesh, &node, 59, &lines);
    assert_eq!(told, node.faults(), "once, as it begins");
    for part in [
        mesh.dir.to_str().unwrap(),
        "cannot look at",
        "put back what was there",
        "read before stays in force",
    ] {
        assert!(told.len() == 1 && told[0].contains(part), "{told:?} does not say {part:?}");
    }
    assert_eq!(
        looks(&mut mesh, &node, 240, &lines),
        vec![told[0].clone(); 4],
        "once a minute after that"
    );
    // Another thing is wrong: as where nothing is mounted there any more. To make another authority is no way out.
    fs::create_dir(&mesh.dir).unwrap();
    fs::set_permissions(&mesh.dir, fs::Permissions::from_mode(0o700)).unwrap();
    let told = looks(&mut mesh, &node, 30, &lines);
    assert_eq!(told, node.faults(), "once, as it changes");
    assert!(told[0].contains("its root is gone") && !told[0].contains("ca init"), "{told:?}");
    fs::remove_dir_all(&mesh.dir).unwrap();
    fs::rename(&away, &mesh.dir).unwrap();
    let told = looks(&mut mesh, &node, 30, &lines);
    assert_eq!(told, ["the directory of the authority can be used again"]);
    assert!(node.faults().is_empty());
    mesh.issue(&node, "cart");
}

#[test]
fn a_file_of_an_authority_that_cannot_be_read_is_a_fault_until_it_can() {
    let mut mesh = Mesh::new();
    let node = mesh.node("a");
    let lines = Lines::of("ca::present");
    let _guard = heard_by(lines.clone());
    let root = mesh.dir.join("root.pem");
    let good = fs::read(&root).unwrap();
    fs::write(&root, "torn").unwrap();
    let told = looks(&mut mesh, &node, 30, &lines);
    assert!(told.len() == 1 && told[0].contains("root.pem"), "{told:?}");
    assert_eq!(told, node.faults());
    fs::write(&root, good).unwrap();
    assert_eq!(looks(&mut mesh, &node, 30, &lines).len(), 1, "that it is over");
    assert!(node.faults().is_empty());
}
