use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Barrier,
    task::{Context, Poll, Waker},
};

use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use super::*;

mod life;
mod seeing;

fn open(directory: &Path) -> Result<DirectoryCa, OpenError> {
    DirectoryCa::open(directory, TrustDomain::default(), DirectoryCa::DEFAULT_TTL)
}

fn issue(ca: &DirectoryCa, uri: &str) -> Result<Arc<Credential>, IssueError> {
    let identity: Identity = uri.parse().unwrap();
    let mut future = ca.issue(&identity);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("issuing waits for nothing"),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[test]
fn made_once_and_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("a/ca");
    let first = open(&dir).unwrap();
    let second = open(&dir).unwrap();
    assert_eq!(first.trust(), second.trust());
    assert_eq!(first.trust().roots(&TrustDomain::default()).len(), 1);
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("root-key.pem")), 0o600);
}

#[test]
fn sixteen_at_once_make_one_root() {
    for _ in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let dir = &scratch.path().join("ca");
        let together = &Barrier::new(16);
        let roots: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..16)
                .map(|_| {
                    s.spawn(|| {
                        together.wait();
                        open(dir).unwrap().trust().as_ref().clone()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(roots.windows(2).all(|w| w[0] == w[1]));
    }
}

/// As of a machine that has no clock of its own, and has not asked anybody yet.
#[test]
fn no_root_is_made_by_a_clock_that_cannot_be_right() {
    let scratch = tempfile::tempdir().unwrap();
    let init = |seconds| Authority::init(scratch.path(), TrustDomain::default(), UNIX_EPOCH + Duration::from_secs(seconds));
    for (seconds, days) in [(0, 0), (2 * 86_400, 2), (1_767_225_599, 20_453)] {
        let Err(error) = init(seconds) else { panic!("it is before 2026") };
        assert!(matches!(error, OpenError::Clock { days: said } if said == days), "{error}");
        let open = DirectoryCa::open_at(
            scratch.path(),
            TrustDomain::default(),
            DirectoryCa::DEFAULT_TTL,
            "local",
            UNIX_EPOCH + Duration::from_secs(seconds),
        );
        assert!(matches!(open, Err(OpenError::Clock { .. })));
    }
    // Nor by one of which no certificate can tell.
    for seconds in [253_402_300_799, i64::MAX as u64] {
        let Err(error) = init(seconds) else {
            panic!("there is no such date")
        };
        assert!(error.to_string().contains("when no root can have an end any more"), "{error}");
    }
    init(1_767_225_600).expect("nothing of it is left in the way");
}

#[test]
fn what_is_issued_is_a_svid_of_an_intermediate_of_the_root() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = open(scratch.path()).unwrap();
    let credential = issue(&ca, CART).unwrap();
    let trust = ca.trust();
    let (_, root) = X509Certificate::from_der(&trust.roots(&TrustDomain::default())[0]).unwrap();
    let [leaf, intermediate] = &credential.chain[..] else {
        panic!("{} certificates", credential.chain.len())
    };
    let (_, intermediate) = X509Certificate::from_der(intermediate).unwrap();
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    assert_eq!((leaf.issuer(), intermediate.issuer()), (intermediate.subject(), root.subject()));
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(!leaf.is_ca());
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(CART)]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let seconds = |t: SystemTime| i64::try_from(t.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(credential.not_before));
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(credential.not_after));
    assert!(credential.is_valid_at(now()) && credential.half_life() > now());
    // Signed by the intermediate's key, that by the root's, and the key is the certificate's.
    let key_id = |c: &X509Certificate<'_>, authority: bool| {
        c.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) if authority => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
            ParsedExtension::SubjectKeyIdentifier(id) if !authority => Some(id.0.to_vec()),
            _ => None,
        })
    };
    assert!(key_id(&leaf, true).is_some());
    assert_eq!(key_id(&leaf, true), key_id(&intermediate, false));
    assert_eq!(key_id(&intermediate, true), key_id(&root, false));
    leaf.verify_signature(Some(intermediate.public_key())).unwrap();
    intermediate.verify_signature(Some(root.public_key())).unwrap();
    root.verify_signature(None).unwrap();
    let key = KeyPair::try_from(credential.key.der()).unwrap();
    assert_eq!(key.public_key_raw(), &*leaf.public_key().subject_public_key.data);
    assert_ne!(issue(&ca, CART).unwrap().chain[0], credential.chain[0]);
}

