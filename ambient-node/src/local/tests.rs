use ambient_control::{BoxFuture, IssueError, Issuer};
use ambient_core::{TrustBundles, TrustDomain};
use ambient_testkit::ca::{Ca, Leaf};
use tokio::io::AsyncReadExt as _;

use super::*;

/// Issues certificates with serial numbers from 1 on.
struct Numbered(Ca, AtomicU64);

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
        self.0.trust().into()
    }
}

fn identity(name: &str) -> Identity {
    Identity::new(&TrustDomain::default(), "shop", name).unwrap()
}

#[tokio::test]
async fn who_is_revoked_begins_nothing_and_what_it_has_is_cut() {
    let issuer = Arc::new(Numbered(Ca::new(&TrustDomain::default()).unwrap(), AtomicU64::new(0)));
    let certificates = Certificates::new(issuer.clone());
    let configs = Arc::new(Configs::new(Arc::new(ambient_tls::provider())));
    let locals = Arc::new(Locals::new(certificates.clone(), configs));
    let [a, b, c] = ["a", "b", "c"].map(identity);
    let _keeping = tokio::spawn(certificates.clone().keep_fresh());
    let mut held = Vec::new();
    for identity in [&a, &b, &c] {
        held.push(certificates.hold(identity, &"uid-1".into()).await.unwrap());
    }
    for _ in 0..2 {
        assert!([&a, &b, &c].into_iter().all(|identity| locals.is_in_order(identity, Role::Client)));
    }
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
    assert_eq!(error.to_string(), "peer certificate revoked by CRL");
    let mut nothing = [0];
    let waits = tokio::time::timeout(std::time::Duration::from_millis(20), other_far.read(&mut nothing));
    assert!(waits.await.is_err(), "that of others goes on");

    // Roots that know nobody of these.
    certificates.set_trust(Ca::new(&TrustDomain::default()).unwrap().trust().into());
    assert!(!locals.is_in_order(&b, Role::Server));
}
