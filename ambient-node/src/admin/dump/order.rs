use std::{collections::BinaryHeap, vec};

/// Room for so many keys at once: all of them are looked through once for each so many that there are.
const PORTION: usize = 8192;

/// Keys in their order, without a list of all of them: two dumps can be compared line by line, and are written all the same
/// in memory that does not grow with the mesh. No key is there twice.
pub(super) fn sorted<K: Ord + Copy, I: Iterator<Item = K>>(all: impl Fn() -> I) -> impl Iterator<Item = K> {
    in_portions(all, PORTION)
}

fn in_portions<K: Ord + Copy, I: Iterator<Item = K>>(all: impl Fn() -> I, room: usize) -> impl Iterator<Item = K> {
    let mut portion: vec::IntoIter<K> = Vec::new().into_iter();
    let (mut last, mut is_whole) = (None, false);
    std::iter::from_fn(move || {
        if portion.as_slice().is_empty() && !is_whole {
            let next = least(all().filter(|key| last.is_none_or(|last| *key > last)), room);
            is_whole = next.len() < room;
            last = next.last().copied();
            portion = next.into_iter();
        }
        portion.next()
    })
}

/// So many of the least, in their order.
fn least<K: Ord>(keys: impl Iterator<Item = K>, room: usize) -> Vec<K> {
    let mut least = BinaryHeap::new();
    for key in keys {
        if least.len() < room {
            least.push(key);
        } else if let Some(mut greatest) = least.peek_mut()
            && key < *greatest
        {
            *greatest = key;
        }
    }
    least.into_sorted_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_comes_once_and_in_order(keys: std::collections::HashSet<u8>, room in 1_usize..9) {
            let mut wanted: Vec<_> = keys.iter().collect();
            wanted.sort_unstable();
            prop_assert_eq!(in_portions(|| keys.iter(), room).collect::<Vec<_>>(), wanted);
        }
    }
}
