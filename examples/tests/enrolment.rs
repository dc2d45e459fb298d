//! Enrolment as a node's operator meets it: two real nodes (`ambient node`) in a cluster of namespaces, pods that a kubelet
//! starts, and what is captured on the wire between the nodes.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test; what happens when, in several processes, is what is tested"
)]

#[path = "enrolment/chaos.rs"]
mod chaos;
#[path = "enrolment/ground.rs"]
mod ground;
#[path = "enrolment/judge.rs"]
mod judge;
#[path = "enrolment/peer.rs"]
mod peer;

use std::process::ExitCode;

use ambient_testkit::harness;

fn main() -> ExitCode {
    harness::main_with_actors(
        &[(
            "nothing_leaks_and_nobody_is_mistaken_in_a_storm",
            chaos::nothing_leaks_and_nobody_is_mistaken_in_a_storm,
        )],
        &[("peer", peer::main)],
    )
}
