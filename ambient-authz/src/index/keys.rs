//! Hashes that nobody foresees who chooses what is hashed.
//!
//! Names, blocks and namespaces are chosen by whoever writes policies, of whom one may wish the others ill: of a fixed hash
//! anybody finds as many values as they like that come to lie in one place, and all look-ups there would walk them. So all
//! hashes hang on numbers that a process draws at its start.

use std::{
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
};

/// What hashes hang on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    start: u64,
    /// Odd.
    factor: u64,
    /// What texts are polynomials of, between 2^59 and 2^60.
    base: u64,
}

impl Keys {
    /// Those that this process has drawn.
    pub(crate) fn of_this_process() -> Self {
        static DRAWN: OnceLock<Keys> = OnceLock::new();
        *DRAWN.get_or_init(|| {
            let random = RandomState::new();
            Self::new([0, 1, 2].map(|number| random.hash_one(number)))
        })
    }

    pub(crate) fn new([start, factor, base]: [u64; 3]) -> Self {
        Self {
            start,
            factor: factor | 1,
            base: base >> 5 | 1 << 59,
        }
    }

    /// The hash of a number.
    pub(crate) fn number(&self, bits: u64) -> u64 {
        mix(self.folded(bits ^ self.start))
    }

    /// The same of a longer one.
    pub(crate) fn long_number(&self, bits: u128, beside: u8) -> u64 {
        let upper = self.folded((bits >> 64) as u64 ^ self.start);
        self.number(self.folded(upper ^ bits as u64) ^ u64::from(beside))
    }

    /// The hash of a text of which no part is asked for: eight bytes a step.
    pub(crate) fn whole(&self, text: &[u8]) -> u64 {
        let (eights, rest) = text.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let step = |hash: u64, bytes: &[u8; 8]| self.folded(hash ^ u64::from_le_bytes(*bytes));
        let hash = eights.iter().fold(self.start ^ text.len() as u64, step);
        mix(step(hash, &last))
    }

    /// A hash that can be taken of every beginning of a text in one pass, or of every end.
    pub(crate) fn rolling(&self) -> Rolling {
        Rolling { keys: *self, sum: 1 }
    }

    /// Both halves of a product, which no one of its bits tells alone.
    fn folded(&self, bits: u64) -> u64 {
        let product = u128::from(bits) * u128::from(self.factor);
        product as u64 ^ (product >> 64) as u64
    }
}

/// A text as a polynomial over the numbers below 2^61 - 1, each byte a factor of its own. Two texts of up to n bytes have equal
/// ones for n bases at most of the 2^59 that there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rolling {
    keys: Keys,
    /// Below 2^62, and meant modulo 2^61 - 1: it is brought below that at the end alone.
    sum: u64,
}

impl Rolling {
    fn byte(&mut self, byte: u8) {
        let sum = u128::from(self.sum) * u128::from(self.keys.base) + u128::from(byte) + 1;
        // As 2^61 is 1. The base is below 2^60, so the upper part is less than half of what the sum was.
        self.sum = (sum as u64 & PRIME) + (sum >> 61) as u64;
    }

    pub(crate) fn bytes(mut self, bytes: impl IntoIterator<Item = u8>) -> Self {
        bytes.into_iter().for_each(|byte| self.byte(byte));
        self
    }

    /// The hash of what was taken in so far, as a value of a sort.
    pub(crate) fn of(self, sort: u8) -> u64 {
        self.keys.number((self.sum % PRIME) ^ (u64::from(sort) << 56))
    }
}

/// Spreads what differs anywhere over all bits.
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^ bits >> 32
}

