use std::sync::atomic::{AtomicUsize, Ordering};

use ambient_control::BoxFuture;

use super::*;

/// Issues certificates of a fixed life, and fails when told to.
struct Fixed {
    life: Duration,
    asked: AtomicUsize,
    fails: std::sync::atomic::AtomicBool,
    /// Whether what an earlier process was given is asked for at once.
    hurried: std::sync::atomic::AtomicBool,
}

impl Fixed {
    fn new(life: Duration) -> Arc<Self> {
        Arc::new(Self {
            life,
            asked: AtomicUsize::new(0),
            fails: false.into(),
            hurried: true.into(),
        })
    }
}

impl Issuer for Fixed {
    fn takes_back(&self) -> bool {
        self.hurried.load(Ordering::Relaxed)
    }

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

fn named(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
}

fn pod() -> PodUid {
    "uid-1".into()
}

fn borne(name: &str) -> (Identity, PodUid) {
    (named(name), pod())
}

/// Certificates that are kept fresh until the test ends.
pub(super) fn kept(issuer: Arc<dyn Issuer>) -> (Arc<Certificates>, JoinSet<()>) {
    let certificates = Certificates::new(issuer);
    let mut keeping = JoinSet::new();
    keeping.spawn(certificates.clone().keep_fresh());
    (certificates, keeping)
}

pub(super) async fn until(mut done: impl FnMut() -> bool) {
    let patience = time::timeout(Duration::from_secs(20), async {
        while !done() {
            time::sleep(Duration::from_millis(5)).await;
        }
    });
    patience.await.expect("in time");
}

#[tokio::test]
async fn why_there_is_none_is_told_until_there_is_one() {
    let issuer = Fixed::new(Duration::from_secs(60));
    issuer.fails.store(true, Ordering::Relaxed);
    let certificates = Certificates::new(issuer.clone());
    certificates.want(&cart(), &pod());
    assert_eq!(certificates.failure(&cart()), None, "nobody was asked");
    let mut keeping = JoinSet::new();
    keeping.spawn(certificates.clone().keep_fresh());
    until(|| certificates.failure(&cart()).is_some_and(|why| why.contains("told to"))).await;
    issuer.fails.store(false, Ordering::Relaxed);
    until(|| certificates.credential(&cart()).is_some()).await;
    assert_eq!(certificates.failure(&cart()), None);
}

/// An authority whose clock is an hour ahead of this machine's, but for the first so many certificates.
struct Ahead {
    good: usize,
    asked: AtomicUsize,
}

impl Issuer for Ahead {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        let ahead = self.asked.fetch_add(1, Ordering::Relaxed) >= self.good;
        let begin = clock::wall() + Duration::from_secs(if ahead { 3600 } else { 0 });
        let credential = Credential {
            identity: identity.clone(),
            chain: vec![],
            key: Arc::new(vec![0].into()),
            not_before: begin,
            not_after: begin + Duration::from_secs(3600),
        };
        Box::pin(async move { Ok(Arc::new(credential)) })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::default()
    }
}

#[tokio::test]
async fn what_holds_later_is_no_certificate_and_says_so() {
    let issuer = Arc::new(Ahead {
        good: 0,
        asked: AtomicUsize::new(0),
    });
    let (certificates, _keeping) = kept(issuer.clone());
    let refused = certificates.hold(&cart(), &pod()).await.unwrap_err();
    assert!(
        matches!(refused, CertificateError::NotNow(..)) && refused.to_string().contains("clock"),
        "{refused}"
    );
    certificates.want(&cart(), &pod());
    until(|| certificates.failure(&cart()).is_some()).await;
    assert!(matches!(certificates.ready(&cart()).await, Err(CertificateError::NotNow(..))));
    assert!(certificates.credential(&cart()).is_none());
    time::sleep(Duration::from_millis(500)).await;
    let asked = issuer.asked.load(Ordering::Relaxed);
    assert!((2..=3).contains(&asked), "{asked} requests");
}

