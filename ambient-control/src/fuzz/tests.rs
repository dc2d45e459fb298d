//! Replays the corpora of the fuzz targets: responses as they were recorded, and what the fuzzers made of them.

use ambient_testkit::corpus;

fn replay(target: &str, run: fn(&[u8])) {
    corpus::replay(env!("CARGO_MANIFEST_DIR"), target, |recorded| {
        run(recorded);
        damaged(recorded, run);
    });
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
fn pieces() {
    replay("pieces", super::pieces);
}

#[test]
fn asked() {
    replay("asked", super::asked);
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

#[test]
fn trust() {
    replay("trust", super::trust);
}

#[test]
fn manifests() {
    replay("manifests", super::manifests);
}

#[test]
fn local_xds() {
    replay("local_xds", super::local_xds);
}

#[test]
fn authority() {
    replay("authority", super::authority);
}

#[test]
fn csr() {
    replay("csr", super::csr);
}

#[test]
fn lists() {
    replay("lists", super::lists);
}
