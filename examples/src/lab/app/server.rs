//! The servers: the end of each call, and the gateway.

use std::{
    collections::BTreeMap,
    env, io,
    io::Write,
    net::{Ipv6Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ambient_testkit::cluster::clock::{self, rfc3339};
use serde::Serialize;
use serde_json::{Value, json};

use super::http::{self, CallError, Family, Request, Uri, respond};
use crate::say;

/// What an answer tells: the server, the times, and the answers of everything that was called for it.
#[derive(Debug, Serialize)]
struct Answer {
    name: String,
    uri: String,
    r#type: &'static str,
    ip_addresses: Vec<String>,
    start_time: String,
    end_time: String,
    duration: String,
    body: String,
    upstream_calls: BTreeMap<String, Value>,
    code: u16,
}

#[derive(Debug)]
struct Config {
    name: String,
    message: String,
    addresses: Vec<String>,
    port: u16,
    upstream: Option<Uri>,
}

impl Config {
    /// Reads the container's environment, the only place where it is read.
    fn from_environment() -> io::Result<Self> {
        let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidInput, e);
        let text = |name: &str| env::var(name).unwrap_or_default();
        let upstream = env::var("UPSTREAM_URI")
            .ok()
            .map(|uri| uri.parse().map_err(|e| invalid(format!("UPSTREAM_URI: {e}"))));
        Ok(Self {
            name: text("NAME"),
            message: text("MESSAGE"),
            addresses: text("POD_IPS").split(',').filter(|a| !a.is_empty()).map(str::to_owned).collect(),
            port: text("LISTEN_PORT").parse().map_err(|e| invalid(format!("LISTEN_PORT: {e}")))?,
            upstream: upstream.transpose()?,
        })
    }
}

/// Answers requests until it is killed.
///
/// # Errors
/// When the environment is not as it should be, or the port cannot be had.
pub(crate) fn serve() -> io::Result<()> {
    accept(Config::from_environment()?, |stream, config| {
        let request = Request::read(stream)?;
        if request.target.starts_with("/stream") {
            return endless(stream);
        }
        let answer = answer(&request, config);
        let body = serde_json::to_vec(&answer)?;
        respond(stream, answer.code, "application/json", &body, request.method == "HEAD")
    })
}

/// Forwards requests until it is killed: method, target and `Host` as they came.
///
/// # Errors
/// When the environment is not as it should be, or the port cannot be had.
pub(crate) fn forward() -> io::Result<()> {
    let config = Config::from_environment()?;
    if config.upstream.is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "UPSTREAM_URI is missing"));
    }
    accept(config, |stream, config| {
        let request = Request::read(stream)?;
        let head_only = request.method == "HEAD";
        match pass_on(&request, config) {
            Ok(response) => respond(stream, response.status, &response.kind, &response.body, head_only),
            Err(e) => respond(
                stream,
                503,
                "text/plain",
                format!("the upstream did not answer: {e}\n").as_bytes(),
                head_only,
            ),
        }
    })
}

fn pass_on(request: &Request, config: &Config) -> Result<http::Response, CallError> {
    let kept = |name: &str| {
        !["connection", "content-length"]
            .iter()
            .any(|dropped| name.eq_ignore_ascii_case(dropped))
    };
    let headers: Vec<_> = request.headers.iter().filter(|(name, _)| kept(name)).cloned().collect();
    let Some(base) = &config.upstream else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let uri = Uri {
        target: request.target.clone(),
        ..base.clone()
    };
    http::call(&request.method, &uri, Family::Any, &headers, UPSTREAM_DEADLINE)
}

fn answer(request: &Request, config: &Config) -> Answer {
    let (began, start) = (clock::now(), clock::time_of_day());
    let mut upstream_calls = BTreeMap::new();
    let mut code = 200;
    if let Some(uri) = &config.upstream {
        // The marker goes along, so that every hop carries the text that is searched for on the wire.
        let marker: Vec<_> = request
            .header(MARKER_HEADER)
            .map(|marker| (MARKER_HEADER.to_owned(), marker.to_owned()))
            .into_iter()
            .collect();
        let call = match http::call("GET", uri, Family::Any, &marker, UPSTREAM_DEADLINE) {
            Ok(response) => {
                code = if response.status < 400 { 200 } else { 500 };
                let text = String::from_utf8_lossy(&response.body);
                serde_json::from_str(&text).unwrap_or_else(|_| json!({"code": response.status, "body": text}))
            }
            Err(e) => {
                code = 500;
                json!({"uri": uri.to_string(), "code": -1, "error": e.to_string()})
            }
        };
        upstream_calls.insert(uri.to_string(), call);
    }
    Answer {
        name: config.name.clone(),
        uri: request.target.clone(),
        r#type: "HTTP",
        ip_addresses: config.addresses.clone(),
        start_time: rfc3339(start, 6),
        end_time: rfc3339(clock::time_of_day(), 6),
        duration: format!("{:.3}ms", began.elapsed().as_secs_f64() * 1e3),
        body: config.message.clone(),
        upstream_calls,
        code,
    }
}

/// Sends numbered lines until the connection ends, then says on standard output how it ended.
fn endless(stream: &mut TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut sent = 0_u64;
    let mut send = |bytes: &[u8]| stream.write_all(bytes).map(|()| sent += bytes.len() as u64);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        u64::MAX
    );
    let mut result = send(head.as_bytes());
    let mut number = 0_u64;
    while result.is_ok() {
        result = send(format!("line {number}\n").as_bytes());
        number += 1;
        thread::sleep(STREAM_PACE);
    }
    let failure = result.err().map(|e| http::failure(&e));
    let ended = json!({"event": "stream-ended", "peer": peer, "failure": failure, "sent": sent});
    say::print(&format!("{ended}\n")).map_err(io::Error::other)
}

/// Accepts connections and gives each a thread, at most [`MAX_CONNECTIONS`] at a time: what is beyond is closed.
fn accept(config: Config, serve: fn(&mut TcpStream, &Config) -> io::Result<()>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, config.port))?;
    let config = Arc::new(config);
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            // Out of descriptors, most likely: others must end first.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (config, done) = (config.clone(), open.clone());
        let work = move || {
            if let Err(e) = stream.set_nodelay(true).and_then(|()| serve(&mut stream, &config)) {
                say::tell(format_args!("connection ended: {e}"));
            }
            done.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new().name("connection".into()).spawn(work).is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// The header that carries the text that is searched for in captures.
pub(crate) const MARKER_HEADER: &str = "x-lab-marker";
const UPSTREAM_DEADLINE: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 128;
const STREAM_PACE: Duration = Duration::from_millis(10);
