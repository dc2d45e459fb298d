//! Replays the corpora of the fuzz targets: responses as they were recorded, and what the fuzzers made of them.

use std::{fs, path::Path};

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display()); // the last one shown is the one that failed
        let recorded = fs::read(&path).unwrap();
        run(&recorded);
        damaged(&recorded, run);
        replayed += 1;
    }
    assert!(replayed >= 20, "{replayed} files in {}", corpus.display());
}

/// The same with each of its bytes another, and without its end; of long ones, with some of them.
fn damaged(recorded: &[u8], run: fn(&[u8])) {
    let every = (recorded.len() / 100).max(1);
    for at in (0..recorded.len()).step_by(every) {
        run(&recorded[..at]);
        for change in [0x01, 0x80, 0xff] {
            let mut other = recorded.to_vec();
            other[at] ^= change;
            run(&other);
        }
    }
}

#[test]
fn address() {
    replay("address", super::address);
}

#[test]
fn authorization() {
    replay("authorization", super::authorization);
}

#[test]
fn response() {
    replay("response", super::response);
}

#[test]
fn certificate() {
    replay("certificate", super::certificate);
}

#[test]
fn memory() {
    replay("memory", super::memory);
}

#[test]
fn status() {
    replay("status", super::status);
}
