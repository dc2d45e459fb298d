//! Whole nodes from outside: two pods on two nodes, each node a process of its own, beside another node proxy that is given
//! as `BENCH_ZTUNNEL`, or another build of ours that is given as `BENCH_BEFORE`, in one run.

use std::{
    env,
    error::Error,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use ambient_benches::{
    Contender, Load, Sides, Way,
    app::Work,
    mesh::{Mesh, Pods, Proxy, Resident},
    report,
};
use ambient_testkit::{World, world};

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().any(|arg| arg == "--list") {
        return Ok(());
    }
    // While this is the only thread.
    match world::enter_or_skip("node")? {
        Some(world) => run(world),
        None => Ok(()),
    }
}

fn run(world: World) -> Result<(), Box<dyn Error>> {
    let ambient = Mesh::binary()?;
    let named = |variable| env::var_os(variable).map(PathBuf::from);
    let theirs = match (named("BENCH_BEFORE"), named("BENCH_ZTUNNEL")) {
        (Some(before), _) => Some(("before", Proxy::Ambient(before))),
        (None, Some(ztunnel)) => Some((
            "ztunnel",
            Proxy::Ztunnel {
                ambient: ambient.clone(),
                ztunnel,
            },
        )),
        (None, None) => {
            println!("BENCH_ZTUNNEL names no other node proxy: the nodes are compared with bare TCP alone");
            None
        }
    };
    let rig = Rig {
        ours: Proxy::Ambient(ambient),
        theirs,
        world,
        meshes: AtomicU8::new(1),
    };
    let standing = Standing {
        ours: rig.mesh("ambient", &rig.ours, Pods::Apart)?,
        together: rig.mesh("same node", &rig.ours, Pods::Together)?,
        theirs: rig
            .theirs
            .as_ref()
            .map(|(name, proxy)| rig.mesh(name, proxy, Pods::Apart))
            .transpose()?,
        bare: Mesh::none(&rig.world, rig.meshes.fetch_add(1, Ordering::Relaxed))?,
        ruled: [rig.rules_alone()?, rig.rules_alone()?],
    };
    let reference = rig.theirs.as_ref().map_or("direct", |(name, _)| *name);
    memory(&standing)?;
    report::compare(&LOADS, reference, |load| rig.contenders(load, &standing));
    Ok(())
}

/// What meshes are made of.
struct Rig {
    world: World,
    ours: Proxy,
    /// Who ours is compared with.
    theirs: Option<(&'static str, Proxy)>,
    meshes: AtomicU8,
}

/// The meshes that all loads without stalled connections share.
struct Standing {
    ours: Arc<Mesh>,
    together: Arc<Mesh>,
    theirs: Option<Arc<Mesh>>,
    bare: Sides,
    /// With the rules of a node's pods, and no node: for one way each, since it is led to a port.
    ruled: [Sides; 2],
}

impl Rig {
    fn mesh(&self, name: &'static str, proxy: &Proxy, pods: Pods) -> Result<Arc<Mesh>, Box<dyn Error>> {
        let number = self.meshes.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Mesh::start(&self.world, name, number, proxy, pods)?))
    }

    fn rules_alone(&self) -> Result<Sides, Box<dyn Error>> {
        Mesh::rules_alone(&self.world, self.meshes.fetch_add(1, Ordering::Relaxed))
    }

    fn contenders(&self, load: &Load, standing: &Standing) -> Vec<Contender> {
        if load.stalled > 0 {
            return self.beside_stalled(load);
        }
        let reference = match &standing.theirs {
            Some(theirs) => theirs.contender(load, theirs.name, 0, 0),
            None => load.contender(&standing.bare, "direct", Way::direct, 0),
        };
        let mut all = vec![reference, standing.ours.contender(load, "ambient", 0, 0)];
        if env::var_os("BENCH_BEFORE").is_some() {
            return all;
        }
        // Beside our own way between two nodes.
        all.push(standing.together.contender(load, "same node", 1, 0));
        if standing.theirs.is_some() {
            all.push(load.contender(&standing.bare, "direct", Way::direct, 0));
        }
        // What proxies without anything to do would make between such pods: the bounds of what a node proxy can.
        all.push(load.contender(&standing.bare, "bytes alone", Way::bytes_alone, 0));
        all.push(load.contender(&standing.bare, "bare tls", |sides| Way::tls(sides, load.warmth), 0));
        all.push(load.contender(&standing.bare, "bare hbone", |sides| Way::hbone(sides, load.warmth), 0));
        // And with all that a node proxy has in its way, whatever it does itself.
        let [bytes, tunnels] = &standing.ruled;
        all.push(load.contender(bytes, "bytes behind rules", Way::bytes_alone, 0));
        all.push(load.contender(tunnels, "hbone behind rules", |sides| Way::hbone(sides, load.warmth), 0));
        all
    }

    /// Each with meshes of its own: the stalled connections of one would be beside the other, too.
    fn beside_stalled(&self, load: &Load) -> Vec<Contender> {
        let ways = [
            ("ambient alone", "ambient beside", Some(&self.ours)),
            ("other alone", "other beside", self.theirs.as_ref().map(|(_, proxy)| proxy)),
        ];
        let mut all = Vec::new();
        for (alone, beside, proxy) in ways {
            let Some(proxy) = proxy else { continue };
            let against = all.len();
            for (name, stalled) in [(alone, 0), (beside, load.stalled)] {
                let mesh = self.mesh(name, proxy, Pods::Apart).expect("a mesh as before");
                all.push(mesh.contender(load, name, against, stalled));
            }
        }
        all
    }
}

