//! `ambient authz`: policies out of files, checked, explained, and asked about many connections.

mod address;
mod check;
mod decide;
mod explain;
mod files;
mod near;
mod open;
mod outside;
mod peer;
mod place;
mod ports;
mod target;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use ambient_authz::kubernetes::Settings;
use ambient_core::TrustDomain;
use clap::{Args, Subcommand};

use crate::{
    cluster_local::ClusterLocal,
    say::{self, tell},
};

/// What `ambient authz` is asked to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Read AuthorizationPolicies and PeerAuthentications, and report what is wrong with them or not in force as written.
    ///
    /// Warns as well of what is in force as written and seldom meant so, such as rules that plaintext passes as they only say
    /// who is not meant.
    ///
    /// Exits with 0 if there are no errors, with 1 if there are, with 2 if it was called wrongly.
    Check(check::Args),
    /// Say whether a peer may talk to a workload, which rule says so, and what would turn the answer.
    Explain(explain::Args),
    /// Decide on connections, one JSON object a line, in their order.
    ///
    /// In: {"id":…,"source":{"identity":"spiffe://…" or null,"ip":"…"},
    ///      "destination":{"namespace":"…","labels":{…},"ip":"…","port":8080}}
    /// Out: {"id":…,"allowed":true or false,"policy":"NAMESPACE/NAME" or null,"reason":"…"}
    ///
    /// The id is any JSON, and is given back as it is written. A null identity is plaintext; that it is not there is an error.
    /// Labels may be left out where there are none. A line that cannot be read is told on stderr with its number and the
    /// field, and the exit code is then 1.
    #[command(verbatim_doc_comment)]
    Decide(decide::Args),
}

pub(crate) fn main(verb: Verb) -> ExitCode {
    let done = match verb {
        Verb::Check(args) => check::run(&args),
        Verb::Explain(args) => explain::run(&args),
        Verb::Decide(args) => decide::run(&args),
    };
    done.unwrap_or_else(|failure| {
        tell(format_args!("ambient authz: {}", failure.why));
        ExitCode::from(failure.code)
    })
}

/// How policies are read.
#[derive(Debug, Args)]
struct Mode {
    /// Read and decide exactly as Istio does, also where Istio lets through more than is written.
    #[arg(long)]
    istio_exact: bool,
    /// The namespace whose policies apply to the whole mesh.
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system", value_parser = crate::settings::namespace)]
    root_namespace: Arc<str>,
    /// The mesh's own trust domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// Another name of the mesh's trust domain; may be given several times.
    #[arg(long = "trust-domain-alias", value_name = "DOMAIN")]
    trust_domain_aliases: Vec<TrustDomain>,
    /// What cluster.local in a policy means where the trust domain has another name. By default own; literal with --istio-exact.
    #[arg(long, value_name = "MEANING")]
    cluster_local: Option<ClusterLocal>,
    /// The revision of the control plane: of the policies that are labelled with one (istio.io/rev) only those of this one
    /// count. Without it all count.
    #[arg(long, value_name = "NAME", value_parser = crate::settings::label)]
    revision: Option<Arc<str>>,
}

impl Mode {
    fn settings(&self) -> Settings {
        let mode = match self.istio_exact {
            true => Settings::istio_exact(),
            false => Settings::default(),
        };
        Settings {
            root_namespace: self.root_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            cluster_local: self.cluster_local.map_or(mode.cluster_local, ClusterLocal::is_own),
            revision: self.revision.clone(),
            ..mode
        }
    }
}

/// Where policies are read from.
#[derive(Debug, Args)]
struct Policies {
    /// Files of YAML or JSON, or directories of them; `-` is stdin.
    #[arg(long = "policies", value_name = "FILES", num_args = 1.., required = true)]
    files: Vec<PathBuf>,
}

/// Prints an answer.
fn print(text: &str) -> Result<(), Failure> {
    say::print(text).map_err(|error| Failure::input(format!("{error:#}")))
}

/// Why there is no answer.
#[derive(Debug)]
struct Failure {
    why: String,
    code: u8,
}

impl Failure {
    /// It was called wrongly.
    fn usage(why: impl Into<String>) -> Self {
        Self { why: why.into(), code: 2 }
    }

    /// What it was given is wrong.
    fn input(why: impl Into<String>) -> Self {
        Self { why: why.into(), code: 1 }
    }
}
