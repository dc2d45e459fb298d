//! `ambient explain`: asks a node what would become of a connection.

use std::{net::SocketAddr, process::ExitCode};

use crate::page;

/// The question, and whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod that would connect.
    #[arg(long, value_name = "NAMESPACE/POD")]
    from: String,
    /// Where to: an address or the name of a service, with a port.
    #[arg(long, value_name = "ADDRESS:PORT|HOST:PORT")]
    to: String,
    /// Tell all policies that apply, all their rules and all keys, however many; without it ten of each.
    #[arg(long)]
    all: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// The admin pages of the node that is asked: any node knows the mesh, and its own pods' certificates.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// Prints the answer; what goes wrong is one line on standard error.
pub(crate) fn main(args: &Args) -> ExitCode {
    let format = if args.json { "json" } else { "text" };
    let (from, to) = (page::encoded(&args.from), page::encoded(&args.to));
    let all = args.all;
    page::print(
        "explain",
        args.admin,
        &format!("/explain?from={from}&to={to}&format={format}&all={all}"),
        page::LONG_PATIENCE,
    )
}
