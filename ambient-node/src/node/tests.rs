use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use ambient_control::{BoxFuture, IssueError};
use ambient_core::{Credential, Identity, PodUid, TrustBundles, TrustDomain, Workload, mesh::Update};
use ambient_redirect::{Proxy as _, linux::Netns};
use ambient_testkit::ca::{Ca, Leaf};

use super::*;
use crate::{AnnounceNothing, Page, pod::Stage};

/// Issues to everybody, or to nobody for ever.
struct Authority {
    ca: Ca,
    silent: bool,
    asked: AtomicUsize,
}

impl Issuer for Authority {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match self.silent {
                true => std::future::pending().await,
                false => Ok(Arc::new(self.ca.issue_as(identity, &Leaf::default()).unwrap())),
            }
        })
    }

    fn trust(&self) -> Arc<TrustBundles> {
        self.ca.trust().into()
    }
}

/// Says nothing.
struct Silent;

impl Source for Silent {
    fn next(&mut self) -> BoxFuture<'_, Option<Batch>> {
        Box::pin(std::future::pending())
    }
}

/// A node that others enrol pods for, with its threads, of which nothing runs yet; and who gives it certificates.
async fn node(silent: bool) -> (Node, Arc<Authority>) {
    let authority = Arc::new(authority(silent));
    let node = Node::start(ground(), Box::new(Silent), authority.clone(), Arc::new(AnnounceNothing));
    (node.await.unwrap(), authority)
}

fn authority(silent: bool) -> Authority {
    Authority {
        ca: Ca::new(&TrustDomain::default()).unwrap(),
        silent,
        asked: AtomicUsize::new(0),
    }
}

/// What that node stands on.
fn ground() -> Ground {
    let mut config = Config::new("node-1", "/nowhere");
    let somewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.metrics, config.readiness, config.admin) = (somewhere, somewhere, somewhere);
    config.workers = 1;
    config.ipv6 = false;
    config.zds = Some("/nowhere/zds.sock".into());
    config.drain = Duration::from_secs(60);
    Ground {
        options: options_of(&config),
        probes: None,
        plugins: None,
        doors: Doors::open(config.pages(), Given::default()).unwrap(),
        config,
    }
}

#[tokio::test]
async fn pages_that_the_ground_has_opened_are_not_given_others() {
    for (page, what) in [
        (Page::Metrics, "metrics"),
        (Page::Readiness, "readiness"),
        (Page::Admin, "the admin pages"),
    ] {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let builder = ground().builder().source(Silent).issuer(authority(true)).page(page, listener);
        let error = builder.build().await.unwrap_err();
        assert!(matches!(error, StartError::OpenedAlready(which) if which == what), "{error}");
    }
}

fn pod(name: &str) -> PodSpec {
    PodSpec {
        uid: format!("uid-of-{name}").as_str().into(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: name.into(),
        addresses: Vec::new(),
        capture: Default::default(),
        has_run: true,
    }
}

fn own() -> Arc<Netns> {
    Arc::new(Netns::current().unwrap())
}

fn workload(name: &str, uid: Option<&str>) -> Change {
    let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/{name}"), "shop", name);
    workload.pod = uid.map(PodUid::from);
    workload.service_account = name.into();
    workload.node = "node-1".into();
    workload.ambient = true;
    Change::Mesh(Update::Workload(workload.into()))
}

fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        synced: true,
        ..Batch::default()
    }
}

/// Lets all that can go on do so.
async fn settle() {
    for _ in 0..100 {
        task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_drain_while_steps_of_the_enrolment_are_under_way_which_have_the_same_time() {
    let (node, _) = node(false).await;
    let (pods, shared, told) = (node.pods.clone(), node.shared.clone(), node.stop());
    let draining = tokio::spawn({
        let pods = pods.clone();
        async move {
            let begun = time::Instant::now();
            drain::drain(&shared, &pods, &told, tokio::spawn(std::future::pending())).await;
            begun.elapsed()
        }
    });
    settle().await;
    let late = pods.add(&pod("a"), own()).await.unwrap_err();
    assert!(late.to_string().contains("the node stops"), "{late}");
    assert!(!draining.is_finished());
    let took = draining.await.unwrap();
    assert!(took >= Duration::from_secs(60) && took < Duration::from_secs(63), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_the_end_at_once_waits_for_no_step_of_the_enrolment() {
    let (node, _) = node(false).await;
    let (pods, shared, told) = (node.pods.clone(), node.shared.clone(), node.stop());
    let begun = time::Instant::now();
    told.tell(Urgency::Immediate);
    drain::drain(&shared, &pods, &told, tokio::spawn(std::future::pending())).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_being_begun_as_the_node_stops_is_not_served() {
    let (node, _) = node(true).await;
    let pods = node.pods.clone();
    let adding = tokio::spawn({
        let pods = pods.clone();
        async move { pods.add(&pod("a"), own()).await }
    });
    settle().await;
    assert!(!adding.is_finished(), "it waits for its certificate");
    pods.advance(Stage::Draining);
    settle().await;
    assert!(adding.is_finished(), "it need not wait for that");
    let refused = adding.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("the node stops"), "{refused}");
    assert_eq!(pods.specs(), []);
}

#[tokio::test]
async fn a_pod_that_enters_after_the_stop_is_as_far_as_the_others() {
    let (node, _) = node(false).await;
    let _keeping = tokio::spawn(node.shared.certificates.clone().keep_fresh());
    let late = node.pods.begun_late(&pod("a"), own()).await;
    assert!(!late.serves(), "it takes nothing new");
    assert!(node.pods.namespace(&"uid-of-a".into()).is_some(), "what it has open is drained");
}

#[tokio::test]
async fn certificates_of_pods_whose_uid_only_an_agent_knows_are_there_before_it_names_them() {
    let (node, authority) = node(false).await;
    let (shared, _keeping) = (&node.shared, tokio::spawn(node.shared.certificates.clone().keep_fresh()));
    let changed = shared
        .state
        .apply(batch(vec![workload("a", None), workload("b", Some("uid-of-b"))]), clock::steady());
    assert_eq!(changed.workloads.len(), 2);
    let now = shared.state.current().unwrap();
    expect(shared, &now, &meant::pods_of(&shared.config.node, None, &now), &[]);
    let held = |name: &str| {
        let identity = assumed::identity(&shared.config, &pod(name), Some(&now.mesh)).unwrap();
        shared
            .certificates
            .present()
            .iter()
            .any(|credential| credential.identity == identity)
    };
    let both = async {
        while !(held("a") && held("b")) {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(Duration::from_secs(20), both).await.expect("in time");
    // It names one, which is the same to whoever issues.
    shared.state.serve("Kubernetes//Pod/shop/a".into(), &"uid-of-a".into(), &"a".into());
    let now = shared.state.current().unwrap();
    expect(shared, &now, &meant::pods_of(&shared.config.node, None, &now), &[]);
    assert!(held("a") && held("b"));
    assert_eq!(authority.asked.load(Ordering::Relaxed), 2);
}
