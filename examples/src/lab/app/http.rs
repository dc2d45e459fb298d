//! As much of HTTP/1.1 as the lab's little application needs: one request on a connection, blocking, bounded.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    str::FromStr,
    time::{Duration, Instant},
};

use ambient_testkit::cluster::clock;
use serde::{Deserialize, Serialize};

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header, if it is there.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Reads a request's head from a connection.
    ///
    /// # Errors
    /// When the connection ends or stalls first, or what arrives is not a request.
    pub(crate) fn read(stream: &mut TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(HEAD_DEADLINE))?;
        let mut head = Vec::new();
        let mut byte = [0; 512];
        let end = loop {
            if let Some(end) = end_of_head(&head) {
                break end;
            }
            if head.len() > MAX_HEAD {
                return Err(invalid("the head of the request is too long"));
            }
            match stream.read(&mut byte)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => head.extend_from_slice(&byte[..n]),
            }
        };
        Self::parse(&head[..end]).ok_or_else(|| invalid("not an HTTP/1 request"))
    }

    fn parse(head: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !version.starts_with("HTTP/1.") || !target.starts_with('/') {
            return None;
        }
        let header = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Some(Self {
            method: method.into(),
            target: target.into(),
            headers: lines.map(header).collect::<Option<_>>()?,
        })
    }
}

/// Writes a whole response and says that the connection ends with it. A body belongs to every method but HEAD.
///
/// # Errors
/// When the connection ends or stalls.
pub(crate) fn respond(stream: &mut TcpStream, status: u16, kind: &str, body: &[u8], head_only: bool) -> io::Result<()> {
    stream.set_write_timeout(Some(HEAD_DEADLINE))?;
    let reason = if status < 400 { "OK" } else { "Error" };
    let length = body.len();
    let mut bytes =
        format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes();
    if !head_only {
        bytes.extend_from_slice(body);
    }
    stream.write_all(&bytes)
}

/// An `http://` URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uri {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) target: String,
}

impl FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let odd = || format!("{text:?} is not an http:// URI");
        let rest = text.strip_prefix("http://").ok_or_else(odd)?;
        let (authority, target) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
        let (host, port) = match authority.rsplit_once(':') {
            // A colon within brackets belongs to an IPv6 address.
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| odd())?),
            _ => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || target.contains(char::is_whitespace) {
            return Err(odd());
        }
        Ok(Self {
            host: host.into(),
            port,
            target: target.into(),
        })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port, target) = (&self.host, self.port, &self.target);
        if host.contains(':') {
            write!(f, "http://[{host}]:{port}{target}")
        } else {
            write!(f, "http://{host}:{port}{target}")
        }
    }
}

/// Which addresses of a name may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Family {
    #[default]
    Any,
    V4,
    V6,
}

/// How a call failed: what distinguishes the ways a mesh refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Failure {
    /// The name was not found, or nobody could be asked (curl's 6).
    Resolve,
    /// Nobody listens there (curl's 7).
    Refused,
    /// It took too long (curl's 28).
    Timeout,
    /// The connection was closed without a byte (curl's 52).
    Empty,
    /// The connection was reset (curl's 56).
    Reset,
    /// The connection ended, or something else stood in it, before the response was whole.
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name not resolved",
            Self::Refused => "connection refused",
            Self::Timeout => "timeout",
            Self::Empty => "empty reply",
            Self::Reset => "connection reset",
            Self::Other => "no whole response",
        })
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) kind: String,
    pub(crate) body: Vec<u8>,
    /// The address that the call was made from.
    pub(crate) from: SocketAddr,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
#[error("{failure}: {detail}")]
pub(crate) struct CallError {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
    /// The address that the call was made from, if it came so far.
    pub(crate) from: Option<SocketAddr>,
}

impl CallError {
    fn new(failure: Failure, detail: impl fmt::Display) -> Self {
        Self {
            failure,
            detail: detail.to_string(),
            from: None,
        }
    }
}

impl From<io::Error> for CallError {
    fn from(e: io::Error) -> Self {
        Self::new(failure(&e), e)
    }
}

/// What kind of failure an error of a connection is.
pub(crate) fn failure(e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::Timeout,
        _ => Failure::Other,
    }
}

/// Calls a URI once and reads the whole response, at most 1 MiB of it.
///
/// # Errors
/// When there is no whole response within `deadline`. Looking up the name is bounded by `resolv.conf` instead.
pub(crate) fn call(
    method: &str,
    uri: &Uri,
    family: Family,
    headers: &[(String, String)],
    deadline: Duration,
) -> Result<Response, CallError> {
    let mut stream = connect(uri, family, deadline)?;
    let from = stream.local_addr()?;
    exchange(&mut stream, method, uri, headers, clock::now() + deadline)
        .map(|(status, kind, body)| Response { status, kind, body, from })
        .map_err(|e| CallError { from: Some(from), ..e })
}

