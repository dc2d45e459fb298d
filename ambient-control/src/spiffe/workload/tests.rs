use tonic::Status;

use super::{super::fake::*, *};

fn config(socket: Socket, patience: u64) -> WorkloadConfig {
    WorkloadConfig {
        patience: Duration::from_millis(patience),
        ..WorkloadConfig::new(socket, provider())
    }
}

const OTHER: &str = "spiffe://example.org/ns/shop/sa/other";

async fn told(api: &WorkloadApi, whom: &Identity) -> Option<Arc<Credential>> {
    loop {
        match soon(api.told()).await {
            Told::Renewed(credential) if credential.identity == *whom => return Some(credential),
            Told::Withdrawn { identity, .. } if identity == *whom => return None,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_process_gets_all_that_is_its_own() {
    let (mut fake, authority, foreign) = (Fake::start(), Authority::new(), Authority::new());
    let api = WorkloadApi::with_clock(config(fake.socket(), 20_000), Clock::default().read()).unwrap();
    let stream = fake.own().await;
    assert!(stream.request, "the header that agents demand");
    let node = authority.fresh("spiffe://example.org/node/a");
    let federated = [("spiffe://foreign.example", foreign.root()), ("example.org", foreign.root())];
    stream.gives(&[&node, &authority.fresh(CART)], &authority.root(), &federated).await;
    let credential = soon(api.issue(&cart())).await.unwrap();
    assert_eq!(credential.identity, cart());
    let ids: Vec<_> = api.identities().iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["spiffe://example.org/node/a", CART]);
    let trust = api.trust();
    assert_eq!(trust.roots(&"foreign.example".parse().unwrap()), [foreign.root()]);
    // What is federated is not this process's own domain, whatever it is called.
    assert_eq!(trust.roots(&"example.org".parse().unwrap()), [authority.root()]);
}

#[tokio::test]
async fn it_is_renewed_and_withdrawn_by_the_stream() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let api = WorkloadApi::with_clock(config(fake.socket(), 20_000), clock.read()).unwrap();
    let stream = fake.own().await;
    let root = authority.root();
    let other = authority.svid(OTHER, 0, 100);
    stream.gives(&[&authority.svid(CART, 0, 100), &other], &root, &[]).await;
    assert_eq!(told(&api, &OTHER.parse().unwrap()).await.unwrap().not_after, at(100));
    let age = |now| api.last_heard().unwrap().age(at(now));
    assert_eq!(age(90), Some(Duration::ZERO), "the agent is there");
    stream.gives(&[&authority.svid(CART, 0, 101), &other], &root, &[]).await;
    assert_eq!(told(&api, &cart()).await.unwrap().not_after, at(101));
    clock.set(50);
    stream.gives(&[&authority.svid(CART, 45, 145), &other], &root, &[]).await;
    assert_eq!(told(&api, &cart()).await.unwrap().not_after, at(145));
    // One of two is taken back.
    stream.gives(&[&other], &root, &[]).await;
    assert!(told(&api, &cart()).await.is_none());
    assert!(api.core.desk.credential(&OTHER.parse().unwrap()).is_some());
    // A denial is the API's word for the rest.
    stream.end(Status::permission_denied("no identity issued")).await;
    assert!(told(&api, &OTHER.parse().unwrap()).await.is_none());
    assert!(api.identities().is_empty());
    // The roots stay: what others prove does not hang on what this process is. They are as old as the agent's last word.
    assert_eq!(api.trust().domains().count(), 1);
    assert_eq!(age(60), Some(Duration::from_secs(10)));
    let stream = fake.own().await;
    stream.gives(&[&authority.svid(CART, 45, 200)], &root, &[]).await;
    assert_eq!(told(&api, &cart()).await.unwrap().not_after, at(200));
}

#[tokio::test]
async fn who_is_not_among_them_is_refused_with_those_who_are() {
    let (mut fake, authority) = (Fake::start(), Authority::new());
    let api = WorkloadApi::with_clock(config(fake.socket(), 300), Clock::default().read()).unwrap();
    let stream = fake.own().await;
    stream.gives(&[&authority.fresh(OTHER)], &authority.root(), &[]).await;
    told(&api, &OTHER.parse().unwrap()).await;
    let issued = soon(api.issue(&cart())).await;
    let error = issued.unwrap_err();
    assert!(error.to_string().contains(OTHER), "{error}");
    assert!(matches!(error, IssueError::Refused { .. }), "{error}");
    assert!(!api.core.desk.identities().contains(&cart()), "what nobody gives is not kept");
}

#[tokio::test]
async fn a_failure_takes_nothing_away() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let api = WorkloadApi::with_clock(config(fake.socket(), 300), clock.read()).unwrap();
    let stream = fake.own().await;
    stream.gives(&[&authority.svid(CART, 0, 100)], &authority.root(), &[]).await;
    told(&api, &cart()).await;
    assert!(api.faults().is_empty());
    // Empty answers would be a withdrawal, garbage is none.
    let mut garbage = authority.svid(CART, 0, 200);
    garbage.key = vec![1, 2, 3];
    stream.gives(&[&garbage], b"garbage", &[("also garbage", vec![])]).await;
    stream.end(Status::unavailable("restarting")).await;
    let again = fake.own().await;
    drop(again);
    assert_eq!(api.faults().len(), 1, "it does not answer");
    fake.stop().await;
    clock.set(99);
    assert_eq!(api.core.desk.credential(&cart()).unwrap().not_after, at(100));
    let error = soon(api.issue(&cart())).await.unwrap_err();
    assert!(matches!(error, IssueError::Unavailable { .. }), "{error}");
    clock.set(100);
    assert!(api.core.desk.credential(&cart()).is_none());
}

