//! A file of manifests from any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ambient_control::fuzz::manifests(data));
