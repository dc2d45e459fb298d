//! Programs in namespaces of the world, which never outlive it.

mod spawner;

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

pub(crate) use self::spawner::{Spawner, Start};
use crate::{Namespace, View, sys, world::Shared};

/// A program to start: what to run, what it sees, where its output goes.
///
/// It runs in a mount namespace of its own (a slave of the world's), as leader of a process group of its own, so that
/// a Ctrl-C at the terminal reaches only who started it. Its environment is the caller's, less the variables that
/// name HTTP proxies, unless [`Program::own_environment`] is called. Its standard input is empty unless [`Program::stdin_piped`] is called.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    argv0: Option<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    own_environment: bool,
    view: Option<View>,
    confined: Option<u64>,
    stdin_piped: bool,
    stdout: Output,
    stderr: Output,
}

/// Where a program's output goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// Where the caller's own goes.
    Inherit,
    /// To [`Process::take_stdout`] or [`Process::take_stderr`]; who does not read it makes the program wait.
    Pipe,
    /// To the end of a file, which is made if it is not there.
    File(PathBuf),
}

impl Program {
    /// A program by its path, or by its name in `PATH`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            argv0: None,
            args: Vec::new(),
            env: Vec::new(),
            own_environment: false,
            view: None,
            confined: None,
            stdin_piped: false,
            stdout: Output::Null,
            stderr: Output::Null,
        }
    }

    /// The running program itself, even where its file cannot be reached by name or was replaced.
    pub fn this() -> Self {
        let argv0 = std::env::args_os().next();
        Self {
            argv0,
            ..Self::new("/proc/self/exe")
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().into()));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Leaves it nothing of the caller's environment but where programs are and whether a panic is told whole: for programs that
    /// take settings from theirs.
    pub fn own_environment(mut self) -> Self {
        self.own_environment = true;
        self
    }

    /// Lets it see these files in place of the machine's.
    pub fn view(mut self, view: &View) -> Self {
        self.view = Some(view.clone());
        self
    }

    /// Runs it as in a container whose root is read-only: no file system takes anything from it, and of root's capabilities it has
    /// those alone of which the bit of their number is set. Wants Linux 5.12.
    pub fn confined(mut self, capabilities: u64) -> Self {
        self.confined = Some(capabilities);
        self
    }

    /// Where its standard output goes; nowhere unless said.
    pub fn stdout(mut self, output: Output) -> Self {
        self.stdout = output;
        self
    }

    /// Where its standard error goes; nowhere unless said.
    pub fn stderr(mut self, output: Output) -> Self {
        self.stderr = output;
        self
    }

    /// Its standard input comes from [`Process::take_stdin`].
    pub fn stdin_piped(mut self) -> Self {
        self.stdin_piped = true;
        self
    }

    fn start(&self, namespace: &Namespace) -> io::Result<Start> {
        let mut command = std::process::Command::new(&self.path);
        if let Some(argv0) = &self.argv0 {
            std::os::unix::process::CommandExt::arg0(&mut command, argv0);
        }
        if self.own_environment {
            let kept = INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
            command.env_clear().envs(kept);
        }
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        for name in PROXY_VARIABLES.iter().filter(|name| !self.env.iter().any(|(k, _)| k == **name)) {
            command.env_remove(name);
        }
        command.stdin(if self.stdin_piped {
            std::process::Stdio::piped()
        } else {
            std::process::Stdio::null()
        });
        command.stdout(self.stdout.stdio()?).stderr(self.stderr.stdio()?);
        let mounts = self.view.as_ref().map_or_else(|| Ok(Vec::new()), View::mounts)?;
        Ok(Start {
            command,
            namespace: namespace.descriptor()?,
            mounts,
            confined: self.confined,
        })
    }
}

impl Output {
    fn stdio(&self) -> io::Result<std::process::Stdio> {
        Ok(match self {
            Self::Null => std::process::Stdio::null(),
            Self::Inherit => std::process::Stdio::inherit(),
            Self::Pipe => std::process::Stdio::piped(),
            Self::File(path) => fs::OpenOptions::new().create(true).append(true).open(path)?.into(),
        })
    }
}

