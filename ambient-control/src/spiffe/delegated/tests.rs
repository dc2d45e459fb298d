use tonic::Status;

use super::{super::fake::*, *};

fn config(socket: Socket) -> DelegatedConfig {
    DelegatedConfig {
        patience: Duration::from_secs(20),
        ..DelegatedConfig::new(socket, "example.org".parse().unwrap(), provider())
    }
}

fn hasty(socket: Socket) -> DelegatedConfig {
    DelegatedConfig {
        patience: Duration::from_millis(300),
        ..config(socket)
    }
}

fn pod(uid: &str) -> PodUid {
    PodUid::from(uid)
}

/// A node that has its roots, whose `cart` is borne by one pod and has its first SVID.
async fn with_cart(fake: &mut Fake, authority: &Authority, clock: &Clock) -> (DelegatedIdentity, Roots, Svids) {
    let spire = DelegatedIdentity::with_clock(config(fake.socket()), clock.read()).unwrap();
    let roots = fake.roots().await;
    roots.gives(&[("spiffe://example.org", authority.root())]).await;
    spire.arrives(&cart(), &pod("uid-1"));
    let whom = cart();
    let (issued, stream) = tokio::join!(spire.issue(&whom), async {
        let stream = fake.svids().await;
        stream.gives(&[&authority.svid(CART, 0, 1000)]).await;
        stream
    });
    assert_eq!(issued.unwrap().not_after, at(1000));
    (spire, roots, stream)
}

async fn renewed(spire: &DelegatedIdentity) -> Arc<Credential> {
    match soon(spire.told()).await {
        Told::Renewed(credential) => credential,
        told => panic!("{told:?}"),
    }
}

async fn withdrawn(spire: &DelegatedIdentity) -> String {
    loop {
        match soon(spire.told()).await {
            Told::Withdrawn { identity, why } => {
                assert_eq!(identity, cart());
                return why;
            }
            // What came before it and was not heard.
            Told::Renewed(_) => {}
        }
    }
}

#[tokio::test]
async fn an_identity_is_asked_for_by_its_account_and_its_pods_on_one_stream() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, _roots, stream) = with_cart(&mut fake, &authority, &clock).await;
    assert_eq!(stream.selectors(), ["k8s:ns:shop", "k8s:sa:cart", "k8s:pod-uid:uid-1"]);
    assert_eq!(spire.trust().roots(&"example.org".parse().unwrap()), [authority.root()]);
    // Another pod of the account, and asking again, share it.
    spire.arrives(&cart(), &pod("uid-2"));
    let again = spire.issue(&cart()).await.unwrap();
    assert!(Arc::ptr_eq(&again, &spire.issue(&cart()).await.unwrap()));
    assert!(fake.nothing_is_asked());
    // One that the agent was not told of may go; the one that it was told of leaves the other to be asked for.
    spire.leaves(&cart(), &pod("uid-1"));
    stream.gone().await;
    let stream = fake.svids().await;
    assert_eq!(stream.selectors(), ["k8s:ns:shop", "k8s:sa:cart", "k8s:pod-uid:uid-2"]);
    assert!(spire.core.desk.credential(&cart()).is_some(), "what is valid stays meanwhile");
    // With the last pod all is let go.
    spire.leaves(&cart(), &pod("uid-2"));
    stream.gone().await;
    assert!(spire.core.desk.credential(&cart()).is_none());
}

#[tokio::test]
async fn what_the_agent_renews_is_told_and_what_it_takes_back_too() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, _roots, stream) = with_cart(&mut fake, &authority, &clock).await;
    assert_eq!(renewed(&spire).await.not_after, at(1000));
    clock.set(500);
    stream.gives(&[&authority.svid(CART, 490, 1490)]).await;
    assert_eq!(renewed(&spire).await.not_after, at(1490));
    stream.gives(&[]).await;
    assert!(withdrawn(&spire).await.contains("no registration entry"));
    assert!(spire.core.desk.credential(&cart()).is_none());
    stream.gives(&[&authority.svid(CART, 490, 1500)]).await;
    assert_eq!(renewed(&spire).await.not_after, at(1500));
}

