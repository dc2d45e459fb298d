//! Pods that come, go, die and are damaged at random, under a process that is killed at random, while all of them open
//! connections all the time. Six seconds of it; `AMBIENT_CHAOS_SECONDS` says how many else, `AMBIENT_CHAOS_SEED` repeats one.
#![allow(clippy::unwrap_used, reason = "a test; what clippy.toml allows it in has a harness")]
#![allow(clippy::disallowed_methods, reason = "what happened when is what is tested")]

#[path = "support/node.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod node;
#[path = "support/peers.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod peers;
#[path = "support/process.rs"]
mod process;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ambient_redirect::{
    PodSpec,
    linux::Netns,
    netlink::{Batch, Family, Nftables, Routing},
    plan::{ROUTE_TABLE, SEGMENTS_TABLE},
};
use ambient_testkit::{
    Namespace, World,
    harness::{self, Outcome},
};
use node::{Node, spec};
use process::Process;

fn main() -> ExitCode {
    harness::main(&[("no_pod_is_uncovered_or_taken_for_another", no_pod_is_uncovered_or_taken_for_another)])
}

/// How long what is damaged may stay so; what is promised is tested without a storm around it.
const MENDED: Duration = Duration::from_secs(2);
const SLOTS: usize = 4;

/// One connection that a pod has opened: to whom it was given, if it was not refused.
struct Sample {
    uid: String,
    begun: Instant,
    ended: Instant,
    heard: String,
}

/// What the test knows of a pod.
#[derive(Default)]
struct Life {
    /// From when on it is covered, and until when.
    covered: Vec<(Instant, Option<Instant>)>,
    damaged: Vec<Instant>,
}

struct Pod {
    uid: String,
    wanted: bool,
    name: Namespace,
    netns: Arc<Netns>,
    stop: Arc<AtomicBool>,
    client: thread::JoinHandle<()>,
}

struct Storm<'a> {
    world: &'a World,
    node: &'a Node,
    random: u64,
    born: usize,
    pods: [Option<Pod>; SLOTS],
    process: Option<Process>,
    down: Vec<(Instant, Instant)>,
    lives: BTreeMap<String, Life>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

fn no_pod_is_uncovered_or_taken_for_another(world: &World) -> Outcome {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = from_env("AMBIENT_CHAOS_SECONDS").unwrap_or(6);
    let clock = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |d| d.as_nanos() as u64)
    };
    let seed = from_env("AMBIENT_CHAOS_SEED").unwrap_or_else(clock) | 1;
    println!("seed {seed}");
    let node = Node::new(world)?;
    peers::telling(&node.netns);
    // The first runtime of a process opens two sockets that outlive it.
    Process::start(&node).kill();
    let descriptors = open_descriptors();
    let mut storm = Storm {
        world,
        node: &node,
        random: seed,
        born: 0,
        pods: [const { None }; SLOTS],
        process: Some(Process::start(&node)),
        down: Vec::new(),
        lives: BTreeMap::new(),
        samples: Arc::default(),
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        storm.blow();
        let pause = 20 + storm.dice(130);
        storm.watch(Duration::from_millis(pause));
    }
    storm.calm();
    storm.judge();
    drop(storm);
    // What ends ends soon, not at once.
    for _ in 0..100 {
        if open_descriptors().len() <= descriptors.len() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!(
        "these descriptors were open: {descriptors:#?}\nand these are: {:#?}",
        open_descriptors()
    );
}

fn open_descriptors() -> Vec<String> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let named = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    named.map(|path| path.display().to_string()).collect()
}

