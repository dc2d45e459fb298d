//! What the fuzz target `spiffe` does with its input, and what its corpus is replayed with.

use super::*;

/// Two bytes of length, a chain of that length, and a key; then the whole as a bundle, and as the name of a domain.
pub(crate) fn any_bytes(data: &[u8]) {
    let (chain, key) = match data {
        [low, high, rest @ ..] => rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len())),
        _ => (data, &[][..]),
    };
    let raw = Raw {
        named: String::new(),
        chain: chain.to_vec(),
        key: key.to_vec().into(),
    };
    if let Ok(svid) = raw.read() {
        assert!(!svid.id.path().is_empty());
        assert!(svid.out_of_date(svid.not_after).is_some());
    }
    if let Ok(roots) = roots(&"example.org".parse().expect("a good name"), data) {
        assert!((1..=64).contains(&roots.len()));
    }
    if let Ok(domain) = domain(&String::from_utf8_lossy(data)) {
        assert!(!domain.as_str().is_empty());
    }
}
