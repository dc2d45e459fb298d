//! The hash of keys that come from the control plane.
//!
//! It gets them from whoever may write a pod, a service or a policy, of whom one may wish the others ill: so what a hash is hangs on
//! numbers that each process draws at its start, and nobody finds keys beforehand that lie together.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::OnceLock,
};

/// What hashes hang on.
type Secret = [u64; 3];

pub(super) fn hash<Q: Hash + ?Sized>(key: &Q) -> u64 {
    hashed(Quick::default(), key)
}

fn hashed<Q: Hash + ?Sized>(mut hasher: Quick, key: &Q) -> u64 {
    key.hash(&mut hasher);
    hasher.finish()
}

/// A hash by products of which both halves count: sixteen bytes a step, and all bits of it as good as any.
///
/// No factor is known but with the secret. One that is might be made to be 0 or 1, and then nothing else would count.
#[derive(Clone, Debug)]
pub(crate) struct Quick {
    state: u64,
    secret: Secret,
}

impl Default for Quick {
    fn default() -> Self {
        static DRAWN: OnceLock<Secret> = OnceLock::new();
        Self::new(*DRAWN.get_or_init(|| {
            let random = RandomState::new();
            [0, 1, 2].map(|number| random.hash_one(number))
        }))
    }
}

impl Quick {
    fn new(secret: Secret) -> Self {
        Self { state: 0, secret }
    }

    fn take(&mut self, one: u64, other: u64) {
        self.state = folded(self.state ^ one ^ self.secret[0], other ^ self.secret[1]);
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
        folded(self.state ^ self.secret[2], self.secret[1])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{NetworkAddress, PodUid, WorkloadUid};

    /// Any that have about as many ones as zeros, and one that has not.
    const SECRETS: [Secret; 3] = [
        [0xa076_1d64_f8bd_a6b3, 0xe703_f1d5_9a8b_d7eb, 0x8ebc_e2a9_c9b4_dcd9],
        [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0],
        [0x082e_fa98_ec4e_6c89, 0x0000_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6c],
    ];

    /// As many as there are: each 4096th of the hashes has about its share, by their lower and by their upper bits.
    fn is_spread<K: Hash>(name: &str, keys: impl Iterator<Item = K> + Clone) {
        for secret in SECRETS {
            is_spread_by(name, keys.clone().map(|key| hashed(Quick::new(secret), &key)).collect());
        }
        is_spread_by(name, keys.map(|key| hash(&key)).collect());
    }

    fn is_spread_by(name: &str, hashes: Vec<u64>) {
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

    /// Names that whoever knows the secret has chosen so that all of them have one hash, or one place in the first parting.
    #[test]
    fn what_is_chosen_to_lie_together_lies_apart_under_another_secret() {
        let [known, unknown, _] = SECRETS;
        let of = |secret: Secret, key: &[u64]| {
            let mut hasher = Quick::new(secret);
            key.chunks_exact(2).for_each(|pair| hasher.take(pair[0], pair[1]));
            hasher.finish()
        };
        // With a factor that is 1 nothing of the other is left in what is found.
        let one_hash: Vec<[u64; 2]> = (0..1000).map(|n| [known[0] ^ 1, n]).collect();
        let other_hash: Vec<[u64; 2]> = (0..1000).map(|n| [n, known[1] ^ 1]).collect();
        for chosen in [one_hash, other_hash] {
            let met = |secret| {
                chosen
                    .iter()
                    .map(|key| of(secret, key))
                    .collect::<std::collections::HashSet<_>>()
                    .len()
            };
            assert_eq!((met(known), met(unknown)), (1, 1000));
        }
        let names = (0..200_000).map(|n| format!("Kubernetes//Pod/mine/a{n}"));
        let mine: Vec<String> = names.filter(|name| hashed(Quick::new(known), name.as_str()) & 0xfff == 0).collect();
        assert!(mine.len() > 30);
        let mut counts: HashMap<u64, usize> = HashMap::new();
        for name in &mine {
            *counts.entry(hashed(Quick::new(unknown), name.as_str()) & 0xfff).or_default() += 1;
        }
        assert!(counts.values().all(|count| *count < 5), "{counts:?}");
    }

    #[test]
    fn what_is_filled_up_is_another() {
        let texts = ["", "\0", "\0\0", "a", "a\0", "a\0\0", "aaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaa\0"];
        let hashes: std::collections::HashSet<u64> = texts.iter().map(hash).collect();
        assert_eq!(hashes.len(), texts.len());
        assert_ne!(hash(&("ab", "c")), hash(&("a", "bc")));
    }
}
