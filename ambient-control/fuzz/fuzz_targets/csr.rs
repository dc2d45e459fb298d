//! A certificate request from any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ambient_control::fuzz::csr(data));
