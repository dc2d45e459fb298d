//! Replays the corpora of the fuzz targets.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by its panic")]

use std::{fs, path::Path};

#[path = "support/bytes.rs"]
mod bytes;
#[path = "support/explained.rs"]
mod explained;
#[path = "support/fuzz.rs"]
mod fuzz;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display()); // the last one shown is the one that failed
        run(&fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 20, "{replayed} files in {}", corpus.display());
}

#[test]
fn resources() {
    replay("resources", fuzz::resources);
}

#[test]
fn wire() {
    replay("wire", fuzz::wire);
}