impl Storm<'_> {
    fn dice(&mut self, sides: u64) -> u64 {
        // Marsaglia's xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % sides
    }

    fn blow(&mut self) {
        let slot = self.dice(SLOTS as u64) as usize;
        match self.dice(12) {
            _ if self.pods[slot].is_none() => self.bear(slot),
            0..4 => self.toggle(slot),
            4..6 => self.kill(slot),
            6..9 => self.damage(slot),
            9 => self.restart(),
            _ => (),
        }
        self.tell();
    }

    /// A pod comes to a slot, whose address an earlier one may have had.
    fn bear(&mut self, slot: usize) {
        self.born += 1;
        let uid = format!("pod-{}", self.born);
        let name = self.world.namespace(&uid).unwrap();
        let (v4, v6) = addresses(slot);
        let netns = self.node.join(&name, &v4, &v6).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let client = thread::spawn({
            let (uid, netns, stop, samples) = (uid.clone(), netns.clone(), stop.clone(), self.samples.clone());
            move || drop(netns.run(|| open_connections(&uid, &stop, &samples)))
        });
        self.pods[slot] = Some(Pod {
            uid,
            wanted: self.dice(4) > 0,
            name,
            netns,
            stop,
            client,
        });
    }

    fn toggle(&mut self, slot: usize) {
        if let Some(pod) = &mut self.pods[slot] {
            pod.wanted = !pod.wanted;
            if !pod.wanted {
                uncover(&mut self.lives, &pod.uid);
            }
        }
    }

    /// A pod dies; its namespace goes, and with it the wire.
    fn kill(&mut self, slot: usize) {
        let Some(pod) = self.pods[slot].take() else { return };
        uncover(&mut self.lives, &pod.uid);
        pod.stop.store(true, Ordering::Relaxed);
        pod.client.join().unwrap();
        let wire = pod.name.name().to_owned();
        drop(pod.netns);
        pod.name.delete().unwrap();
        // With the namespace held open by others the wire stays until it is taken away.
        let _ = self.node.namespace.delete_interface(&wire);
    }

    fn damage(&mut self, slot: usize) {
        let which = self.dice(3);
        let Some(pod) = &self.pods[slot] else { return };
        self.lives.entry(pod.uid.clone()).or_default().damaged.push(Instant::now());
        let damage = || {
            let mut nftables = Nftables::open().unwrap();
            let mut batch = Batch::default();
            for table in nftables.tables().unwrap().iter().filter(|t| t.name.starts_with("ambient-")) {
                match which {
                    0 => batch.flush_table(Family::Inet, &table.name),
                    1 => batch.delete_table(Family::Inet, &table.name),
                    _ => (),
                }
            }
            // Overtaken by a repair it is no damage.
            let _ = nftables.commit(batch, None);
            let mut routing = Routing::open().unwrap();
            for rule in routing.rules().unwrap().iter().filter(|r| r.table == 100 && which == 2) {
                let _ = routing.delete_rule(rule);
            }
        };
        pod.netns.run(damage).unwrap();
    }

    /// The process is killed and another one comes.
    fn restart(&mut self) {
        let begun = Instant::now();
        if let Some(process) = self.process.take() {
            process.kill();
        }
        let pause = self.dice(150);
        thread::sleep(Duration::from_millis(pause));
        self.process = Some(Process::start(self.node));
        self.tell();
        self.down.push((begun, Instant::now()));
    }

    fn tell(&self) {
        let wanted = self.pods.iter().enumerate().filter_map(|(slot, pod)| {
            let pod = pod.as_ref().filter(|pod| pod.wanted)?;
            let (v4, v6) = addresses(slot);
            Some(spec(&pod.uid, &[&v4, &v6]))
        });
        let wanted: Vec<PodSpec> = wanted.collect();
        self.process.as_ref().unwrap().want(wanted);
    }

    /// Takes note of who is covered, for a while.
    fn watch(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let captured = self.process.as_ref().unwrap().captured();
            let now = Instant::now();
            for pod in self.pods.iter().flatten().filter(|pod| pod.wanted && captured.contains(&pod.uid)) {
                let covered = &mut self.lives.entry(pod.uid.clone()).or_default().covered;
                if covered.last().is_none_or(|(_, until)| until.is_some()) {
                    covered.push((now, None));
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// All leave; nothing is left behind.
    fn calm(&mut self) {
        for slot in 0..SLOTS {
            if let Some(pod) = &mut self.pods[slot] {
                pod.wanted = false;
                uncover(&mut self.lives, &pod.uid);
            }
        }
        self.tell();
        let process = self.process.take().unwrap();
        process.until_empty();
        for pod in self.pods.iter().flatten() {
            let left: Vec<String> = pod
                .netns
                .run(|| {
                    let tables = Nftables::open().unwrap().tables().unwrap().into_iter().map(|t| t.name);
                    let mut routing = Routing::open().unwrap();
                    let is_ours = |table: u32| [ROUTE_TABLE, SEGMENTS_TABLE].contains(&table);
                    let rules: Vec<_> = routing.policies().unwrap();
                    let rules = rules.iter().filter(|r| r.table().is_some_and(is_ours)).map(|r| format!("{r:?}"));
                    let routes = routing.all_routes().unwrap();
                    let routes = routes.iter().filter(|r| is_ours(r.table)).map(|r| format!("{r:?}"));
                    tables.chain(rules).chain(routes).collect()
                })
                .unwrap();
            assert_eq!(left, [""; 0], "left behind of {}", pod.uid);
        }
        process.kill();
        for slot in 0..SLOTS {
            self.kill(slot);
        }
    }

    /// What is covered is never plaintext, except between a damage and its repair; and nobody is taken for another.
    fn judge(&self) {
        let samples = self.samples.lock().unwrap();
        let (mut plain, mut meshed, mut refused) = (0, 0, 0);
        for sample in samples.iter() {
            match sample.heard.strip_prefix("mesh ") {
                Some(uid) => {
                    assert_eq!(uid, sample.uid, "taken for another");
                    meshed += 1;
                }
                None if sample.heard == "plain" => {
                    plain += 1;
                    assert!(self.may_be_plain(sample), "{} was covered, and sent plaintext", sample.uid);
                }
                None => refused += 1,
            }
        }
        let (born, restarts) = (self.born, self.down.len());
        println!("{born} pods, {restarts} restarts; {plain} plain, {meshed} through the mesh, {refused} refused");
        assert!(meshed > 0 && plain > 0, "it was quiet");
    }

    fn may_be_plain(&self, sample: &Sample) -> bool {
        let Some(life) = self.lives.get(&sample.uid) else { return true };
        let covered = life
            .covered
            .iter()
            .any(|(from, until)| *from < sample.begun && until.is_none_or(|until| sample.ended < until));
        let damaged = life.damaged.iter().any(|at| *at < sample.ended && sample.begun < self.mended(*at));
        !covered || damaged
    }

    /// By when a damage is mended: time without a process does not count.
    fn mended(&self, at: Instant) -> Instant {
        let mut until = at + MENDED;
        for (from, to) in &self.down {
            if *from < until && at < *to {
                until = until.max(*to + MENDED);
            }
        }
        until
    }
}

fn uncover(lives: &mut BTreeMap<String, Life>, uid: &str) {
    if let Some((_, until @ None)) = lives.get_mut(uid).and_then(|life| life.covered.last_mut()) {
        *until = Some(Instant::now());
    }
}

/// What a pod does all its life.
fn open_connections(uid: &str, stop: &AtomicBool, samples: &Mutex<Vec<Sample>>) {
    let targets: [SocketAddr; 2] = ["10.0.0.1:8082".parse().unwrap(), "[fd00::1]:8082".parse().unwrap()];
    for to in targets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let begun = Instant::now();
        let heard = peers::hear_all(*to).unwrap_or_else(|e| e.to_string());
        samples.lock().unwrap().push(Sample {
            uid: uid.to_owned(),
            begun,
            ended: Instant::now(),
            heard,
        });
        thread::sleep(Duration::from_millis(3));
    }
}

fn addresses(slot: usize) -> (String, String) {
    (format!("10.0.0.{}", slot + 2), format!("fd00::{}", slot + 2))
}
