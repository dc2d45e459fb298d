//! The admin pages of a node, asked by commands.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;

use crate::say;

/// How long the node may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The same of a page for which it may have to ask others, name after name: as long as it serves anybody.
pub(crate) const LONG_PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer.
const MOST: u64 = 16 << 20;

/// Prints a page; what goes wrong is one line on standard error, named after the command.
pub(crate) fn print(command: &str, admin: SocketAddr, target: &str, patience: Duration) -> ExitCode {
    say::ended(command, get(admin, target, patience).and_then(|answer| say::print(&answer)))
}

/// The text of a page; an error where the node gives none, with what it says instead.
fn get(admin: SocketAddr, target: &str, patience: Duration) -> anyhow::Result<String> {
    let asked = || format!("no answer from the node's admin pages at {admin}: is a node running here? --admin names another address");
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).with_context(asked)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    // HTTP/1.0: the body ends with the connection.
    let request = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let in_words = |error| in_words(error, patience);
    stream.write_all(request.as_bytes()).map_err(in_words).with_context(asked)?;
    let mut answer = String::new();
    stream
        .take(MOST + 1)
        .read_to_string(&mut answer)
        .map_err(in_words)
        .with_context(asked)?;
    anyhow::ensure!(
        answer.len() as u64 <= MOST,
        "the answer of the node at {admin} is longer than {} MiB, and half of one is none: ask for less, or read http://{admin}{target}",
        MOST >> 20
    );
    let other = |what: &str| format!("what listens at {admin} is no node's admin page, as {what}: --admin names another address");
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| other("the answer is not HTTP"))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    anyhow::ensure!(
        length.is_none_or(|length: usize| body.len() >= length),
        "the answer of the node at {admin} has ended before all of it came: ask again"
    );
    let status: Option<u16> = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status.with_context(|| other("the answer is not HTTP"))? {
        200 if !body.is_empty() => Ok(body.to_owned()),
        // A node says why.
        status if body.trim().is_empty() => anyhow::bail!(other(&format!("it answers with {status} and not a word"))),
        _ => anyhow::bail!(body.trim_end().to_owned()),
    }
}

/// The kernel calls it temporarily unavailable what has not come in time.
fn in_words(error: io::Error, patience: Duration) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, format!("nothing has come for {} s", patience.as_secs())),
        _ => error,
    }
}

/// Percent-encoded: everything but what RFC 3986 leaves unreserved.
pub(crate) fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    });
    each.collect()
}