#[tokio::test]
async fn what_a_process_before_was_given_is_taken_back_too() {
    let (mut fake, authority) = (Fake::start(), Authority::new());
    let spire = DelegatedIdentity::with_clock(config(fake.socket()), Clock::default().read()).unwrap();
    fake.roots().await.gives(&[("spiffe://example.org", authority.root())]).await;
    spire.arrives(&cart(), &pod("uid-1"));
    let whom = cart();
    let (issued, why) = tokio::join!(spire.issue(&whom), async {
        let stream = fake.svids().await;
        stream.gives(&[]).await;
        let why = withdrawn(&spire).await;
        // It is said once, however often the agent says it.
        stream.gives(&[]).await;
        stream.gives(&[&authority.svid(CART, 0, 1000)]).await;
        assert_eq!(renewed(&spire).await.not_after, at(1000));
        why
    });
    assert!(why.contains("no registration entry"), "{why}");
    issued.unwrap();
}

#[tokio::test]
async fn the_identity_that_comes_must_be_the_one_asked_for() {
    let (mut fake, authority) = (Fake::start(), Authority::new());
    let spire = DelegatedIdentity::with_clock(hasty(fake.socket()), Clock::default().read()).unwrap();
    let roots = fake.roots().await;
    roots.gives(&[("example.org", authority.root())]).await;
    spire.arrives(&cart(), &pod("uid-1"));
    let whom = cart();
    let (issued, stream) = tokio::join!(spire.issue(&whom), async {
        let stream = fake.svids().await;
        stream.gives(&[&authority.fresh("spiffe://example.org/ns/shop/sa/other")]).await;
        stream
    });
    let error = issued.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "{error}");
    for part in ["sa/other", "must name spiffe://example.org/ns/shop/sa/cart", "agent.sock"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(withdrawn(&spire).await.contains("sa/other"), "also what a process before was given");
    // Its pod is there, and the stream stays.
    stream.gives(&[&authority.fresh(CART)]).await;
    assert_eq!(renewed(&spire).await.identity, cart());
    assert!(fake.nothing_is_asked());
}

#[tokio::test]
async fn a_denial_says_what_to_do_and_takes_nothing_away() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, _roots, stream) = with_cart(&mut fake, &authority, &clock).await;
    let denied = Status::permission_denied("caller not configured as an authorized delegate");
    *fake.refuses.lock().unwrap() = Some(denied.clone());
    stream.end(denied).await;
    let other: Identity = "spiffe://example.org/ns/shop/sa/other".parse().unwrap();
    spire.arrives(&other, &pod("uid-9"));
    let error = soon(spire.issue(&other)).await.unwrap_err();
    assert!(matches!(error, IssueError::Refused { .. }), "{error}");
    for part in ["authorized_delegates", "not configured as an authorized delegate", "agent.sock"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(spire.core.desk.credential(&cart()).unwrap().not_after, at(1000));
    // Once it is allowed, all goes on by itself.
    *fake.refuses.lock().unwrap() = None;
    let streams = [fake.svids().await, fake.svids().await];
    let of_cart = streams.iter().find(|s| s.selectors().contains(&"k8s:sa:cart".to_owned())).unwrap();
    of_cart.gives(&[&authority.svid(CART, 0, 2000)]).await;
    while renewed(&spire).await.not_after != at(2000) {}
}

#[tokio::test]
async fn the_wrong_socket_is_told_from_an_absence() {
    let fake = Fake::start();
    *fake.refuses.lock().unwrap() = Some(Status::unimplemented("unknown service"));
    let spire = DelegatedIdentity::new(hasty(fake.socket())).unwrap();
    let error = soon(spire.issue(&cart())).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { why, .. } if why.contains("admin_socket_path")),
        "{error}"
    );
    let directory = fake.stop().await;
    std::fs::remove_file(directory.path().join("agent.sock")).unwrap();
    let spire = DelegatedIdentity::new(hasty(socket_in(&directory))).unwrap();
    let error = soon(spire.issue(&cart())).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Unavailable { why, .. } if why.contains("No such file") && why.contains("is it running")),
        "{error}"
    );
}

