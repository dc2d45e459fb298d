//! A file of remembered state from any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ambient_control::fuzz::memory(data));
