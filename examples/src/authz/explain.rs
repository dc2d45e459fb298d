//! `ambient authz explain`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use ambient_authz::{
    Conn, Explanation,
    explain::{Field, Mismatch},
    kubernetes::Labels,
};
use serde::Serialize;

use super::{
    Failure, Mode, Policies,
    files::Files,
    peer::Peer,
    place::{Finding, Level},
    target::Target,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    policies: Policies,
    /// Who asks: plaintext, a SPIFFE identity with or without `spiffe://`, NAMESPACE/ACCOUNT, or NAMESPACE/NAME of a pod in
    /// the files.
    #[arg(long, value_name = "IDENTITY")]
    from: String,
    /// The address that the connection comes from.
    #[arg(long, value_name = "IP")]
    from_ip: Option<IpAddr>,
    /// Who is asked: NAMESPACE/NAME of a pod or workload in the files, or NAMESPACE with --labels.
    #[arg(long, value_name = "WORKLOAD")]
    to: String,
    /// The labels of the pod, such as app=web,version=v1; those in the files do not count then.
    #[arg(long, value_name = "K=V,…", value_parser = labels)]
    labels: Option<Labels>,
    /// The address of the pod.
    #[arg(long, value_name = "IP")]
    to_ip: Option<IpAddr>,
    /// The port of the pod, not that of a service.
    #[arg(long)]
    port: u16,
    /// List every policy and every rule, however many there are.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    mode: Mode,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    /// What of the policies that were asked is not in force as it is written.
    findings: &'a [&'a Finding],
    notes: &'a [String],
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let settings = args.mode.settings();
    let domain = settings.trust_domain.clone();
    let files = Files::read(&args.policies.files, settings)?;
    files.whole()?;
    let target = Target::find(&args.to, args.labels.clone(), &files)?;
    let peer = Peer::find(&args.from, &domain, &files.workloads)?;
    let (source, destination) = (args.from_ip.or(peer.ip), args.to_ip.or(target.ip));
    let speaker = peer.identity.clone().into();
    let conn = Conn {
        peer: &speaker,
        source: source.unwrap_or(UNKNOWN),
        destination: SocketAddr::new(destination.unwrap_or(UNKNOWN), args.port),
    };
    let mut explanation = ambient_authz::explain(&files.resources.policies(), &target.workload, &conn);
    explanation.number_rules(|policy, rule| files.resources.written_rule(policy, rule));

    let mut notes = target.notes.clone();
    notes.extend(target.port_note(args.port, &files));
    for (known, field, flag) in [
        (source.is_some(), Field::SourceIps, "--from-ip"),
        (destination.is_some(), Field::DestinationIps, "--to-ip"),
    ] {
        if !known && compares(&explanation, field) {
            notes.push(format!("the {field} counts here and is not known: give {flag}"));
        }
    }
    let findings = concerning(&explanation, &files);
    if args.mode.json {
        let told = Told {
            explanation: &explanation,
            findings: &findings,
            notes: &notes,
        };
        let json = serde_json::to_string_pretty(&told).map_err(|error| Failure::input(error.to_string()))?;
        println!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    match args.all {
        true => print!("{explanation:#}"),
        false => print!("{explanation}"),
    }
    section("not in force as written:", &findings);
    section("note:", &notes);
    let elsewhere = files.errors().count() - findings.iter().filter(|f| f.level == Level::Error).count();
    if elsewhere > 0 {
        println!("\nnote:\n  {elsewhere} errors in policies that do not apply here: see `ambient authz check`");
    }
    Ok(ExitCode::SUCCESS)
}

fn section<T: std::fmt::Display>(title: &str, lines: &[T]) {
    if !lines.is_empty() {
        println!("\n{title}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
}

/// Whether an address was compared that nobody has told.
fn compares(explanation: &Explanation, field: Field) -> bool {
    let rules = || explanation.policies.iter().flat_map(|p| &p.rules);
    let failed = rules().flat_map(|r| &r.failures).any(|failure| match &failure.mismatch {
        Mismatch::NoneHits { field: of, .. } | Mismatch::Excluded { field: of, .. } => *of == field,
        Mismatch::Empty => false,
    });
    failed || rules().flat_map(|r| &r.hits).any(|hit| hit.field == field)
}

/// What is wrong with the policies that were asked.
fn concerning<'a>(explanation: &Explanation, files: &'a Files) -> Vec<&'a Finding> {
    let policies = explanation.policies.iter().map(|p| p.key.as_str());
    let asked: Vec<&str> = policies.chain(explanation.refusals.iter().map(|r| r.key.as_str())).collect();
    let concerned = |f: &&Finding| f.key.as_deref().is_some_and(|key| asked.contains(&key));
    files.findings.iter().filter(concerned).collect()
}

fn labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Stands for an address that nobody has told.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
