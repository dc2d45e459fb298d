use proptest::prelude::*;

use super::{super::fake::Authority, *};

fn told(bundles: &[(&str, &[u8])]) -> Told {
    Told {
        bundles: bundles.iter().map(|(name, der)| ((*name).to_owned(), der.to_vec())).collect(),
        crls: Vec::new(),
    }
}

fn roots_of(bundles: &Bundles, domain: &str) -> Vec<Vec<u8>> {
    bundles.present().roots(&domain.parse().unwrap()).to_vec()
}

fn own() -> Bundles {
    Bundles::new(Some("a.example".parse().unwrap()))
}

#[test]
fn an_update_is_whole_and_the_same_one_changes_nothing() {
    let (a, b) = (Authority::new().root(), Authority::new().root());
    let mut bundles = own();
    let both = || told(&[("spiffe://a.example", &a), ("b.example", &b)]);
    assert_eq!(
        bundles.update(both()),
        Updated {
            changed: true,
            faults: vec![]
        }
    );
    let before = bundles.present().clone();
    assert!(!bundles.update(both()).changed);
    assert!(Arc::ptr_eq(&before, bundles.present()));
    assert_eq!(roots_of(&bundles, "b.example"), [b]);
    // The federation has ended.
    assert!(bundles.update(told(&[("a.example", &a)])).changed);
    assert_eq!(roots_of(&bundles, "b.example"), Vec::<Vec<u8>>::new());
    assert_eq!(roots_of(&bundles, "a.example"), [a]);
}

#[test]
fn what_cannot_be_read_leaves_what_was_known() {
    let (a, b, c) = (Authority::new().root(), Authority::new().root(), Authority::new().root());
    let mut bundles = own();
    bundles.update(told(&[("a.example", &a), ("b.example", &b)]));
    let updated = bundles.update(told(&[
        ("a.example", b"garbage"),
        ("b.example", b""),
        ("c.example", &c),
        ("not a domain", &c),
    ]));
    assert_eq!(updated.faults.len(), 3, "{:?}", updated.faults);
    for (fault, names) in updated.faults.iter().zip(["a.example", "b.example", "not a domain"]) {
        assert!(fault.contains(names), "{fault}");
    }
    assert_eq!(roots_of(&bundles, "a.example"), std::slice::from_ref(&a));
    assert_eq!(roots_of(&bundles, "b.example"), [b]);
    assert_eq!(roots_of(&bundles, "c.example"), [c]);
    // The own domain is never given up.
    for empty in [told(&[]), told(&[("spiffe://A.example", &a)])] {
        let updated = bundles.update(empty);
        assert!(
            updated.faults.iter().any(|f| f.contains("a.example, this node's own")),
            "{:?}",
            updated.faults
        );
        assert_eq!(roots_of(&bundles, "a.example"), std::slice::from_ref(&a));
    }
    // Garbage for a domain of which nothing is known makes it trusted by nothing.
    bundles.update(told(&[("a.example", &a), ("d.example", b"garbage")]));
    assert_eq!(bundles.present().domains().count(), 1);
}

#[test]
fn a_domain_told_twice_has_the_roots_of_both() {
    let (one, two) = (Authority::new().root(), Authority::new().root());
    let mut bundles = own();
    bundles.update(told(&[("a.example", &one), ("spiffe://a.example", &two), ("a.example", &one)]));
    assert_eq!(roots_of(&bundles, "a.example"), [one, two]);
}

#[test]
fn domains_are_bounded() {
    let root = Authority::new().root();
    let names: Vec<_> = (0..=MOST_DOMAINS).map(|n| format!("d{n}.example")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), root.as_slice())).collect();
    let mut bundles = Bundles::new(None);
    let updated = bundles.update(told(&many));
    assert_eq!(updated.faults.len(), 1);
    assert_eq!(bundles.present().domains().count(), MOST_DOMAINS);
}

proptest! {
    /// After any updates each domain has what was told of it last, where that could be read.
    #[test]
    fn the_last_readable_word_counts(updates in proptest::collection::vec(proptest::collection::btree_map(0_usize..4, 0_usize..4, 0..4), 1..8)) {
        let domains = ["a.example", "b.example", "c.example", "d.example"];
        // The last is none that can be read.
        let words = [Authority::new().root(), Authority::new().root(), Authority::new().root(), b"garbage".to_vec()];
        let mut bundles = own();
        let mut oracle: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for update in updates {
            let told = Told {
                bundles: update.iter().map(|(d, w)| (domains[*d].to_owned(), words[*w].clone())).collect(),
                crls: Vec::new(),
            };
            bundles.update(told);
            oracle.retain(|domain, _| *domain == 0 || update.contains_key(domain));
            oracle.extend(update.iter().filter(|(_, word)| **word != 3).map(|(d, w)| (*d, words[*w].clone())));
            for (index, domain) in domains.iter().enumerate() {
                let expected: Vec<_> = oracle.get(&index).cloned().into_iter().collect();
                prop_assert_eq!(roots_of(&bundles, domain), expected, "{}", domain);
            }
        }
    }
}
