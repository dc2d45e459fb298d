//! `ambient explain`: asks a node what would become of a connection.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;

/// The question, and whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod that would connect.
    #[arg(long, value_name = "NAMESPACE/POD")]
    from: String,
    /// Where to: an address or the name of a service, with a port.
    #[arg(long, value_name = "ADDRESS:PORT|HOST:PORT")]
    to: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The admin pages of the node that is asked: any node knows the mesh, and its own pods' certificates.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// How long the node may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer.
const MOST: u64 = 16 << 20;

/// Prints the answer; what goes wrong is one line on standard error.
pub(crate) fn main(args: &Args) -> ExitCode {
    match ask(args) {
        Ok((200, answer)) => {
            // Whoever reads may have read enough.
            let _ = std::io::stdout().write_all(answer.as_bytes());
            ExitCode::SUCCESS
        }
        Ok((_, answer)) => {
            eprintln!("ambient explain: {}", answer.trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ambient explain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(args: &Args) -> anyhow::Result<(u16, String)> {
    let format = if args.json { "json" } else { "text" };
    let target = format!("/explain?from={}&to={}&format={format}", encoded(&args.from), encoded(&args.to));
    let asked = || format!("no answer from the node's admin pages at {}; --admin names others", args.admin);
    let mut stream = TcpStream::connect_timeout(&args.admin, PATIENCE).with_context(asked)?;
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
fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    });
    each.collect()
}
