//! What is remembered of processes, so that each is read once.

use std::collections::{BTreeMap, BTreeSet};

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
    known: BTreeMap<u32, Process>,
}

impl Memory {
    /// Takes a listing of all processes. Those that are new are read in full; of those that are known only when they began is
    /// asked, and not even that unless `again`: a number that has gone to another process meanwhile is seen then.
    pub fn look(
        &mut self,
        listed: impl IntoIterator<Item = u32>,
        again: bool,
        mut began: impl FnMut(u32) -> Option<u64>,
        mut read: impl FnMut(u32) -> Option<Process>,
    ) {
        let listed: BTreeSet<u32> = listed.into_iter().take(MOST).collect();
        self.known.retain(|pid, _| listed.contains(pid));
        for pid in listed {
            let same = match self.known.get(&pid) {
                Some(process) => !again || began(pid) == Some(process.started),
                None => false,
            };
            if same {
                continue;
            }
            match read(pid) {
                Some(process) => drop(self.known.insert(pid, process)),
                // It has ended, or is not to be seen.
                None => drop(self.known.remove(&pid)),
            }
        }
    }

    /// Whose each namespace is in which a pod's process runs. A namespace of another is nobody's: `not` names the node's own.
    pub fn namespaces(&self, not: &[NetnsId]) -> BTreeMap<NetnsId, Whose> {
        let mut found: BTreeMap<NetnsId, Whose> = BTreeMap::new();
        for (pid, process) in &self.known {
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
        let (mut memory, mut reads, mut asks) = (Memory::default(), Vec::new(), Vec::new());
        let mut look = |listed: &[u32], again, start: u64| {
            reads.clear();
            asks.clear();
            let began = |pid| {
                asks.push(pid);
                Some(start + u64::from(pid))
            };
            let read = |pid| {
                reads.push(pid);
                Some(process(start + u64::from(pid), 7, Some("a")))
            };
            memory.look(listed.iter().copied(), again, began, read);
            (reads.clone(), asks.clone())
        };
        assert_eq!(look(&[1, 2, 3], false, 10), (vec![1, 2, 3], vec![]));
        assert_eq!(look(&[1, 2, 3, 4], false, 10), (vec![4], vec![]), "only what is new");
        assert_eq!(look(&[1, 2, 4], true, 10), (vec![], vec![1, 2, 4]), "the same processes");
        assert_eq!(look(&[1, 2, 3], false, 10), (vec![3], vec![]), "gone and come back is new");
        assert_eq!(look(&[1, 2], true, 99), (vec![1, 2], vec![1, 2]), "others under the same numbers");
        assert_eq!(memory.known.len(), 2);
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
        memory.look(all.keys().copied(), false, |_| None, |pid| all.get(&pid).cloned());
        let whose = |pod: &str, started, pid| Whose {
            pod: pod.into(),
            started,
            pid,
        };
        let wanted = BTreeMap::from([(net(7), whose("a", 40, 11)), (net(8), whose("b", 70, 20))]);
        assert_eq!(memory.namespaces(&[net(1)]), wanted);
        // What has ended is nobody's.
        memory.look([1, 12], false, |_| None, |_| None);
        assert_eq!(memory.namespaces(&[net(1)]), BTreeMap::from([(net(7), whose("intruder", 60, 12))]));
    }
}
