//! The wire form of a policy from any bytes.
#![no_main]
#![allow(dead_code, reason = "a target needs a part of what they share")]

#[path = "../../tests/support/bytes.rs"]
mod bytes;
#[path = "../../tests/support/explained.rs"]
mod explained;
#[path = "../../tests/support/fuzz.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::wire(data));
