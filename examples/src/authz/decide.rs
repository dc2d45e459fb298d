//! `ambient authz decide`.

mod question;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use ambient_authz::{Conn, Decision, Denial, Peer, Target, explain::one_line, kubernetes::Labels};
use ambient_core::{Identity, PolicyKey, Workload};
use serde::Serialize;
use serde_json::value::RawValue;

use self::question::{Destination, Unread};
use super::{Failure, Mode, Policies, files::Files, tell};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policies: Policies,
    /// A file with one connection a line; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    connections: PathBuf,
    #[command(flatten)]
    mode: Mode,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    id: Option<&'a RawValue>,
    allowed: bool,
    policy: Option<&'a PolicyKey>,
    reason: String,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let files = Files::read(&args.policies.files, args.mode.settings())?;
    files.whole()?;
    files.errors().for_each(tell);
    let path = &args.connections;
    let (name, input): (_, Box<dyn Read>) = if path.as_os_str() == "-" {
        if args.policies.files.iter().any(|file| file.as_os_str() == "-") {
            return Err(Failure::usage("stdin cannot be both the policies and the connections"));
        }
        ("<stdin>".into(), Box::new(io::stdin().lock()))
    } else {
        let file = File::open(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        (path.to_string_lossy(), Box::new(file))
    };
    let input = BufReader::with_capacity(BUFFER, input);
    let mut output = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    match Deciding::new(&files).all(&name, input, &mut output) {
        Ok(bad) => Ok(ExitCode::from(u8::from(bad > 0))),
        // Whoever reads has read enough.
        Err(Stopped::Writing(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(Stopped::Writing(error)) => Err(Failure::input(format!("<stdout>: {error}"))),
        Err(Stopped::Reading(error)) => Err(Failure::input(format!("{name}: {error}"))),
    }
}

/// Why not all lines are answered.
enum Stopped {
    Reading(io::Error),
    Writing(io::Error),
}

struct Deciding<'a> {
    files: &'a Files,
    policies: ambient_authz::Policies,
    /// What was attached is remembered: many connections go to few workloads.
    workloads: HashMap<(String, Labels), Target>,
    peers: HashMap<String, Peer>,
}

impl<'a> Deciding<'a> {
    fn new(files: &'a Files) -> Self {
        Self {
            files,
            policies: files.resources.policies(),
            workloads: HashMap::new(),
            peers: HashMap::new(),
        }
    }

    /// Answers every line, and returns how many could not be read.
    fn all(mut self, name: &str, mut input: BufReader<impl Read>, output: &mut impl io::Write) -> Result<u64, Stopped> {
        let (mut number, mut bad) = (0u64, 0);
        let (mut line, mut answers) = (Vec::new(), Vec::new());
        while read_line(&mut input, &mut line).map_err(Stopped::Reading)? {
            number += 1;
            let line = match number {
                1 => line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line),
                _ => &line,
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            answers.clear();
            if let Err(unread) = self.one(line, &mut answers) {
                bad += 1;
                if bad <= MOST_TOLD {
                    tell(format_args!("{name}:{number}: error: {}", one_line(&unread.words(line))));
                }
            }
            output.write_all(&answers).map_err(Stopped::Writing)?;
            // Who waits for an answer before asking again gets it.
            if input.buffer().is_empty() {
                output.flush().map_err(Stopped::Writing)?;
            }
        }
        output.flush().map_err(Stopped::Writing)?;
        match bad.saturating_sub(MOST_TOLD) {
            0 => {}
            more => tell(format_args!("{name}: error: {more} more lines cannot be read")),
        }
        Ok(bad)
    }

    fn one(&mut self, line: &[u8], answers: &mut Vec<u8>) -> Result<(), Unread> {
        if line.len() > MAX_LINE {
            return Err(Unread::Other(format!("it is longer than {MAX_LINE} bytes")));
        }
        let question = question::read(line)?;
        let peer = question
            .source
            .identity
            .as_deref()
            .map(|text| self.peer(text))
            .transpose()
            .map_err(Unread::Other)?;
        let peer = peer.unwrap_or(Peer::plaintext());
        let Destination {
            namespace,
            labels,
            ip,
            port,
            ..
        } = question.destination;
        let workload = self.workload(namespace, labels);
        let conn = Conn {
            peer: &peer,
            source: question.source.ip,
            destination: SocketAddr::new(ip, port),
        };
        let decision = workload.decide(&self.policies, &conn);
        let answer = Answer {
            id: question.id,
            allowed: decision.is_allow(),
            policy: policy(&decision),
            reason: decision.to_string(),
        };
        serde_json::to_writer(&mut *answers, &answer).map_err(|error| Unread::Other(error.to_string()))?;
        answers.push(b'\n');
        Ok(())
    }

    fn peer(&mut self, text: &str) -> Result<Peer, String> {
        if let Some(known) = self.peers.get(text) {
            return Ok(known.clone());
        }
        let identity: Identity = text.parse().map_err(|error| format!("source.identity: {error}"))?;
        if self.peers.len() == MAX_KNOWN {
            self.peers.clear();
        }
        let peer = self.policies.resolve(Some(&identity));
        Ok(self.peers.entry(text.into()).or_insert(peer).clone())
    }

    fn workload(&mut self, namespace: String, labels: Labels) -> Target {
        let key = (namespace, labels);
        if let Some(known) = self.workloads.get(&key) {
            return known.clone();
        }
        if self.workloads.len() == MAX_KNOWN {
            self.workloads.clear();
        }
        let mut workload = Workload::new("cluster//Pod", &key.0, "any");
        workload.policies = self.files.resources.attached(&key.0, &key.1);
        let target = self.policies.target(&Arc::new(workload));
        self.workloads.entry(key).or_insert(target).clone()
    }
}

/// The policy that decided.
fn policy(decision: &Decision) -> Option<&PolicyKey> {
    match decision {
        Decision::Allow(allowed) => allowed.by.as_ref(),
        Decision::Deny(Denial::ByPolicy(key, _) | Denial::NotArrived(key)) => Some(key),
        Decision::Deny(Denial::Unreadable(unreadable)) => Some(&unreadable.key),
        Decision::Deny(Denial::NoneAllowed) => None,
    }
}

/// The next line, of which more than [`MAX_LINE`] bytes are not kept; false at the end.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let limit = MAX_LINE as u64 + 1;
    if input.by_ref().take(limit).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.len() > MAX_LINE && !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
    }
    Ok(true)
}

/// What some editors begin a file with.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
const BUFFER: usize = 256 << 10;
const MAX_LINE: usize = 1 << 20;
/// Of lines that cannot be read so many are told one by one.
const MOST_TOLD: u64 = 100;
/// How many workloads and identities are remembered.
const MAX_KNOWN: usize = 1 << 16;
