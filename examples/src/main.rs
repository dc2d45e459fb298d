//! `ambient`: the node proxy of an ambient service mesh, its policies explained, and a lab that shows a mesh on this
//! machine.

// Where nobody reads any more they panic: `say` does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

#[cfg(feature = "authz")]
mod authz;
mod ca;
mod cluster_local;
mod cni;
#[cfg(feature = "control")]
mod control;
mod descriptors;
mod enrol;
mod explain;
mod given;
#[cfg(feature = "lab")]
mod lab;
mod node;
mod not_text;
mod owned;
mod page;
mod pods;
mod say;
mod threads;

use node::settings;

/// An ambient service mesh node: pods join by a label, and their traffic is carried in mutual TLS with their own
/// identities.
#[derive(Debug, Parser)]
#[command(name = "ambient", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node proxy: capture this node's pods of the mesh, and carry their traffic.
    Node(Box<node::Args>),
    /// Enrol this node's pods for another's proxy, such as Istio's ztunnel, which is told of them over ZDS.
    Enrol(enrol::Args),
    /// Ask a node what would become of a connection: its way, the identities on it, and what policy says.
    Explain(explain::Args),
    /// Show how each pod of a node stands: whether it is captured, how that was proven, what is wrong and what to do.
    Pods(pods::Args),
    /// Serve a directory of manifests and a certificate authority to nodes elsewhere, as istiod would.
    #[cfg(feature = "control")]
    Control(control::Args),
    /// See to the certificate authority of a mesh without istiod and SPIRE: make it, issue, change the root, revoke, show.
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Check policies, explain a decision, or decide on many connections; without a cluster.
    #[cfg(feature = "authz")]
    #[command(subcommand)]
    Authz(authz::Verb),
    /// Bring a mesh up on this machine without root, show it at work, and tear it down.
    #[cfg(feature = "lab")]
    Lab(lab::Args),
    /// What runs in the lab's pods.
    #[cfg(feature = "lab")]
    #[command(hide = true)]
    LabApp(lab::AppArgs),
}

fn main() -> ExitCode {
    // A runtime knows a CNI plugin by the name of its file alone.
    if cni::is_plugin(std::env::args_os().next().as_deref()) {
        return cni::main();
    }
    // Before any thread or runtime: a user namespace can only be made by a process with a single thread.
    let settings::Read { matches, settings } = match settings::read(Cli::command(), std::env::args_os().collect()) {
        Ok(read) => read,
        Err(settings::Wrong::Clap(error)) => error.exit(),
        Err(settings::Wrong::Text(command, error)) => {
            say::tell(format_args!("ambient {command}: {error}"));
            return ExitCode::from(2);
        }
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Node(args) => node::main(*args, &settings),
        Command::Enrol(args) => enrol::main(args, &settings),
        Command::Explain(args) => explain::main(&args),
        Command::Pods(args) => pods::main(&args),
        #[cfg(feature = "control")]
        Command::Control(args) => control::main(args, &settings),
        Command::Ca(verb) => ca::main(verb, &settings),
        #[cfg(feature = "authz")]
        Command::Authz(verb) => authz::main(verb),
        #[cfg(feature = "lab")]
        Command::Lab(args) => lab::main(args),
        #[cfg(feature = "lab")]
        Command::LabApp(args) => lab::app(args),
    }
}
