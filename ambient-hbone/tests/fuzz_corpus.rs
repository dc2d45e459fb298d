//! Replays the corpora of the fuzz targets. Without libtest, which would run the tests of what is included here once more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::ExitCode;

use ambient_testkit::corpus::{self, Target};

mod fuzz;
#[allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the pure half as it is, of which the targets run a part"
)]
#[path = "../src"]
mod sources {
    pub(crate) mod proto;
}

use sources::proto;

const TARGETS: [Target; 5] = [
    ("engine_server", fuzz::server),
    ("engine_client", fuzz::client),
    ("engine_pair", fuzz::pair),
    ("hpack", fuzz::hpack),
    ("headers", fuzz::headers),
];

fn main() -> ExitCode {
    corpus::main(env!("CARGO_MANIFEST_DIR"), &TARGETS)
}
