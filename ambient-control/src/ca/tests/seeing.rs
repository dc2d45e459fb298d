//! Making an authority, showing it, and signers that are others'.

use std::sync::Arc;

use rcgen::PublicKeyData as _;

use super::*;

fn init(directory: &Path) -> Result<Authority, OpenError> {
    Authority::init(directory, TrustDomain::default(), now())
}

#[test]
fn an_authority_is_made_once_and_only_where_nothing_else_is() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("ca");
    let error = Authority::open(&dir).unwrap_err();
    assert!(
        matches!(error, OpenError::Missing { .. }) && error.to_string().contains("ambient ca init"),
        "{error}"
    );
    init(&dir).unwrap();
    assert_eq!((mode(&dir), mode(&dir.join("root-key.pem"))), (0o700, 0o600));
    let error = init(&dir).unwrap_err();
    assert!(matches!(error, OpenError::Exists { .. }), "{error}");
    assert_eq!(Authority::open(&dir).unwrap().trust_domain(), &TrustDomain::default());

    // An empty directory, and one where a start was cut short.
    let begun = scratch.path().join("begun");
    fs::create_dir(&begun).unwrap();
    fs::set_permissions(&begun, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(begun.join("root-key.new"), "half a k").unwrap();
    fs::write(begun.join("root-key.pem"), "half a key").unwrap();
    init(&begun).unwrap();
    DirectoryCa::open(&begun, TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();

    let foreign = scratch.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(foreign.join("letters.txt"), "").unwrap();
    let error = init(&foreign).unwrap_err();
    assert!(
        matches!(&error, OpenError::Foreign { path } if path.ends_with("letters.txt")),
        "{error}"
    );
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(matches!(init(&foreign).unwrap_err(), OpenError::Unsafe { .. }));
    assert!(matches!(Authority::open(&foreign).unwrap_err(), OpenError::Unsafe { .. }));
    assert!(matches!(
        init(&foreign.join("letters.txt")).unwrap_err(),
        OpenError::Io { .. } | OpenError::Unsafe { .. }
    ));
}

#[test]
fn roots_of_several_domains_or_of_none_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    init(&one).unwrap();
    Authority::init(&two, "other.example".parse().unwrap(), now()).unwrap();
    let both = [fs::read(one.join("root.pem")).unwrap(), fs::read(two.join("root.pem")).unwrap()].concat();
    fs::write(one.join("root.pem"), both).unwrap();
    let error = Authority::open(&one).unwrap_err();
    assert!(error.to_string().contains("several trust domains"), "{error}");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    fs::write(one.join("root.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let error = Authority::open(&one).unwrap_err();
    assert!(error.to_string().contains("spiffe://DOMAIN"), "{error}");
}

#[test]
fn what_is_there_is_shown() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("ca");
    let authority = init(&dir).unwrap();
    let ca = DirectoryCa::open_for(&dir, TrustDomain::default(), DirectoryCa::DEFAULT_TTL, "node-1").unwrap();
    issue(&ca, CART).unwrap();
    ca.issue_to_server(&["localhost".into(), "127.0.0.1".into()]).unwrap();
    authority.rotate(Authority::GRACE, now()).unwrap();
    fs::write(dir.join("notes"), "").unwrap();
    // A line that was cut short spoils itself alone.
    let line = fs::read_dir(dir.join("issued")).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&line).unwrap();
    fs::write(&line, format!("{text}{{\"serial\":\"01\",\"na")).unwrap();
    let shown = authority.show(now()).unwrap();
    assert_eq!(shown.trust_domain, "cluster.local");
    let roles: Vec<_> = shown.roots.iter().map(|root| root.role).collect();
    assert_eq!(roles, ["signs", "next"]);
    let [intermediate] = &shown.intermediates[..] else {
        panic!("{shown:?}")
    };
    assert_eq!(
        (&*intermediate.node, intermediate.issued, intermediate.revoked),
        ("node-1", 1, false)
    );
    assert_eq!(intermediate.root, shown.roots[0].name);
    let mut names: Vec<_> = shown.issued.iter().map(|one| &*one.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["localhost,127.0.0.1", CART]);
    assert_eq!(shown.foreign, [dir.join("notes")]);
}

#[test]
fn a_workload_of_its_own_gets_files() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, to) = (scratch.path().join("ca"), scratch.path().join("cart"));
    let authority = init(&dir).unwrap();
    let given = authority
        .issue_to_workload(&CART.parse().unwrap(), Duration::from_secs(600), &to, now())
        .unwrap();
    let read = |name: &str| fs::read_to_string(to.join(name)).unwrap();
    assert_eq!(mode(&to.join("key.pem")), 0o600);
    assert_eq!(read("cert-chain.pem").matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(read("root-cert.pem"), fs::read_to_string(dir.join("root.pem")).unwrap());
    KeyPair::from_pem(&read("key.pem")).unwrap();
    let shown = authority.show(now()).unwrap();
    assert_eq!(shown.issued[0].serial, given.serial);
    let other = "spiffe://other.example/ns/a/sa/b".parse().unwrap();
    let error = authority
        .issue_to_workload(&other, Duration::from_secs(600), &to, now())
        .unwrap_err();
    assert!(error.to_string().contains("cluster.local"), "{error}");
}

/// Signs with a directory's authority, and then does something else with it.
struct Odd(DirectoryCa, Change);

type Change = fn(Vec<Vec<u8>>, &DirectoryCa) -> Result<Vec<Vec<u8>>, RequestError>;

impl Signer for Odd {
    fn sign<'a>(&'a self, request: Request<'a>) -> BoxFuture<'a, Result<Vec<Vec<u8>>, RequestError>> {
        Box::pin(async move { (self.1)(Signer::sign(&self.0, request).await?, &self.0) })
    }

    fn bundles(&self) -> Arc<TrustBundles> {
        self.0.bundles()
    }
}

/// The request of an earlier moment, for another name and another key.
fn another(ca: &DirectoryCa, uri: &str) -> Vec<Vec<u8>> {
    issue(ca, uri).unwrap().chain.clone()
}

#[test]
fn what_a_signer_gives_is_verified_before_it_is_used() {
    let scratch = tempfile::tempdir().unwrap();
    let ask = |change: Change| {
        let signer = Odd(open(scratch.path()).unwrap(), change);
        let issuer = SignedBy::new(Arc::new(signer), Duration::from_secs(600));
        let identity = CART.parse().unwrap();
        let mut asked = issuer.issue(&identity);
        match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("this signer waits for nothing"),
        }
    };
    let good = ask(|chain, _| Ok(chain)).unwrap();
    assert_eq!((good.identity.as_str(), good.chain.len()), (CART, 2));
    let key = KeyPair::try_from(good.key.der()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&good.chain[0]).unwrap();
    assert_eq!(*leaf.public_key().subject_public_key.data, *key.der_bytes());
    let bad: [(Change, &str); 6] = [
        (|_, _| Ok(Vec::new()), "no certificate"),
        (|_, _| Ok(vec![b"garbage".to_vec()]), "cannot be read"),
        (|_, ca| Ok(another(ca, CART)), "another key"),
        (|mut chain, _| Ok(chain.drain(..1).collect()), "no root of its trust domain"),
        (
            |_, _| {
                Err(RequestError::Signer {
                    why: "the KMS is asleep".into(),
                })
            },
            "the KMS is asleep",
        ),
        (|_, _| Err(RequestError::Barred { name: CART.into() }), "was revoked"),
    ];
    for (change, why) in bad {
        let error = ask(change).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(matches!(error, IssueError::Refused { .. }), why == "was revoked", "{error}");
    }
}
