//! `ambient authz check`.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{
    Failure, Mode,
    files::Files,
    place::{Finding, Level},
    print,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files of YAML or JSON, or directories of them; `-` is stdin.
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    mode: Mode,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a check has found, for `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    errors: usize,
    warnings: usize,
    authorization_policies: usize,
    peer_authentications: usize,
    /// Objects of other kinds, which were passed over.
    skipped: usize,
    findings: &'a [Finding],
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let files = Files::read_for_traps(&args.files, args.mode.settings())?;
    let errors = files.errors().count();
    let report = Report {
        errors,
        warnings: files.findings.len() - errors,
        authorization_policies: files.authorization_policies,
        peer_authentications: files.peer_authentications,
        skipped: files.others,
        findings: &files.findings,
    };
    let mut text = String::new();
    if args.json {
        text = serde_json::to_string_pretty(&report).map_err(|error| Failure::input(error.to_string()))?;
    } else {
        // What cannot be read comes first: the rest is only worth reading once it can.
        for level in [Level::Error, Level::Warning] {
            let of_level = files.findings.iter().filter(|f| f.level == level);
            of_level.for_each(|finding| text += &format!("{finding}\n"));
        }
        text += &summary(&report);
    }
    print(&(text + "\n"))?;
    Ok(ExitCode::from(u8::from(errors > 0)))
}

fn summary(report: &Report<'_>) -> String {
    let count = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let mut parts = vec![
        count(report.authorization_policies, "AuthorizationPolicy", "AuthorizationPolicies"),
        count(report.peer_authentications, "PeerAuthentication", "PeerAuthentications"),
        count(report.errors, "error", "errors"),
        count(report.warnings, "warning", "warnings"),
    ];
    if report.skipped > 0 {
        parts.push(count(
            report.skipped,
            "object of another kind skipped",
            "objects of other kinds skipped",
        ));
    }
    parts.join(", ")
}
