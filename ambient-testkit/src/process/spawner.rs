//! The one thread that forks.
#![allow(unsafe_code, reason = "a hook between fork and exec")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use crate::sys;

/// Starts programs from one thread that lives as long as the world does.
///
/// A parent-death signal fires when the *thread* that forked ends (prctl(2)), so a program started from a passing
/// thread would die with that one.
#[derive(Debug)]
pub(crate) struct Spawner {
    requests: mpsc::Sender<Request>,
}

/// A program that is ready to start, but for the fork.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) command: Command,
    /// The network namespace to start in.
    pub(crate) namespace: OwnedFd,
    /// What to mount over what in its own mount namespace.
    pub(crate) mounts: Vec<(CString, CString)>,
    /// Whether it can write no file, and which capabilities it can have then.
    pub(crate) confined: Option<u64>,
}

type Request = (Start, mpsc::SyncSender<io::Result<Child>>);

impl Spawner {
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, queue) = mpsc::channel::<Request>();
        thread::Builder::new().name("spawner".into()).spawn(move || {
            // Ends when the last sender is gone, which is when nothing of the world is held any more.
            for (start, answer) in queue {
                if let Err(mpsc::SendError(Ok(mut orphan))) = answer.send(start.fork()) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        })?;
        Ok(Self { requests })
    }

    pub(crate) fn spawn(&self, start: Start) -> io::Result<Child> {
        let ended = || io::Error::other("the thread that starts programs has ended");
        let (answer, child) = mpsc::sync_channel(1);
        self.requests.send((start, answer)).map_err(|_| ended())?;
        child.recv().map_err(|_| ended())?
    }
}

impl Start {
    fn fork(self) -> io::Result<Child> {
        let Self {
            mut command,
            namespace,
            mounts,
            confined,
        } = self;
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        command.process_group(0);
        // SAFETY: between fork and exec only system calls are made, on memory that was laid out before; nothing
        // allocates, locks or panics.
        unsafe { command.pre_exec(move || enter(&namespace, &mounts, confined, parent)) };
        command.spawn()
    }
}

/// What a child does before it becomes its program.
fn enter(namespace: &OwnedFd, mounts: &[(CString, CString)], confined: Option<u64>, parent: libc::pid_t) -> io::Result<()> {
    sys::die_with(parent)?;
    sys::join(namespace.as_fd(), libc::CLONE_NEWNET)?;
    sys::unshare(libc::CLONE_NEWNS)?;
    sys::enslave_mounts()?;
    for (source, target) in mounts {
        sys::bind(source, target)?;
    }
    if let Some(capabilities) = confined {
        sys::make_read_only()?;
        sys::bound_capabilities(capabilities)?;
    }
    Ok(())
}
