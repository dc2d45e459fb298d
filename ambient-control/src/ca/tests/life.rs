//! Intermediates, roots and revocations over time, as those who verify see them.

use std::{path::PathBuf, sync::Arc};

use ambient_tls::{Accepted, ChainError, PeerError, Role, Trust, Verifier};
use proptest::prelude::*;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::*;

mod elsewhere;
mod lost;
mod of_node;
mod stolen;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A directory, and a time that goes on as told.
struct Mesh {
    _scratch: tempfile::TempDir,
    dir: PathBuf,
    now: SystemTime,
}

#[derive(Debug)]
struct At(SystemTime);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.duration_since(UNIX_EPOCH).unwrap()))
    }
}

impl Mesh {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("ca");
        let now = whole_seconds(now());
        Authority::init(&dir, TrustDomain::default(), now).unwrap();
        Self {
            _scratch: scratch,
            dir,
            now,
        }
    }

    fn node(&self, name: &str) -> DirectoryCa {
        self.node_in(&self.dir, name).unwrap()
    }

    fn node_in(&self, dir: &Path, name: &str) -> Result<DirectoryCa, OpenError> {
        DirectoryCa::open_at(dir, TrustDomain::default(), DAY, name, self.now)
    }

    fn authority(&self) -> Authority {
        Authority::open(&self.dir).unwrap()
    }

    fn issue(&self, ca: &DirectoryCa, account: &str) -> Credential {
        ca.sign(&id(account), self.now).unwrap()
    }

    fn trust(&self, ca: &DirectoryCa) -> Arc<TrustBundles> {
        ca.holder.trust(self.now)
    }

    fn verify(&self, trust: &TrustBundles, credential: &Credential) -> Result<(), PeerError> {
        let trust = Arc::new(Trust::new(&Arc::new(ambient_tls::provider()), trust));
        assert_eq!(trust.faults(), []);
        let chain: Vec<_> = credential.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let verifier = Verifier::new(&trust, Accepted::AnyWorkload).with_time(Arc::new(At(self.now)));
        verifier.verify(&chain, Role::Client)?;
        verifier.verify(&chain, Role::Server).map(drop)
    }

    fn is_revoked(&self, trust: &TrustBundles, credential: &Credential) -> bool {
        match self.verify(trust, credential) {
            Err(PeerError::Chain {
                source: ChainError::Revoked(_),
                ..
            }) => true,
            Ok(()) => false,
            Err(other) => panic!("{other}"),
        }
    }
}

fn id(account: &str) -> Identity {
    Identity::new(&TrustDomain::default(), "shop", account).unwrap()
}

fn serial_of(credential: &Credential, at: usize) -> String {
    let (_, certificate) = X509Certificate::from_der(&credential.chain[at]).unwrap();
    serial::hex(certificate.raw_serial())
}

#[test]
fn an_intermediate_is_renewed_at_half_its_life_and_shared_by_those_who_name_the_node() {
    let mut mesh = Mesh::new();
    let (one, same, other) = (mesh.node("a"), mesh.node("a"), mesh.node("b"));
    let first = mesh.issue(&one, "cart");
    assert_eq!(mesh.issue(&same, "cart").chain[1], first.chain[1]);
    assert_ne!(mesh.issue(&other, "cart").chain[1], first.chain[1]);
    mesh.now += DAY / 2;
    let second = mesh.issue(&one, "cart");
    assert_ne!(second.chain[1], first.chain[1]);
    assert_eq!(mesh.issue(&same, "cart").chain[1], second.chain[1]);
    // Nobody forgets the former before its end, and nothing of it outlives it.
    let trust = mesh.trust(&one);
    mesh.verify(&trust, &first).unwrap();
    mesh.now = first.not_after + Duration::from_secs(1);
    mesh.verify(&trust, &second).unwrap();
    assert!(mesh.verify(&trust, &first).is_err());
    mesh.issue(&one, "cart");
    assert!(fs::read_dir(mesh.dir.join("intermediates/a")).unwrap().count() <= 2);
    mesh.now += 10 * DAY;
    mesh.issue(&one, "cart");
    assert_eq!(fs::read_dir(mesh.dir.join("intermediates/a")).unwrap().count(), 1);
    // What was issued is forgotten with it.
    assert_eq!(fs::read_dir(mesh.dir.join("issued")).unwrap().count(), 1);
}

