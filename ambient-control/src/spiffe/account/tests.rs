use ambient_core::TrustBundles;
use proptest::prelude::*;

use super::{
    super::{fake::*, svid::Raw},
    *,
};

fn trust(authority: &Authority) -> Arc<Trust> {
    Arc::new(Trust::new(&provider(), &authority.bundles()))
}

fn read(given: &[&super::super::fake::Given]) -> Vec<Result<Svid, SvidError>> {
    given.iter().map(|given| given.raw().read()).collect()
}

fn until(account: &Account, now: u64) -> Option<SystemTime> {
    account.credential(at(now)).ok().map(|credential| credential.not_after)
}

#[test]
fn what_is_given_counts_until_its_end_through_every_failure() {
    let authority = Authority::new();
    let trust = trust(&authority);
    let mut account = Account::new(cart());
    assert!(!account.credential(at(0)).unwrap_err().refused);
    assert_eq!(
        account.update(&read(&[&authority.svid(CART, 0, 100)]), &trust, at(1)),
        Turn::Renewed
    );
    account.failed("away".into());
    account.denied("not yours".into());
    assert_eq!(until(&account, 99), Some(at(100)));
    assert_eq!(account.credential(at(100)).unwrap_err().text, "not yours");
    assert!(account.why().refused);
    assert_eq!(
        account.update(&read(&[&authority.svid(CART, 90, 300)]), &trust, at(100)),
        Turn::Renewed
    );
    assert_eq!(until(&account, 100), Some(at(300)));
}

#[test]
fn the_same_one_again_is_nothing_new() {
    let authority = Authority::new();
    let trust = trust(&authority);
    let given = read(&[&authority.svid(CART, 0, 100)]);
    let mut account = Account::new(cart());
    assert_eq!(account.update(&given, &trust, at(1)), Turn::Renewed);
    let first = account.credential(at(1)).unwrap().clone();
    assert_eq!(account.update(&given, &trust, at(2)), Turn::Same);
    // What is read of it is kept by its address.
    assert!(Arc::ptr_eq(&first, account.credential(at(2)).unwrap()));
}

#[test]
fn what_is_not_given_any_more_is_withdrawn() {
    let authority = Authority::new();
    let trust = trust(&authority);
    let mut account = Account::new(cart());
    // What a process before this was given is withdrawn as well, and told once.
    assert_eq!(account.update(&[], &trust, at(1)), Turn::Withdrawn);
    assert_eq!(account.update(&[], &trust, at(1)), Turn::Same);
    assert!(account.why().text.contains("no registration entry"), "{:?}", account.why());
    account.update(&read(&[&authority.svid(CART, 0, 100)]), &trust, at(1));
    assert_eq!(account.update(&[], &trust, at(2)), Turn::Withdrawn);
    assert_eq!(until(&account, 2), None);
    assert_eq!(account.update(&[], &trust, at(3)), Turn::Same);
    // Somebody else's is named.
    account.update(&read(&[&authority.svid(CART, 0, 100)]), &trust, at(4));
    let other = authority.svid("spiffe://example.org/ns/shop/sa/other", 0, 100);
    assert_eq!(account.update(&read(&[&other]), &trust, at(5)), Turn::Withdrawn);
    let why = account.credential(at(5)).unwrap_err();
    assert!(why.refused && why.text.contains("sa/other") && why.text.contains(CART), "{why:?}");
    // It may be given again.
    assert_eq!(
        account.update(&read(&[&authority.svid(CART, 0, 100)]), &trust, at(6)),
        Turn::Renewed
    );
}

