//! A storm: pods join, leave, die, come back on the same address and lose their rules, and nodes are killed, while every pod
//! calls every other. Eight seconds of it; `AMBIENT_CHAOS_SECONDS` says how many else, `AMBIENT_CHAOS_SEED` repeats one.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ambient_redirect::netlink::{Batch, Family, Nftables, Routing};
use ambient_testkit::{Capture, World, capture::CaptureError, cluster::NODE_INTERFACE, harness::Outcome};

use super::{
    ground::{Failure, Ground, NODES, key, until},
    judge::{Evidence, Life, Tally, Window},
    peer::{ACCOUNTS, Call, FIRST_PORT, now},
};

const SLOTS: usize = 6;

struct Pod {
    name: String,
    uid: String,
    meant: bool,
}

struct Storm {
    ground: Ground,
    capture: Capture,
    random: u64,
    pods: [Option<Pod>; SLOTS],
    born: [u16; SLOTS],
    evidence: Evidence,
    windows: Vec<Window>,
    /// Since when the capture has not been looked at.
    since: u64,
    /// How often it has missed a frame, and proves nothing.
    missed: usize,
    restarts: usize,
    /// What each node's process has open while it has no pods.
    idle: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

pub(crate) fn nothing_leaks_and_nobody_is_mistaken_in_a_storm(world: &World) -> Outcome {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = Duration::from_secs(from_env("AMBIENT_CHAOS_SECONDS").unwrap_or(8));
    let seed = from_env("AMBIENT_CHAOS_SEED").unwrap_or_else(now) | 1;
    println!("seed {seed}");
    let mut ground = Ground::new(world)?;
    ground.cluster.apply(&policy())?;
    let capture = Capture::start(ground.cluster.node("node-1")?.namespace(), NODE_INTERFACE)?;
    let mut storm = Storm {
        ground,
        capture,
        random: seed,
        pods: [const { None }; SLOTS],
        born: [0; SLOTS],
        evidence: Evidence::default(),
        windows: Vec::new(),
        since: now(),
        missed: 0,
        restarts: 0,
        idle: BTreeMap::new(),
    };
    let ended = storm
        .prepare()
        .and_then(|()| storm.rage(length))
        .and_then(|()| storm.all_leave())
        .and_then(|()| storm.judge())
        .and_then(|()| storm.count_descriptors());
    if ended.is_err() {
        println!("{}", storm.ground.logs());
    }
    ended
}

/// Each account may call at the port of its own number, and nobody anywhere else.
fn policy() -> String {
    let rules = (0..ACCOUNTS).map(|n| {
        format!(
            "    - {{from: [{{source: {{principals: [cluster.local/ns/demo/sa/account-{n}]}}}}], to: [{{operation: {{ports: [{:?}]}}}}]}}\n",
            (FIRST_PORT + n).to_string()
        )
    });
    let head = "kind: AuthorizationPolicy\napiVersion: security.istio.io/v1\nmetadata: {name: own-ports, namespace: demo}\n";
    format!("{head}spec:\n  action: ALLOW\n  rules:\n{}", rules.collect::<String>())
}

impl Storm {
    fn dice(&mut self, sides: u64) -> u64 {
        // Marsaglia's xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % sides
    }

    /// A process has things open that it opens once, with its first pod: one comes to each node and goes again.
    fn prepare(&mut self) -> Result<(), Failure> {
        for (slot, node) in NODES.into_iter().enumerate() {
            self.ground.ready(node)?;
            self.bear(slot)?;
            self.watch(Duration::from_millis(300))?;
        }
        self.all_leave()?;
        for node in NODES {
            let (pid, mut last) = (self.ground.pid(node)?, BTreeMap::new());
            let named = self.ground.netns.clone();
            let settled = until(Duration::from_secs(10), || {
                thread::sleep(Duration::from_millis(500));
                let open = descriptors(pid, &named)?;
                let same = open == last;
                last = open.clone();
                Ok(if same { Ok(open) } else { Err(format!("{open:?}")) })
            })?;
            self.idle.insert(node, settled);
        }
        Ok(())
    }

