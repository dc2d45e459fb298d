//! What is remembered of processes, so that each is read once.

use std::collections::BTreeMap;

use ambient_core::PodUid;

use crate::linux::NetnsId;

/// What is read of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// When it began ([`started`](crate::find::started)).
    pub started: u64,
    /// Its network namespace.
    pub namespace: NetnsId,
    /// The pod that it belongs to ([`pod_of`](crate::find::pod_of)).
    pub pod: Option<PodUid>,
}

/// Whose a namespace is, by its processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// The pod of the oldest of them: a later one may have come from elsewhere.
    pub pod: PodUid,
    /// When that one began.
    pub started: u64,
    /// Its number.
    pub pid: u32,
}

/// The processes that were seen.
#[derive(Debug, Default)]
pub struct Memory {
    known: BTreeMap<u32, Known>,
}

#[derive(Debug)]
struct Known {
    inode: u64,
    process: Process,
    /// At how many looks it has been there since it was young; `None` once it stays what it is.
    young: Option<u32>,
}

impl Memory {
    /// Takes a listing of all processes: of each its number, and the inode of its directory, which no later process under that number
    /// has. What is new is read, and again a few times while it is young and no pod's: a runtime may begin the process of a
    /// container before it puts it into its control group and its namespace. So a listing costs no more reads than a small
    /// multiple of the processes that began since the last ones.
    pub fn look(&mut self, listed: impl IntoIterator<Item = (u32, u64)>, mut read: impl FnMut(u32) -> Option<Process>) {
        let listed: BTreeMap<u32, u64> = listed.into_iter().take(MOST).collect();
        self.known.retain(|pid, _| listed.contains_key(pid));
        let first = self.known.is_empty();
        for (pid, inode) in listed {
            let known = self.known.get_mut(&pid).filter(|known| known.inode == inode);
            // The kernel says 1 of one that it had no room for.
            let young = match known {
                Some(known) if inode > 1 => {
                    let Some(looks) = &mut known.young else { continue };
                    *looks += 1;
                    if !looks.is_power_of_two() {
                        continue;
                    }
                    *looks
                }
                _ => 0,
            };
            match read(pid) {
                Some(process) => {
                    let young = (process.pod.is_none() && young < YOUNG_LOOKS).then_some(young);
                    self.known.insert(pid, Known { inode, process, young });
                }
                // It has ended, or is not to be seen.
                None => drop(self.known.remove(&pid)),
            }
        }
        if first {
            self.grow_old();
        }
    }

    /// Of what was there at the first look only the latest to begin may still become another's.
    fn grow_old(&mut self) {
        let latest = self.known.values().map(|known| known.process.started).max().unwrap_or(0);
        for known in self.known.values_mut() {
            known.young = known.young.filter(|_| latest - known.process.started < YOUNG_TICKS);
        }
    }

    /// Reads a process again: what is remembered of it is not so any more, as of one that has made itself another namespace.
    pub fn look_again(&mut self, pid: u32, read: impl FnOnce(u32) -> Option<Process>) {
        let Some(known) = self.known.get_mut(&pid) else { return };
        match read(pid) {
            Some(process) => known.process = process,
            None => drop(self.known.remove(&pid)),
        }
    }

    /// Whose each namespace is in which a pod's process runs. A namespace of another is nobody's: `not` names the node's own.
    pub fn namespaces(&self, not: &[NetnsId]) -> BTreeMap<NetnsId, Whose> {
        let mut found: BTreeMap<NetnsId, Whose> = BTreeMap::new();
        for (pid, Known { process, .. }) in &self.known {
            let Some(pod) = process.pod.as_ref().filter(|_| !not.contains(&process.namespace)) else {
                continue;
            };
            let older = found
                .get(&process.namespace)
                .is_none_or(|whose| (process.started, *pid) < (whose.started, whose.pid));
            if older {
                let whose = Whose {
                    pod: pod.clone(),
                    started: process.started,
                    pid: *pid,
                };
                found.insert(process.namespace, whose);
            }
        }
        found
    }
}

