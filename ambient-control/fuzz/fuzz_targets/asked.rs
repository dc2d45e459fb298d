//! A stream of requests to a control plane from any bytes, parted anywhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ambient_control::fuzz::asked(data));
