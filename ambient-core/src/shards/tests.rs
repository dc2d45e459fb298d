use std::{collections::BTreeMap, hash::Hasher};

use proptest::prelude::*;

use super::*;

/// A key of which many share a hash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Clash(u32);

impl Hash for Clash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0 % 3).hash(state);
    }
}

proptest! {
    #[test]
    fn it_is_a_map(steps in proptest::collection::vec((any::<bool>(), 0..600u32, any::<u8>()), 0..2000)) {
        let (mut map, mut plain) = (Shards::default(), BTreeMap::new());
        let mut versions = Vec::new();
        for (at, (put, key, value)) in steps.into_iter().enumerate() {
            if put {
                prop_assert_eq!(map.insert(key, value), plain.insert(key, value));
            } else {
                prop_assert_eq!(map.remove(&key), plain.remove(&key));
            }
            prop_assert_eq!(map.len(), plain.len());
            if at % 100 == 0 {
                versions.push((map.clone(), plain.clone()));
            }
        }
        versions.push((map, plain));
        for (map, plain) in versions {
            for key in 0..600 {
                prop_assert_eq!(map.get(&key), plain.get(&key));
            }
            let all: BTreeMap<u32, u8> = map.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(&all, &plain);
            let drawn: Vec<_> = (0..map.len()).map(|n| map.nth(n)).collect();
            prop_assert_eq!(drawn, map.iter().map(Some).collect::<Vec<_>>());
            prop_assert_eq!(map.nth(map.len()), None);
        }
    }
}

#[test]
fn keys_of_one_hash_stand_together() {
    let mut map = Shards::default();
    for n in 0..200 {
        assert_eq!(map.insert(Clash(n), n), None);
    }
    assert!((0..200).all(|n| map.get(&Clash(n)) == Some(&n)));
    for n in 0..200 {
        assert_eq!(map.remove(&Clash(n)), Some(n));
    }
    assert!(map.is_empty() && map.iter().next().is_none());
}