/// More processes than a node has, by far.
const MOST: usize = 1 << 18;
/// Looks for which one that is no pod's may become a pod's: those are some hundred milliseconds apart at least. It is read again at
/// each whose number is a power of two.
const YOUNG_LOOKS: u32 = 64;
/// Ten seconds, in the unit of [`started`](crate::find::started).
const YOUNG_TICKS: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn net(ino: u64) -> NetnsId {
        NetnsId { dev: 4, ino }
    }

    fn process(started: u64, ino: u64, pod: Option<&str>) -> Process {
        Process {
            started,
            namespace: net(ino),
            pod: pod.map(PodUid::from),
        }
    }

    #[test]
    fn each_process_is_read_once() {
        let (mut memory, mut reads) = (Memory::default(), Vec::new());
        let mut look = |listed: &[(u32, u64)]| {
            reads.clear();
            let read = |pid| {
                reads.push(pid);
                Some(process(u64::from(pid), 7, Some("a")))
            };
            memory.look(listed.iter().copied(), read);
            reads.clone()
        };
        assert_eq!(look(&[(1, 11), (2, 12), (3, 13)]), [1, 2, 3]);
        assert_eq!(look(&[(1, 11), (2, 12), (3, 13), (4, 14)]), [4], "only what is new");
        assert_eq!(look(&[(1, 11), (2, 12), (4, 14)]), [0; 0], "the same processes");
        assert_eq!(look(&[(1, 11), (2, 12), (3, 13)]), [3], "gone and come back is new");
        assert_eq!(look(&[(1, 11), (2, 22)]), [2], "another under the same number");
        assert_eq!(look(&[(1, 1), (2, 1)]), [1, 2], "what cannot be told apart");
        assert_eq!(look(&[(1, 1)]), [1]);
        assert_eq!(memory.known.len(), 1);
    }

    #[test]
    fn reads_grow_with_changes_and_not_with_processes() {
        let (mut memory, mut reads) = (Memory::default(), 0);
        let mut listed: Vec<(u32, u64)> = (1..=10_000).map(|pid| (pid, u64::from(pid) + 100)).collect();
        let mut look = |listed: &[(u32, u64)]| {
            reads = 0;
            memory.look(listed.iter().copied(), |pid| {
                reads += 1;
                Some(process(u64::from(pid), 7, None))
            });
            reads
        };
        assert_eq!(look(&listed), 10_000);
        let mut all = 0;
        for event in 0..100 {
            // One has ended, and another has begun.
            listed.remove(usize::try_from(event).unwrap() * 7);
            listed.push((20_000 + event, u64::from(event) + 50_000));
            let reads = look(&listed);
            assert!(reads >= 1, "{event}");
            all += reads;
        }
        // Each of the new ones, and of those that were young at first, once and seven times more.
        assert!(all <= 100 * 8 + 1000 * 7, "{all}");
        for _ in 0..YOUNG_LOOKS {
            look(&listed);
        }
        assert_eq!(look(&listed), 0);
    }

    /// As `crun` begins a container: its process is in the node's namespace and group at first.
    #[test]
    fn a_process_that_becomes_a_pods_is_found() {
        for after in [1, 2, 3, 7, 40, 63] {
            let (mut memory, mut looks) = (Memory::default(), 0);
            memory.look([(1, 100)], |_| Some(process(1, 1, None)));
            for _ in 0..=64 {
                looks += 1;
                let whose = (looks > after).then_some("a");
                let read = |_| Some(process(5, if whose.is_some() { 7 } else { 1 }, whose));
                memory.look([(1, 100), (9, 900)], read);
            }
            assert_eq!(memory.namespaces(&[net(1)]).len(), 1, "after {after} looks");
        }
    }

    #[test]
    fn a_namespace_is_the_oldest_processs_and_never_the_nodes() {
        let mut memory = Memory::default();
        let all = BTreeMap::from([
            (1, process(1, 1, None)),
            (10, process(50, 7, Some("a"))),
            (11, process(40, 7, Some("a"))),
            (12, process(60, 7, Some("intruder"))),
            (13, process(5, 7, None)),
            (20, process(70, 8, Some("b"))),
            (21, process(70, 8, Some("later"))),
            (30, process(80, 1, Some("host-network"))),
        ]);
        memory.look(all.keys().map(|pid| (*pid, 100)), |pid| all.get(&pid).cloned());
        let whose = |pod: &str, started, pid| Whose {
            pod: pod.into(),
            started,
            pid,
        };
        let wanted = BTreeMap::from([(net(7), whose("a", 40, 11)), (net(8), whose("b", 70, 20))]);
        assert_eq!(memory.namespaces(&[net(1)]), wanted);
        // What has ended is nobody's.
        memory.look([(1, 100), (12, 100)], |_| None);
        assert_eq!(memory.namespaces(&[net(1)]), BTreeMap::from([(net(7), whose("intruder", 60, 12))]));
    }
}