#[tokio::test]
async fn without_an_entry_it_is_told_what_is_missing() {
    let fake = Fake::start();
    *fake.refuses.lock().unwrap() = Some(Status::permission_denied("no identity issued"));
    let api = WorkloadApi::new(config(fake.socket(), 300)).unwrap();
    let error = soon(api.issue(&cart())).await.unwrap_err();
    assert!(
        matches!(&error, IssueError::Refused { why, .. } if why.contains("registration entry") && why.contains("no identity issued")),
        "{error}"
    );
}

#[tokio::test]
async fn a_denial_takes_back_what_a_process_before_was_given() {
    let fake = Fake::start();
    *fake.refuses.lock().unwrap() = Some(Status::permission_denied("no identity issued"));
    let api = WorkloadApi::new(config(fake.socket(), 20_000)).unwrap();
    // It is said before anybody asks, and once: the next time is seconds away.
    soon(async {
        while !matches!(&*lock(&api.core.given), Last::Denied(_)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let whom = cart();
    let (issued, told) = tokio::join!(api.issue(&whom), told(&api, &whom));
    assert!(matches!(issued, Err(IssueError::Refused { .. })), "{issued:?}");
    assert!(told.is_none());
}

/// What an agent gives may change its name without end.
#[tokio::test]
async fn what_is_taken_back_is_kept_no_longer_and_still_told() {
    let (mut fake, authority) = (Fake::start(), Authority::new());
    let api = WorkloadApi::with_clock(config(fake.socket(), 20_000), Clock::default().read()).unwrap();
    let stream = fake.own().await;
    let names: Vec<Identity> = (0..4)
        .map(|n| format!("spiffe://example.org/ns/shop/sa/a-{n}").parse().unwrap())
        .collect();
    for name in &names {
        stream.gives(&[&authority.fresh(name.as_str())], &authority.root(), &[]).await;
        soon(async {
            while api.core.desk.identities() != [name.clone()] {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    for name in &names[..3] {
        assert!(told(&api, name).await.is_none(), "{name}");
    }
    assert!(told(&api, &names[3]).await.is_some());
    // A denial takes the rest.
    stream.end(Status::permission_denied("no identity issued")).await;
    assert!(told(&api, &names[3]).await.is_none());
    soon(async {
        while !api.core.desk.identities().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_is_not_forgotten_and_whoever_waits_no_longer_is() {
    let (mut fake, authority) = (Fake::start(), Authority::new());
    let api = WorkloadApi::with_clock(config(fake.socket(), 20_000), Clock::default().read()).unwrap();
    let stream = fake.own().await;
    let whom = cart();
    let mut asked = api.issue(&whom);
    let moment = Duration::from_millis(50);
    assert!(tokio::time::timeout(moment, &mut asked).await.is_err());
    // What comes is not for it, and then it is.
    stream.gives(&[&authority.fresh(OTHER)], &authority.root(), &[]).await;
    told(&api, &OTHER.parse().unwrap()).await;
    assert!(api.core.desk.identities().contains(&whom), "it is waited for");
    stream.gives(&[&authority.fresh(CART)], &authority.root(), &[]).await;
    assert_eq!(soon(asked).await.unwrap().identity, whom);
    let other: Identity = OTHER.parse().unwrap();
    assert!(tokio::time::timeout(moment, api.issue(&other)).await.is_err());
    assert_eq!(api.core.desk.identities(), [whom]);
    assert!(lock(&api.core.asking).is_empty());
}

#[tokio::test]
async fn what_cannot_be_read_takes_nothing_away_from_who_asks() {
    let (mut fake, authority, clock) = (Fake::start(), Authority::new(), Clock::default());
    let api = WorkloadApi::with_clock(config(fake.socket(), 300), clock.read()).unwrap();
    let stream = fake.own().await;
    stream.gives(&[&authority.svid(CART, 0, 100)], &authority.root(), &[]).await;
    told(&api, &cart()).await;
    let mut garbage = authority.svid(CART, 0, 200);
    garbage.key = vec![1, 2, 3];
    stream.gives(&[&garbage], &authority.root(), &[]).await;
    soon(async {
        while !api.identities().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(soon(api.issue(&cart())).await.unwrap().not_after, at(100));
    assert!(api.core.desk.credential(&cart()).is_some());
}