#[tokio::test]
async fn what_holds_later_does_not_take_the_place_of_what_holds() {
    let (certificates, _keeping) = kept(Arc::new(Ahead {
        good: 1,
        asked: AtomicUsize::new(0),
    }));
    let _held = certificates.hold(&cart(), &pod()).await.unwrap();
    let present = certificates.credential(&cart()).unwrap();
    certificates.renew(&cart());
    until(|| certificates.failure(&cart()).is_some_and(|why| why.contains("clock"))).await;
    assert!(Arc::ptr_eq(&certificates.credential(&cart()).unwrap(), &present));
    certificates.ready(&cart()).await.unwrap();
}

#[tokio::test]
async fn pods_of_one_account_share_a_certificate_until_the_last_is_gone() {
    let issuer = Fixed::new(Duration::from_secs(60));
    let (certificates, _keeping) = kept(issuer.clone());
    let cart = cart();
    let one = pod();
    let (first, second) = tokio::join!(certificates.hold(&cart, &one), certificates.hold(&cart, &one));
    let third = certificates.hold(&cart, &pod()).await.unwrap();
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 1);
    drop((first.unwrap(), second.unwrap()));
    assert!(certificates.credential(&cart).is_some());
    drop(third);
    assert!(certificates.credential(&cart).is_none());
    assert!(matches!(certificates.ready(&cart).await, Err(CertificateError::Unknown(_))));
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_its_life_and_kept_through_failures() {
    let issuer = Fixed::new(Duration::from_millis(400));
    let (certificates, _keeping) = kept(issuer.clone());
    let _held = certificates.hold(&cart(), &pod()).await.unwrap();
    let before = certificates.credential(&cart()).unwrap();
    until(|| certificates.credential(&cart()).unwrap().not_after > before.not_after).await;
    issuer.fails.store(true, Ordering::Relaxed);
    let asked = issuer.asked.load(Ordering::Relaxed);
    until(|| issuer.asked.load(Ordering::Relaxed) > asked).await;
    let present = certificates.present().remove(0);
    until(|| !certificates.unrenewed().is_empty() || certificates.credential(&cart()).is_none()).await;
    let outcome = |word| certificates.outcomes.get_or_create(&[("outcome", word)]).get();
    assert!(outcome("issued") >= 2 && outcome("unanswered") >= 1 && outcome("refused") == 0);
    while certificates.credential(&cart()).is_some() {
        assert!(
            clock::wall() < present.not_after + Duration::from_secs(5),
            "an expired certificate is still given out"
        );
        time::sleep(Duration::from_millis(10)).await;
    }
    assert!(clock::wall() >= present.not_after);
    assert_eq!(certificates.lacking(), [cart()]);
    // Whoever needs one now is told at once, and has it as soon as the issuer is back.
    let error = certificates.ready(&cart()).await.unwrap_err();
    assert!(error.to_string().contains("told to"), "{error}");
    issuer.fails.store(false, Ordering::Relaxed);
    until(|| certificates.credential(&cart()).is_some()).await;
    certificates.ready(&cart()).await.unwrap();
    assert_eq!(certificates.unrenewed(), []);
}

/// One that holds for long and is not renewed is told of with the reason, until it is.
#[tokio::test]
async fn what_is_not_renewed_is_told_of_while_it_holds() {
    let issuer = Fixed::new(Duration::from_secs(600));
    let (certificates, _keeping) = kept(issuer.clone());
    certificates.expect(["a", "b"].map(borne));
    until(|| certificates.lacking().is_empty()).await;
    issuer.fails.store(true, Ordering::Relaxed);
    certificates.renew(&named("b"));
    until(|| !certificates.unrenewed().is_empty()).await;
    let told = certificates.unrenewed();
    assert!(
        matches!(&told[..], [(whose, why)] if *whose == named("b") && why.contains("told to")),
        "{told:?}"
    );
    issuer.fails.store(false, Ordering::Relaxed);
    until(|| certificates.unrenewed().is_empty()).await;
}

