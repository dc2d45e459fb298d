use ambient_control::{BoxFuture, IssueError, Issuer};
use ambient_core::{TrustBundles, TrustDomain};
use ambient_testkit::ca::{Ca, Leaf};
use tokio::io::AsyncReadExt as _;

use super::*;

/// Issues certificates with serial numbers from 1 on, and counts how often it is asked whom to trust.
struct Numbered(Ca, AtomicU64, AtomicU64);

impl Numbered {
    fn new() -> Arc<Self> {
        let ca = Ca::new(&TrustDomain::default()).unwrap();
        Arc::new(Self(ca, AtomicU64::default(), AtomicU64::default()))
    }
}

impl Issuer for Numbered {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            let leaf = Leaf {
                serial: Some(self.1.fetch_add(1, Ordering::Relaxed) + 1),
                ..Leaf::default()
            };
            Ok(Arc::new(self.0.issue_as(identity, &leaf).unwrap()))
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.2.fetch_add(1, Ordering::Relaxed);
        self.0.trust().into()
    }
}

fn identity(name: &str) -> Identity {
    Identity::new(&TrustDomain::default(), "shop", name).unwrap()
}

#[tokio::test]
async fn who_is_revoked_begins_nothing_and_what_it_has_is_cut() {
    let issuer = Numbered::new();
    let certificates = Certificates::new(issuer.clone());
    let configs = Arc::new(Configs::new(Arc::new(ambient_tls::provider())));
    let locals = Arc::new(Locals::new(certificates.clone(), configs));
    let [a, b, c] = ["a", "b", "c"].map(identity);
    let _keeping = tokio::spawn(certificates.clone().keep_fresh());
    let mut held = Vec::new();
    for identity in [&a, &b, &c] {
        held.push(certificates.hold(identity, &"uid-1".into()).await.unwrap());
    }
    let asked = issuer.2.load(Ordering::Relaxed);
    for _ in 0..2 {
        assert!([&a, &b, &c].into_iter().all(|identity| locals.is_in_order(identity, Role::Client)));
    }
    assert_eq!(issuer.2.load(Ordering::Relaxed), asked, "no connection has the issuer look");
    assert!(!locals.is_in_order(&identity("stranger"), Role::Server), "it has no certificate");
    let (_near, mut far, _joined) = locals.join(&a, &b);
    let (_other_near, mut other_far, _other) = locals.join(&c, &b);
    let (gone, _, ended) = locals.join(&a, &b);
    drop((gone, ended));
    assert_eq!(locals.recheck(), 0);

    let mut trust = issuer.0.trust();
    trust.add_crl(TrustDomain::default(), issuer.0.revoke(&[1]).unwrap());
    certificates.set_trust(trust.into());
    assert_eq!(locals.recheck(), 1);
    assert!(!locals.is_in_order(&a, Role::Client) && locals.is_in_order(&b, Role::Server) && locals.is_in_order(&c, Role::Client));
    let error = far.read(&mut [0]).await.unwrap_err();
    assert_eq!(Cut::of(&error), Some(Cut::Revoked));
    // One that was asked for before, and joins only now.
    let (_late_near, mut late, _late) = locals.join(&a, &b);
    assert_eq!(Cut::of(&late.read(&mut [0]).await.unwrap_err()), Some(Cut::Revoked));
    let mut nothing = [0];
    let waits = time::timeout(Duration::from_millis(20), other_far.read(&mut nothing));
    assert!(waits.await.is_err(), "that of others goes on");

    assert_eq!((locals.withdraw(&identity("stranger")), locals.withdraw(&c)), (0, 1));
    let error = other_far.read(&mut nothing).await.unwrap_err();
    assert_eq!(Cut::of(&error), Some(Cut::Withdrawn));

    // Roots that know nobody of these.
    certificates.set_trust(Ca::new(&TrustDomain::default()).unwrap().trust().into());
    locals.recheck();
    assert!(!locals.is_in_order(&b, Role::Server));
}

#[tokio::test]
async fn what_began_with_a_certificate_that_ends_ends_with_it_though_there_is_another() {
    /// Certificates that end a second after they were asked for, as far as their dates go.
    struct Short(Ca);

    impl Issuer for Short {
        fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
            let mut credential = self.0.issue_as(identity, &Leaf::default()).unwrap();
            credential.not_after = clock::wall() + Duration::from_secs(1);
            Box::pin(async move { Ok(Arc::new(credential)) })
        }

        fn trust(&self) -> Arc<TrustBundles> {
            self.0.trust().into()
        }
    }

    let certificates = Certificates::new(Arc::new(Short(Ca::new(&TrustDomain::default()).unwrap())));
    let configs = Arc::new(Configs::new(Arc::new(ambient_tls::provider())));
    let locals = Arc::new(Locals::new(certificates.clone(), configs));
    let [a, b] = ["a", "b"].map(identity);
    let fresh = tokio::spawn(certificates.clone().keep_fresh());
    let mut held = Vec::new();
    for identity in [&a, &b] {
        held.push(certificates.hold(identity, &"uid-1".into()).await.unwrap());
    }
    let (_near, mut far, joined) = locals.join(&a, &b);
    assert!(
        !joined.ends.duration_since(clock::wall()).unwrap().is_zero(),
        "it has begun in order"
    );
    let mut nothing = [0];
    let read = async {
        tokio::select! {
            read = far.read(&mut nothing) => read.unwrap_err(),
            () = joined.end_in_time() => unreachable!("it never ends itself"),
        }
    };
    let error = time::timeout(Duration::from_secs(20), read).await.unwrap();
    assert_eq!(Cut::of(&error), Some(Cut::Expired));
    assert!(clock::wall() >= joined.ends);
    assert!(certificates.credential(&a).is_some(), "it has another already");
    fresh.abort();
}

#[tokio::test]
async fn a_certificate_that_is_revoked_once_there_is_another_ends_what_it_has_begun() {
    let issuer = Numbered::new();
    let certificates = Certificates::new(issuer.clone());
    let configs = Arc::new(Configs::new(Arc::new(ambient_tls::provider())));
    let locals = Arc::new(Locals::new(certificates.clone(), configs));
    let _keeping = tokio::spawn(certificates.clone().keep_fresh());
    let [a, b] = ["a", "b"].map(identity);
    let first = certificates.hold(&a, &"uid-1".into()).await.unwrap();
    let _held = certificates.hold(&b, &"uid-2".into()).await.unwrap();
    let (_near, mut far, _joined) = locals.join(&a, &b);
    // Let go and asked for anew: another number.
    drop(first);
    let _second = certificates.hold(&a, &"uid-1".into()).await.unwrap();
    let mut trust = issuer.0.trust();
    trust.add_crl(TrustDomain::default(), issuer.0.revoke(&[1]).unwrap());
    certificates.set_trust(trust.into());
    assert_eq!(locals.recheck(), 1);
    assert!(locals.is_in_order(&a, Role::Client), "its present one is not revoked");
    assert_eq!(Cut::of(&far.read(&mut [0]).await.unwrap_err()), Some(Cut::Revoked));
}
