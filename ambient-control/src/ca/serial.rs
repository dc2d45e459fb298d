//! Serial numbers of certificates: random, so that nobody foresees them, and unique for their issuer.

use std::fmt::Write as _;

use rustix::rand::{GetRandomFlags, getrandom};

use super::OpenError;

/// Sixteen random octets, of which the first says that the number is positive and not shortened (RFC 5280 4.1.2.2).
pub(super) fn new() -> Result<[u8; 16], OpenError> {
    let mut bytes = [0; 16];
    // So few octets come whole, or not at all (getrandom(2)).
    match getrandom(&mut bytes[..], GetRandomFlags::empty()) {
        Ok(16) => {}
        Ok(_) => {
            return Err(OpenError::Crypto {
                why: "the system gives no random octets".into(),
            });
        }
        Err(errno) => {
            return Err(OpenError::Crypto {
                why: format!("the system gives no random octets: {errno}"),
            });
        }
    }
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(bytes)
}

/// As it is written here: hexadecimal digits.
pub(super) fn hex(serial: &[u8]) -> String {
    serial.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What somebody has written as a serial number, with colons or without, as it is written here.
pub(super) fn read(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    let fits = !digits.is_empty() && digits.len().is_multiple_of(2) && digits.len() <= 64 && digits.chars().all(|c| c.is_ascii_hexdigit());
    fits.then_some(digits)
}

/// The octets of a serial number that was read.
pub(super) fn octets(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
