//! Two engines, against a model of what both ends do.
#![no_main]
#![allow(dead_code, unreachable_pub, unused_imports, reason = "a target needs a part of what they share")]

#[path = "../../tests/fuzz/mod.rs"]
mod fuzz;
#[path = "../../src"]
mod sources {
    pub(crate) mod proto;
}

use sources::proto;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::pair(data));
