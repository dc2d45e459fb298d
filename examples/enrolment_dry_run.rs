//! What would be done to a pod's network namespace? Prints it, and touches nothing.
//!
//! ```text
//! cargo run --example enrolment_dry_run              # IPv4, IPv6 and DNS
//! cargo run --example enrolment_dry_run -- no-ipv6 no-dns
//! cargo run --example enrolment_dry_run -- at=/run/netns/pod   # what would change there: + and -
//! ```

use std::process::ExitCode;

use ambient_redirect::{
    linux::{ApplyError, Inside, Mark, Netns},
    plan::{Options, Plan},
};

fn main() -> ExitCode {
    let (mut options, mut at) = (Options::default(), None);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "no-ipv6" => options.ipv6 = false,
            "no-dns" => options.dns = false,
            "no-inbound" => options.inbound = false,
            "probes" => options.probes = true,
            "segments" => options.loopback_segments = true,
            namespace if namespace.starts_with("at=") => at = Some(namespace["at=".len()..].to_owned()),
            other => {
                eprintln!("{other:?} is not one of no-ipv6, no-dns, no-inbound, probes, segments, at=PATH");
                return ExitCode::FAILURE;
            }
        }
    }
    let plan = Plan::new(&options);
    let Some(path) = at else {
        print!("{plan}");
        return ExitCode::SUCCESS;
    };
    match dry_run(&path, &plan) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What putting the plan in force would change in a namespace.
fn dry_run(path: &str, plan: &Plan) -> Result<String, ApplyError> {
    let mark = Mark::new("dry-run", &"dry-run".into());
    let mut inside = Inside::open(&Netns::open(path)?)?;
    Ok(inside.dry_run(plan, &mark)?.to_string())
}
