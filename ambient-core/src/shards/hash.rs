//! The hash of keys that come from the control plane.

use std::hash::{Hash, Hasher};

/// Any that have about as many ones as zeros.
const FACTORS: [u64; 3] = [0xa076_1d64_f8bd_a6b3, 0xe703_f1d5_9a8b_d7eb, 0x8ebc_e2a9_c9b4_dcd9];

/// Keys come from the control plane, not from peers, so a fixed hash is safe; it keeps snapshots reproducible.
pub(super) fn hash<Q: Hash + ?Sized>(key: &Q) -> u64 {
    let mut hasher = Quick::default();
    key.hash(&mut hasher);
    hasher.finish()
}

/// A hash by products of which both halves count: sixteen bytes a step, and all bits of it as good as any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quick(u64);

impl Quick {
    fn take(&mut self, one: u64, other: u64) {
        self.0 = folded(self.0 ^ one ^ FACTORS[0], other ^ FACTORS[1]);
    }
}

fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    // Its two halves; and where a factor is zero, the other is not lost.
    product as u64 ^ (product >> 64) as u64 ^ a ^ b
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (whole, rest) = bytes.as_chunks::<16>();
        for sixteen in whole {
            let both = u128::from_le_bytes(*sixteen);
            self.take(both as u64, (both >> 64) as u64);
        }
        // What is left, by its first and its last bytes, which may be the same ones.
        let (one, other) = match (rest.first_chunk(), rest.last_chunk()) {
            (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
            _ => match (rest.first_chunk(), rest.last_chunk()) {
                (Some(first), Some(last)) => (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into()),
                _ => (rest.iter().fold(0, |all, byte| (all << 8) | u64::from(*byte)), 0),
            },
        };
        // Its length too: what is filled up must differ from what ends with zeros.
        self.take(one ^ ((bytes.len() as u64) << 56), other);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.take(number, 0);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        folded(self.0 ^ FACTORS[2], FACTORS[1])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{NetworkAddress, PodUid, WorkloadUid};

    /// As many as there are: each 4096th of the hashes has about its share, by their lower and by their upper bits.
    fn is_spread<K: Hash>(name: &str, keys: impl Iterator<Item = K>) {
        let hashes: Vec<u64> = keys.map(|key| hash(&key)).collect();
        let share = hashes.len() / 4096;
        for bits in [|hash: u64| hash & 0xfff, |hash: u64| hash >> 52] {
            let mut counts: HashMap<u64, usize> = HashMap::new();
            for hash in &hashes {
                *counts.entry(bits(*hash)).or_default() += 1;
            }
            let most = counts.values().max().unwrap();
            assert!(*most < share * 5 / 2, "{name}: {most} where {share} are the share");
            assert!(counts.len() > 4090, "{name}: {} are met", counts.len());
        }
        let different: std::collections::HashSet<_> = hashes.iter().collect();
        assert_eq!(different.len(), hashes.len(), "{name}");
    }

    #[test]
    fn keys_that_differ_in_little_are_spread() {
        let all = 0..100_000_u32;
        is_spread(
            "addresses",
            all.clone()
                .map(|n| NetworkAddress::local(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into())),
        );
        is_spread(
            "addresses of a network",
            all.clone().map(|n| {
                NetworkAddress::new(
                    "network-1".into(),
                    std::net::Ipv6Addr::from_bits((0xfd00 << 112) | u128::from(n)).into(),
                )
            }),
        );
        is_spread(
            "workloads",
            all.clone().map(|n| {
                WorkloadUid::from(format!(
                    "Kubernetes//Pod/namespace-{}/application-{}-6c9f7d9b8-{n:05x}",
                    n / 10 % 200,
                    n / 10
                ))
            }),
        );
        is_spread(
            "pods",
            all.clone().map(|n| PodUid::from(format!("0f3f5a2e-8a1d-4a2b-9c3d-{n:012x}"))),
        );
        is_spread("numbers", all);
    }

    #[test]
    fn what_is_filled_up_is_another() {
        let texts = ["", "\0", "\0\0", "a", "a\0", "a\0\0", "aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa\0"];
        let hashes: std::collections::HashSet<u64> = texts.iter().map(hash).collect();
        assert_eq!(hashes.len(), texts.len());
        assert_ne!(hash(&("ab", "c")), hash(&("a", "bc")));
    }
}
