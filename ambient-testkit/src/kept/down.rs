//! Ending a kept lab from outside.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid};

use super::{KeptError, Record, check, directory, lock, read};
use crate::sys;

/// What [`down`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// A lab was running and has ended.
    Ended,
    /// No lab was running; it had left something behind, which is removed.
    Cleaned,
    /// There was nothing.
    Nothing,
}

/// Ends the kept lab of this user: asks it to end, kills it after `grace`, waits for every process in its namespaces,
/// and removes its directory. A process that merely has the number of a lab that crashed is left alone.
///
/// # Errors
/// When the directory is not safe to use, or a process of the lab cannot be ended.
pub fn down(grace: Duration) -> Result<Down, KeptError> {
    let directory = directory(geteuid().as_raw());
    if fs::symlink_metadata(&directory).is_err() {
        return Ok(Down::Nothing);
    }
    check(&directory)?;
    let record = match read(&directory) {
        Err(KeptError::Damaged { .. }) => None,
        record => record?,
    };
    let ended = match record.as_ref().map(processes).transpose()?.flatten() {
        Some((lab, others)) => {
            end(&lab, &others, grace)?;
            Down::Ended
        }
        None => Down::Cleaned,
    };
    if directory.exists() {
        let _lock = lock(&directory)?;
        // Another lab may have begun meanwhile.
        if read(&directory)
            .ok()
            .flatten()
            .is_none_or(|now| record.is_some_and(|then| then.is_of(&now)))
        {
            fs::remove_dir_all(&directory).map_err(KeptError::io(&directory))?;
        }
    }
    Ok(ended)
}

/// The lab's process, and every other process in its network namespaces, each held so that its number cannot come to
/// mean another. `None` when the lab does not run.
fn processes(record: &Record) -> Result<Option<(OwnedFd, Vec<OwnedFd>)>, KeptError> {
    let Some(lab) = hold(record.pid) else { return Ok(None) };
    // After the descriptor was opened: then it is this process that was asked.
    if !record.is_alive() {
        return Ok(None);
    }
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let mut namespaces: BTreeSet<_> = record.places.values().map(|p| format!("net:[{}]", p.id.inode).into()).collect();
    namespaces.extend(namespace(&record.pid.to_string()));
    let mut others = Vec::new();
    let entries = fs::read_dir("/proc").map_err(KeptError::enter("listing the processes"))?;
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let inside = || namespace(&name).is_some_and(|n| namespaces.contains(&n));
        if pid != record.pid && pid != std::process::id() && inside() {
            // Asked again once it is held.
            others.extend(hold(pid).filter(|_| inside()));
        }
    }
    // The numbers of its namespaces mean nothing else only as long as the lab lives.
    Ok(record.is_alive().then_some((lab, others)))
}

fn end(lab: &OwnedFd, others: &[OwnedFd], grace: Duration) -> Result<(), KeptError> {
    signal(lab, Signal::TERM)?;
    if !has_ended(lab, grace)? {
        signal(lab, Signal::KILL)?;
    }
    for process in others.iter().chain([lab]) {
        // Children die with their parent, but not before it.
        if !has_ended(process, SOON)? {
            signal(process, Signal::KILL)?;
        }
        if !has_ended(process, DEADLINE)? {
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "it was killed and is still there");
            return Err(KeptError::Enter {
                doing: "ending a process of the lab",
                source,
            });
        }
    }
    Ok(())
}

fn hold(pid: u32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()
}

fn signal(process: &OwnedFd, signal: Signal) -> Result<(), KeptError> {
    match rustix::process::pidfd_send_signal(process, signal) {
        Err(e) if e != rustix::io::Errno::SRCH => Err(KeptError::enter("sending a signal to the lab")(e.into())),
        _ => Ok(()),
    }
}

fn has_ended(process: &OwnedFd, within: Duration) -> Result<bool, KeptError> {
    sys::readable([process.as_fd()], Some(within))
        .map(|[ended]| ended)
        .map_err(KeptError::enter("waiting for the lab to end"))
}

/// How long a child may outlive its parent.
const SOON: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(5);
