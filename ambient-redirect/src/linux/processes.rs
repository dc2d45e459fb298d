//! Processes and the namespaces around them, read from a `/proc`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{ApplyError, Inside, Netns, NetnsError, NetnsId};
use crate::{
    PodSpec,
    find::{self, Memory, Place, Process, Whose},
};

/// The processes of a machine.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    memory: Memory,
    hidden: Option<Hidden>,
}

/// Something of a `/proc` is kept from this process, so that namespaces which only pods' processes show may not be found; says where,
/// and what to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} is not shown to this process ({source}), so that pods' processes may be hidden from it as well: give it CAP_SYS_PTRACE, and a \
     proc of the node's own processes that is mounted without hidepid"
)]
pub struct Hidden {
    /// What is not shown.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Why a namespace is not a pod's; names the pod, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// Nobody knows which addresses it has.
    #[error("{pod} has no address yet: wait until its status has one")]
    NoAddress {
        /// The pod.
        pod: String,
    },
    /// The process has ended.
    #[error("{pod}: the process {pid}, whose namespace it was to be, has ended: name one that runs, or the namespace's path")]
    Vanished {
        /// The pod.
        pod: String,
        /// The process.
        pid: u32,
    },
    /// The process cannot be seen, whether or not it runs.
    #[error("{pod}: of the process {pid}, whose namespace it was to be, it cannot be told whether it runs: {source}")]
    Hidden {
        /// The pod.
        pod: String,
        /// The process.
        pid: u32,
        /// Why.
        source: Hidden,
    },
    /// There is no namespace.
    #[error("{pod}: {source}")]
    Namespace {
        /// The pod.
        pod: String,
        /// Why.
        source: NetnsError,
    },
    /// It is the node's own.
    #[error("{pod}: {path} is the node's own network namespace, which no pod has: name the pod's")]
    Own {
        /// The pod.
        pod: String,
        /// Where.
        path: PathBuf,
    },
    /// It is another's.
    #[error("{pod}: {path} does not have its address {missing}: it is another pod's, or not wired up yet")]
    Another {
        /// The pod.
        pod: String,
        /// Where.
        path: PathBuf,
        /// What is missing.
        missing: IpAddr,
    },
    /// It cannot be looked into.
    #[error("{pod}: {source}")]
    Unseen {
        /// The pod.
        pod: String,
        /// Why.
        source: ApplyError,
    },
}

/// Opens the namespace that is said to be a pod's, and makes sure of it: it is one, it is not the caller's own, and it has all
/// of the pod's addresses. Blocks for a millisecond.
///
/// # Errors
/// What is wrong, with the pod's name; nothing is held open then.
pub fn namespace_of(pod: &PodSpec, place: &Place) -> Result<Arc<Netns>, FindError> {
    let (name, path) = (pod.to_string(), place.path());
    if pod.addresses.is_empty() {
        return Err(FindError::NoAddress { pod: name });
    }
    let namespace = match (Netns::open(&path), place) {
        (Ok(namespace), _) => namespace,
        (Err(NetnsError::Open { source, .. }), Place::Process { proc, pid }) if is_gone(&source) => {
            let pid = *pid;
            return Err(match first(proc) {
                Ok(_) => FindError::Vanished { pod: name, pid },
                Err(source) => FindError::Hidden { pod: name, pid, source },
            });
        }
        (Err(source), _) => return Err(FindError::Namespace { pod: name, source }),
    };
    let own = Netns::current().map_err(|source| FindError::Namespace { pod: name.clone(), source })?;
    if own.id() == namespace.id() {
        return Err(FindError::Own { pod: name, path });
    }
    let there = Inside::open(&namespace).and_then(|mut inside| inside.addresses());
    let there = there.map_err(|source| FindError::Unseen { pod: name.clone(), source })?;
    let there: Vec<IpAddr> = there.iter().map(IpAddr::to_canonical).collect();
    match pod.addresses.iter().map(IpAddr::to_canonical).find(|ip| !there.contains(ip)) {
        Some(missing) => Err(FindError::Another { pod: name, path, missing }),
        None => Ok(Arc::new(namespace)),
    }
}