/// The clock was ahead when an intermediate was made, and is set.
#[test]
fn what_has_not_begun_signs_nothing() {
    let mut mesh = Mesh::new();
    let right = mesh.now;
    mesh.now += DAY / 4;
    let node = mesh.node("a");
    let ahead = mesh.issue(&node, "cart");
    mesh.now = right;
    let trust = mesh.trust(&node);
    assert!(mesh.verify(&trust, &ahead).is_err());
    let cart = mesh.issue(&node, "cart");
    mesh.verify(&trust, &cart).unwrap();
    assert_eq!(mesh.issue(&node, "cart").chain[1], cart.chain[1], "one is made, and no more");
}

#[test]
fn trust_is_one_value_until_it_changes_and_then_another_at_once() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let first = mesh.trust(&node);
    assert!(Arc::ptr_eq(&first, &mesh.trust(&node)));
    mesh.issue(&node, "cart");
    mesh.node("b");
    assert!(Arc::ptr_eq(&first, &mesh.trust(&node)));
    mesh.authority().rotate(DAY, mesh.now).unwrap();
    let second = mesh.trust(&node);
    assert_eq!(second.roots(&TrustDomain::default()).len(), 2);
    assert!(Arc::ptr_eq(&second, &mesh.trust(&node)));
    mesh.authority().revoke(&Target::Identity(id("nobody")), mesh.now).unwrap();
    let cart = mesh.issue(&node, "cart");
    let serial = serial_of(&cart, 0);
    mesh.authority().revoke(&Target::Serial { serial, issuer: None }, mesh.now).unwrap();
    assert_eq!(mesh.trust(&node).crls(&TrustDomain::default()).len(), 1);
}

#[test]
fn what_cannot_be_used_leaves_what_was_good_in_force() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let first = mesh.trust(&node);
    for (file, mode) in [("root.pem", 0o644), ("crl.pem", 0o644), ("revoked.json", 0o600)] {
        let path = mesh.dir.join(file);
        let good = fs::read(&path).ok();
        for bad in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
            // An empty list is none.
            if file == "crl.pem" && bad.is_empty() {
                continue;
            }
            fs::write(&path, bad).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(Arc::ptr_eq(&first, &mesh.trust(&node)), "{file}: {bad:?}");
            mesh.verify(&first, &mesh.issue(&node, "cart")).unwrap();
            // Who starts then is told which file it is.
            let error = mesh.node_in(&mesh.dir, "b").unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
        }
        match good {
            Some(good) => fs::write(&path, good).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    mesh.node("b");
}

