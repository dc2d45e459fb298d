//! Replays the corpus of the fuzz target.

use std::{fs, path::Path};

#[path = "support/zds_fuzz.rs"]
mod zds_fuzz;

#[test]
fn zds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/zds");
    let mut replayed = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display()); // the last one shown is the one that failed
        zds_fuzz::zds(&fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 20, "{replayed} files in {}", corpus.display());
}
