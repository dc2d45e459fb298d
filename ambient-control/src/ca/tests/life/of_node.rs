//! What is of a node, and is revoked with it.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::ca::signer::request;

/// What the control plane signs for a pod of a node.
fn signed_for(mesh: &Mesh, control: &DirectoryCa, account: &str, node: Option<&str>) -> Credential {
    let identity = id(account);
    let whom = Whom::Id(identity.spiffe_id());
    let (key, csr) = request(&whom).unwrap();
    let request = Request {
        whom,
        csr: &csr,
        life: HOUR,
        node,
    };
    let signed = control.sign_pem(&request).unwrap();
    let credential = Credential {
        identity: identity.clone(),
        chain: signed.chain,
        key: Arc::new(PrivateKey::from(key.serialize_der())),
        not_before: signed.not_before,
        not_after: signed.not_after,
    };
    mesh.verify(&mesh.trust(control), &credential).unwrap();
    credential
}

fn revoke(mesh: &Mesh, node: &str) -> Result<Vec<String>, OpenError> {
    let revoked = mesh.authority().revoke(&Target::Node(node.into()), mesh.now)?;
    Ok(revoked.certificates.into_iter().map(|one| one.serial).collect())
}

#[test]
fn what_was_signed_for_a_node_is_revoked_with_it() {
    let mesh = Mesh::new();
    let control = mesh.node(CONTROL);
    let of_one = signed_for(&mesh, &control, "cart", Some("node-1"));
    let of_two = signed_for(&mesh, &control, "cart", Some("node-2"));
    let of_nobody = signed_for(&mesh, &control, "stock", None);
    assert_eq!(revoke(&mesh, "node-1").unwrap(), [serial_of(&of_one, 0)]);
    let trust = mesh.trust(&control);
    let revoked = [&of_one, &of_two, &of_nobody].map(|one| mesh.is_revoked(&trust, one));
    assert_eq!(revoked, [true, false, false]);
    assert!(revoke(&mesh, "node-1").unwrap().is_empty());
    let error = revoke(&mesh, "node-3").unwrap_err();
    assert!(matches!(error, OpenError::Unknown { .. }), "{error}");
    // With what it signs itself, where it was given an intermediate.
    let away = mesh.dir.parent().unwrap().join("away");
    let given = mesh.authority().issue_to_node("node-2", HOUR, &away, mesh.now).unwrap();
    assert_eq!(revoke(&mesh, "node-2").unwrap(), [given.serial, serial_of(&of_two, 0)]);
    assert!(mesh.is_revoked(&mesh.trust(&control), &of_two));
}

/// What the files of a node hold once it was issued to again, before anybody there has looked: what was revoked there and above, and
/// nothing of others, in a list that is newer than the root's holder's.
pub(super) fn knows(away: &Path, root: &Path, there: &str, above: &str) {
    let carried = revoked::Revoked::above(away).unwrap().certificates;
    assert_eq!(carried.iter().map(|one| &*one.serial).collect::<Vec<_>>(), [above]);
    let number = |directory: &Path, serials: &[&str]| {
        let lists = revoked::read_lists(directory).unwrap();
        let list = lists
            .into_iter()
            .find(|list| list.names_all(serials))
            .expect("a list that names them");
        let (_, list) = x509_parser::parse_x509_crl(&list.der).unwrap();
        list.crl_number().expect("a number").clone()
    };
    assert!(number(away, &[there, above]) > number(root, &[above]));
}

/// The one who revokes holds the lock from before that until the lists are written.
#[test]
fn who_is_barred_gets_nothing_while_the_rest_is_revoked() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    mesh.issue(&node, "cart");
    let _revoking = directory::lock(&mesh.dir).unwrap();
    let mut revoked = revoked::Revoked::read(&mesh.dir).unwrap();
    revoked.barred.insert(id("cart").as_str().into());
    revoked.write(&mesh.dir).unwrap();
    let refused = node.sign(&id("cart"), mesh.now).unwrap_err();
    assert!(matches!(refused, IssueError::Refused { .. }), "{refused}");
    mesh.issue(&node, "stock");
}