/// Each of two nodes has heard of the change of roots, or of nothing since the stage before.
#[test]
fn a_root_is_changed_without_a_refused_handshake() {
    let mut mesh = Mesh::new();
    let (ahead, behind) = (mesh.node("ahead"), mesh.node("behind"));
    let first = mesh.trust(&behind);
    let mut stages = Vec::new();
    let mut old = (mesh.issue(&behind, "old"), mesh.trust(&behind));
    for stage in 0..3 {
        // Nothing can be hurried.
        if stage > 0 {
            let almost = mesh.now + DAY - Duration::from_secs(1);
            let waits = mesh.authority().rotate(DAY, almost).unwrap();
            assert_eq!(
                waits,
                Rotation::Waits {
                    until: seconds(mesh.now + DAY)
                }
            );
            mesh.now += DAY;
            // By then whoever is behind has renewed, and heard of the stage before.
            old = (mesh.issue(&behind, "old"), mesh.trust(&behind));
        }
        let done = mesh.authority().rotate(DAY, mesh.now).unwrap();
        let new = (mesh.issue(&ahead, "new"), mesh.trust(&ahead));
        for (credential, trust) in [(&new.0, &old.1), (&old.0, &new.1), (&new.0, &new.1), (&old.0, &old.1)] {
            mesh.verify(trust, credential).unwrap_or_else(|e| panic!("{done:?}: {e}"));
        }
        stages.push(done);
    }
    assert!(
        matches!(&stages[..], [Rotation::Trusted { root, .. }, Rotation::Used { root: used, .. }, Rotation::Withdrawn { roots }]
            if root == used && roots.len() == 1 && !roots.contains(root)),
        "{stages:?}"
    );
    let last = mesh.trust(&ahead);
    assert_eq!(last.roots(&TrustDomain::default()).len(), 1);
    assert_ne!(last.roots(&TrustDomain::default()), first.roots(&TrustDomain::default()));
    // And the next one begins anew.
    assert!(matches!(mesh.authority().rotate(DAY, mesh.now).unwrap(), Rotation::Trusted { .. }));
}

#[test]
fn a_change_of_roots_may_wait_without_end() {
    let mesh = Mesh::new();
    let begun = mesh.authority().rotate(Duration::MAX, mesh.now).unwrap();
    assert!(matches!(begun, Rotation::Trusted { next: u64::MAX, .. }), "{begun:?}");
    for now in [mesh.now, mesh.now + 1000 * DAY] {
        let waits = mesh.authority().rotate(Duration::MAX, now).unwrap();
        assert_eq!(waits, Rotation::Waits { until: u64::MAX });
    }
    let used = mesh.authority().rotate(DAY, mesh.now + DAY).unwrap();
    assert!(matches!(used, Rotation::Used { .. }), "{used:?}");
}

/// Wherever the machine loses its power between two writes, the directory goes on, and so does the change.
#[test]
fn a_change_of_roots_that_is_cut_short_is_taken_up() {
    let mut mesh = Mesh::new();
    let node = mesh.node("a");
    let whole = |mesh: &Mesh| {
        let fresh = mesh.node("fresh");
        mesh.verify(&mesh.trust(&fresh), &mesh.issue(&fresh, "cart")).unwrap();
        mesh.verify(&mesh.trust(&node), &mesh.issue(&node, "cart")).unwrap();
        mesh.authority().show(mesh.now).unwrap();
    };
    let path = |name: &str| mesh.dir.join(name);
    let (root, signs, next, old) = (path("root.pem"), path("root-key.pem"), path("next-key.pem"), path("old-key.pem"));
    // The key of the next root is there, and not its certificate.
    let before = fs::read(&root).unwrap();
    mesh.authority().rotate(DAY, mesh.now).unwrap();
    fs::write(&root, &before).unwrap();
    whole(&mesh);
    assert!(matches!(mesh.authority().rotate(DAY, mesh.now).unwrap(), Rotation::Trusted { .. }));
    // The old key was put aside, and the next one not yet put in its place.
    mesh.now += DAY;
    fs::copy(&signs, &old).unwrap();
    whole(&mesh);
    let stage = mesh.authority().rotate(DAY, mesh.now).unwrap();
    assert!(matches!(stage, Rotation::Used { .. }), "{stage:?}");
    assert!(!next.exists() && old.exists());
    whole(&mesh);
    // The old certificate is gone, and not its key.
    let kept = fs::read(&old).unwrap();
    mesh.now += DAY;
    assert!(matches!(
        mesh.authority().rotate(DAY, mesh.now).unwrap(),
        Rotation::Withdrawn { .. }
    ));
    fs::write(&old, kept).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o600)).unwrap();
    whole(&mesh);
    // Drafts of files are no matter.
    for name in ["root.new", "crl.new", "revoked.new", "next-key.new", "intermediates/a/x.new"] {
        fs::write(mesh.dir.join(name), "half").unwrap();
    }
    whole(&mesh);
    assert!(matches!(mesh.authority().rotate(DAY, mesh.now).unwrap(), Rotation::Trusted { .. }));
}