impl Namespace {
    /// Starts a program in this network namespace.
    ///
    /// # Errors
    /// When it cannot be started; nothing is left of the attempt.
    pub fn spawn(&self, program: &Program) -> Result<Process, SpawnError> {
        let wrap = |source| SpawnError {
            program: program.path.clone(),
            namespace: self.name().into(),
            source,
        };
        let start = program.start(self).map_err(wrap)?;
        let child = self.shared().spawner.spawn(start).map_err(wrap)?;
        Process::new(child, Arc::clone(self.shared())).map_err(wrap)
    }
}

/// A program that did not start.
#[derive(Debug, thiserror::Error)]
#[error("starting {program} in the namespace {namespace:?} failed: {source}", program = program.display())]
pub struct SpawnError {
    program: PathBuf,
    namespace: String,
    source: io::Error,
}

/// A program that was started. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    /// How it has ended, once it is reaped.
    reaped: Option<ExitStatus>,
    /// Keeps the spawner's thread, whose end would end the program.
    _world: Arc<Shared>,
}

impl Process {
    fn new(mut child: Child, world: Arc<Shared>) -> io::Result<Self> {
        // Not yet waited for, so the number cannot have gone to another process.
        match rustix::process::pidfd_open(pid(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                reaped: None,
                _world: world,
            }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e.into())
            }
        }
    }

    /// Its number, the same inside and outside of the world.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it, unless it has ended.
    ///
    /// # Errors
    /// When the kernel refuses; never because the program has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Err(e) if e != rustix::io::Errno::SRCH => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Ends it with SIGKILL and reaps it, and ends what it started in its process group with it, also if it has ended itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.reaped {
            return Ok(status);
        }
        // While it is not reaped, its number, and so that of its group, is its own.
        let _ = rustix::process::kill_process_group(pid(&self.child), Signal::KILL);
        self.signal(Signal::KILL)?;
        let status = self.child.wait()?;
        self.reaped = Some(status);
        Ok(status)
    }

    /// Asks it to end with SIGTERM, and [kills](Self::kill) it once it has or after `grace`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(grace)?;
        self.kill()
    }

    /// Waits for its end, at most `deadline`; `None` when it still runs.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&mut self, deadline: Duration) -> io::Result<Option<ExitStatus>> {
        if self.ended()?.is_none() {
            sys::readable([self.pidfd.as_fd()], Some(deadline))?;
        }
        self.ended()
    }

    /// Whether it runs still.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn is_running(&mut self) -> io::Result<bool> {
        Ok(self.ended()?.is_none())
    }

    /// How it has ended, if it has. It is not reaped, so that what it has left running can be killed.
    fn ended(&self) -> io::Result<Option<ExitStatus>> {
        if self.reaped.is_some() {
            return Ok(self.reaped);
        }
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let found = rustix::process::waitid(WaitId::Pid(pid(&self.child)), how)?;
        // As wait(2) codes it.
        Ok(found.map(|found| match (found.exit_status(), found.terminating_signal()) {
            (_, Some(signal)) => ExitStatus::from_raw(signal),
            (code, None) => ExitStatus::from_raw((code.unwrap_or_default() & 0xff) << 8),
        }))
    }

    /// Its standard input, once, when it was piped.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, once, when it was piped.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, once, when it was piped.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The exit code that a shell would show: the program's own, or 128 and the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    code.clamp(0, 255).try_into().unwrap_or(u8::MAX)
}

/// Whether a variable of the environment would send requests to the machine's proxy.
pub(crate) fn is_proxy_variable(name: &OsStr) -> bool {
    PROXY_VARIABLES.iter().any(|v| name == *v)
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Of the caller's environment, what a program has besides its own.
const INHERITED: [&str; 2] = ["PATH", "RUST_BACKTRACE"];
/// In the lab, a request that went to the machine's proxy would never reach a pod.
const PROXY_VARIABLES: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];