#[tokio::test]
async fn an_agent_that_appears_late_is_found() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let authority = Authority::new();
    let spire = DelegatedIdentity::with_clock(config(socket_in(&directory)), Clock::default().read()).unwrap();
    let whom = cart();
    let waiting = spire.issue(&whom);
    let agent = async {
        sleep(Duration::from_millis(100)).await;
        let mut fake = Fake::start_in(directory.clone());
        let (roots, stream) = (fake.roots().await, fake.svids().await);
        stream.gives(&[&authority.svid(CART, 0, 1000)]).await;
        roots.gives(&[("example.org", authority.root())]).await;
        (fake, roots, stream)
    };
    let (issued, _agent) = tokio::join!(soon(waiting), agent);
    assert_eq!(issued.unwrap().identity, cart());
    assert!(spire.has_roots().await);
}

#[tokio::test]
async fn an_agent_that_goes_takes_nothing_with_it_until_the_end() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, roots, stream) = with_cart(&mut fake, &authority, &clock).await;
    // It says nothing of use first: late, empty and broken answers.
    roots.gives(&[]).await;
    roots.gives(&[("example.org", b"garbage".to_vec())]).await;
    let mut garbage = authority.svid(CART, 0, 3000);
    garbage.chain = vec![b"garbage".to_vec()];
    stream.gives(&[&garbage]).await;
    stream.end(Status::internal("half of it")).await;
    let stream = fake.svids().await;
    drop((stream, roots));
    let directory = fake.stop().await;
    clock.set(999);
    assert_eq!(spire.core.desk.credential(&cart()).unwrap().not_after, at(1000));
    assert_eq!(spire.trust().domains().count(), 1);
    clock.set(1000);
    assert!(spire.core.desk.credential(&cart()).is_none(), "an ended certificate is given out");
    // It is back, and what was asked for is asked for again.
    let mut fake = Fake::start_in(directory);
    let (roots, stream) = (fake.roots().await, fake.svids().await);
    roots.gives(&[("example.org", authority.root())]).await;
    stream.gives(&[&authority.svid(CART, 900, 5000)]).await;
    assert_eq!(soon(spire.issue(&cart())).await.unwrap().not_after, at(5000));
}

#[tokio::test]
async fn what_is_near_its_end_is_not_given_out_as_new() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, _roots, stream) = with_cart(&mut fake, &authority, &clock).await;
    clock.set(749);
    assert_eq!(spire.issue(&cart()).await.unwrap().not_after, at(1000));
    clock.set(750);
    let whom = cart();
    let newer = authority.svid(CART, 740, 1740);
    let (issued, ()) = tokio::join!(spire.issue(&whom), async { stream.gives(&[&newer]).await });
    assert_eq!(issued.unwrap().not_after, at(1740));
}

#[tokio::test]
async fn roots_are_kept_apart_by_domain_and_go_with_their_federation() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, roots, _stream) = with_cart(&mut fake, &authority, &clock).await;
    let foreign = Authority::new();
    let theirs = "foreign.example".parse().unwrap();
    let changed = async |known: usize| {
        while spire.trust().domains().count() != known {
            sleep(Duration::from_millis(5)).await;
        }
    };
    roots
        .gives(&[
            ("spiffe://example.org", authority.root()),
            ("spiffe://foreign.example", foreign.root()),
        ])
        .await;
    soon(changed(2)).await;
    assert_eq!(spire.trust().roots(&theirs), [foreign.root()]);
    roots.gives(&[("spiffe://example.org", authority.root())]).await;
    soon(changed(1)).await;
    assert!(spire.trust().roots(&theirs).is_empty());
}

