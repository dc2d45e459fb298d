//! The admin pages of a node, asked by commands.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;

/// How long the node may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer.
const MOST: u64 = 16 << 20;

/// Prints a page; what goes wrong is one line on standard error, named after the command.
pub(crate) fn print(command: &str, admin: SocketAddr, target: &str) -> ExitCode {
    match get(admin, target) {
        Ok((200, answer)) => {
            // Whoever reads may have read enough.
            let _ = std::io::stdout().write_all(answer.as_bytes());
            ExitCode::SUCCESS
        }
        Ok((_, answer)) => {
            eprintln!("ambient {command}: {}", answer.trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ambient {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The status and the text of a page.
fn get(admin: SocketAddr, target: &str) -> anyhow::Result<(u16, String)> {
    let asked = || format!("no answer from the node's admin pages at {admin}: is a node running here? --admin names another address");
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).with_context(asked)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the body ends with the connection.
    write!(stream, "GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n").with_context(asked)?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer).with_context(asked)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer is not HTTP")?, body.to_owned()))
}

/// Percent-encoded: everything but what RFC 3986 leaves unreserved.
pub(crate) fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    });
    each.collect()
}
