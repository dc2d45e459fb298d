//! Queries on their way upstream, and what comes back for them.
#![no_main]
#![allow(dead_code, unreachable_pub, unused_imports, reason = "a target needs a part of what they share")]

#[path = "../../tests/fuzz/mod.rs"]
mod fuzz;
#[path = "../../src"]
mod sources {
    pub(crate) mod exchange;
    pub(crate) mod wire;
}

use sources::{exchange, wire};

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::exchange(data));
