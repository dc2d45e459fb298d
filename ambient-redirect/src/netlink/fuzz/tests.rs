//! Replays the corpus of the fuzz target: answers as a kernel gave them, and what the fuzzer made of them.

use ambient_testkit::corpus;

#[test]
fn netlink() {
    corpus::replay(env!("CARGO_MANIFEST_DIR"), "netlink", |recorded| {
        super::answers(recorded);
        // With each of its bytes another, and without its end; of long ones, with some of them.
        let every = (recorded.len() / 40).max(1);
        for at in (0..recorded.len()).step_by(every) {
            super::answers(&recorded[..at]);
            for change in [0x01, 0x04, 0x80, 0xff] {
                let mut other = recorded.to_vec();
                other[at] ^= change;
                super::answers(&other);
            }
        }
    });
}