#[tokio::test]
async fn what_is_expected_is_there_before_it_is_needed_and_goes_with_the_last_who_needs_it() {
    let issuer = Fixed::new(Duration::from_secs(60));
    let (certificates, _keeping) = kept(issuer.clone());
    certificates.expect(["a", "b"].map(borne));
    until(|| certificates.present().len() == 2).await;
    let held = certificates.hold(&named("b"), &pod()).await.unwrap();
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 2);
    certificates.expect([borne("a")]);
    assert_eq!(certificates.present().len(), 2, "a pod holds it");
    drop(held);
    assert_eq!(certificates.present().len(), 1);
    certificates.expect([]);
    assert!(certificates.present().is_empty());
}

/// Remembers whom it was asked for, and answers one request for each permit.
struct Slow {
    asked: Mutex<Vec<Identity>>,
    permits: tokio::sync::Semaphore,
    panics: std::sync::atomic::AtomicBool,
}

impl Slow {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            asked: Mutex::default(),
            permits: tokio::sync::Semaphore::new(0),
            panics: false.into(),
        })
    }

    fn asked(&self) -> Vec<Identity> {
        self.asked.lock().unwrap().clone()
    }
}

impl Issuer for Slow {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(identity.clone());
            self.permits.acquire().await.unwrap().forget();
            assert!(!self.panics.load(Ordering::Relaxed), "told to panic");
            Fixed::new(Duration::from_secs(60)).issue(identity).await
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::default()
    }
}

#[tokio::test]
async fn who_is_waited_for_goes_before_warm_ups_also_where_those_are_slow() {
    let issuer = Slow::new();
    let (certificates, _keeping) = kept(issuer.clone());
    let many: Vec<Identity> = (10..40).map(|n| named(&format!("a{n}"))).collect();
    certificates.expect(many.iter().map(|identity| (identity.clone(), pod())));
    until(|| issuer.asked().len() == queue::UNHURRIED).await;
    let last = many
        .iter()
        .rev()
        .find(|identity| !issuer.asked().contains(identity))
        .unwrap()
        .clone();
    let of = certificates.clone();
    let wanted = last.clone();
    let waiting = tokio::spawn(async move { of.ready(&wanted).await });
    until(|| issuer.asked().last() == Some(&last)).await;
    assert_eq!(issuer.asked().len(), queue::UNHURRIED + 1);
    issuer.permits.add_permits(many.len());
    waiting.await.unwrap().unwrap();
    until(|| certificates.lacking().is_empty()).await;
    assert_eq!(issuer.asked().len(), many.len(), "each was asked for once");
}

#[tokio::test]
async fn a_request_that_breaks_off_has_failed_and_holds_up_nobody() {
    let issuer = Slow::new();
    issuer.panics.store(true, Ordering::Relaxed);
    issuer.permits.add_permits(1);
    let (certificates, _keeping) = kept(issuer.clone());
    let error = certificates.hold(&cart(), &pod()).await.unwrap_err();
    assert!(matches!(error, CertificateError::Broken(_)), "{error}");
    issuer.panics.store(false, Ordering::Relaxed);
    issuer.permits.add_permits(1);
    certificates.hold(&named("other"), &pod()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever_for_an_issuer_that_does_not_answer() {
    let (certificates, _keeping) = kept(Slow::new());
    let error = certificates.hold(&cart(), &pod()).await.unwrap_err();
    assert!(matches!(error, CertificateError::Timeout(_)), "{error}");
    // Without anybody to ask it is the same.
    let idle = Certificates::new(Slow::new());
    let error = idle.hold(&cart(), &pod()).await.unwrap_err();
    assert!(matches!(error, CertificateError::Waited(..)), "{error}");
    assert!(idle.lacking().is_empty(), "who has given up wants nothing");
}

/// Answers once for each identity, says what a test has it say, and writes down who comes and goes.
struct Streaming {
    said: tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<Told>>,
    bearers: Mutex<Vec<String>>,
    issues: std::sync::atomic::AtomicBool,
}

impl Issuer for Streaming {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            if self.issues.swap(false, Ordering::Relaxed) {
                return Fixed::new(Duration::from_secs(60)).issue(identity).await;
            }
            Err(IssueError::Refused {
                identity: identity.clone(),
                why: "it is withdrawn".into(),
            })
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::default()
    }

    fn arrives(&self, identity: &Identity, pod: &PodUid) {
        self.bearers
            .lock()
            .unwrap()
            .push(format!("+{} {}", identity.service_account(), pod.as_str()));
    }

    fn leaves(&self, identity: &Identity, pod: &PodUid) {
        self.bearers
            .lock()
            .unwrap()
            .push(format!("-{} {}", identity.service_account(), pod.as_str()));
    }

    fn told(&self) -> BoxFuture<'_, Told> {
        Box::pin(async { self.said.lock().await.recv().await.expect("the test is there") })
    }
}