#[test]
fn who_is_revoked_is_refused_and_nobody_else() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.node("a"), mesh.node("b"));
    let (cart, again, stock) = (mesh.issue(&a, "cart"), mesh.issue(&b, "cart"), mesh.issue(&a, "stock"));
    let authority = mesh.authority();
    // One certificate.
    let serial = serial_of(&cart, 0);
    let target = Target::Serial {
        serial: serial.to_uppercase(),
        issuer: None,
    };
    let done = authority.revoke(&target, mesh.now).unwrap();
    assert_eq!(done.certificates.len(), 1);
    assert_eq!((&*done.certificates[0].name, done.barred), (cart.identity.as_str(), None));
    let trust = mesh.trust(&b);
    let revoked = |trust: &TrustBundles, who: [&Credential; 3]| who.map(|one| mesh.is_revoked(trust, one));
    assert_eq!(revoked(&trust, [&cart, &again, &stock]), [true, false, false]);
    assert!(authority.revoke(&target, mesh.now).unwrap().certificates.is_empty());
    // An identity: all that it has, and all that it would get.
    let done = authority.revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    assert_eq!(done.certificates.len(), 1, "{done:?}");
    assert_eq!(revoked(&mesh.trust(&a), [&cart, &again, &stock]), [true, true, false]);
    let error = a.sign(&id("cart"), mesh.now).unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { why, .. } if why.contains("--lift")),
        "{error}"
    );
    authority.lift(&id("cart")).unwrap();
    assert!(authority.lift(&id("cart")).is_err());
    let new = mesh.issue(&a, "cart");
    assert_eq!(revoked(&mesh.trust(&b), [&cart, &new, &stock]), [true, false, false]);
    // A node: its intermediate, and all below it. It goes on with another.
    authority.revoke(&Target::Node("a".into()), mesh.now).unwrap();
    let other = mesh.issue(&a, "stock");
    assert_ne!(other.chain[1], stock.chain[1]);
    assert_eq!(revoked(&mesh.trust(&b), [&new, &stock, &other]), [true, true, false]);
    let shown = authority.show(mesh.now).unwrap();
    let of = |name: &str| {
        let of = shown.issued.iter().filter(|one| one.name == name);
        of.map(|one| one.revoked).collect::<Vec<_>>()
    };
    assert_eq!(of(id("cart").as_str()).iter().filter(|revoked| **revoked).count(), 3);
    assert_eq!(of(id("stock").as_str()).iter().filter(|revoked| !**revoked).count(), 1);
    // What is not known, and what is no serial number.
    for (serial, issuer) in [("0102", None), ("xyz", None), ("", None), ("0102", Some("0304"))] {
        let target = Target::Serial {
            serial: serial.into(),
            issuer: issuer.map(Into::into),
        };
        let error = authority.revoke(&target, mesh.now).unwrap_err();
        assert!(matches!(error, OpenError::Unknown { .. }), "{error}");
    }
    // One that is not listed, with its issuer.
    let unlisted = mesh.issue(&b, "unlisted");
    fs::remove_dir_all(mesh.dir.join("issued")).unwrap();
    let target = Target::Serial {
        serial: serial_of(&unlisted, 0),
        issuer: Some(serial_of(&unlisted, 1)),
    };
    authority.revoke(&target, mesh.now).unwrap();
    assert!(mesh.is_revoked(&mesh.trust(&b), &unlisted));
}

