use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::*;

fn begin(key: u32, rule: u32) -> Begin {
    Begin {
        key: format!("a/{key:05}").as_str().into(),
        rule,
    }
}

const KINDS: [Kind; 4] = [Kind::Deny, Kind::Allow, Kind::DryDeny, Kind::DryAllow];

/// What is held, by its number, with its kind and where it stands in the order.
type Held = BTreeMap<u32, (Kind, Begin, u32)>;

fn check(shelves: &Shelves<u32>, held: &Held) {
    for (number, (kind, begin, value)) in held {
        assert_eq!(shelves.at(*number), Some(value));
        let block = number / BLOCK;
        let shelf = shelves.order(*kind).iter().find(|shelf| shelf.block == block).unwrap();
        assert!(shelf.from <= *begin);
        assert!(shelves.from(block, (number % BLOCK) as usize / 64).unwrap() <= begin);
    }
    let occupied = (0..shelves.blocks() as u32).map(|block| shelves.occupied(block).unwrap());
    let occupied: usize = occupied.flatten().map(|word| word.count_ones() as usize).sum();
    assert_eq!(occupied, held.len());
    for kind in KINDS {
        let order = shelves.order(kind);
        assert!(order.is_sorted_by(|a, b| a.from <= b.from));
        let free: u32 = order.iter().map(|shelf| shelf.free).sum();
        let of_kind = held.values().filter(|(of, ..)| *of == kind).count();
        assert_eq!(order.len() * BLOCK as usize - free as usize, of_kind);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_stand_where_they_are_looked_for(steps in vec((0..4usize, 0..90_000u32, 1..200u32, 0..4u8), 1..200)) {
        let (mut shelves, mut held) = (Shelves::default(), Held::new());
        let mut runs: Vec<(Kind, u32, u32)> = Vec::new();
        for (kind, key, len, what) in steps {
            let kind = KINDS[kind / 2];
            if what == 0 && !runs.is_empty() {
                let (kind, first, len) = runs.swap_remove(key as usize % runs.len());
                for number in first..first + len {
                    prop_assert_eq!(shelves.remove(kind, number), held.remove(&number).map(|(.., value)| value));
                    prop_assert!(shelves.remove(kind, number).is_none());
                }
                continue;
            }
            let len = if what == 1 { 1 } else { len };
            let before = shelves.clone();
            let begin = begin(key, len);
            let first = shelves.insert(kind, &begin, (0..len).collect::<Vec<_>>().into_iter());
            prop_assert_eq!(first / BLOCK, (first + len - 1) / BLOCK);
            for value in 0..len {
                prop_assert!(held.insert(first + value, (kind, begin.clone(), value)).is_none());
                prop_assert!(before.at(first + value).is_none());
            }
            runs.push((kind, first, len));
        }
        check(&shelves, &held);
    }
}

/// However they come, there are not many more blocks than that takes; and where they come in order, blocks do not
/// overlap.
#[test]
fn blocks_are_few_and_in_order() {
    let count = 6 * BLOCK;
    let orders: [&dyn Fn(u32) -> u32; 3] = [&|i| i, &|i| count - i, &|i| i.wrapping_mul(0x9e37_79b1) % count];
    for (at, order) in orders.into_iter().enumerate() {
        let mut shelves = Shelves::default();
        for key in (0..count).map(order) {
            shelves.insert(Kind::Deny, &begin(key, 0), std::iter::once(key));
        }
        let blocks = shelves.order(Kind::Deny);
        assert!(blocks.len() <= 9, "{at}: {}", blocks.len());
        if at == 2 {
            continue;
        }
        for pair in blocks.windows(2) {
            let of_block = |block: u32| (block * BLOCK..(block + 1) * BLOCK).filter_map(|number| shelves.at(number));
            assert!(of_block(pair[0].block).max() < of_block(pair[1].block).min());
        }
    }
}

#[test]
fn a_block_where_nothing_stands_is_used_again() {
    let mut shelves = Shelves::default();
    for kind in KINDS.into_iter().take(3) {
        let numbers: Vec<_> = (0..2 * BLOCK + 7)
            .map(|i| shelves.insert(kind, &begin(i, 0), std::iter::once(i)))
            .collect();
        assert_eq!(shelves.blocks(), 3);
        for number in numbers {
            assert!(shelves.remove(kind, number).is_some());
        }
        assert!(shelves.order(kind).is_empty());
    }
}
