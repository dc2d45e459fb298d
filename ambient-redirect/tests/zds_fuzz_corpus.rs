//! Replays the corpus of the fuzz target.

use ambient_testkit::corpus::replay;

#[path = "support/zds_fuzz.rs"]
mod zds_fuzz;

#[test]
fn zds() {
    replay(env!("CARGO_MANIFEST_DIR"), "zds", zds_fuzz::zds);
}
