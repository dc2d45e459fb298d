//! Which network namespace is a pod's: given by a path or a process, or found by the control groups of processes. Parsers and
//! decisions, pure; what reads files and enters namespaces is [`linux::Processes`](crate::linux::Processes) and
//! [`namespace_of`](crate::linux::namespace_of).
//!
//! A control group's name is what the kubelet and the container runtime have written; whoever has the rights to make groups
//! can write another. Therefore it only tells which of several namespaces is meant: that a namespace is a pod's, its
//! addresses must say as well.

mod cgroup;
mod processes;
mod stat;

use std::path::PathBuf;

pub use self::{
    cgroup::pod_of,
    processes::{Memory, Process, Whose},
    stat::started,
};

/// Where a pod's namespace is said to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// At a path: a bind mount, such as the runtime makes for the network plugin.
    Path(PathBuf),
    /// Around a process, by its number in `proc`.
    Process {
        /// Where the processes are seen; `/proc` as a rule.
        proc: PathBuf,
        /// Its number there.
        pid: u32,
    },
}

impl Place {
    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Process { proc, pid } => proc.join(pid.to_string()).join("ns/net"),
        }
    }
}