#[tokio::test]
async fn what_an_issuer_says_unasked_counts_at_once() {
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    let issuer = Arc::new(Streaming {
        said: said.into(),
        bearers: Mutex::default(),
        issues: true.into(),
    });
    let (certificates, _keeping) = kept(issuer.clone());
    let cart = cart();
    let held = certificates.hold(&cart, &pod()).await.unwrap();
    let first = certificates.credential(&cart).unwrap();
    let newer = Fixed::new(Duration::from_secs(120)).issue(&cart).await.unwrap();
    say.send(Told::Renewed(newer.clone())).unwrap();
    until(|| !Arc::ptr_eq(&first, &certificates.credential(&cart).unwrap())).await;
    say.send(Told::Withdrawn {
        identity: cart.clone(),
        why: "told to".into(),
    })
    .unwrap();
    until(|| certificates.credential(&cart).is_none()).await;
    assert_eq!(certificates.take_withdrawn(), [cart.clone()].into(), "what it has open is to end");
    assert!(certificates.take_withdrawn().is_empty(), "once");
    assert_eq!(certificates.lacking(), std::slice::from_ref(&cart));
    let error = certificates.ready(&cart).await.unwrap_err();
    assert!(error.to_string().contains("it is withdrawn"), "{error}");
    // Whoever waits is woken by what comes unasked, too.
    say.send(Told::Renewed(newer.clone())).unwrap();
    until(|| certificates.credential(&cart).is_some()).await;
    certificates.ready(&cart).await.unwrap();
    drop(held);
    assert_eq!(*issuer.bearers.lock().unwrap(), ["+cart uid-1", "-cart uid-1"]);
    // What nobody wants any more is not kept.
    say.send(Told::Renewed(newer)).unwrap();
    let other = Fixed::new(Duration::from_secs(60)).issue(&named("other")).await.unwrap();
    certificates.expect([borne("other")]);
    say.send(Told::Renewed(other)).unwrap();
    until(|| certificates.credential(&named("other")).is_some()).await;
    assert!(certificates.credential(&cart).is_none());
}

type Kept = (HashMap<Identity, Credential>, Option<TrustBundles>);

/// Keeps in a map, which outlives one who keeps things there; or refuses to.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Kept>>, Arc<std::sync::atomic::AtomicBool>);

impl Keep for Shelf {
    fn load(&self, _: &TrustBundles, _: SystemTime) -> memory::Loaded {
        let (credentials, trust) = self.0.lock().unwrap().clone();
        memory::Loaded {
            credentials: credentials.into_values().collect(),
            trust,
            dropped: vec![],
        }
    }

    fn put(&self, credential: &Credential) -> std::io::Result<()> {
        if self.1.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.lock().unwrap().0.insert(credential.identity.clone(), credential.clone());
        Ok(())
    }

