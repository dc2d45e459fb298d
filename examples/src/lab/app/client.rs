//! The clients that the steps run in pods. They print JSON, one object a line.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use ambient_testkit::cluster::clock;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    http::{self, CallError, Failure, Family, Uri, failure, write_request},
    server::MARKER_HEADER,
};

/// Whom to call, and how.
#[derive(Debug, Clone, Args)]
pub(super) struct Whom {
    uri: Uri,
    /// The text to search for on the wire, sent as a header.
    #[arg(long)]
    marker: Option<String>,
    /// The `Host` to ask for.
    #[arg(long)]
    host: Option<String>,
    /// Only IPv4.
    #[arg(short = '4', conflicts_with = "v6")]
    v4: bool,
    /// Only IPv6.
    #[arg(short = '6')]
    v6: bool,
    /// How long to wait for each response.
    #[arg(long, default_value_t = 5_000)]
    deadline_ms: u64,
}

impl Whom {
    fn family(&self) -> Family {
        match (self.v4, self.v6) {
            (true, _) => Family::V4,
            (_, true) => Family::V6,
            _ => Family::Any,
        }
    }

    fn headers(&self) -> Vec<(String, String)> {
        let host = self.host.iter().map(|host| ("Host".to_owned(), host.clone()));
        host.chain(self.marker.iter().map(|marker| (MARKER_HEADER.to_owned(), marker.clone())))
            .collect()
    }

    fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// `lab-app call`.
#[derive(Debug, Clone, Args)]
pub(super) struct CallArgs {
    #[command(flatten)]
    whom: Whom,
    #[arg(long, default_value = "GET")]
    method: String,
    /// How many calls, one after the other, each on a connection of its own.
    #[arg(long, default_value_t = 1)]
    count: u32,
}

/// `lab-app stream`.
#[derive(Debug, Clone, Args)]
pub(super) struct StreamArgs {
    #[command(flatten)]
    whom: Whom,
}

/// What one call came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The status, when there was a whole response.
    pub(crate) status: Option<u16>,
    /// Its body, as JSON if it is that.
    pub(crate) body: Value,
    /// What went wrong otherwise.
    pub(crate) failure: Option<Failure>,
    /// The same in words.
    pub(crate) detail: String,
    /// The address that the call was made from, if it came so far.
    pub(crate) from: Option<SocketAddr>,
    /// How long it took, in milliseconds.
    pub(crate) ms: f64,
}

pub(super) fn call(args: &CallArgs) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for _ in 0..args.count {
        let began = clock::now();
        let result = http::call(
            &args.method,
            &args.whom.uri,
            args.whom.family(),
            &args.whom.headers(),
            args.whom.deadline(),
        );
        let ms = milliseconds(began);
        let outcome = match result {
            Ok(response) => Outcome {
                status: Some(response.status),
                body: body(&response.body),
                from: Some(response.from),
                ms,
                ..Outcome::default()
            },
            Err(e) => Outcome {
                failure: Some(e.failure),
                detail: e.detail,
                from: e.from,
                ms,
                ..Outcome::default()
            },
        };
        serde_json::to_writer(&mut out, &outcome)?;
        writeln!(out)?;
    }
    Ok(())
}

/// What an endless response came to so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum StreamEvent {
    /// Data flows.
    Flowing {
        /// The address that the call was made from.
        from: SocketAddr,
    },
    /// It is over.
    Ended {
        /// How; nothing for an orderly end.
        failure: Option<Failure>,
        /// How many bytes had arrived.
        received: u64,
    },
}

pub(super) fn stream(args: &StreamArgs) -> io::Result<()> {
    let mut received = 0;
    let failure = match read_on(&args.whom, &mut received) {
        Ok(()) => None,
        Err(e) => Some(failure(&e)),
    };
    print_line(&json!(StreamEvent::Ended { failure, received }))
}

fn read_on(whom: &Whom, received: &mut u64) -> io::Result<()> {
    let mut stream = http::connect(&whom.uri, whom.family(), whom.deadline()).map_err(io::Error::other)?;
    write_request(&mut stream, "GET", &whom.uri, &whom.headers())?;
    stream.set_read_timeout(Some(whom.deadline()))?;
    let from = stream.local_addr()?;
    let mut buffer = [0; 4096];
    let mut told = false;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        *received += n as u64;
        if !told && *received > FLOWING_AFTER {
            told = true;
            print_line(&json!(StreamEvent::Flowing { from }))?;
        }
    }
}

/// The metrics page of the node in whose namespace the calling thread is.
pub(crate) fn scrape() -> Result<String, CallError> {
    let uri = Uri {
        host: "127.0.0.1".into(),
        port: ambient_core::ports::METRICS,
        target: "/metrics".into(),
    };
    let response = http::call("GET", &uri, Family::V4, &[], SCRAPE_DEADLINE)?;
    Ok(String::from_utf8_lossy(&response.body).into_owned())
}

fn print_line(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}

fn body(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

const SCRAPE_DEADLINE: Duration = Duration::from_secs(2);
/// More than the head of the response: the data itself flows.
const FLOWING_AFTER: u64 = 300;
