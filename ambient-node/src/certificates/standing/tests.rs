use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use ambient_control::{BoxFuture, IssueError, Issuer};
use ambient_core::TrustDomain;
use ambient_testkit::ca::{Ca, Leaf};

use super::{
    super::tests::{kept, until},
    *,
};

/// An authority whose root, and whom it says to trust, change.
struct Changing {
    signs: Mutex<Arc<Ca>>,
    trust: Mutex<Arc<TrustBundles>>,
    asked: AtomicUsize,
}

impl Changing {
    fn new(ca: &Arc<Ca>) -> Arc<Self> {
        Arc::new(Self {
            signs: Mutex::new(ca.clone()),
            trust: Mutex::new(ca.trust().into()),
            asked: AtomicUsize::default(),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Issuer for Changing {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            let serial = self.asked.fetch_add(1, Ordering::Relaxed) as u64 + 1;
            let leaf = Leaf {
                serial: Some(serial),
                ..Leaf::default()
            };
            let ca = self.signs.lock().unwrap().clone();
            Ok(Arc::new(ca.issue_as(identity, &leaf).unwrap()))
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.trust.lock().unwrap().clone()
    }
}

fn authority() -> Arc<Ca> {
    Arc::new(Ca::new(&TrustDomain::default()).unwrap())
}

fn cart() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

#[tokio::test]
async fn what_no_root_in_force_vouches_for_is_told_and_replaced_and_serves_until_then() {
    let [old, new] = [authority(), authority()];
    let issuer = Changing::new(&old);
    let (certificates, _keeping) = kept(issuer.clone());
    let _held = certificates.hold(&cart(), &"uid-1".into()).await.unwrap();
    certificates.judge();
    assert_eq!((certificates.refused(), certificates.flaw(&cart())), (vec![], None));
    assert_eq!(issuer.asked(), 1, "it is good");
    let first = certificates.credential(&cart()).unwrap();

    // The old root is withdrawn, and the authority has not heard of it: what it gives is no better.
    *issuer.trust.lock().unwrap() = new.trust().into();
    certificates.judge();
    let [(identity, why)] = &certificates.refused()[..] else {
        panic!("{:?}", certificates.refused());
    };
    assert_eq!((identity, Some(why)), (&cart(), certificates.why_refused(&cart()).as_ref()));
    until(|| !certificates.unrenewed().is_empty()).await;
    let (_, unrenewed) = certificates.unrenewed().remove(0);
    assert!(unrenewed.contains("peers would refuse the one that was issued"), "{unrenewed}");
    assert_eq!(certificates.flaw(&cart()), Some(Flaw::Refused(why.clone(), Some(unrenewed))));
    for _ in 0..100 {
        certificates.judge();
        // Whoever renews is asked each time; the clock, which goes on by itself here, hardly moves.
        tokio::task::yield_now().await;
    }
    assert_eq!(issuer.asked(), 2, "however often it is looked at, waits grow");
    assert!(
        Arc::ptr_eq(&first, &certificates.credential(&cart()).unwrap()),
        "it serves meanwhile"
    );

    *issuer.signs.lock().unwrap() = new.clone();
    until(|| !Arc::ptr_eq(&first, &certificates.credential(&cart()).unwrap())).await;
    certificates.judge();
    assert_eq!((certificates.refused(), certificates.why_refused(&cart())), (vec![], None));
    assert_eq!((certificates.unrenewed(), certificates.flaw(&cart())), (vec![], None));
    let nobody = "spiffe://cluster.local/ns/shop/sa/nobody".parse().unwrap();
    assert_eq!(certificates.flaw(&nobody), Some(Flaw::Missing(None)));
}

#[tokio::test]
async fn what_came_as_its_root_was_withdrawn_is_replaced_as_well() {
    let [old, new] = [authority(), authority()];
    let issuer = Changing::new(&old);
    *issuer.trust.lock().unwrap() = new.trust().into();
    let (certificates, _keeping) = kept(issuer.clone());
    certificates.judge();
    let _held = certificates.hold(&cart(), &"uid-1".into()).await.unwrap();
    *issuer.signs.lock().unwrap() = new.clone();
    certificates.judge();
    assert_eq!(certificates.refused().len(), 1);
    until(|| certificates.why_refused(&cart()).is_none()).await;
    assert_eq!(issuer.asked(), 2);
}

#[tokio::test]
async fn what_a_crl_revokes_is_replaced() {
    let ca = authority();
    let issuer = Changing::new(&ca);
    let (certificates, _keeping) = kept(issuer.clone());
    let _held = certificates.hold(&cart(), &"uid-1".into()).await.unwrap();
    let mut trust = ca.trust();
    trust.add_crl(TrustDomain::default(), ca.revoke(&[1]).unwrap());
    certificates.set_trust(trust.into());
    certificates.judge();
    let refused = certificates.refused();
    assert!(refused.len() == 1 && refused[0].1.contains("revoked"), "{refused:?}");
    until(|| certificates.why_refused(&cart()).is_none()).await;
}