/// Connects to the first address of a URI's host that answers.
///
/// # Errors
/// When the name has no such address, or no address accepts the connection.
pub(crate) fn connect(uri: &Uri, family: Family, deadline: Duration) -> Result<TcpStream, CallError> {
    let resolved = (uri.host.as_str(), uri.port).to_socket_addrs();
    let resolved = resolved.map_err(|e| CallError::new(Failure::Resolve, format_args!("{}: {e}", uri.host)))?;
    let addresses: Vec<SocketAddr> = resolved
        .filter(|a| family == Family::Any || (family == Family::V4) == a.is_ipv4())
        .collect();
    let mut last = CallError::new(Failure::Resolve, format_args!("{} has no such address", uri.host));
    for address in addresses {
        match TcpStream::connect_timeout(&address, deadline) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(e) => last = CallError::new(failure(&e), format_args!("{address}: {e}")),
        }
    }
    Err(last)
}

fn exchange(
    stream: &mut TcpStream,
    method: &str,
    uri: &Uri,
    headers: &[(String, String)],
    until: Instant,
) -> Result<(u16, String, Vec<u8>), CallError> {
    write_request(stream, method, uri, headers)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let left = until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        stream.set_read_timeout(Some(left))?;
        let n = stream.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..n]);
        match parse_response(&bytes, method == "HEAD") {
            Parsed::Whole(status, kind, body) => return Ok((status, kind, body)),
            Parsed::Invalid => return Err(CallError::new(Failure::Other, "not an HTTP/1 response")),
            Parsed::Part if n == 0 && bytes.is_empty() => return Err(CallError::new(Failure::Empty, "closed without a byte")),
            Parsed::Part if n == 0 => return Err(CallError::new(Failure::Other, format_args!("ended after {} bytes", bytes.len()))),
            Parsed::Part if bytes.len() > MAX_RESPONSE => return Err(CallError::new(Failure::Other, "response too long")),
            Parsed::Part => {}
        }
    }
}

/// Writes a request's head. A `Host` among the headers replaces the URI's.
///
/// # Errors
/// When the connection ends or stalls.
pub(crate) fn write_request(stream: &mut TcpStream, method: &str, uri: &Uri, headers: &[(String, String)]) -> io::Result<()> {
    stream.set_write_timeout(Some(HEAD_DEADLINE))?;
    let mut head = format!("{method} {} HTTP/1.1\r\n", uri.target);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        let host = if uri.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
            format!("[{}]", uri.host)
        } else {
            uri.host.clone()
        };
        head.push_str(&format!("Host: {host}:{}\r\n", uri.port));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())
}

enum Parsed {
    Part,
    Whole(u16, String, Vec<u8>),
    Invalid,
}

/// Reads a response with a `Content-Length`, or in chunks (RFC 9112 7.1): every server of the lab sends one or the other.
fn parse_response(bytes: &[u8], head_only: bool) -> Parsed {
    let Some(end) = end_of_head(bytes) else { return Parsed::Part };
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else {
        return Parsed::Invalid;
    };
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let header = |name: &str| {
        head.split("\r\n")
            .filter_map(|l| l.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    };
    let Some(status) = status else { return Parsed::Invalid };
    let kind = header("content-type").unwrap_or_default().to_owned();
    let body = &bytes[end..];
    if head_only {
        return Parsed::Whole(status, kind, Vec::new());
    }
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return match unchunked(body) {
            Ok(Some(body)) => Parsed::Whole(status, kind, body),
            Ok(None) => Parsed::Part,
            Err(NotChunks) => Parsed::Invalid,
        };
    }
    match header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => body
            .get(..length)
            .map_or(Parsed::Part, |body| Parsed::Whole(status, kind, body.to_vec())),
        None => Parsed::Invalid,
    }
}

struct NotChunks;

/// The body that chunks hold, once the last one is there. Trailers are not read.
fn unchunked(mut rest: &[u8]) -> Result<Option<Vec<u8>>, NotChunks> {
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|w| w == b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[..line]).map_err(|_| NotChunks)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| NotChunks)?;
        if size == 0 {
            return Ok(Some(body));
        }
        rest = &rest[line + 2..];
        // With the end of its line.
        let Some(chunk) = size.checked_add(2).and_then(|whole| rest.get(..whole)) else {
            return Ok(None);
        };
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[size + 2..];
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// For a head to arrive, or a write to be taken.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const MAX_HEAD: usize = 16 << 10;
const MAX_RESPONSE: usize = 1 << 20;

#[cfg(test)]
mod tests;
