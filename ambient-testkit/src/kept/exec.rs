//! Running a program in a pod of a kept lab.
#![allow(unsafe_code, reason = "fork, and what its child does")]

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, WaitOptions, geteuid};

use super::{KeptError, Place, Record, check, directory, read};
use crate::{
    View,
    process::{exit_code, is_proxy_variable},
    sys,
};

/// Runs a command in a pod or node of this user's kept lab, and gives its exit code: its own, or 128 and the number of
/// the signal that ended it.
///
/// It has the caller's standard streams, working directory (where the lab has it too) and environment, less the
/// variables that name HTTP proxies; it sees the pod's network and name resolution. What it leaves running ends with
/// the lab at the latest; when the caller is killed before the command has ended, all of it ends at once.
///
/// To be called first thing in `main`, by the process's only thread: another user namespace cannot be entered with
/// more. Afterwards the process is inside of the lab and should end.
///
/// # Errors
/// When there is no kept lab or no such pod, or the lab cannot be entered. [`KeptError::NotRunning`] also when the lab
/// ended while the command ran. [`KeptError::exit_code`] says how a command line should end then.
pub fn exec(name: &str, program: &OsString, args: &[OsString]) -> Result<u8, KeptError> {
    let directory = directory(geteuid().as_raw());
    if fs::symlink_metadata(&directory).is_err() {
        return Err(KeptError::NotRunning);
    }
    check(&directory)?;
    let record = read(&directory)?.ok_or(KeptError::NotRunning)?;
    let lab = Lab::open(&record)?;
    let known = || record.places.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let place = record.places.get(name).ok_or_else(|| KeptError::NoPlace {
        name: name.into(),
        known: known(),
    })?;
    lab.enter(place)?;
    lab.run(program, args)
}

struct Lab {
    /// Readable when the lab has ended.
    pidfd: OwnedFd,
    user: fs::File,
    mounts: fs::File,
}

