use ambient_control::{Batch, Change};
use ambient_core::mesh::Update;
use ambient_testkit::log::{Lines, heard_by};

use super::*;

struct Announcing(Option<Vec<PodUid>>);

impl Announce for Announcing {
    fn announced(&self) -> Option<Vec<PodUid>> {
        self.0.clone()
    }

    fn captured<'a>(&'a self, _: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn withdrawn<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn workload(name: &str, change: impl FnOnce(&mut Workload)) -> Change {
    let mut workload = Workload::new(name, "shop", name);
    workload.pod = Some(name.into());
    workload.node = "node-1".into();
    workload.tunnel = TunnelProtocol::Hbone;
    change(&mut workload);
    Change::Mesh(Update::Workload(workload.into()))
}

#[tokio::test]
async fn what_is_announced_is_known_from_the_mesh_where_nobody_else_tells() {
    let state = Arc::new(State::default());
    let by_state =
        |announced: Option<Vec<PodUid>>| ByState::over(Arc::new(Announcing(announced)), &"node-1".into(), &state, &Arc::default());
    assert_eq!(by_state(None).announced(), None, "before the first whole state nobody knows");
    let batch = Batch {
        changes: vec![
            // Also where it is not meant to be in the mesh any more.
            workload("announced", |_| ()),
            workload("elsewhere", |w| w.node = "node-2".into()),
            workload("plain", |w| w.tunnel = TunnelProtocol::None),
            workload("waypoint", |w| w.native_tunnel = true),
            workload("host", |w| w.network_mode = NetworkMode::HostNetwork),
            workload("nameless", |w| w.pod = None),
        ],
        synced: true,
        ..Batch::default()
    };
    state.apply(batch, clock::steady());
    assert_eq!(by_state(None).announced(), Some(vec!["announced".into()]));
    let said: Vec<PodUid> = vec!["by-itself".into()];
    assert_eq!(by_state(Some(said.clone())).announced(), Some(said), "who knows is believed");
    assert_eq!(by_state(Some(Vec::new())).announced(), Some(Vec::new()));
}

/// Announces through a control plane, whose answers may be late.
#[derive(Default)]
struct ToControl {
    said: Mutex<Vec<(&'static str, PodUid)>>,
    late: tokio::sync::Mutex<()>,
    /// What it answers instead.
    fails: Mutex<Option<io::ErrorKind>>,
    /// Of which pod alone.
    only: Mutex<Option<PodUid>>,
}

impl ToControl {
    fn say(&self, what: &'static str, uid: &PodUid) {
        lock(&self.said).push((what, uid.clone()));
    }

    fn said(&self) -> Vec<&'static str> {
        std::mem::take(&mut *lock(&self.said)).into_iter().map(|(what, _)| what).collect()
    }
}

impl Announce for ToControl {
    fn announced(&self) -> Option<Vec<PodUid>> {
        None
    }

    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async {
            let is_meant = lock(&self.only).as_ref().is_none_or(|only| *only == pod.uid);
            if let Some(kind) = lock(&self.fails).filter(|_| is_meant) {
                return Err(kind.into());
            }
            self.say("captured", &pod.uid);
            drop(self.late.lock().await);
            Ok(())
        })
    }

    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async {
            self.say("withdrawn", uid);
            Ok(())
        })
    }
}

fn pod(name: &str) -> PodSpec {
    PodSpec {
        uid: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "default".into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        capture: ambient_core::Capture::default(),
        has_run: true,
    }
}