#[test]
fn a_revocation_is_kept_until_nothing_of_it_is_valid_and_across_roots() {
    let mut mesh = Mesh::new();
    let node = mesh.node("a");
    let cart = mesh.issue(&node, "cart");
    let first = mesh.issue(&node, "first");
    mesh.authority().rotate(Duration::ZERO, mesh.now).unwrap();
    mesh.authority().rotate(Duration::ZERO, mesh.now).unwrap();
    // Both roots have something to say of their own.
    let second = mesh.issue(&node, "second");
    assert_ne!(first.chain[1], second.chain[1]);
    mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    mesh.authority().revoke(&Target::Node("a".into()), mesh.now).unwrap();
    let trust = mesh.trust(&node);
    for credential in [&cart, &first, &second] {
        assert!(mesh.is_revoked(&trust, credential), "{}", credential.identity);
    }
    mesh.verify(&trust, &mesh.issue(&node, "third")).unwrap();
    // Lists are signed anew as intermediates are.
    let young = |mesh: &Mesh| {
        let shown = mesh.authority().show(mesh.now).unwrap();
        let present = shown.lists.iter().filter(|(issuer, _)| issuer.contains("root"));
        present.map(|(_, next)| *next).min().unwrap() > seconds(mesh.now + 6 * DAY)
    };
    for _ in 0..8 {
        mesh.now += DAY / 2;
        mesh.issue(&node, "third");
        assert!(young(&mesh));
    }
    mesh.now += 10 * DAY;
    mesh.issue(&node, "third");
    let shown = mesh.authority().show(mesh.now).unwrap();
    assert_eq!(shown.revoked, []);
    assert!(shown.lists.iter().all(|(issuer, _)| issuer.contains("root")), "{:?}", shown.lists);
}

/// The issuer of one certificate cannot be used any more, and another node's file is broken: an identity is barred, and what can be
/// revoked is.
#[test]
fn an_identity_is_barred_whatever_is_missing() {
    for lost in [None, Some("garbage")] {
        let mesh = Mesh::new();
        let (a, b) = (mesh.node("a"), mesh.node("b"));
        let (cart, again) = (mesh.issue(&a, "cart"), mesh.issue(&b, "cart"));
        let issuer = serial_of(&cart, 1);
        let file = mesh.dir.join("intermediates/a").join(format!("{issuer}.pem"));
        let kept = fs::read(&file).unwrap();
        match lost {
            None => fs::remove_file(&file).unwrap(),
            Some(text) => fs::write(&file, text).unwrap(),
        }
        let error = mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap_err();
        let OpenError::Barred { name, source } = &error else {
            panic!("{error}")
        };
        assert_eq!(*name, id("cart").as_str());
        assert!(
            matches!(&**source, OpenError::Left { done: 1, left, source } if *left == [(serial_of(&cart, 0), issuer.clone())] && source.is_some() == lost.is_some()),
            "{error}"
        );
        let told = error.to_string();
        assert!(told.contains("gets no certificate any more") && told.contains(&issuer), "{told}");
        let broken = file.display().to_string();
        assert_eq!(
            told.contains(&broken),
            lost.is_some(),
            "a file that is here and broken is named: {told}"
        );
        let refused = b.sign(&id("cart"), mesh.now).unwrap_err();
        assert!(matches!(refused, IssueError::Refused { .. }), "{refused}");
        assert!(mesh.is_revoked(&mesh.trust(&b), &again));
        // As it says: by the issuer, where the root's key is.
        let roots = mesh.trust(&b).roots(&TrustDomain::default()).to_vec();
        let (_, root) = X509Certificate::from_der(&roots[0]).unwrap();
        let target = Target::Serial {
            serial: issuer,
            issuer: Some(serial::hex(root.raw_serial())),
        };
        mesh.authority().revoke(&target, mesh.now).unwrap();
        assert!(mesh.is_revoked(&mesh.trust(&b), &cart));
        // What a node signs with is not said to be revoked while it cannot be read.
        let of_node = mesh.authority().revoke(&Target::Node("a".into()), mesh.now).unwrap_err();
        let told = of_node.to_string();
        match lost {
            None => assert!(told.contains("is known here"), "{told}"),
            Some(_) => assert!(
                matches!(of_node, OpenError::Left { done: 0, .. }) && told.contains(&broken) && told.contains("remove it"),
                "{told}"
            ),
        }
        fs::write(&file, kept).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    }
}