    fn rage(&mut self, length: Duration) -> Result<(), Failure> {
        for slot in 0..SLOTS {
            self.bear(slot)?;
        }
        let begun = Instant::now();
        while begun.elapsed() < length {
            let slot = self.dice(SLOTS as u64) as usize;
            // Descriptors are counted of processes that have lived for a while.
            let late = begun.elapsed() > length.mul_f64(0.7);
            match self.dice(14) {
                _ if self.pods[slot].is_none() => self.bear(slot)?,
                0..4 => self.toggle(slot)?,
                4..6 => self.kill(slot)?,
                6..9 => self.damage(slot)?,
                9 | 10 if !late => self.restart()?,
                11 => self.damage_node(slot)?,
                _ => (),
            }
            let pause = 50 + self.dice(400);
            self.watch(Duration::from_millis(pause))?;
        }
        Ok(())
    }

    /// A pod comes to a slot, with the address that an earlier one may have had, and another account.
    fn bear(&mut self, slot: usize) -> Result<(), Failure> {
        self.born[slot] += 1;
        let node = NODES[slot % 2];
        let (name, account) = (format!("p{slot}-{}", self.born[slot]), slot as u16 * 2 + self.born[slot] % 2);
        let meant = self.dice(4) > 0;
        let born = now();
        let (number, peers) = (account.to_string(), self.ground.peers.display().to_string());
        self.ground
            .pod(node, &name, &format!("account-{account}"), &[&name, &number, &peers], meant)?;
        let pod = self.ground.cluster.pod("demo", &name)?;
        let life = Life {
            node: node.into(),
            account,
            addresses: pod.addresses().to_vec(),
            born,
            ..Life::default()
        };
        let uid = pod.uid().to_owned();
        self.evidence.lives.insert(name.clone(), life);
        self.pods[slot] = Some(Pod { name, uid, meant });
        self.tell_peers()
    }