/// An answer that speaks of a pod that is gone is no withdrawal for the others of its account.
#[tokio::test]
async fn an_entry_for_each_pod_outlives_the_pod_that_was_asked_for() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let (spire, _roots, stream) = with_cart(&mut fake, &authority, &clock).await;
    assert_eq!(renewed(&spire).await.not_after, at(1000));
    spire.arrives(&cart(), &pod("uid-2"));
    stream.gives(&[]).await;
    stream.gone().await;
    let stream = fake.svids().await;
    assert_eq!(stream.selectors()[2..], ["k8s:pod-uid:uid-1", "k8s:pod-uid:uid-2"]);
    stream.gives(&[&authority.svid(CART, 0, 1100)]).await;
    assert_eq!(renewed(&spire).await.not_after, at(1100));
    // Now it speaks of all.
    stream.gives(&[]).await;
    withdrawn(&spire).await;
}

#[tokio::test]
async fn a_pod_whose_entry_is_younger_is_asked_for_when_it_comes() {
    let (mut fake, authority) = (Fake::start(), Authority::new());
    let spire = DelegatedIdentity::with_clock(hasty(fake.socket()), Clock::default().read()).unwrap();
    let roots = fake.roots().await;
    roots.gives(&[("example.org", authority.root())]).await;
    spire.arrives(&cart(), &pod("uid-1"));
    let whom = cart();
    let (issued, stream) = tokio::join!(spire.issue(&whom), async {
        let stream = fake.svids().await;
        stream.gives(&[]).await;
        stream
    });
    assert!(issued.is_err());
    withdrawn(&spire).await;
    spire.arrives(&cart(), &pod("uid-2"));
    stream.gone().await;
    let stream = fake.svids().await;
    stream.gives(&[&authority.fresh(CART)]).await;
    assert_eq!(renewed(&spire).await.identity, cart());
}

#[tokio::test]
async fn an_agent_of_another_user_is_not_believed() {
    let fake = Fake::start();
    let own = rustix::process::geteuid().as_raw();
    let socket = fake.socket().with_owners([own + 1]);
    let spire = DelegatedIdentity::new(hasty(socket)).unwrap();
    let error = soon(spire.issue(&cart())).await.unwrap_err();
    let listens = format!("a process of user {own} listens there");
    assert!(error.to_string().contains(&listens), "{error}");
}

#[tokio::test]
async fn streams_are_bounded_and_end_with_their_asker() {
    let mut fake = Fake::start();
    let config = DelegatedConfig {
        identities: 1,
        ..hasty(fake.socket())
    };
    let spire = DelegatedIdentity::new(config).unwrap();
    // What nobody bears is let go when nothing comes of it.
    assert!(spire.issue(&cart()).await.is_err());
    fake.svids().await.gone().await;
    spire.arrives(&cart(), &pod("uid-1"));
    assert!(spire.issue(&cart()).await.is_err());
    let stream = fake.svids().await;
    let other: Identity = "spiffe://example.org/ns/shop/sa/other".parse().unwrap();
    let error = spire.issue(&other).await.unwrap_err();
    assert!(error.to_string().contains("1 identities"), "{error}");
    drop(spire);
    stream.gone().await;
    fake.roots().await.gone().await;
}

#[tokio::test]
async fn a_workload_may_be_described_by_a_process() {
    let mut fake = Fake::start();
    let config = DelegatedConfig {
        describe: Arc::new(|_, _| Subject::Process(4711)),
        ..hasty(fake.socket())
    };
    let spire = DelegatedIdentity::new(config).unwrap();
    assert!(spire.issue(&cart()).await.is_err());
    let stream = fake.svids().await;
    assert_eq!((stream.request.pid, stream.selectors().len()), (4711, 0));
}

#[test]
fn selectors_are_written_as_spire_does() {
    let selector: Selector = "k8s:pod-label:app:cart".parse().unwrap();
    assert_eq!(selector, Selector::new("k8s", "pod-label:app:cart"));
    assert_eq!(selector.to_string(), "k8s:pod-label:app:cart");
    for bad in ["", "k8s", "k8s:", ":ns:shop"] {
        assert!(bad.parse::<Selector>().is_err(), "{bad}");
    }
    let many: Vec<_> = (0..1000).map(|n| pod(&n.to_string())).collect();
    let Subject::Selectors(selectors) = Subject::kubernetes(&cart(), &many) else {
        unreachable!("by selectors")
    };
    assert_eq!(selectors.len(), 2 + MOST_PODS);
}