/// Of a pod that was on its node all the time.
#[tokio::test(start_paused = true)]
async fn what_the_control_plane_has_forgotten_is_said_again_until_it_tells_it_and_never_after_it_was_taken_back() {
    let (state, control) = (Arc::new(State::default()), Arc::new(ToControl::default()));
    let tells = |tunnel: TunnelProtocol| {
        let changes = ["a", "elsewhere"].map(|name| {
            workload(name, |workload| {
                workload.tunnel = tunnel;
                workload.node = if name == "a" { "node-1" } else { "node-2" }.into();
            })
        });
        let batch = Batch {
            changes: changes.into(),
            synced: true,
            ..Batch::default()
        };
        state.apply(batch, clock::steady());
    };
    let announce = ByState::over(control.clone(), &"node-1".into(), &state, &Arc::default());
    tells(TunnelProtocol::None);
    for name in ["a", "elsewhere", "not-there"] {
        announce.captured(&pod(name)).await.unwrap();
    }
    assert_eq!(control.said().len(), 3);
    // What it has just been told it has time to tell.
    time::sleep(TO_BE_TOLD - GLANCE).await;
    tells(TunnelProtocol::Hbone);
    time::sleep(10 * TO_BE_TOLD).await;
    assert!(control.said().is_empty());
    tells(TunnelProtocol::None);
    time::sleep(2 * GLANCE).await;
    assert_eq!(control.said(), ["captured"], "it has forgotten");
    time::sleep(4 * TO_BE_TOLD).await;
    assert!((3..=4).contains(&control.said().len()), "again and again, but not at every look");
    // While it is being said again it is taken back: that comes last.
    let late = control.late.lock().await;
    time::sleep(2 * TO_BE_TOLD).await;
    assert_eq!(control.said(), ["captured"]);
    let anew = pod("a");
    assert!(time::timeout(GLANCE, announce.captured(&anew)).await.is_err());
    assert!(control.said().is_empty(), "what is said of it next waits for its turn");
    let uid = PodUid::from("a");
    assert!(time::timeout(GLANCE, announce.withdrawn(&uid)).await.is_err());
    assert!(control.said().is_empty());
    drop(late);
    announce.withdrawn(&uid).await.unwrap();
    time::sleep(4 * TO_BE_TOLD).await;
    assert_eq!(control.said(), ["withdrawn"]);
    // Whoever is gone says nothing.
    announce.captured(&pod("a")).await.unwrap();
    drop(announce);
    time::sleep(4 * TO_BE_TOLD).await;
    assert_eq!(control.said(), ["captured"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_mesh_tells_of_a_pod_counts_while_nobody_can_be_told_and_is_said_again_then() {
    let (state, control) = (Arc::new(State::default()), Arc::new(ToControl::default()));
    let changes = vec![
        workload("a", |_| ()),
        workload("late", |_| ()),
        workload("elsewhere", |w| w.node = "node-2".into()),
        workload("plain", |w| w.tunnel = TunnelProtocol::None),
    ];
    let batch = Batch {
        changes,
        synced: true,
        ..Batch::default()
    };
    state.apply(batch, clock::steady());
    let announce = ByState::over(control.clone(), &"node-1".into(), &state, &Arc::default());
    let fails = |with: Option<io::ErrorKind>| *lock(&control.fails) = with;

    fails(Some(io::ErrorKind::HostUnreachable));
    announce.captured(&pod("a")).await.unwrap();
    for unknown in ["elsewhere", "plain", "not-there"] {
        let error = announce.captured(&pod(unknown)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{unknown}");
    }
    // Who is there and refuses it is believed.
    fails(Some(io::ErrorKind::Other));
    assert!(announce.captured(&pod("late")).await.is_err());
    // Who does not answer is not waited for, as an enrolment would not.
    fails(None);
    let late = control.late.lock().await;
    time::timeout(BRIEFLY * 2, announce.captured(&pod("late"))).await.unwrap().unwrap();
    drop(late);
    control.said();

    time::sleep(2 * GLANCE).await;
    let mut said: Vec<String> = std::mem::take(&mut *lock(&control.said))
        .into_iter()
        .map(|(_, uid)| uid.to_string())
        .collect();
    said.sort();
    assert_eq!(said, ["a", "late"], "once each");
    time::sleep(10 * TO_BE_TOLD).await;
    assert!(control.said().is_empty(), "it was heard");

    // One that is said of anew as nobody hears is taken back as any other.
    fails(Some(io::ErrorKind::HostUnreachable));
    announce.captured(&pod("a")).await.unwrap();
    fails(None);
    announce.withdrawn(&"a".into()).await.unwrap();
    time::sleep(10 * TO_BE_TOLD).await;
    assert_eq!(control.said(), ["withdrawn"]);
}

/// As where the node was started anew while the control plane was away, and that has lost what it kept and cannot keep anything.
#[tokio::test(start_paused = true)]
async fn what_is_refused_and_nobody_tells_is_warned_of_and_keeps_nothing_else_from_being_said() {
    let lines = Lines::of("ambient_node::announce");
    let _guard = heard_by(lines.clone());
    let warnings = || {
        let lines = lines.take().into_iter().filter(|line| line.level <= tracing::Level::WARN);
        lines.map(|line| line.to_string()).collect::<Vec<_>>()
    };
    let (state, control) = (Arc::new(State::default()), Arc::new(ToControl::default()));
    let tells = |tunnel: TunnelProtocol| {
        let changes = ["a", "b", "c"].map(|name| workload(name, |workload| workload.tunnel = tunnel));
        let batch = Batch {
            changes: changes.into(),
            synced: true,
            ..Batch::default()
        };
        state.apply(batch, clock::steady());
    };
    tells(TunnelProtocol::Hbone);
    let announce = ByState::over(control.clone(), &"node-1".into(), &state, &Arc::default());
    *lock(&control.fails) = Some(io::ErrorKind::HostUnreachable);
    for name in ["a", "b", "c"] {
        announce.captured(&pod(name)).await.unwrap();
    }
    time::sleep(4 * TO_BE_TOLD).await;
    assert_eq!(warnings(), [""; 0], "its peers know of it, and nobody is there");
    // It is there again.
    *lock(&control.fails) = Some(io::ErrorKind::Other);
    *lock(&control.only) = Some("a".into());
    time::sleep(2 * GLANCE).await;
    let said: Vec<_> = std::mem::take(&mut *lock(&control.said)).into_iter().map(|(_, uid)| uid).collect();
    assert_eq!(said, [PodUid::from("b"), "c".into()], "what is refused is so of one alone");
    let warned = warnings();
    assert!(
        matches!(&*warned, [one] if one.contains("pod=shop/a") && one.contains("pods=1")),
        "{warned:?}"
    );
    // And tells of none of them.
    tells(TunnelProtocol::None);
    time::sleep(2 * TO_BE_TOLD).await;
    let warned = warnings();
    assert!(warned.iter().any(|line| line.contains("pods=3")), "{warned:?}");
    assert!(warned.iter().any(|line| line.contains("pod=shop/a")), "{warned:?}");
    // Nor is it there to.
    *lock(&control.fails) = Some(io::ErrorKind::HostUnreachable);
    time::sleep(2 * TO_BE_TOLD).await;
    let warned = warnings();
    assert!(warned.iter().any(|line| line.contains("pod=shop/a")), "{warned:?}");
    *lock(&control.fails) = None;
    control.said();
    time::sleep(2 * TO_BE_TOLD).await;
    assert!(control.said().len() >= 3, "it is said until it is told");
}
