//! Names that may have been meant by one that is not there.

use std::collections::BTreeSet;

/// What to say of a name that is not there: which of the names that are may have been meant, else which there are; `none`
/// where there are none.
pub(super) fn or_there(wanted: &str, there: impl IntoIterator<Item = impl Into<String>>, none: &str) -> String {
    let there: BTreeSet<String> = there.into_iter().map(Into::into).collect();
    if let Some(meant) = meant(wanted, &there) {
        return format!("perhaps {meant} is meant");
    }
    if there.is_empty() {
        return none.to_owned();
    }
    let named: Vec<&str> = there.iter().take(MOST_NAMED).map(String::as_str).collect();
    let more = if there.len() > MOST_NAMED { ", …" } else { "" };
    format!("there is {}{more}", named.join(", "))
}

/// The nearest names, such as `a or b`; none where nothing is near.
pub(super) fn meant(wanted: &str, there: &BTreeSet<String>) -> Option<String> {
    // Longer texts are no names of Kubernetes, and comparing them costs the product of their lengths.
    if wanted.len() > MOST_COMPARED {
        return None;
    }
    let comparable = there.iter().filter(|name| name.len() <= MOST_COMPARED);
    let mut near: Vec<(usize, &str)> = comparable
        .filter_map(|name| Some((distance(wanted, name)?, name.as_str())))
        .collect();
    near.sort_unstable();
    let nearest: Vec<&str> = near.iter().take(MOST_MEANT).map(|(_, name)| *name).collect();
    (!nearest.is_empty()).then(|| nearest.join(" or "))
}

/// How many letters have to be changed, put in, left out or swapped with the next to make one name the other; none where that
/// is more than a third of them. A name with more on either side is as near as can be.
fn distance(a: &str, b: &str) -> Option<usize> {
    let (a_short, b_short) = (a.len() >= SHORTEST_PART, b.len() >= SHORTEST_PART);
    if (a_short && b.contains(a)) || (b_short && a.contains(b)) {
        return Some(1);
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let changed = row[j] + usize::from(from != to);
            let mut least = changed.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    let distance = row[b.len()];
    (distance <= a.len().max(b.len()) / 3).then_some(distance)
}

/// Of the names that are there so many are told.
const MOST_NAMED: usize = 8;
/// Of those that may be meant.
const MOST_MEANT: usize = 3;
/// A part of a name that is shorter says nothing.
const SHORTEST_PART: usize = 3;
/// Names are compared up to this length in bytes: `NAMESPACE/NAME` of Kubernetes is no longer.
const MOST_COMPARED: usize = 320;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_meant_and_else_all_is_told() {
        let there = ["demo", "istio-system", "legacy"];
        for (wanted, told) in [
            ("dmeo", "perhaps demo is meant"),
            ("demos", "perhaps demo is meant"),
            ("istio", "perhaps istio-system is meant"),
            ("legcay", "perhaps legacy is meant"),
            ("nowhere", "there is demo, istio-system, legacy"),
            ("", "there is demo, istio-system, legacy"),
        ] {
            assert_eq!(or_there(wanted, there, "none"), told, "{wanted}");
        }
        assert_eq!(or_there("a", Vec::<String>::new(), "there is none"), "there is none");
        let many: Vec<String> = (0..20).map(|n| format!("pod-number-{n:02}")).collect();
        assert!(or_there("x", many.clone(), "").ends_with("pod-number-07, …"));
        assert_eq!(or_there("pod-number-3", many, "").matches(" or ").count(), 2);
        assert!(or_there(&"x".repeat(1 << 20), there, "").starts_with("there is"));
    }
}
