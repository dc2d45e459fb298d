use std::task::{Context, Poll, Waker};

use super::*;

#[test]
fn an_age_is_that_of_the_last_word() {
    let heard = LastHeard::default();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(heard.age(at(5)), None);
    heard.at(at(100));
    assert_eq!(heard.age(at(130)), Some(Duration::from_secs(30)));
    assert_eq!(heard.age(at(10)), Some(Duration::ZERO), "the clock has gone back");
    heard.clone().is_there();
    assert_eq!(heard.age(at(1_000_000)), Some(Duration::ZERO));
}

/// Says something else than the traits do by themselves wherever it can.
#[derive(Debug, Default)]
struct Particular(Arc<Mutex<Vec<&'static str>>>);

impl Particular {
    fn notes(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }
}

impl OnDemand for Particular {
    fn ask(&self, _: &str) -> Result<(), AskError> {
        Err(AskError::Ended)
    }

    fn give_back(&self, _: Vec<String>) {}

    fn is_there(&self) -> bool {
        true
    }
}

impl Source for Particular {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(std::future::ready(Some(Batch::default())))
    }

    fn last_heard(&self) -> Option<LastHeard> {
        Some(LastHeard::default())
    }

    fn gives_trust(&self) -> bool {
        true
    }

    fn known_until(&self) -> Option<KnownUntil> {
        Some(Arc::new(|| None))
    }

    fn streams(&self) -> Option<StreamCounts> {
        Some(StreamCounts::default())
    }

    fn on_demand(&self) -> Option<Arc<dyn OnDemand>> {
        Some(Arc::new(Self::default()))
    }
}

impl Issuer for Particular {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        let refused = IssueError::Refused {
            identity: identity.clone(),
            why: "particular".into(),
        };
        Box::pin(std::future::ready(Err(refused)))
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.notes("trust");
        Arc::default()
    }

    fn last_heard(&self) -> Option<LastHeard> {
        Some(LastHeard::default())
    }

    fn faults(&self) -> Vec<String> {
        vec!["a fault".into()]
    }

    fn arrives(&self, _: &Identity, _: &PodUid) {
        self.notes("arrives");
    }

    fn leaves(&self, _: &Identity, _: &PodUid) {
        self.notes("leaves");
    }

    fn takes_back(&self) -> bool {
        true
    }

    fn told(&self) -> BoxFuture<'_, Told> {
        let identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let why = "particular".into();
        Box::pin(std::future::ready(Told::Withdrawn { identity, why }))
    }
}

fn at_once<T>(mut future: BoxFuture<'_, T>) -> T {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nobody is asked"),
    }
}

#[test]
fn a_source_in_a_box_is_that_source() {
    fn all(mut source: impl Source) -> bool {
        let batch = at_once(source.next()).is_some();
        let heard = source.last_heard().is_some() && source.known_until().is_some() && source.streams().is_some();
        batch && heard && source.gives_trust() && source.on_demand().is_some()
    }
    let boxed: Box<dyn Source> = Box::new(Particular::default());
    assert!(all(boxed));
}

#[test]
fn an_issuer_that_is_shared_is_that_issuer() {
    fn all(issuer: impl Issuer) {
        let cart = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        at_once(issuer.issue(&cart)).unwrap_err();
        assert!(matches!(at_once(issuer.told()), Told::Withdrawn { .. }));
        assert!(issuer.takes_back() && Issuer::last_heard(&issuer).is_some());
        assert_eq!(issuer.faults(), ["a fault"]);
        issuer.trust();
        issuer.arrives(&cart, &PodUid::from("a pod"));
        issuer.leaves(&cart, &PodUid::from("a pod"));
    }
    let issuer = Particular::default();
    let notes = Arc::clone(&issuer.0);
    let shared: Arc<dyn Issuer> = Arc::new(issuer);
    all(shared);
    assert_eq!(*notes.lock().unwrap(), ["trust", "arrives", "leaves"]);
}