/// The record is written before the lists: what was cut short between the two is in force with the next look.
#[test]
fn a_revocation_that_was_cut_short_is_completed() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    let cart = mesh.issue(&node, "cart");
    let lists = mesh.dir.join("crl.pem");
    mesh.authority().revoke(&Target::Identity(id("nobody")), mesh.now).unwrap();
    let before = fs::read(&lists).unwrap();
    mesh.authority().revoke(&Target::Identity(id("cart")), mesh.now).unwrap();
    fs::write(&lists, before).unwrap();
    assert!(mesh.is_revoked(&mesh.trust(&node), &cart));
    assert!(mesh.is_revoked(&mesh.trust(&mesh.node("b")), &cart));
    // A record that names what is no number is no record.
    let record = mesh.dir.join("revoked.json");
    let text = fs::read_to_string(&record).unwrap().replace(&serial_of(&cart, 0), "zz");
    fs::write(&record, text).unwrap();
    let error = mesh.node_in(&mesh.dir, "b").unwrap_err().to_string();
    assert!(error.contains("revoked.json") && error.contains("no serial number"), "{error}");
}

/// However many certificates a mesh needs in a day: each can be listed and revoked, and the authority goes on.
#[test]
fn what_is_issued_may_be_very_much() {
    let mut mesh = Mesh::new();
    let ca = mesh.node("near");
    // One that begins again and again, and whose name is as long as one can be.
    let storming = "storming".repeat(30);
    let first = mesh.issue(&ca, &storming);
    let path = fs::read_dir(mesh.dir.join("issued")).unwrap().next().unwrap().unwrap().path();
    let (one, serial) = (fs::read_to_string(&path).unwrap(), serial_of(&first, 0));
    let count = (17 << 20) / one.len();
    let others = (0..count).map(|n| one.replace(&serial, &format!("{:032x}", n + 1)));
    fs::write(&path, others.chain([one.clone()]).collect::<String>()).unwrap();
    let revoked = mesh.authority().revoke(&Target::Identity(id(&storming)), mesh.now).unwrap();
    assert_eq!(revoked.certificates.len(), count + 1);
    assert!(mesh.is_revoked(&mesh.trust(&ca), &first));
    let shown = mesh.authority().show(mesh.now).unwrap();
    assert!(shown.issued.len() == count + 1 && shown.issued.iter().all(|one| one.revoked));
    // The next intermediate, and another process.
    mesh.now += DAY / 2 + HOUR;
    mesh.issue(&ca, "stock");
    mesh.issue(&mesh.node("near"), "stock");
    mesh.now += DAY + HOUR;
    mesh.issue(&ca, "stock");
    assert!(!path.exists(), "what has ended is forgotten");
}

/// What is left of a key by whoever was killed while writing it is no intermediate, and does not stay for ever.
#[test]
fn what_was_left_half_written_goes_after_a_while() {
    let mut mesh = Mesh::new();
    mesh.node("near");
    let place = mesh.dir.join("intermediates/near");
    let draft = place.join("00ff.new");
    fs::write(&draft, "half a key").unwrap();
    let dated = fs::File::options().write(true).open(&draft).unwrap();
    dated.set_modified(mesh.now).unwrap();
    mesh.now += HOUR / 2;
    assert_eq!(mesh.authority().show(mesh.now).unwrap().intermediates.len(), 1);
    assert!(draft.exists(), "somebody may be writing it");
    mesh.now += HOUR / 2;
    assert_eq!(mesh.authority().show(mesh.now).unwrap().intermediates.len(), 1);
    assert!(!draft.exists());
}

