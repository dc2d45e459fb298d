//! SVIDs, bundles and names of trust domains from any bytes, as an agent may give them.
#![no_main]
#![allow(dead_code, unused_imports, reason = "a target needs a part of what it takes")]

#[path = "../../src/spiffe/svid/tests/any.rs"]
mod any;
#[path = "../../src/spiffe/svid.rs"]
mod svid;

use svid::*;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any::any_bytes(data));