impl Lab {
    fn open(record: &Record) -> Result<Self, KeptError> {
        let pid = record.pid.try_into().ok().and_then(Pid::from_raw).ok_or(KeptError::NotRunning)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| KeptError::NotRunning)?;
        let namespace = |kind: &str| {
            let opened = fs::File::open(format!("/proc/{}/ns/{kind}", record.pid));
            opened.map_err(|e| {
                if record.is_alive() {
                    KeptError::enter("opening the lab's namespaces")(e)
                } else {
                    KeptError::NotRunning
                }
            })
        };
        let lab = Self {
            pidfd,
            user: namespace("user")?,
            mounts: namespace("mnt")?,
        };
        // Asked last: then all of these are the lab's, not those of another process with its number.
        if record.is_alive() { Ok(lab) } else { Err(KeptError::NotRunning) }
    }

    /// Joins the namespaces of a place, and sees its files.
    fn enter(&self, place: &Place) -> Result<(), KeptError> {
        let here = std::env::current_dir().ok();
        let identity = |file: io::Result<fs::Metadata>| {
            file.map(|m| (m.dev(), m.ino()))
                .map_err(KeptError::enter("looking at a user namespace"))
        };
        // Joining one's own is an error.
        if identity(fs::metadata("/proc/self/ns/user"))? != identity(self.user.metadata())? {
            sys::join(self.user.as_fd(), libc::CLONE_NEWUSER).map_err(KeptError::enter("joining the lab's user namespace"))?;
        }
        sys::join(self.mounts.as_fd(), libc::CLONE_NEWNS).map_err(KeptError::enter("joining the lab's mount namespace"))?;
        if let Some(here) = here {
            // The join went to the root directory.
            let _ = std::env::set_current_dir(here);
        }
        let enter = || {
            sys::join(fs::File::open(&place.namespace)?.as_fd(), libc::CLONE_NEWNET)?;
            sys::unshare(libc::CLONE_NEWNS)?;
            sys::enslave_mounts()?;
            for (source, target) in View::at(place.view.clone()).mounts()? {
                sys::bind(&source, &target)?;
            }
            Ok(())
        };
        enter().map_err(KeptError::enter("entering the pod"))
    }

    /// Runs the program below an init of its own: with that process the kernel ends every other of its process
    /// namespace, so nothing can slip away by being orphaned.
    fn run(&self, program: &OsString, args: &[OsString]) -> Result<u8, KeptError> {
        let pipe = io::pipe().map_err(KeptError::enter("making a pipe"));
        let (mut report, sink) = pipe?;
        sys::unshare(libc::CLONE_NEWPID).map_err(KeptError::enter("making a process namespace"))?;
        // SAFETY: the process has one thread (it could not have joined a mount namespace with more), so the child may
        // do whatever the parent might.
        match unsafe { libc::fork() } {
            -1 => Err(KeptError::enter("starting a process")(io::Error::last_os_error())),
            0 => {
                drop(report);
                let code = self.init(program, args, sink);
                // SAFETY: ends the child here, without the parent's exit handlers.
                unsafe { libc::_exit(code) }
            }
            init => {
                drop(sink);
                // A Ctrl-C reaches the command as well; what it makes of it is told below.
                for signal in [libc::SIGINT, libc::SIGQUIT] {
                    // SAFETY: no handler is installed, only "ignore".
                    unsafe { libc::signal(signal, libc::SIG_IGN) };
                }
                let mut text = Vec::new();
                let read = io::Read::read_to_end(&mut report, &mut text);
                read.map_err(KeptError::enter("waiting for the command"))?;
                let outcome = decode(&text, program);
                if outcome.is_err() {
                    // It has ended or is about to.
                    let _ = rustix::process::waitpid(Pid::from_raw(init), WaitOptions::empty());
                }
                outcome
            }
        }
    }

    /// What the init does: it starts the program, reports how it ended, and lives until everything that was started
    /// has ended, or the lab.
    fn init(&self, program: &OsString, args: &[OsString], sink: io::PipeWriter) -> libc::c_int {
        // The parent is outside of this process namespace: its number shows as 0 here.
        if sys::die_with(0).is_err() {
            return 1;
        }
        // So that /proc shows what the command's own numbers mean; where that is refused, it shows the machine's.
        let _ = sys::mount(
            Some(c"proc"),
            c"/proc",
            Some(c"proc"),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            None,
        );
        let mut command = Command::new(program);
        command.args(args);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_proxy_variable(name)) {
            command.env_remove(name);
        }
        // Whatever ends it, the kernel ends the rest, and the parent sees that no report came.
        self.attend(&mut command, sink).is_err().into()
    }

    fn attend(&self, command: &mut Command, mut sink: io::PipeWriter) -> io::Result<()> {
        let spawned = command.spawn();
        silence()?;
        let mut child = match spawned {
            Ok(child) => child,
            Err(e) => return io::Write::write_all(&mut sink, format!("e{}", e.raw_os_error().unwrap_or(0)).as_bytes()),
        };
        let code = self.wait(&mut child)?;
        // From here on only the lab's end matters.
        // SAFETY: an integer argument, no memory.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
        io::Write::write_all(&mut sink, format!("c{code}").as_bytes())?;
        drop(sink);
        self.reap_all()
    }

    /// Waits for the command; an error when the lab ends first.
    fn wait(&self, child: &mut Child) -> io::Result<u8> {
        let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        loop {
            let [lab_ended, ended] = sys::readable([self.pidfd.as_fd(), pidfd.as_fd()], None)?;
            if ended {
                return child.wait().map(exit_code);
            }
            if lab_ended {
                return Err(io::Error::other("the lab has ended"));
            }
        }
    }

    /// Reaps orphans until there are none, or the lab has ended.
    fn reap_all(&self) -> io::Result<()> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => continue,
                Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(e) if e != rustix::io::Errno::INTR => return Err(e.into()),
                _ => {}
            }
            // Orphans give no descriptor to wait on; nobody waits for this either.
            if sys::readable([self.pidfd.as_fd()], Some(Duration::from_millis(200)))?[0] {
                return Ok(());
            }
        }
    }
}

/// Lets go of the caller's standard streams, so that who reads them sees their end with the command's.
fn silence() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for descriptor in 0..=2 {
        // SAFETY: no Rust value owns descriptors 0 to 2; they stay open, as /dev/null.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), descriptor) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads the init's report: an exit code, or the error number of a start that failed; nothing when it was killed.
fn decode(report: &[u8], program: &OsString) -> Result<u8, KeptError> {
    let text = std::str::from_utf8(report).unwrap_or_default();
    if let Some(code) = text.strip_prefix('c').and_then(|code| code.parse().ok()) {
        return Ok(code);
    }
    let errno = text
        .strip_prefix('e')
        .and_then(|errno| errno.parse().ok())
        .ok_or(KeptError::NotRunning)?;
    // A directory in PATH that cannot be looked into turns "not found" into "permission denied".
    let errno = if errno == libc::EACCES && !is_anywhere(program) {
        libc::ENOENT
    } else {
        errno
    };
    Err(KeptError::Program {
        program: program.clone(),
        source: io::Error::from_raw_os_error(errno),
    })
}

/// Whether a program is a path, or a file of its name is found by PATH.
fn is_anywhere(program: &OsString) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    Path::new(program).components().count() > 1 || std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}