    fn tell_peers(&self) -> Result<(), Failure> {
        let line = |pod: &Pod| {
            let addresses = &self.evidence.lives[&pod.name].addresses;
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("{} {}\n", pod.name, addresses.join(" "))
        };
        let text: String = self.pods.iter().flatten().map(line).collect();
        let new = self.ground.peers.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, &self.ground.peers)?)
    }

    fn toggle(&mut self, slot: usize) -> Result<(), Failure> {
        let Some(pod) = &mut self.pods[slot] else { return Ok(()) };
        pod.meant = !pod.meant;
        let (name, meant) = (pod.name.clone(), pod.meant);
        if !meant {
            self.life(&name).uncover(now());
        }
        self.ground.mean(&name, meant)
    }

    /// A pod dies, and its namespace with it.
    fn kill(&mut self, slot: usize) -> Result<(), Failure> {
        let Some(pod) = self.pods[slot].take() else { return Ok(()) };
        self.life(&pod.name).uncover(now());
        self.tell_peers()?;
        self.ground.cluster.delete(&key(&pod.name))?;
        self.life(&pod.name).died = Some(now());
        Ok(())
    }

    /// Somebody flushes or deletes what is ours in a pod's namespace, or the rule or the route.
    fn damage(&mut self, slot: usize) -> Result<(), Failure> {
        let which = self.dice(4);
        let Some(pod) = &self.pods[slot] else { return Ok(()) };
        let name = pod.name.clone();
        self.life(&name).damaged.push(now());
        let pod = self.ground.cluster.pod("demo", &name)?;
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
            for route in routing.routes(100).unwrap().iter().filter(|_| which == 3) {
                let _ = routing.delete_route(route);
            }
        };
        Ok(pod.namespace().ok_or("it has none")?.run(damage)?)
    }

    /// Somebody deletes what a node has of its own.
    fn damage_node(&mut self, slot: usize) -> Result<(), Failure> {
        let node = self.ground.cluster.node(NODES[slot % 2])?;
        let damage = || {
            let mut batch = Batch::default();
            batch.delete_table(Family::Inet, "ambient-probes");
            // Without pods there is none.
            let _ = Nftables::open().unwrap().commit(batch, None);
        };
        Ok(node.namespace().run(damage)?)
    }

    /// A node's process is killed, and another comes.
    fn restart(&mut self) -> Result<(), Failure> {
        let node = NODES[self.dice(2) as usize];
        let begun = now();
        self.ground.cluster.node(node)?.kill()?;
        let pause = self.dice(600);
        self.watch(Duration::from_millis(pause))?;
        self.ground.start(node)?;
        self.ground.ready(node)?;
        self.evidence.down.entry(node.into()).or_default().push((begun, now()));
        self.restarts += 1;
        Ok(())
    }

    fn life(&mut self, name: &str) -> &mut Life {
        self.evidence.lives.entry(name.to_owned()).or_default()
    }

    /// Takes note of who is covered and what passes, for a while.
    fn watch(&mut self, time: Duration) -> Result<(), Failure> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let captured = self.ground.captured()?;
            let at = now();
            let covered = self.pods.iter().flatten().filter(|pod| pod.meant && captured.contains(&pod.uid));
            let covered: Vec<String> = covered.map(|pod| pod.name.clone()).collect();
            covered.iter().for_each(|name| self.life(name).cover(at));
            thread::sleep(Duration::from_millis(10));
        }
        let from = self.since;
        match self.capture.seen() {
            Ok(seen) => self.windows.push(Window { from, to: now(), seen }),
            Err(CaptureError::Lossy(_)) => self.missed += 1,
            Err(error) => return Err(error.into()),
        }
        self.capture.clear()?;
        self.since = now();
        Ok(())
    }

    /// All leave, and nothing is left behind in their namespaces, in the nodes' and in what the nodes say.
    fn all_leave(&mut self) -> Result<(), Failure> {
        let pods: Vec<String> = self.pods.iter().flatten().map(|pod| pod.name.clone()).collect();
        for name in &pods {
            self.life(name).uncover(now());
            self.ground.mean(name, false)?;
        }
        for pod in self.pods.iter_mut().flatten() {
            pod.meant = false;
        }
        until(Duration::from_secs(20), || {
            let left = self.ground.left_behind()?;
            Ok(if left.is_empty() {
                Ok(())
            } else {
                Err(format!("left behind: {left:#?}"))
            })
        })?;
        (0..SLOTS).try_for_each(|slot| self.kill(slot))
    }

    /// A process that has served pods has no more open, once they have gone, than before.
    fn count_descriptors(&mut self) -> Result<(), Failure> {
        for node in NODES {
            let pid = self.ground.pid(node)?;
            let (idle, named) = (&self.idle[node], &self.ground.netns);
            until(Duration::from_secs(10), || {
                let open = descriptors(pid, named)?;
                let leaked = open.iter().any(|(kind, count)| *count > idle.get(kind).copied().unwrap_or(0));
                let both = format!("{node} had {idle:?} open without pods, and has {open:?} without them again");
                Ok(if leaked { Err(both) } else { Ok(()) })
            })?;
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<(), Failure> {
        let mut tally = Tally::default();
        let mut wrong: Vec<String> = Vec::new();
        for window in &self.windows {
            wrong.extend(self.evidence.wire(window, &mut tally));
        }
        for name in self.evidence.lives.keys() {
            let log = self
                .ground
                .peers
                .with_file_name("cluster")
                .join("logs")
                .join(format!("demo_{name}.log"));
            let text = fs::read_to_string(log).unwrap_or_default();
            for line in text.lines() {
                let said = Call::read(line).map(|call| self.evidence.call(name, &call, &mut tally));
                wrong.extend(said.flatten());
            }
        }
        let (born, windows) = (self.evidence.lives.len(), self.windows.len());
        println!(
            "{born} pods, {} restarts, {windows} windows, {} more missed; {tally:?}",
            self.restarts, self.missed
        );
        if let Some(first) = wrong.first() {
            return Err(format!("{} times, first: {first}", wrong.len()).into());
        }
        let quiet = tally.tls == 0 || tally.plain == 0 || tally.answered == 0 || tally.not_taken_for_another == 0;
        if quiet || self.missed > windows {
            return Err(format!("too little was seen: {tally:?}, {windows} windows, {} missed", self.missed).into());
        }
        Ok(())
    }
}

/// What a process has open, and how often.
fn descriptors(pid: u32, named: &Path) -> Result<BTreeMap<String, usize>, Failure> {
    let mut open = BTreeMap::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Ok(target) = fs::read_link(descriptor.path()) else { continue };
        // Of what has a name in the directory of namespaces it holds one each, whoever's it is.
        if target.parent() == Some(named) && target.exists() {
            continue;
        }
        let text = target.display().to_string();
        let kind = match text.split_once(':') {
            Some((kind, _)) => kind.to_owned(),
            // The names of these hold the process's number.
            None if text.starts_with("/proc/") => "/proc".to_owned(),
            None => text,
        };
        *open.entry(kind).or_default() += 1;
    }
    Ok(open)
}
