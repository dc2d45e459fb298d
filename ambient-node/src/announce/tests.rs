use ambient_control::{Batch, Change};
use ambient_core::mesh::Update;

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

#[test]
fn what_is_announced_is_known_from_the_mesh_where_nobody_else_tells() {
    let state = Arc::new(State::default());
    let by_state = |announced: Option<Vec<PodUid>>| ByState::over(Arc::new(Announcing(announced)), &"node-1".into(), &state);
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
