//! Replays the corpora of the fuzz targets.

use ambient_testkit::corpus::replay;

#[path = "support/bytes.rs"]
mod bytes;
#[path = "support/explained.rs"]
mod explained;
#[path = "support/fuzz.rs"]
mod fuzz;

#[test]
fn resources() {
    replay(env!("CARGO_MANIFEST_DIR"), "resources", fuzz::resources);
}

#[test]
fn wire() {
    replay(env!("CARGO_MANIFEST_DIR"), "wire", fuzz::wire);
}
