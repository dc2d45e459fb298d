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
        (Err(NetnsError::Open { source, .. }), Place::Process { pid, .. }) if is_gone(&source) => {
            return Err(FindError::Vanished { pod: name, pid: *pid });
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
        }
    }

    /// The `/proc` that they are seen in.
    pub fn proc(&self) -> &Path {
        &self.proc
    }

    /// Looks at what is new, and gives the namespaces in which pods' processes run, with the file that stands for each. Not
    /// among them are the caller's own and that of process 1. One listing of the directory, and some reads for each process that
    /// has begun since the last look.
    ///
    /// # Errors
    /// When the directory cannot be read. A process that has ended meanwhile is no error.
    pub fn look(&mut self) -> io::Result<BTreeMap<NetnsId, (Whose, PathBuf)>> {
        let entries = fs::read_dir(&self.proc)?;
        let pids = entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.ino())));
        let own = id_of(Path::new("/proc/thread-self/ns/net"))?;
        let host = id_of(&self.proc.join("1/ns/net")).ok();
        let proc = &self.proc;
        let began = |pid: u32| find::started(&fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?);
        let read = |pid: u32| {
            let dir = proc.join(pid.to_string());
            let started = began(pid)?;
            let namespace = id_of(&dir.join("ns/net")).ok()?;
            // What lives in the node's namespace is in none of its own, whoever's it is.
            let pod = match namespace == own || Some(namespace) == host {
                true => None,
                false => find::pod_of(&fs::read_to_string(dir.join("cgroup")).ok()?),
            };
            // That it was one process throughout.
            (began(pid) == Some(started)).then_some(Process { started, namespace, pod })
        };
        self.memory.look(pids, read);
        let not: Vec<NetnsId> = host.into_iter().chain([own]).collect();
        let found = self.memory.namespaces(&not);
        let at = |pid: u32| self.proc.join(pid.to_string()).join("ns/net");
        Ok(found
            .into_iter()
            .map(|(id, whose)| {
                let path = at(whose.pid);
                (id, (whose, path))
            })
            .collect())
    }
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