#[test]
fn an_intermediate_may_do_little_and_not_for_long() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = open(scratch.path()).unwrap();
    let credential = issue(&ca, CART).unwrap();
    let (_, intermediate) = X509Certificate::from_der(&credential.chain[1]).unwrap();
    let basic = intermediate.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && basic.value.ca);
    assert_eq!(basic.value.path_len_constraint, Some(0));
    let usage = intermediate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign() && !usage.value.digital_signature());
    let names = intermediate.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names, [GeneralName::URI("spiffe://cluster.local")]);
    let constraints = intermediate.name_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.permitted_subtrees.is_none());
    let excluded: Vec<_> = constraints
        .value
        .excluded_subtrees
        .iter()
        .flatten()
        .map(|tree| &tree.base)
        .collect();
    assert!(
        matches!(excluded[..], [GeneralName::DNSName(""), GeneralName::IPAddress(v4), GeneralName::IPAddress(v6)]
            if *v4 == [0; 8] && *v6 == [0; 32]),
        "{excluded:?}"
    );
    let life = intermediate.validity().not_after.timestamp() - now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    assert!((0..=24 * 3600).contains(&life), "{life}");
}

#[test]
fn other_trust_domains_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = open(scratch.path()).unwrap();
    let error = issue(&ca, "spiffe://other/ns/shop/sa/cart").unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("cluster.local"));
    let error = DirectoryCa::open(scratch.path(), "other".parse().unwrap(), DirectoryCa::DEFAULT_TTL).unwrap_err();
    assert!(error.to_string().contains("not a root of the trust domain other"), "{error}");
}

#[test]
fn a_short_life_is_renewed_before_its_end() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = DirectoryCa::open(scratch.path(), TrustDomain::default(), Duration::from_secs(10)).unwrap();
    let credential = ca
        .sign(&CART.parse().unwrap(), UNIX_EPOCH + Duration::from_millis(2_000_000_000_500))
        .unwrap();
    let at = |s: u64| UNIX_EPOCH + Duration::from_secs(s);
    assert_eq!(
        (credential.not_before, credential.not_after),
        (at(1_999_999_999), at(2_000_000_010))
    );
    for ttl in [Duration::ZERO, Duration::from_millis(900), MAX_TTL * 2] {
        let error = DirectoryCa::open(scratch.path(), TrustDomain::default(), ttl).unwrap_err();
        assert!(matches!(error, OpenError::Ttl { .. }), "{error}");
    }
}

#[test]
fn no_leaf_outlives_the_root() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = open(scratch.path()).unwrap();
    let ends = roots::Roots::read(scratch.path()).unwrap().unwrap().trusted[0].not_after;
    let late = ca.sign(&CART.parse().unwrap(), ends - Duration::from_secs(60)).unwrap();
    assert_eq!(late.not_after, ends);
    let error = ca.sign(&CART.parse().unwrap(), ends).unwrap_err();
    assert!(matches!(error, IssueError::Unavailable { .. }), "{error}");
}

#[test]
fn what_others_could_have_written_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("ca");
    open(&dir).unwrap();
    for bad in [0o777, 0o770, 0o702, 0o1777] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(bad)).unwrap();
        let error = open(&dir).unwrap_err();
        assert!(matches!(error, OpenError::Unsafe { .. }), "{error}");
        assert!(error.to_string().contains("chmod"), "{error}");
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let key = dir.join("root-key.pem");
    for bad in [0o640, 0o604, 0o622] {
        fs::set_permissions(&key, fs::Permissions::from_mode(bad)).unwrap();
        let error = open(&dir).unwrap_err();
        assert!(matches!(error, OpenError::Unsafe { ref path, .. } if *path == key), "{error}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    // Whoever writes there says whom to trust.
    let root = dir.join("root.pem");
    for bad in [0o664, 0o646] {
        fs::set_permissions(&root, fs::Permissions::from_mode(bad)).unwrap();
        let error = open(&dir).unwrap_err().to_string();
        assert!(error.contains("root.pem") && error.contains("chmod go-w"), "{error}");
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o644)).unwrap();
    open(&dir).unwrap();
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&dir, &link).unwrap();
    assert!(matches!(open(&link).unwrap_err(), OpenError::Unsafe { .. }));
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file).unwrap_err(), OpenError::Unsafe { .. }));
}

