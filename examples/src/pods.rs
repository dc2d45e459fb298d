//! `ambient pods`: how the pods of a node stand.

use std::{net::SocketAddr, process::ExitCode};

use crate::page;

/// Which pods, and whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All of one pod; without this, a table of all.
    #[arg(value_name = "[NAMESPACE/]NAME")]
    pod: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The admin pages of the node whose pods are asked for.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// Prints the answer; what goes wrong is one line on standard error.
pub(crate) fn main(args: &Args) -> ExitCode {
    let format = if args.json { "json" } else { "text" };
    let pod = args
        .pod
        .as_deref()
        .map(|pod| format!("&pod={}", page::encoded(pod)))
        .unwrap_or_default();
    page::print("pods", args.admin, &format!("/pods?format={format}{pod}"), page::PATIENCE)
}
