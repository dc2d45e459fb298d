//! The kernel's answers from any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ambient_redirect::netlink::fuzz::answers(data));
