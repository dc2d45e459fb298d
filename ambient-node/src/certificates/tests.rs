use std::sync::atomic::{AtomicUsize, Ordering};

use ambient_control::BoxFuture;

use super::*;

/// Issues certificates of a fixed life, and fails when told to.
struct Fixed {
    life: Duration,
    asked: AtomicUsize,
    fails: std::sync::atomic::AtomicBool,
}

impl Fixed {
    fn new(life: Duration) -> Arc<Self> {
        Arc::new(Self {
            life,
            asked: AtomicUsize::new(0),
            fails: false.into(),
        })
    }
}

impl Issuer for Fixed {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.fails.load(Ordering::Relaxed) {
                return Err(IssueError::Unavailable {
                    identity: identity.clone(),
                    why: "told to".into(),
                });
            }
            let now = clock::wall();
            let (not_before, not_after) = (now, now + self.life);
            Ok(Arc::new(Credential {
                identity: identity.clone(),
                chain: vec![],
                key: Arc::new(vec![0].into()),
                not_before,
                not_after,
            }))
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::default()
    }
}

fn cart() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

#[tokio::test]
async fn pods_of_one_account_share_a_certificate_until_the_last_is_gone() {
    let issuer = Fixed::new(Duration::from_secs(60));
    let certificates = Certificates::new(issuer.clone());
    let first = certificates.hold(&cart()).await.unwrap();
    let second = certificates.hold(&cart()).await.unwrap();
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 1);
    drop(first);
    assert!(certificates.credential(&cart()).is_some());
    drop(second);
    assert!(certificates.credential(&cart()).is_none());
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_its_life_and_kept_through_failures() {
    let issuer = Fixed::new(Duration::from_millis(400));
    let certificates = Certificates::new(issuer.clone());
    let _held = certificates.hold(&cart()).await.unwrap();
    let before = certificates.credential(&cart()).unwrap();
    let keeper = certificates.clone();
    let keeping = tokio::spawn(async move { keeper.keep_fresh().await });
    time::sleep(Duration::from_millis(300)).await;
    let after = certificates.credential(&cart()).unwrap();
    assert!(after.not_after > before.not_after);
    issuer.fails.store(true, Ordering::Relaxed);
    while certificates.credential(&cart()).is_some() {
        assert!(
            clock::wall() < after.not_after + Duration::from_secs(5),
            "an expired certificate is still given out"
        );
        time::sleep(Duration::from_millis(10)).await;
    }
    assert!(issuer.asked.load(Ordering::Relaxed) >= 3);
    keeping.abort();
}