    fn put_trust(&self, trust: &TrustBundles) -> std::io::Result<()> {
        self.0.lock().unwrap().1 = Some(trust.clone());
        Ok(())
    }

    fn remove(&self, identity: &Identity) -> std::io::Result<()> {
        self.0.lock().unwrap().0.remove(identity);
        Ok(())
    }
}

impl Shelf {
    fn names(&self) -> Vec<Identity> {
        let mut names: Vec<_> = self.0.lock().unwrap().0.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn begin(&self, issuer: Arc<dyn Issuer>) -> (Arc<Certificates>, JoinSet<()>) {
        let certificates = Certificates::keeping(issuer, Certificates::reading(), Some(Box::new(self.clone())), Outcomes::default());
        let mut keeping = JoinSet::new();
        keeping.spawn(certificates.clone().keep_fresh());
        (certificates, keeping)
    }
}

#[tokio::test]
async fn a_process_goes_on_with_the_certificates_of_the_one_before_while_the_issuer_is_away() {
    let shelf = Shelf::default();
    let issuer = Fixed::new(Duration::from_secs(600));
    let (first, keeping) = shelf.begin(issuer.clone());
    first.expect([borne("cart"), borne("stock")]);
    until(|| first.lacking().is_empty()).await;
    assert_eq!(shelf.names(), [named("cart"), named("stock")]);
    assert_eq!(first.of_before(), []);
    let mut roots = TrustBundles::default();
    // Of another trust domain: what is here has no chain that could be judged.
    roots.add("other.mesh".parse().unwrap(), vec![1]);
    first.set_trust(roots.clone().into());
    // A pod that goes takes its key with it; the process that ends does not.
    first.expect([borne("cart")]);
    assert_eq!(shelf.names(), [named("cart")]);
    let held = first.hold(&named("cart"), &pod()).await.unwrap();
    drop((held, keeping, first));
    assert_eq!(shelf.names(), [named("cart")]);

    issuer.fails.store(true, Ordering::Relaxed);
    let (second, _keeping) = shelf.begin(issuer.clone());
    let asked = issuer.asked.load(Ordering::Relaxed);
    let held = second.hold(&named("cart"), &pod()).await.unwrap();
    assert!(second.credential(&named("cart")).is_some());
    assert_eq!(*second.trust(), roots);
    assert!(matches!(&second.of_before()[..], [(identity, _)] if *identity == named("cart")));
    // Who comes now has to wait.
    second.expect([borne("cart"), borne("new")]);
    until(|| second.lacking() == [named("new")]).await;
    drop(held);

    issuer.fails.store(false, Ordering::Relaxed);
    until(|| second.of_before().is_empty()).await;
    assert!(issuer.asked.load(Ordering::Relaxed) > asked);
}

/// This machine's clock is behind when it starts, and is set then.
#[tokio::test]
async fn what_is_left_of_before_is_used_once_it_has_begun() {
    let shelf = Shelf::default();
    let issuer = Fixed::new(Duration::from_secs(600));
    let (first, keeping) = shelf.begin(issuer.clone());
    first.expect([borne("cart")]);
    until(|| first.lacking().is_empty()).await;
    drop((keeping, first));
    let begins = clock::wall() + Duration::from_secs(2);
    let begin_later = |credential: &mut Credential| credential.not_before = begins;
    shelf
        .0
        .lock()
        .unwrap()
        .0
        .get_mut(&named("cart"))
        .map(begin_later)
        .expect("it was kept");
    issuer.fails.store(true, Ordering::Relaxed);
    let (second, _keeping) = shelf.begin(issuer);
    second.expect([borne("cart")]);
    assert_eq!(second.lacking(), [named("cart")]);
    until(|| second.lacking().is_empty()).await;
    assert!(clock::wall() >= begins && second.credential(&named("cart")).is_some());
}

/// Many nodes may start together: only of an authority that would take something back what is left is asked for at once.
#[tokio::test]
async fn what_is_left_of_before_does_not_fall_upon_an_authority_that_only_answers() {
    let (shelf, issuer) = (Shelf::default(), Fixed::new(Duration::from_secs(600)));
    let all = || (100..140).map(|n| borne(&format!("a{n}")));
    for hurried in [true, false] {
        let (first, keeping) = shelf.begin(issuer.clone());
        first.expect(all());
        until(|| first.lacking().is_empty() && first.of_before().is_empty()).await;
        drop((first, keeping));
        issuer.hurried.store(hurried, Ordering::Relaxed);
        issuer.asked.store(0, Ordering::Relaxed);
        let (second, _keeping) = shelf.begin(issuer.clone());
        second.expect(all());
        assert!(second.lacking().is_empty());
        if hurried {
            until(|| second.of_before().is_empty()).await;
        } else {
            time::sleep(Duration::from_millis(300)).await;
            let asked = issuer.asked.load(Ordering::Relaxed);
            assert!(asked <= 10, "{asked} of 40 at once, where they have a minute");
            // Who lacks something does not wait for that.
            second.hold(&named("new"), &pod()).await.unwrap();
        }
    }
}

/// An agent as SPIRE's: it speaks of whom it was asked for, unasked from then on, if it is there.
struct Agent {
    subscribed: Mutex<BTreeSet<Identity>>,
    /// How long what it gives lives; `None` while it is away, `Some(None)` where it gives nothing.
    gives: watch::Sender<Option<Option<Duration>>>,
    told: Mutex<BTreeSet<Identity>>,
}

impl Agent {
    fn away() -> Arc<Self> {
        Arc::new(Self {
            subscribed: Mutex::default(),
            gives: watch::Sender::new(None),
            told: Mutex::default(),
        })
    }
}

impl Issuer for Agent {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        Box::pin(async move {
            self.subscribed.lock().unwrap().insert(identity.clone());
            self.gives.send_modify(|_| {});
            // It is waited for, as for one that starts.
            time::sleep(Duration::from_secs(8)).await;
            let identity = identity.clone();
            let why = "it does not answer".into();
            Err(IssueError::Unavailable { identity, why })
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        Arc::default()
    }

    fn takes_back(&self) -> bool {
        true
    }

    fn told(&self) -> BoxFuture<'_, Told> {
        Box::pin(async {
            let mut gives = self.gives.subscribe();
            loop {
                let given = *gives.borrow_and_update();
                let new = self
                    .subscribed
                    .lock()
                    .unwrap()
                    .difference(&self.told.lock().unwrap())
                    .next()
                    .cloned();
                if let (Some(given), Some(identity)) = (given, new) {
                    self.told.lock().unwrap().insert(identity.clone());
                    return match given {
                        Some(life) => Told::Renewed(Fixed::new(life).issue(&identity).await.unwrap()),
                        None => Told::Withdrawn {
                            identity,
                            why: "there is no entry".into(),
                        },
                    };
                }
                gives.changed().await.unwrap();
            }
        })
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A process that has begun with certificates of a day that one before has left, of more than are asked for at a time.
async fn begun_with_a_day(agent: &Arc<Agent>) -> (Shelf, Arc<Certificates>, JoinSet<()>) {
    let (shelf, issuer) = (Shelf::default(), Fixed::new(DAY));
    let all = || (10..30).map(|n| borne(&format!("a{n}")));
    let (first, keeping) = shelf.begin(issuer);
    first.expect(all());
    until(|| first.lacking().is_empty()).await;
    drop((first, keeping));
    let (second, keeping) = shelf.begin(agent.clone());
    second.expect(all());
    assert_eq!((second.of_before().len(), second.lacking().len()), (20, 0));
    (shelf, second, keeping)
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_gives_takes_the_place_of_what_is_left_as_soon_as_it_is_there_however_long_that_lives() {
    let agent = Agent::away();
    let (shelf, certificates, _keeping) = begun_with_a_day(&agent).await;
    time::sleep(Duration::from_secs(120)).await;
    assert_eq!((certificates.of_before().len(), certificates.lacking().len()), (20, 0));
    let back = time::Instant::now();
    agent.gives.send_replace(Some(Some(Duration::from_secs(45))));
    until(|| certificates.of_before().is_empty()).await;
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    let end = clock::wall() + Duration::from_secs(45);
    assert!(certificates.present().iter().all(|one| one.not_after <= end));
    assert!(shelf.0.lock().unwrap().0.values().all(|one| one.not_after <= end), "so it is kept");
    assert!(certificates.lacking().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_vouches_for_no_more_goes_though_a_process_before_was_given_it() {
    let agent = Agent::away();
    let (shelf, certificates, _keeping) = begun_with_a_day(&agent).await;
    time::sleep(Duration::from_secs(60)).await;
    agent.gives.send_replace(Some(None));
    until(|| certificates.lacking().len() == 20).await;
    assert_eq!((certificates.of_before(), certificates.present().len()), (vec![], 0));
    assert_eq!(certificates.take_withdrawn().len(), 20, "what they have open is to end");
    assert!(shelf.names().is_empty(), "their keys are wiped");
}

#[tokio::test]
async fn what_is_withdrawn_before_its_pod_is_known_is_not_taken_for_it_later() {
    let shelf = Shelf::default();
    let (first, keeping) = shelf.begin(Fixed::new(DAY));
    first.expect([borne("cart")]);
    until(|| first.lacking().is_empty()).await;
    drop((first, keeping));
    let second = Certificates::keeping(
        Agent::away(),
        Certificates::reading(),
        Some(Box::new(shelf.clone())),
        Outcomes::default(),
    );
    let (identity, why) = (named("cart"), "there is no entry".into());
    second.hear(Told::Withdrawn { identity, why });
    second.expect([borne("cart")]);
    assert_eq!(second.lacking(), [named("cart")]);
    assert!(shelf.names().is_empty());
}

#[tokio::test]
async fn who_is_here_no_more_when_a_process_begins_is_wiped() {
    let shelf = Shelf::default();
    let issuer = Fixed::new(Duration::from_secs(600));
    let (first, keeping) = shelf.begin(issuer.clone());
    first.expect([borne("cart"), borne("gone")]);
    until(|| first.lacking().is_empty()).await;
    drop((first, keeping));
    let (second, _keeping) = shelf.begin(issuer);
    assert_eq!(shelf.names().len(), 2, "nothing is known of pods yet");
    second.expect([borne("cart")]);
    assert_eq!(shelf.names().len(), 2, "whoever enrols pods may know of more");
    second.wipe_left();
    assert_eq!(shelf.names(), [named("cart")]);
}

#[tokio::test]
async fn what_cannot_be_kept_is_served_all_the_same_and_nothing_old_comes_back() {
    let shelf = Shelf::default();
    let issuer = Fixed::new(Duration::from_secs(600));
    let (certificates, _keeping) = shelf.begin(issuer);
    certificates.expect([borne("cart")]);
    until(|| certificates.lacking().is_empty()).await;
    let first = certificates.credential(&named("cart")).unwrap();
    shelf.1.store(true, Ordering::Relaxed);
    certificates.renew(&named("cart"));
    until(|| {
        certificates
            .credential(&named("cart"))
            .is_some_and(|now| !Arc::ptr_eq(&now, &first))
    })
    .await;
    until(|| shelf.names().is_empty()).await;
    let (count, roots, why) = certificates.unkept().unwrap();
    assert_eq!((count, roots), (1, false));
    assert!(why.contains("storage"), "{why}");
    // Kept as soon as there is room, and not with the next certificate.
    shelf.1.store(false, Ordering::Relaxed);
    until(|| shelf.names() == [named("cart")]).await;
    assert_eq!(certificates.unkept(), None);
}