#[test]
fn a_foreign_owner_is_refused() {
    if !rustix::process::geteuid().is_root() {
        ambient_testkit::skipped("a foreign owner: only root can make a directory of another user");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    if std::os::unix::fs::chown(scratch.path(), Some(12_345), None).is_err() {
        ambient_testkit::skipped("a foreign owner: only one user is mapped here");
        return;
    }
    let error = open(scratch.path()).unwrap_err();
    assert!(error.to_string().contains("belongs to the user 12345"), "{error}");
}

#[test]
fn broken_files_are_named_and_never_overwritten() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    open(dir).unwrap();
    let (certificate, key) = (dir.join("root.pem"), dir.join("root-key.pem"));
    let (good_certificate, good_key) = (fs::read(&certificate).unwrap(), fs::read(&key).unwrap());
    for (path, good) in [(&certificate, &good_certificate), (&key, &good_key)] {
        for bad in [&b""[..], b"-----BEGIN", b"\xff\xfe", &good[..good.len() / 2]] {
            fs::write(path, bad).unwrap();
            let error = open(dir).unwrap_err();
            assert!(matches!(&error, OpenError::Unusable { path: p, .. } if p == path), "{error}");
            assert_eq!(fs::read(path).unwrap(), bad);
        }
        fs::write(path, good).unwrap();
    }
    fs::remove_file(&key).unwrap();
    fs::remove_dir_all(dir.join("intermediates")).unwrap();
    let error = open(dir).unwrap_err();
    assert!(matches!(&error, OpenError::NoIntermediate { path, .. } if path == dir), "{error}");
    // Another authority's key is not this certificate's.
    let other = tempfile::tempdir().unwrap();
    open(other.path()).unwrap();
    fs::copy(other.path().join("root-key.pem"), &key).unwrap();
    assert!(open(dir).unwrap_err().to_string().contains("not the certificate of the key"));
}

#[test]
fn a_start_that_was_cut_short_begins_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    Authority::init(dir, TrustDomain::default(), now()).unwrap();
    fs::remove_file(dir.join("root.pem")).unwrap();
    fs::write(dir.join("root-key.new"), "half a k").unwrap();
    let ca = open(dir).unwrap();
    assert_eq!(ca.trust(), open(dir).unwrap().trust());
    assert!(!dir.join("root-key.new").exists());
}

/// A key that has signed is not exchanged for another because its certificate is lost, nor is what a node was given.
#[test]
fn a_root_that_is_lost_is_not_begun_anew() {
    for keeps_key in [true, false] {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        open(dir).unwrap();
        let key = fs::read(dir.join("root-key.pem")).unwrap();
        fs::remove_file(dir.join("root.pem")).unwrap();
        if !keeps_key {
            fs::remove_file(dir.join("root-key.pem")).unwrap();
        }
        for error in [
            open(dir).unwrap_err(),
            Authority::init(dir, TrustDomain::default(), now()).unwrap_err(),
            Authority::open(dir).unwrap_err(),
        ] {
            assert!(
                matches!(&error, OpenError::Lost { path, .. } if *path == dir.join("root.pem")),
                "{error}"
            );
        }
        assert!(!dir.join("root.pem").exists());
        assert_eq!(fs::read(dir.join("root-key.pem")).ok(), keeps_key.then_some(key));
    }
}

/// Whatever stands in the place of an authority's file: it is refused by name, and never waited for.
#[test]
fn what_is_no_plain_file_is_none_of_an_authority() {
    for name in ["root.pem", "root-key.pem"] {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("ca");
        open(&dir).unwrap();
        fs::remove_file(dir.join(name)).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.join(name), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let (sender, opened) = std::sync::mpsc::channel();
        let of = dir.clone();
        std::thread::spawn(move || sender.send(open(&of).map(drop).map_err(|error| error.to_string())));
        let opened = opened.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
        let error = opened.unwrap_err();
        assert!(error.contains(name) && error.contains("a pipe"), "{error}");
    }
}

/// A disk that takes its time holds up whoever waits for a certificate, and no thread on which others run.
#[tokio::test]
async fn signing_is_done_beside_the_runtime_and_only_so_much_at_a_time() {
    let scratch = tempfile::tempdir().unwrap();
    let ca = open(&scratch.path().join("ca")).unwrap();
    let identity: Identity = CART.parse().unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = Request {
        whom: Whom::Id(identity.spiffe_id()),
        csr: &csr,
        life: DirectoryCa::DEFAULT_TTL,
        node: None,
    };
    let desks = ca.desks.clone().acquire_many_owned(DESKS.try_into().unwrap()).await.unwrap();
    let (mut issued, mut signed) = (ca.issue(&identity), Signer::sign(&ca, request));
    let polled = std::future::poll_fn(|cx| Poll::Ready((issued.as_mut().poll(cx).is_pending(), signed.as_mut().poll(cx).is_pending())));
    assert_eq!(polled.await, (true, true));
    assert!(!scratch.path().join("ca/issued").exists(), "nothing was signed yet");
    drop(desks);
    assert_eq!(issued.await.unwrap().identity, identity);
    let chain = signed.await.unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert_eq!(*leaf.public_key().subject_public_key.data, *key.public_key_raw());
    assert_eq!(ca.desks.available_permits(), DESKS);
    // What it refuses it refuses there, too.
    let foreign = "spiffe://other/ns/shop/sa/cart".parse().unwrap();
    let error = ca.issue(&foreign).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "{error}");
}
