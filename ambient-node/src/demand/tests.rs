use std::net::SocketAddr;

use ambient_core::{GatewayAddress, NamespacedHostname, Service, Workload, mesh::Update};

use super::*;

/// A source that remembers what it was asked for.
#[derive(Debug, Default)]
struct Asked {
    asked: Mutex<Vec<String>>,
    given_back: Mutex<Vec<String>>,
    away: std::sync::atomic::AtomicBool,
    full: std::sync::atomic::AtomicBool,
}

impl OnDemand for Asked {
    fn ask(&self, name: &str) -> Result<(), AskError> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(AskError::TooMuch);
        }
        self.asked.lock().unwrap().push(name.into());
        Ok(())
    }

    fn give_back(&self, names: Vec<String>) {
        self.given_back.lock().unwrap().extend(names);
    }

    fn is_there(&self) -> bool {
        !self.away.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn demand() -> (Arc<Asked>, Arc<Demand>) {
    let source = Arc::<Asked>::default();
    (source.clone(), Arc::new(Demand::new(source)))
}

fn pod() -> PodUid {
    "uid".into()
}

#[tokio::test(start_paused = true)]
async fn all_who_need_a_name_wait_for_one_answer() {
    let (source, demand) = demand();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..10 {
        let demand = demand.clone();
        waiting.spawn(async move { demand.know(&format!("uid-{n}").as_str().into(), "/10.0.0.1", None).await });
    }
    time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*source.asked.lock().unwrap(), ["/10.0.0.1"]);
    assert_eq!(demand.names().all_waiting, 10);
    demand.answered(&["/10.0.0.1".into(), "/10.9.9.9".into()]);
    assert!(waiting.join_all().await.into_iter().all(|known| known.is_ok()));
    assert_eq!(demand.names().all_waiting, 0);
    assert!(demand.names().waiting.is_empty());
    // What is answered is known to the next one.
    demand.know(&pod(), "/10.0.0.1", None).await.unwrap();
    assert_eq!(source.asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_answered_is_told_so_in_time() {
    let (source, demand) = demand();
    let begun = time::Instant::now();
    let error = demand.know(&pod(), "/10.0.0.1", None).await.unwrap_err();
    assert_eq!(
        (error, begun.elapsed()),
        (DemandError::Unanswered("/10.0.0.1".into(), PATIENCE), PATIENCE)
    );
    source.full.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = demand.know(&pod(), "/10.0.0.2", None).await.unwrap_err();
    assert_eq!(error, DemandError::NotAsked("/10.0.0.2".into(), AskError::TooMuch));
    // It was not asked for, and so it is the next time.
    source.full.store(false, std::sync::atomic::Ordering::Relaxed);
    let _ = demand.know(&pod(), "/10.0.0.2", None).await;
    assert_eq!(*source.asked.lock().unwrap(), ["/10.0.0.1", "/10.0.0.2"]);
}

#[tokio::test(start_paused = true)]
async fn one_pod_that_waits_for_much_leaves_room_to_others() {
    let (_source, demand) = demand();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..WAITING_OF_ONE {
        let demand = demand.clone();
        waiting.spawn(async move { demand.know(&pod(), &format!("/{n}"), None).await });
    }
    time::sleep(Duration::from_millis(1)).await;
    let error = demand.know(&pod(), "/more", None).await.unwrap_err();
    assert_eq!(error, DemandError::Busy);
    let error = demand.know(&"another".into(), "/more", None).await.unwrap_err();
    assert!(matches!(error, DemandError::Unanswered(..)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_needed_always_is_asked_for_at_once_and_never_given_back() {
    let (source, demand) = demand();
    let mut config = Config::new("n", "/");
    config.own_pod = Some(crate::OwnPod {
        namespace: "mesh-system".into(),
        name: "proxy".into(),
        service_account: "proxy".into(),
    });
    let asked = || std::mem::take(&mut *source.asked.lock().unwrap());
    let sweep = |length| time::timeout(length, demand.sweep(|demand| demand.keep(&config, None)));
    source.full.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(sweep(Duration::from_millis(1)).await.is_err());
    assert!(asked().is_empty(), "it could not be asked for");
    source.full.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(sweep(Duration::from_millis(1)).await.is_err());
    assert_eq!(asked(), ["Kubernetes//Pod/mesh-system/proxy"]);
    // By the clock of what was needed when, nothing is idle here: that nothing is given back is by its being needed each time.
    let before = demand.names().all["Kubernetes//Pod/mesh-system/proxy"].used;
    assert!(sweep(2 * BETWEEN_SWEEPS).await.is_err());
    assert!(demand.names().all["Kubernetes//Pod/mesh-system/proxy"].used > before);
    assert!(asked().is_empty() && source.given_back.lock().unwrap().is_empty());
}

#[test]
fn an_absence_is_not_believed_for_ever_once_nobody_would_take_it_back() {
    let (mut names, start) = (Names::default(), clock::steady());
    assert_eq!(names.need("/a", None, true, start).1, Need::Ask(vec![]));
    names.answered("/a");
    let later = start + 10 * ABSENCE;
    assert_eq!(
        names.need("/a", None, true, later).1,
        Need::Known,
        "the control plane would have said so"
    );
    assert_eq!(names.need("/a", None, false, later).1, Need::Known);
    assert_eq!(names.need("/a", None, false, later + ABSENCE).1, Need::Stale("/a".into()));
    assert_eq!(names.need("/a", None, true, later + ABSENCE).1, Need::Known);
}

#[test]
fn what_is_not_needed_is_given_back_and_what_it_led_to_with_it() {
    let (mut names, start) = (Names::default(), clock::steady());
    for name in ["/client", "shop/waypoint", "/other"] {
        names.need(name, None, true, start);
        names.answered(name);
    }
    names.need("shop/waypoint", Some("/client"), true, start);
    let later = start + IDLE - Duration::from_secs(1);
    assert!(names.sweep(true, later).is_empty());
    names.need("/client", None, true, later);
    assert_eq!(
        names.sweep(true, start + IDLE),
        ["/other".into()],
        "the waypoint is needed by who goes through it"
    );
    // Whoever waits keeps it.
    names.need("/awaited", None, true, start);
    let waits = names.answer("/awaited").unwrap();
    let mut gone = names.sweep(true, later + IDLE);
    gone.sort();
    assert_eq!(gone, ["/client".into(), "shop/waypoint".into()]);
    drop(waits);
    assert_eq!(names.sweep(true, later + 2 * IDLE), ["/awaited".into()]);
    assert!(names.all.is_empty());
}

#[test]
fn where_there_is_no_room_those_go_that_were_needed_least_lately() {
    let (mut names, start) = (Names::default(), clock::steady());
    for n in 0..MOST {
        let at = start + Duration::from_millis(n as u64);
        assert_eq!(names.need(&n.to_string(), None, true, at).1, Need::Ask(vec![]));
    }
    let full = start + Duration::from_millis(MOST as u64);
    assert_eq!(
        names.need("more", None, true, full).1,
        Need::Ask(vec!["0".into()]),
        "it alone is idle for so long"
    );
    assert_eq!(names.need("yet more", None, true, full).1, Need::Full("yet more".into()));
    let (_, need) = names.need("yet more", None, true, full + IDLE_IF_FULL);
    let Need::Ask(given_back) = need else { panic!("{need:?}") };
    assert_eq!(given_back.len(), MOST / 2);
    assert!(names.all.len() <= MOST && names.all.contains_key("more"));
}

#[test]
fn what_a_route_hangs_on_is_named() {
    let source = Workload::new("c//Pod/shop/a", "shop", "a");
    let asked = Outbound {
        source: &source,
        destination: SocketAddr::from(([10, 0, 0, 2], 80)),
    };
    let plan = |mesh: &Mesh| ambient_core::route::outbound(mesh, &asked, &Default::default());
    let needs = |mesh: &Mesh| needed(mesh, &asked, &plan(mesh));
    let mut mesh = Mesh::default();
    assert_eq!(needs(&mesh).as_deref(), Some("/10.0.0.2"));
    assert_eq!(destination(&asked), "/10.0.0.2");
    let mut b = Workload::new("c//Pod/shop/b", "shop", "b");
    b.addresses = vec!["10.0.0.2".parse().unwrap()];
    mesh = mesh.apply([Update::Workload(b.clone().into())]);
    assert_eq!(needs(&mesh), None);
    for (target, name) in [
        (
            GatewayTarget::Hostname(NamespacedHostname::new("shop", "way.shop")),
            "shop/way.shop",
        ),
        (
            GatewayTarget::Address(NetworkAddress::local("10.9.0.9".parse().unwrap())),
            "/10.9.0.9",
        ),
    ] {
        b.waypoint = Some(GatewayAddress { target, hbone_port: 15008 });
        mesh = mesh.apply([Update::Workload(b.clone().into())]);
        assert_eq!(needs(&mesh).as_deref(), Some(name));
    }
    let mut service = Service::new("shop", "web.shop");
    service.vips = vec![NetworkAddress::local("10.0.0.2".parse().unwrap())];
    service.ports = vec![ambient_core::ServicePort { port: 80, target: 80 }];
    mesh = mesh.apply([Update::Service(service.into())]);
    assert_eq!(
        needs(&mesh).as_deref(),
        Some("shop/web.shop"),
        "it may have endpoints that did not come"
    );
}

#[test]
fn dns_names_are_services_of_the_namespace_in_them_or_of_the_clients() {
    let names = |name: &str| service_names(&[name.to_owned()], "shop", "cluster.local");
    assert_eq!(names("web.other.svc.cluster.local"), ["other/web.other.svc.cluster.local"]);
    assert_eq!(
        names("db-0.db.other.svc.cluster.local"),
        ["other/db-0.db.other.svc.cluster.local", "other/db.other.svc.cluster.local"]
    );
    assert_eq!(names("api.example.com"), ["shop/api.example.com"]);
    assert!(names("web.svc.cluster.local").is_empty());
}