#[test]
fn garbage_withdraws_nothing() {
    let authority = Authority::new();
    let trust = trust(&authority);
    let stranger = Authority::new();
    let good = authority.svid(CART, 0, 100);
    let damaged = |damage: &dyn Fn(&mut super::super::fake::Given)| {
        let mut given = authority.svid(CART, 0, 200);
        damage(&mut given);
        given
    };
    let cases = [
        (damaged(&|g| g.chain = vec![b"garbage".to_vec()]), "cannot be used"),
        (
            damaged(&|g| {
                g.chain = vec![b"garbage".to_vec()];
                g.named = String::new();
            }),
            "cannot be used",
        ),
        (damaged(&|g| g.key = stranger.svid(CART, 0, 200).key), "cannot be used"),
        (stranger.svid(CART, 0, 200), "is refused"),
        (authority.svid(CART, 50, 200), "it is valid from"),
        (authority.svid(CART, 0, 1), "it was valid until"),
        (
            authority.changed(CART, |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
            "is refused",
        ),
    ];
    for (bad, why) in cases {
        let mut account = Account::new(cart());
        account.update(&read(&[&good]), &trust, at(2));
        assert_eq!(account.update(&read(&[&bad]), &trust, at(3)), Turn::Same, "{why}");
        assert_eq!(until(&account, 3), Some(at(100)), "{why}");
        assert!(account.why().text.contains(why), "{:?}, and not {why}", account.why());
        assert!(!account.why().refused);
        // Without one from before there is none.
        let mut account = Account::new(cart());
        assert_eq!(account.update(&read(&[&bad]), &trust, at(3)), Turn::Same, "{why}");
        assert_eq!(until(&account, 3), None, "{why}");
        // A good one beside it counts.
        assert_eq!(account.update(&read(&[&bad, &good]), &trust, at(3)), Turn::Renewed, "{why}");
        assert_eq!(until(&account, 3), Some(at(100)), "{why}");
    }
}

#[test]
fn one_that_is_somebody_elses_and_unreadable_is_no_reason_to_keep() {
    let authority = Authority::new();
    let trust = trust(&authority);
    let mut account = Account::new(cart());
    account.update(&read(&[&authority.svid(CART, 0, 100)]), &trust, at(2));
    let mut other = authority.svid("spiffe://example.org/ns/shop/sa/other", 0, 100);
    other.chain = vec![b"garbage".to_vec()];
    assert_eq!(account.update(&read(&[&other]), &trust, at(3)), Turn::Withdrawn);
}

#[test]
fn what_comes_before_its_roots_waits_for_them() {
    let (old, new) = (Authority::new(), Authority::new());
    let nothing = Arc::new(Trust::new(&provider(), &TrustBundles::default()));
    let mut account = Account::new(cart());
    assert_eq!(account.update(&read(&[&old.svid(CART, 0, 100)]), &nothing, at(1)), Turn::Same);
    assert!(account.why().text.contains("no root of the trust domain"), "{:?}", account.why());
    assert_eq!(account.roots(&trust(&old), at(2)), Turn::Renewed);
    assert_eq!(account.roots(&trust(&old), at(2)), Turn::Same);
    // A new authority signs before its root is known here: what is present stays meanwhile.
    assert_eq!(account.update(&read(&[&new.svid(CART, 0, 200)]), &trust(&old), at(3)), Turn::Same);
    assert_eq!(until(&account, 3), Some(at(100)));
    let mut both = old.bundles();
    both.add("example.org".parse().unwrap(), new.root());
    let both = Arc::new(Trust::new(&provider(), &both));
    assert_eq!(account.roots(&both, at(4)), Turn::Renewed);
    assert_eq!(until(&account, 4), Some(at(200)));
    // What waited for too long does not count.
    let mut late = Account::new(cart());
    late.update(&read(&[&old.svid(CART, 0, 100)]), &nothing, at(1));
    assert_eq!(late.roots(&trust(&old), at(100)), Turn::Same);
    assert_eq!(until(&late, 100), None);
}

/// A root of one domain vouches for no ID of another, whoever is federated.
#[test]
fn an_svid_is_believed_under_the_roots_of_its_own_domain_alone() {
    let (own, foreign) = (Authority::new(), Authority::new());
    let mut bundles = own.bundles();
    bundles.add("foreign.example".parse().unwrap(), foreign.root());
    let trust = Arc::new(Trust::new(&provider(), &bundles));
    let mut account = Account::new(cart());
    assert_eq!(account.update(&read(&[&foreign.svid(CART, 0, 100)]), &trust, at(1)), Turn::Same);
    assert_eq!(until(&account, 1), None);
    let theirs: Identity = "spiffe://foreign.example/ns/shop/sa/cart".parse().unwrap();
    let mut account = Account::new(theirs.clone());
    assert_eq!(
        account.update(&read(&[&own.svid(theirs.as_str(), 0, 100)]), &trust, at(1)),
        Turn::Same
    );
    assert_eq!(
        account.update(&read(&[&foreign.svid(theirs.as_str(), 0, 100)]), &trust, at(1)),
        Turn::Renewed
    );
}

/// What a stream may bring of `cart`, and the moment.
#[derive(Clone, Debug)]
enum Word {
    /// SVIDs of the pool, by their numbers.
    Given(Vec<usize>),
    Failed,
    Denied,
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        4 => proptest::collection::vec(0_usize..6, 0..3).prop_map(Word::Given),
        1 => Just(Word::Failed),
        1 => Just(Word::Denied),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against an oracle of one line each: what is present is the last that was good when it came, unless an answer without it
    /// came since; and it counts between its dates.
    #[test]
    fn rotation_by_a_virtual_clock(words in proptest::collection::vec((word(), 0_u64..60), 1..12)) {
        let authority = Authority::new();
        let trust = trust(&authority);
        let mut garbage = authority.svid(CART, 0, 500);
        garbage.chain = vec![b"garbage".to_vec()];
        // Each with whether it is `cart`'s and can be read, and its dates.
        let pool = [
            (authority.svid(CART, 0, 100), Some((0, 100))),
            (authority.svid(CART, 50, 200), Some((50, 200))),
            (authority.svid(CART, 150, 400), Some((150, 400))),
            (authority.svid("spiffe://example.org/ns/shop/sa/other", 0, 400), None),
            (garbage, None),
            (Authority::new().svid(CART, 0, 600), None),
        ];
        let mut account = Account::new(cart());
        let (mut present, mut now): (Option<(u64, u64)>, u64) = (None, 0);
        let mut told = false;
        for (word, passed) in words {
            now += passed;
            match word {
                Word::Failed => account.failed("away".into()),
                Word::Denied => account.denied("no".into()),
                Word::Given(numbers) => {
                    let given: Vec<_> = numbers.iter().map(|n| pool[*n].0.raw()).map(Raw::read).collect();
                    let turn = account.update(&given, &trust, at(now));
                    let good = numbers.iter().filter_map(|n| pool[*n].1).filter(|(from, until)| (*from..*until).contains(&now));
                    let (before, told_before) = (present, told);
                    match good.max_by_key(|(_, until)| *until) {
                        Some(good) => (present, told) = (Some(good), false),
                        // Whether `cart` is spoken of at all: its own, garbage in its name, or a stranger's.
                        None if numbers.iter().any(|n| *n != 3) => {}
                        None => (present, told) = (None, true),
                    }
                    let expected = match (before, present) {
                        _ if told && !told_before => Turn::Withdrawn,
                        (before, present) if before == present => Turn::Same,
                        _ => Turn::Renewed,
                    };
                    prop_assert_eq!(turn, expected);
                }
            }
            let counts = present.filter(|(from, until)| (*from..*until).contains(&now)).map(|(_, until)| at(until));
            prop_assert_eq!(until(&account, now), counts);
        }
    }
}
