use std::net::SocketAddr;

use ambient_core::{GatewayAddress, NamespacedHostname, Service, Workload, mesh::Update};

use super::{
    names::{ABSENCE, IDLE, IDLE_IF_FULL, MOST, MOST_MET, MOST_QUERIED, NO_ROOM, PART, WAITING_OF_ONE},
    *,
};

/// A source that remembers what it was asked for.
#[derive(Debug, Default)]
struct Asked {
    asked: Mutex<Vec<String>>,
    given_back: Mutex<Vec<String>>,
    /// Looked at where something is given back: whether anybody could need a name meanwhile.
    asks: std::sync::OnceLock<std::sync::Weak<Demand>>,
    asked_meanwhile: std::sync::atomic::AtomicBool,
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
        if let Some(demand) = self.asks.get().and_then(std::sync::Weak::upgrade) {
            self.asked_meanwhile
                .store(demand.names.try_lock().is_ok(), std::sync::atomic::Ordering::Relaxed);
        }
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
    assert_eq!(demand.names().all_waiting(), 10);
    demand.answered(&["/10.0.0.1".into(), "/10.9.9.9".into()]);
    assert!(waiting.join_all().await.into_iter().all(|known| known.is_ok()));
    assert_eq!(demand.names().all_waiting(), 0);
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

#[tokio::test(start_paused = true)]
async fn an_absence_is_not_believed_for_ever_however_often_it_is_gone_by() {
    let (source, demand) = demand();
    demand.needs(&pod(), "/10.0.0.1", false);
    demand.answered(&["/10.0.0.1".into()]);
    demand.know(&pod(), "/10.0.0.1", None).await.unwrap();
    source.away.store(true, std::sync::atomic::Ordering::Relaxed);
    demand.know(&pod(), "/10.0.0.1", None).await.unwrap();
    let noted = demand.names().away.unwrap();
    // As each connection that is let go does, and the node itself every now and then.
    demand.needs(&pod(), "/10.0.0.1", false);
    demand.needs(&pod(), "/10.0.0.2", true);
    assert_eq!(demand.names().away, Some(noted), "it goes on as it began");
    demand.names().away = noted.checked_sub(ABSENCE);
    let error = demand.know(&pod(), "/10.0.0.1", None).await.unwrap_err();
    assert_eq!(error, DemandError::Stale("/10.0.0.1".into()));
    source.away.store(false, std::sync::atomic::Ordering::Relaxed);
    demand.know(&pod(), "/10.0.0.1", None).await.unwrap();
}

#[test]
fn what_is_given_back_is_so_before_anybody_asks_for_it_anew() {
    let (source, demand) = demand();
    source.asks.set(Arc::downgrade(&demand)).unwrap();
    demand.needs(&pod(), "/10.0.0.1", true);
    demand.give_back_idle(clock::steady() + IDLE);
    assert_eq!(*source.given_back.lock().unwrap(), ["/10.0.0.1"]);
    assert!(!source.asked_meanwhile.load(std::sync::atomic::Ordering::Relaxed));
}

/// What a pod's connection needs, of a control plane that is there.
fn need(names: &mut Names, pod: &PodUid, name: &str, now: Instant) -> Need {
    names.need(Whose::Connections(pod), name, None, true, now).1
}

#[test]
fn an_absence_is_believed_for_a_while_once_nobody_would_take_it_back() {
    let (mut names, start) = (Names::default(), clock::steady());
    let pod = pod();
    let mut need = |is_there, now| {
        let (name, need) = names.need(Whose::Connections(&pod), "/a", None, is_there, now);
        names.answered(&name);
        need
    };
    assert_eq!(need(true, start), Need::Ask(vec![]));
    let later = start + 10 * ABSENCE;
    assert_eq!(need(true, later), Need::Known, "the control plane would have said so");
    assert_eq!(need(false, later), Need::Known);
    assert_eq!(need(false, later + ABSENCE), Need::Stale("/a".into()));
    assert_eq!(need(true, later + ABSENCE), Need::Known);
}

#[test]
fn what_is_not_needed_is_given_back_and_what_it_led_to_with_it() {
    let (mut names, start, pod) = (Names::default(), clock::steady(), pod());
    for name in ["/client", "shop/waypoint", "/other"] {
        need(&mut names, &pod, name, start);
        names.answered(name);
    }
    names.need(Whose::Connections(&pod), "shop/waypoint", Some("/client"), true, start);
    let later = start + IDLE - Duration::from_secs(1);
    assert!(names.sweep(true, later).is_empty());
    need(&mut names, &pod, "/client", later);
    assert_eq!(
        names.sweep(true, start + IDLE),
        ["/other".into()],
        "the waypoint is needed by who goes through it"
    );
    // Whoever waits keeps it.
    need(&mut names, &pod, "/awaited", start);
    let waits = names.answer("/awaited").unwrap();
    let mut gone = names.sweep(true, later + IDLE);
    gone.sort();
    assert_eq!(gone, ["/client".into(), "shop/waypoint".into()]);
    drop(waits);
    assert_eq!(names.sweep(true, later + 2 * IDLE), ["/awaited".into()]);
    assert!(names.all.is_empty() && names.has_no_counts());
}

#[test]
fn a_pod_that_has_its_part_gives_up_what_it_has_needed_least_lately() {
    let (mut names, start, pod) = (Names::default(), clock::steady(), pod());
    let part = MOST / PART;
    for n in 0..part {
        let at = start + Duration::from_millis(n as u64);
        assert_eq!(need(&mut names, &pod, &n.to_string(), at), Need::Ask(vec![]));
    }
    let full = start + IDLE_IF_FULL;
    assert_eq!(
        need(&mut names, &pod, "more", full),
        Need::Ask(vec!["0".into()]),
        "it alone is idle for so long"
    );
    assert_eq!(need(&mut names, &pod, "yet more", full), Need::Full("yet more".into()));
    assert_eq!(
        need(&mut names, &pod, "yet more", full + NO_ROOM / 2),
        Need::Full("yet more".into()),
        "it was looked for a moment ago"
    );
    let Need::Ask(given_back) = need(&mut names, &pod, "yet more", full + IDLE_IF_FULL) else {
        panic!()
    };
    assert_eq!(given_back.len(), part / 2);
    assert!(names.all.len() <= part && names.all.contains_key("more"));
}

#[test]
fn a_pod_that_needs_without_end_keeps_no_other_from_what_is_new_nor_takes_it() {
    let (mut names, start) = (Names::default(), clock::steady());
    let (quiet, late) = (PodUid::from("quiet"), PodUid::from("late"));
    let long_ago = start + IDLE_IF_FULL;
    need(&mut names, &quiet, "/quiet", start);
    let greedy: Vec<PodUid> = (0..PART + 1).map(|n| format!("greedy-{n}").as_str().into()).collect();
    for (n, pod) in greedy.iter().enumerate() {
        for address in 0..MOST {
            need(&mut names, pod, &format!("/{n}.{address}"), long_ago);
        }
    }
    assert_eq!(names.all.len(), MOST);
    assert!(names.all.contains_key("/quiet"), "who has less gives nothing up");
    let last = greedy.last().unwrap();
    assert_eq!(need(&mut names, last, "/more", long_ago), Need::Full("/more".into()));
    let Need::Ask(given_back) = need(&mut names, &late, "/late", long_ago) else {
        panic!("one that is new has no room")
    };
    let whose = given_back[0].split('.').next().unwrap();
    assert!(given_back.iter().all(|name| name.starts_with(whose)), "one has given it up");
    assert_eq!(given_back.len(), MOST / PART / 2);
    // The node's own needs have room for as long as others have any.
    assert!(matches!(names.need(Whose::Node, "shop/own", None, true, long_ago).1, Need::Ask(_)));
}

#[test]
fn names_that_dns_asks_for_take_no_room_from_connections() {
    let (mut names, now) = (Names::default(), clock::steady());
    let pods: Vec<PodUid> = (0..PART).map(|n| format!("uid-{n}").as_str().into()).collect();
    for pod in &pods {
        for n in 0..MOST {
            names.need(Whose::Queries(pod), &format!("{pod}/{n}"), None, true, now);
        }
    }
    assert_eq!(names.all.len(), MOST_QUERIED);
    let another = names.need(Whose::Queries(&pods[0]), "shop/x", None, true, now).1;
    assert_eq!(another, Need::Full("shop/x".into()));
    for n in 0..MOST / PART {
        assert_eq!(need(&mut names, &pods[0], &format!("/{n}"), now), Need::Ask(vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn who_connects_to_a_pod_takes_no_room_from_its_own_connections() {
    let (_source, demand) = demand();
    let mesh = Mesh::default();
    let client = |n: usize| NetworkAddress::local(std::net::Ipv4Addr::from(u32::try_from(n).unwrap()).into());
    let mut met = tokio::task::JoinSet::new();
    for n in 0..MOST / PART {
        let (demand, mesh) = (demand.clone(), mesh.clone());
        met.spawn(async move { demand.meet(&pod(), &mesh, &client(n)).await });
    }
    time::sleep(Duration::from_millis(1)).await;
    // All wait, and as many names are remembered as one pod may have.
    assert_eq!(demand.names().all.len(), MOST_MET / PART);
    let mut needs = tokio::task::JoinSet::new();
    for n in 0..MOST / PART - 1 {
        let demand = demand.clone();
        demand.needs(&pod(), &format!("/needed.{n}"), true);
        if n < WAITING_OF_ONE {
            needs.spawn(async move { demand.know(&pod(), "/own", None).await });
        }
    }
    time::sleep(Duration::from_millis(1)).await;
    demand.answered(&["/own".into()]);
    assert!(needs.join_all().await.into_iter().all(|known| known.is_ok()));
    met.join_all().await;
    assert_eq!(demand.names().all_waiting(), 0);
}

#[test]
fn a_name_that_connections_need_is_not_given_up_for_peers_or_queries() {
    let (mut names, start, pod) = (Names::default(), clock::steady(), pod());
    for (n, whose) in [Whose::Peers(&pod), Whose::Queries(&pod)].into_iter().enumerate() {
        let name = format!("/needed.{n}");
        names.need(whose, &name, None, true, start);
        assert_eq!(need(&mut names, &pod, &name, start), Need::Known);
        // Whoever has it for a lesser reason meanwhile leaves it where it is.
        names.need(whose, &name, None, true, start);
        for other in 0..MOST {
            names.need(whose, &format!("/{n}.{other}"), None, true, start);
        }
        let another = names.need(whose, &format!("/{n}.last"), None, true, start + IDLE_IF_FULL).1;
        assert!(matches!(another, Need::Ask(given_back) if !given_back.is_empty() && !given_back.contains(&name.as_str().into())));
    }
    // Where the pod's connections have no room the name stays where it is.
    for n in 0..MOST / PART - 2 {
        assert_eq!(need(&mut names, &pod, &format!("/own.{n}"), start), Need::Ask(vec![]));
    }
    assert_eq!(need(&mut names, &pod, "/0.last", start), Need::Known);
    assert_eq!(need(&mut names, &pod, "/more", start), Need::Full("/more".into()));
    let later = start + 2 * IDLE_IF_FULL;
    names.sweep(true, later + IDLE);
    assert!(names.all.is_empty() && names.has_no_counts());
}

#[test]
fn what_the_node_needs_itself_is_on_no_pods_account() {
    let (mut names, now, pod) = (Names::default(), clock::steady(), pod());
    need(&mut names, &pod, "shop/web", now);
    assert_eq!(names.need(Whose::Node, "shop/web", None, true, now).1, Need::Known);
    for n in 0..MOST / PART {
        assert_eq!(need(&mut names, &pod, &n.to_string(), now), Need::Ask(vec![]));
    }
    let Need::Ask(given_back) = need(&mut names, &pod, "more", now + IDLE_IF_FULL) else {
        panic!()
    };
    assert!(!given_back.contains(&"shop/web".into()));
    names.sweep(true, now + 2 * IDLE);
    assert!(names.has_no_counts());
    // It has more than any pod, and they give up what they need for it.
    for n in 0..2 * MOST / PART {
        names.need(Whose::Node, &format!("own/{n}"), None, true, now);
    }
    for pod in ["a", "b"].map(PodUid::from) {
        for n in 0..MOST / PART {
            need(&mut names, &pod, &format!("/{pod}.{n}"), now);
        }
    }
    assert_eq!(names.all.len(), MOST);
    let Need::Ask(given_back) = names.need(Whose::Node, "own/more", None, true, now).1 else {
        panic!()
    };
    assert_eq!(given_back.len(), MOST / PART / 2);
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
