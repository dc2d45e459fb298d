//! ZDS from any bytes, at either end.
#![no_main]

#[path = "../../tests/support/zds_fuzz.rs"]
mod zds_fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| zds_fuzz::zds(data));
