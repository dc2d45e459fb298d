//! Lists of what was revoked from any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ambient_control::fuzz::lists(data));