/// A prime, as whose multiples sums are equal.
const PRIME: u64 = (1 << 61) - 1;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const ONE: [u64; 3] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0];
    const OTHER: [u64; 3] = [0x082e_fa98_ec4e_6c89, 0x4528_21e6_38d0_1377, 0xbe54_66cf_34e9_0c6c];

    type Hash = fn(&Keys, u64) -> u64;

    /// Names as policies have them, blocks, and numbers.
    const HASHES: [(&str, Hash); 5] = [
        ("whole", |keys, n| keys.whole(format!("cluster.local/ns/team/sa/a{n}").as_bytes())),
        ("beginning", |keys, n| {
            keys.rolling().bytes(format!("cluster.local/ns/t{n}").bytes()).of(4)
        }),
        ("end", |keys, n| keys.rolling().bytes(format!("/sa/a{n}").bytes().rev()).of(7)),
        ("block", |keys, n| keys.number(n << 8 | 32)),
        ("long block", |keys, n| keys.long_number(0xfd00 << 112 | u128::from(n) << 64, 64)),
    ];

    /// The places of some hashes where they would be looked for, and how many are in the fullest.
    fn fullest(hashes: impl Iterator<Item = u64>) -> (u64, usize) {
        let mut places: HashMap<u64, usize> = HashMap::new();
        for hash in hashes {
            *places.entry(hash >> 52).or_default() += 1;
        }
        places.into_iter().max_by_key(|(_, count)| *count).unwrap()
    }

    /// Whoever knows the keys finds as many as they like that lie together; with other keys these lie apart.
    #[test]
    fn what_is_chosen_to_lie_together_lies_apart_with_other_keys() {
        let [known, unknown] = [ONE, OTHER].map(Keys::new);
        for (name, hash) in HASHES {
            let mine = (0..1_000_000).filter(|n| hash(&known, *n) >> 52 == 0);
            let mine: Vec<u64> = mine.collect();
            assert!(mine.len() > 200, "{name}: {} lie together", mine.len());
            let (_, most) = fullest(mine.iter().map(|n| hash(&unknown, *n)));
            assert!(most < 6, "{name}: {most} of {} lie together", mine.len());
        }
    }

    /// Values that differ in little have their share of each place, whatever the keys, and no two are taken for each other.
    #[test]
    fn values_that_differ_in_little_are_spread() {
        let drawn = [Keys::new(ONE), Keys::new(OTHER), Keys::of_this_process()];
        for (name, hash) in HASHES {
            for keys in drawn {
                let hashes: Vec<u64> = (0..100_000).map(|n| hash(&keys, n)).collect();
                let (_, most) = fullest(hashes.iter().copied());
                assert!(most < 70, "{name}: {most} where 24 are the share");
                let (_, most) = fullest(hashes.iter().map(|hash| hash << 20));
                assert!(most < 70, "{name}: {most} where 24 are the share, by other bits");
                let different: std::collections::HashSet<_> = hashes.iter().collect();
                assert_eq!(different.len(), hashes.len(), "{name}");
            }
        }
    }

    /// A sum is the polynomial that it is said to be, however long the text.
    #[test]
    fn a_rolling_hash_is_a_polynomial() {
        for keys in [Keys::new(ONE), Keys::new(OTHER), Keys::new([u64::MAX; 3]), Keys::new([0; 3])] {
            let (mut rolling, mut wanted) = (keys.rolling(), 1u128);
            for n in 0..5000u32 {
                let byte = if n % 7 == 0 { 255 } else { n as u8 };
                rolling.byte(byte);
                wanted = (wanted * u128::from(keys.base) + u128::from(byte) + 1) % u128::from(PRIME);
                assert!(rolling.sum < 1 << 62);
                assert_eq!(u128::from(rolling.sum % PRIME), wanted);
            }
        }
    }

    #[test]
    fn what_is_filled_up_is_another() {
        let keys = Keys::new(ONE);
        let texts = ["", "\0", "\0\0", "a", "a\0", "aaaaaaaa", "aaaaaaaa\0", "aaaaaaaaaaaaaaaa"];
        let hashes: [fn(&Keys, &str) -> u64; 2] = [
            |keys, text| keys.whole(text.as_bytes()),
            |keys, text| keys.rolling().bytes(text.bytes()).of(0),
        ];
        for hash in hashes {
            let hashes: std::collections::HashSet<u64> = texts.iter().map(|text| hash(&keys, text)).collect();
            assert_eq!(hashes.len(), texts.len());
        }
    }
}