impl Processes {
    /// Those that a `/proc` shows; it must be of the PID namespace that pods' processes can be seen from.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self {
            proc: proc.into(),
            memory: Memory::default(),
            hidden: None,
        }
    }

    /// The `/proc` that they are seen in.
    pub fn proc(&self) -> &Path {
        &self.proc
    }

    /// What the last look was not shown although it is there: process 1, or the namespace of a pod's process. What it was shown it
    /// has given all the same.
    pub fn hidden(&self) -> Option<&Hidden> {
        self.hidden.as_ref()
    }

    /// Looks at what is new, and gives the namespaces in which pods' processes run, with the file that stands for each. Not
    /// among them are the caller's own and that of process 1. One listing of the directory, some reads for each process that
    /// has begun since the last look, and one look at the namespace of each that is given for one: it may have left that, whose number may
    /// be another's by now.
    ///
    /// # Errors
    /// When the directory cannot be read. A process that has ended meanwhile is no error, and neither is one that is
    /// [hidden](Processes::hidden).
    pub fn look(&mut self) -> io::Result<BTreeMap<NetnsId, (Whose, PathBuf)>> {
        let entries = fs::read_dir(&self.proc)?;
        let pids = entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.ino())));
        let own = id_of(Path::new("/proc/thread-self/ns/net"))?;
        let proc = &self.proc;
        let mut hidden = None;
        let host = first(proc).map_err(|why| hidden = Some(why)).ok();
        let began = |pid: u32| find::started(&fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?);
        let read = |pid: u32| {
            let dir = proc.join(pid.to_string());
            let started = began(pid)?;
            let pods = || find::pod_of(&fs::read_to_string(dir.join("cgroup")).ok()?);
            let path = dir.join("ns/net");
            let namespace = match id_of(&path) {
                Ok(namespace) => namespace,
                Err(source) => {
                    if source.kind() == io::ErrorKind::PermissionDenied && pods().is_some() {
                        hidden.get_or_insert(Hidden { path, source });
                    }
                    return None;
                }
            };
            // What lives in the node's namespace is in none of its own, whoever's it is.
            let pod = match namespace == own || Some(namespace) == host {
                true => None,
                false => pods(),
            };
            // That it was one process throughout.
            (began(pid) == Some(started)).then_some(Process { started, namespace, pod })
        };
        let mut read = read;
        self.memory.look(pids, &mut read);
        let not: Vec<NetnsId> = host.into_iter().chain([own]).collect();
        let at = |pid: u32| proc.join(pid.to_string()).join("ns/net");
        let is_still = |id: NetnsId, pid: u32| id_of(&at(pid)).is_ok_and(|now| now == id);
        let mut found = self.memory.namespaces(&not);
        for _ in 0..MOVES {
            let moved: Vec<u32> = found
                .iter()
                .filter(|(id, whose)| !is_still(**id, whose.pid))
                .map(|(_, whose)| whose.pid)
                .collect();
            if moved.is_empty() {
                break;
            }
            moved.into_iter().for_each(|pid| self.memory.look_again(pid, &mut read));
            found = self.memory.namespaces(&not);
        }
        // Whoever keeps moving is nowhere.
        found.retain(|id, whose| is_still(*id, whose.pid));
        self.hidden = hidden;
        Ok(found
            .into_iter()
            .map(|(id, whose)| {
                let path = at(whose.pid);
                (id, (whose, path))
            })
            .collect())
    }
}

/// At one look processes that have moved are read again so many times: behind one that has left a namespace another may be, that has
/// left it as well.
const MOVES: usize = 8;

/// The namespace of process 1, which runs as long as there are others.
fn first(proc: &Path) -> Result<NetnsId, Hidden> {
    let path = proc.join("1/ns/net");
    id_of(&path).map_err(|source| Hidden { path, source })
}

fn id_of(path: &Path) -> io::Result<NetnsId> {
    let metadata = fs::metadata(path)?;
    Ok(NetnsId {
        dev: metadata.dev(),
        ino: metadata.ino(),
    })
}

/// A process that ends while it is looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}
