//! Programs of others that speak HBONE: where they are found, how they are started and ended.
//!
//! They are looked for in the directory that `AMBIENT_PEERS` names, by default `target/peers`, which `.ci/run` fills, and
//! some of them in `PATH`. A test whose peer is not there says so in one line that begins with `SKIPPED:`, and passes.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

pub(crate) mod apps;
pub(crate) mod certificates;
pub(crate) mod envoy;
pub(crate) mod ours;

/// A program that runs, until it is dropped.
pub(crate) struct Running {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    /// What it said so far, for whoever wants to know why a test failed.
    said: Vec<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (tell, lines) = mpsc::unbounded_channel();
        let out = child.stdout.take().map(|out| Box::new(out) as Box<dyn Read + Send>);
        let err = child.stderr.take().map(|err| Box::new(err) as Box<dyn Read + Send>);
        for pipe in [out, err].into_iter().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = tell.send(line);
                }
            });
        }
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// What stands behind these words in the first line from now on that begins with them.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        let heard = timeout(START, async {
            while let Some(line) = self.lines.recv().await {
                self.said.push(line.clone());
                if let Some(rest) = line.strip_prefix(words) {
                    return rest.trim().to_owned();
                }
            }
            panic!("it ended without saying {words:?}, but {:#?}", self.said)
        });
        heard
            .await
            .unwrap_or_else(|_| panic!("it does not say {words:?}, but {:#?}", self.said))
    }

    /// All that it says until it ends by itself.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        let ended = timeout(RUN, async {
            while let Some(line) = self.lines.recv().await {
                self.said.push(line);
            }
        });
        assert!(ended.await.is_ok(), "it does not end; it said {:#?}", self.said);
        std::mem::take(&mut self.said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script of ours for a runtime of others: both run as client and as server, with the same arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// Node's `http2`.
    Node,
    /// Python's `h2`.
    H2,
    /// libcurl. It is a client only.
    Curl,
}

impl Script {
    /// A command that runs it, or none, which is said aloud.
    pub(crate) fn command(self, arguments: &[&str]) -> Option<Command> {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        let (program, script) = match self {
            Self::Node => (found("node", &[], "install Node 18 or later")?, "node.mjs"),
            Self::H2 => (python("h2", "h2==4.4.1")?, "h2_peer.py"),
            Self::Curl => (python("pycurl", "pycurl==7.49.0")?, "curl_peer.py"),
        };
        let mut command = Command::new(program);
        command.arg(scripts.join(script)).args(arguments);
        Some(command)
    }
}

/// A Python that has a module.
fn python(module: &str, package: &str) -> Option<PathBuf> {
    let python = found("python3", &["venv/bin/python"], "install Python 3.9 or later")?;
    let has = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stderr(Stdio::null())
        .status();
    if !has.is_ok_and(|status| status.success()) {
        skip(module, &format!("`pip install {package}` into {}/venv", directory().display()));
        return None;
    }
    Some(python)
}

/// nghttpx. It is started with arguments of its own.
pub(crate) fn nghttpx() -> Option<Command> {
    let how = "install Debian's nghttp2-proxy";
    let mut command = Command::new(found("nghttpx", &["nghttpx/usr/sbin/nghttpx"], how)?);
    // Unpacked beside its libraries, it does not find them.
    let libraries = fs::read_dir(directory().join("nghttpx/usr/lib")).into_iter().flatten().flatten();
    if let Some(libraries) = libraries
        .map(|entry| entry.path())
        .find(|path| path.join("libnghttp2.so.14").exists())
    {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    Some(command)
}

/// A program in the directory of the peers, or else in `PATH`.
pub(crate) fn found(name: &str, in_peers: &[&str], how: &str) -> Option<PathBuf> {
    let in_peers = in_peers.iter().map(|path| directory().join(path));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|directory| directory.join(name)).collect::<Vec<_>>();
    let program = in_peers.chain(in_path).find(|path| path.is_file());
    if program.is_none() {
        skip(name, how);
    }
    program
}

/// For programs that cannot be told to choose one and say which.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a program that does not say when it listens.
pub(crate) async fn listening(command: Command, port: u16) -> Running {
    let running = Running::start(command);
    let up = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(START, up).await.expect("it listens");
    running
}

/// Says aloud that a peer is not there.
pub(crate) fn skip(what: &str, how: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    ambient_testkit::skipped(format_args!("{test}: {what} is not here: {how}"));
}

pub(crate) fn directory() -> PathBuf {
    let target = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("peers");
    env::var_os("AMBIENT_PEERS").map_or_else(target, PathBuf::from)
}

/// For a program to be ready.
pub(crate) const START: Duration = Duration::from_secs(30);

/// For a program to do what it is for, and for an exchange with one.
pub(crate) const RUN: Duration = Duration::from_secs(60);