/// With a stolen intermediate anything can be signed; what comes of it is judged by those who verify.
#[test]
fn a_stolen_intermediate_is_worth_nothing_outside_of_its_trust_domain() {
    let mesh = Mesh::new();
    let node = mesh.node("a");
    mesh.issue(&node, "cart");
    let stolen = intermediates::of(&mesh.dir, "a", mesh.now).unwrap().pop().unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let forge = |names: Vec<SanType>| {
        let leaf = leaf(names, mesh.now - HOUR, mesh.now + HOUR)
            .signed_by(&key, &stolen.issuer)
            .unwrap();
        [leaf.der().clone(), stolen.der.clone()]
    };
    // A federated mesh that trusts this root for its own domain too: the worst that an administrator could do.
    let mut trust = TrustBundles::default();
    let root = mesh.trust(&node).roots(&TrustDomain::default())[0].clone();
    trust.add(TrustDomain::default(), root.clone());
    trust.add("other.example".parse().unwrap(), root);
    let trust = Arc::new(Trust::new(&Arc::new(ambient_tls::provider()), &trust));
    let verifier = Verifier::new(&trust, Accepted::AnyTrusted).with_time(Arc::new(At(mesh.now)));
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    assert!(verifier.verify(&forge(vec![uri(CART)]), Role::Client).is_ok());
    let error = verifier
        .verify(&forge(vec![uri("spiffe://other.example/x")]), Role::Client)
        .unwrap_err();
    assert!(
        matches!(
            error,
            PeerError::Chain {
                source: ChainError::ForeignAuthority { .. },
                ..
            }
        ),
        "{error}"
    );
    for host in [
        SanType::DnsName("istiod.istio-system.svc".try_into().unwrap()),
        SanType::IpAddress("10.0.0.1".parse().unwrap()),
        SanType::IpAddress("::1".parse().unwrap()),
    ] {
        let error = verifier.verify(&forge(vec![uri(CART), host]), Role::Server).unwrap_err();
        assert!(
            matches!(
                error,
                PeerError::Chain {
                    source: ChainError::NameConstraints,
                    ..
                }
            ),
            "{error}"
        );
    }
    // And nobody below it may be an authority.
    let below = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = leaf(vec![uri("spiffe://cluster.local")], mesh.now - HOUR, mesh.now + HOUR);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages.clear();
    let middle = params.signed_by(&below, &stolen.issuer).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(middle.der(), below).unwrap();
    let last = leaf(vec![uri(CART)], mesh.now - HOUR, mesh.now + HOUR)
        .signed_by(&key, &issuer)
        .unwrap();
    let chain = [last.der().clone(), middle.der().clone(), stolen.der.clone()];
    assert!(verifier.verify(&chain, Role::Client).is_err());
}

#[test]
fn an_intermediate_that_does_not_hold_is_named() {
    let mesh = Mesh::new();
    let ca = mesh.node("a");
    let cart = mesh.issue(&ca, "cart");
    let file = mesh.dir.join("intermediates/a").join(format!("{}.pem", serial_of(&cart, 1)));
    let good = fs::read_to_string(&file).unwrap();
    let other = Mesh::new();
    let theirs = other.issue(&other.node("a"), "cart");
    let theirs = other.dir.join("intermediates/a").join(format!("{}.pem", serial_of(&theirs, 1)));
    let theirs = fs::read_to_string(theirs).unwrap();
    let key_at = |text: &str| text.find("-----BEGIN PRIVATE").unwrap();
    let mixed = format!("{}{}", &good[..key_at(&good)], &theirs[key_at(&theirs)..]);
    for bad in ["", "x", &good[..key_at(&good)], &good[..40], &mixed] {
        fs::write(&file, bad).unwrap();
        let error = mesh.node_in(&mesh.dir, "a").unwrap_err().to_string();
        assert!(error.contains(&*file.to_string_lossy()) && error.contains("remove it"), "{error}");
    }
    // Another root's: here it signs nothing, and where no other can be had it is refused.
    fs::write(&file, &theirs).unwrap();
    mesh.verify(&mesh.trust(&ca), &mesh.issue(&mesh.node("a"), "cart")).unwrap();
    fs::write(&file, &good).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let error = mesh.node_in(&mesh.dir, "a").unwrap_err();
    assert!(matches!(error, OpenError::Unsafe { .. }), "{error}");
}