/// What a node has in memory once it has had nothing to do for a while, and for each connection with nothing to do.
fn memory(standing: &Standing) -> Result<(), Box<dyn Error>> {
    if !report::is_asked_for("memory") {
        return Ok(());
    }
    let (connections, quiet) = if report::is_whole_run() {
        (2000, QUIET)
    } else {
        (20, Duration::ZERO)
    };
    thread::sleep(quiet);
    println!(
        "\n{:<10} {:>24} {:>24} {:>26}",
        "memory", "idle process, MiB", "of it in no file", "idle connection, KiB"
    );
    for mesh in [Some(&standing.ours), standing.theirs.as_ref()].into_iter().flatten() {
        let idle = mesh.resident()?;
        let mib = |bytes: fn(&Resident) -> u64| -> Vec<String> {
            let each = idle.iter().map(|resident| bytes(resident) as f64 / f64::from(1 << 20));
            each.map(|mib| format!("{mib:.1}")).collect()
        };
        let (all, own) = (mib(|resident| resident.all), mib(|resident| resident.own));
        let each: Vec<String> = mesh
            .idle_connections(connections)?
            .iter()
            .map(|bytes| format!("{:.1}", bytes / 1024.0))
            .collect();
        println!(
            "{:<10} {:>24} {:>24} {:>26}",
            mesh.name,
            all.join(" and "),
            own.join(" and "),
            each.join(" and ")
        );
    }
    Ok(())
}

const LOADS: [Load; 11] = [
    Load::new("node/upload/1", Work::Upload, 1).sampled_for(SECOND),
    Load::new("node/upload/8", Work::Upload, 8).sampled_for(SECOND),
    Load::new("node/download/1", Work::Download, 1).sampled_for(SECOND),
    Load::new("node/download/8", Work::Download, 8).sampled_for(SECOND),
    Load::new("node/echo/1", Work::Echo, 1).sampled_for(SECOND),
    Load::new("node/echo/32", Work::Echo, 32).sampled_for(SECOND),
    Load::new("node/paced/1", Work::Paced, 1).sampled_for(SECOND),
    Load::new("node/connect/1", Work::Touch, 1).sampled_for(SECOND),
    Load::new("node/connect/16", Work::Touch, 16).sampled_for(SECOND),
    Load::new("node/beside_stalled/4", Work::Echo, 1)
        .beside_stalled(4)
        .sampled_for(SECOND),
    Load::new("node/beside_stalled/99", Work::Echo, 1)
        .beside_stalled(99)
        .sampled_for(SECOND),
];

/// After its start a process goes on doing for a while what only the start needs, and gives memory back later still.
const QUIET: Duration = Duration::from_secs(15);

/// CPU time of processes comes in hundredths of a second.
const SECOND: Duration = Duration::from_secs(1);
