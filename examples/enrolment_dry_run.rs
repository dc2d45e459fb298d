//! What would be done to a pod's network namespace? Prints it, and touches nothing.
//!
//! ```text
//! cargo run --example enrolment_dry_run              # IPv4, IPv6 and DNS
//! cargo run --example enrolment_dry_run -- no-ipv6 no-dns
//! ```

use std::process::ExitCode;

use ambient_redirect::plan::{Options, Plan};

fn main() -> ExitCode {
    let mut options = Options::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "no-ipv6" => options.ipv6 = false,
            "no-dns" => options.dns = false,
            "no-inbound" => options.inbound = false,
            "probes" => options.probes = true,
            other => {
                eprintln!("{other:?} is not one of no-ipv6, no-dns, no-inbound, probes");
                return ExitCode::FAILURE;
            }
        }
    }
    print!("{}", Plan::new(&options));
    ExitCode::SUCCESS
}