/// What an administrator does, and how time goes by.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Issue(u8, u8),
    Rotate,
    RevokeIdentity(u8),
    RevokeOne(prop::sample::Index),
    RevokeNode(u8),
    Lift(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_u64..20).prop_map(Step::Wait),
        6 => (0_u8..2, 0_u8..3).prop_map(|(node, account)| Step::Issue(node, account)),
        2 => Just(Step::Rotate),
        1 => (0_u8..3).prop_map(Step::RevokeIdentity),
        2 => any::<prop::sample::Index>().prop_map(Step::RevokeOne),
        1 => (0_u8..2).prop_map(Step::RevokeNode),
        1 => (0_u8..3).prop_map(Step::Lift),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against a plain list of what was issued and revoked: whoever is valid and not revoked is accepted, and nobody else.
    #[test]
    fn everybody_is_accepted_until_the_end_or_revoked(steps in prop::collection::vec(step(), 1..40)) {
        let mut mesh = Mesh::new();
        let nodes = [mesh.node("n0"), mesh.node("n1")];
        let mut issued: Vec<(u8, Credential, bool)> = Vec::new();
        let mut barred = [false; 3];
        for step in steps {
            let authority = mesh.authority();
            match step {
                Step::Wait(hours) => mesh.now += HOUR * u32::try_from(hours).unwrap(),
                Step::Issue(node, account) => {
                    let signed = nodes[usize::from(node)].sign(&id(&format!("s{account}")), mesh.now);
                    prop_assert_eq!(signed.is_err(), barred[usize::from(account)]);
                    issued.extend(signed.ok().map(|credential| (node, credential, false)));
                }
                Step::Rotate => drop(authority.rotate(DAY, mesh.now).unwrap()),
                Step::RevokeIdentity(account) => {
                    let whom = id(&format!("s{account}"));
                    authority.revoke(&Target::Identity(whom.clone()), mesh.now).unwrap();
                    barred[usize::from(account)] = true;
                    issued.iter_mut().filter(|(_, one, _)| one.identity == whom).for_each(|one| one.2 = true);
                }
                Step::RevokeOne(which) => {
                    let live: Vec<_> = issued.iter_mut().filter(|(_, one, _)| mesh.now < one.not_after).collect();
                    if live.is_empty() { continue }
                    let at = which.index(live.len());
                    let one = live.into_iter().nth(at).unwrap();
                    let target = Target::Serial { serial: serial_of(&one.1, 0), issuer: None };
                    authority.revoke(&target, mesh.now).unwrap();
                    one.2 = true;
                }
                Step::RevokeNode(node) => {
                    let done = authority.revoke(&Target::Node(format!("n{node}")), mesh.now);
                    let live = issued.iter_mut().filter(|(of, one, _)| *of == node && mesh.now < one.not_after);
                    if done.is_ok() { live.for_each(|one| one.2 = true) } else { prop_assert_eq!(live.count(), 0) }
                }
                Step::Lift(account) => {
                    let done = authority.lift(&id(&format!("s{account}")));
                    prop_assert_eq!(done.is_ok(), std::mem::take(&mut barred[usize::from(account)]));
                }
            }
            // Who makes an intermediate signs the lists anew.
            nodes.iter().for_each(|node| drop(mesh.trust(node)));
            let trust = mesh.trust(&nodes[0]);
            prop_assert_eq!(&trust, &mesh.trust(&nodes[1]));
            for (_, one, revoked) in issued.iter().filter(|(_, one, _)| mesh.now < one.not_after) {
                let verified = mesh.verify(&trust, one);
                prop_assert_eq!(verified.is_err(), *revoked, "{:?}", verified);
            }
        }
    }
}
