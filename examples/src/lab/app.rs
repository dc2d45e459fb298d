//! The little application that runs in the lab's pods: a server that answers with its whole call chain, a plain HTTP
//! forwarder, and the clients that the steps run. Hidden behind `ambient lab-app`; it knows nothing of the mesh.

mod client;
mod http;
mod server;

use std::{process::ExitCode, thread};

use clap::{Args, Subcommand};

pub(crate) use self::{
    client::{Outcome, StreamEvent, scrape},
    http::Failure,
};

use crate::say;

/// What `ambient lab-app` is told to be.
#[derive(Debug, Clone, Args)]
pub(crate) struct AppArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// Answers on LISTEN_PORT with the whole call chain, calling UPSTREAM_URI first if it is set.
    Serve,
    /// Forwards what arrives on LISTEN_PORT to UPSTREAM_URI, as it is.
    Forward,
    /// Does nothing until it is killed.
    Idle,
    /// Calls a URI and prints each outcome as JSON.
    Call(client::CallArgs),
    /// Reads an endless response and prints how it began and ended as JSON.
    Stream(client::StreamArgs),
}

/// Runs a role until it ends.
pub(crate) fn main(args: AppArgs) -> ExitCode {
    let result = match args.role {
        Role::Serve => server::serve(),
        Role::Forward => server::forward(),
        Role::Idle => loop {
            thread::park();
        },
        Role::Call(args) => client::call(&args),
        Role::Stream(args) => client::stream(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say::tell(format_args!("lab-app: {e}"));
            ExitCode::FAILURE
        }
    }
}
