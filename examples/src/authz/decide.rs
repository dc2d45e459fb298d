//! `ambient authz decide`.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use ambient_authz::{Conn, Decision, Denial, Peer, Target, explain::one_line, kubernetes::Labels};
use ambient_core::{Identity, PolicyKey, Workload};
use serde::{Deserialize, Serialize};

use super::{Failure, Mode, Policies, files::Files};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policies: Policies,
    /// A file with one connection a line; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    connections: PathBuf,
    // The output is JSON in any case, so `--json` changes nothing.
    #[command(flatten)]
    mode: Mode,
}

#[derive(Debug, Deserialize)]
struct Question<'a> {
    #[serde(default)]
    id: serde_json::Value,
    #[serde(borrow)]
    source: Source<'a>,
    destination: Destination,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)] // an identity with a typing error must not pass for plaintext
struct Source<'a> {
    #[serde(borrow)]
    identity: Option<Cow<'a, str>>,
    ip: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    namespace: String,
    #[serde(default)]
    labels: Option<Labels>,
    ip: IpAddr,
    port: u16,
    #[serde(default, rename = "name")]
    _name: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    id: &'a serde_json::Value,
    allowed: bool,
    policy: Option<&'a PolicyKey>,
    reason: String,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let files = Files::read(&args.policies.files, args.mode.settings())?;
    files.whole()?;
    files.errors().for_each(|finding| eprintln!("{finding}"));
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
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::input(format!("{name}: {error}"))),
    }
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
    fn all(mut self, name: &str, mut input: BufReader<impl Read>, output: &mut impl io::Write) -> io::Result<u64> {
        let (mut number, mut bad) = (0u64, 0);
        let mut line = Vec::new();
        while read_line(&mut input, &mut line)? {
            number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            if let Err(why) = self.one(&line, output)? {
                bad += 1;
                if bad <= MOST_TOLD {
                    eprintln!("{name}:{number}: error: {}", one_line(&why));
                }
            }
            // Who waits for an answer before asking again gets it.
            if input.buffer().is_empty() {
                output.flush()?;
            }
        }
        output.flush()?;
        match bad.saturating_sub(MOST_TOLD) {
            0 => {}
            more => eprintln!("{name}: error: {more} more lines cannot be read"),
        }
        Ok(bad)
    }

    fn one(&mut self, line: &[u8], output: &mut impl io::Write) -> io::Result<Result<(), String>> {
        if line.len() > MAX_LINE {
            return Ok(Err(format!("it is longer than {MAX_LINE} bytes")));
        }
        let question: Question<'_> = match serde_json::from_slice(line) {
            Ok(question) => question,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let peer = match question.source.identity.as_deref().map(|text| self.peer(text)).transpose() {
            Ok(peer) => peer.unwrap_or(Peer::plaintext()),
            Err(why) => return Ok(Err(why)),
        };
        let Destination {
            namespace,
            labels,
            ip,
            port,
            ..
        } = question.destination;
        let workload = self.workload(namespace, labels.unwrap_or_default());
        let conn = Conn {
            peer: &peer,
            source: question.source.ip,
            destination: SocketAddr::new(ip, port),
        };
        let decision = workload.decide(&self.policies, &conn);
        let answer = Answer {
            id: &question.id,
            allowed: decision.is_allow(),
            policy: policy(&decision),
            reason: decision.to_string(),
        };
        serde_json::to_writer(&mut *output, &answer)?;
        output.write_all(b"\n").map(Ok)
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

const BUFFER: usize = 256 << 10;
const MAX_LINE: usize = 1 << 20;
/// Of lines that cannot be read so many are told one by one.
const MOST_TOLD: u64 = 100;
/// How many workloads and identities are remembered.
const MAX_KNOWN: usize = 1 << 16;