/// Before anything that can fail, such as the reading of lists.
#[test]
fn an_identity_is_barred_though_no_list_can_be_read() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let lists = mesh.dir.join("crl.pem");
    fs::write(&lists, "garbage").unwrap();
    let error = mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap_err();
    assert!(matches!(error, OpenError::Barred { .. }), "{error}");
    fs::remove_file(&lists).unwrap();
    let refused = node.sign(&id("cart"), mesh.now).unwrap_err();
    assert!(matches!(refused, IssueError::Refused { .. }), "{refused}");
}

/// As they were written before anybody noted for which node.
#[test]
fn records_that_name_no_node_are_read() {
    let mesh = Mesh::new();
    let control = mesh.node(CONTROL);
    let cart = signed_for(&mesh, &control, "cart", Some("node-1"));
    let record = mesh.dir.join("issued").join(format!("{}.jsonl", serial_of(&cart, 1)));
    let line = fs::read_to_string(&record).unwrap();
    let before = line.replace(",\"node\":\"node-1\"", "");
    assert_ne!(line, before);
    fs::write(&record, before).unwrap();
    let error = revoke(&mesh, "node-1").unwrap_err();
    assert!(matches!(error, OpenError::Unknown { .. }), "{error}");
    let revoked = mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    assert_eq!(revoked.certificates[0].serial, serial_of(&cart, 0));
    assert!(mesh.is_revoked(&mesh.trust(&control), &cart));
}

/// Stages that nobody waited for leave intermediates below a root that nobody trusts: nothing is left to be revoked of them.
#[test]
fn what_went_with_its_root_is_not_asked_for() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let gone = serial_of(&mesh.issue(&node, "cart"), 1);
    for _ in 0..3 {
        mesh.authority().rotate(Duration::ZERO, mesh.now).unwrap();
    }
    let error = revoke(&mesh, "a").unwrap_err();
    assert!(matches!(error, OpenError::Unknown { .. }), "{error}");
    let target = Target::Serial {
        serial: gone.clone(),
        issuer: None,
    };
    let error = mesh.authority().revoke(&target, mesh.now).unwrap_err().to_string();
    assert!(error.contains("its root was withdrawn"), "{error}");
    let cart = mesh.issue(&mesh.node("a"), "cart");
    assert_ne!(serial_of(&cart, 1), gone);
    assert_eq!(revoke(&mesh, "a").unwrap(), [serial_of(&cart, 1)]);
    assert!(mesh.is_revoked(&mesh.trust(&mesh.node("b")), &cart));
}

/// What an authority's own processes sign by is given to nobody.
#[test]
fn a_node_is_not_called_as_the_authority_calls_its_own() {
    let mesh = Mesh::new();
    let away = mesh.dir.parent().unwrap().join("away");
    for name in ["control", "local"] {
        let error = mesh.authority().issue_to_node(name, HOUR, &away, mesh.now).unwrap_err();
        assert!(matches!(error, OpenError::OwnName { .. }), "{error}");
        mesh.node(name);
    }
    assert!(!away.exists());
    mesh.authority().issue_to_node("control-1", HOUR, &away, mesh.now).unwrap();
}

/// As where the disk of a node is full: what was carried there is in force, and the rest is tried again, not at every look.
#[test]
fn lists_that_cannot_be_signed_anew_keep_nothing_else_from_being_in_force() {
    let mut mesh = Mesh::new();
    let node = mesh.node("a");
    let cart = mesh.issue(&node, "cart");
    mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    fs::write(mesh.dir.join("crl.pem"), "").unwrap();
    // A draft that cannot be taken away.
    let draft = mesh.dir.join("crl.new");
    fs::create_dir(&draft).unwrap();
    let mut above = revoked::Revoked::default();
    above.barred.insert(id("stock").as_str().into());
    above.write_to(&mesh.dir.join("revoked-above.json")).unwrap();
    let refused = node.sign(&id("stock"), mesh.now).unwrap_err();
    assert!(matches!(refused, IssueError::Refused { .. }), "{refused}");
    assert!(!mesh.is_revoked(&mesh.trust(&node), &cart));
    let written = || fs::metadata(mesh.dir.join("revoked.json")).unwrap().ino();
    let before = written();
    for _ in 0..3 {
        mesh.issue(&node, "books");
    }
    assert_eq!(written(), before, "it is not tried at every look");
    fs::remove_dir(&draft).unwrap();
    mesh.now += Duration::from_secs(2);
    assert!(mesh.is_revoked(&mesh.trust(&node), &cart));
}
