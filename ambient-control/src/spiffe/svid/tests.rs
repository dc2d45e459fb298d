use proptest::prelude::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use super::{super::fake::*, *};

mod any;

use self::any::any_bytes;

#[test]
fn a_good_one_is_read_whole() {
    let given = Authority::new().svid(CART, 10, 100);
    let svid = given.raw().read().unwrap();
    assert_eq!(svid.id.as_str(), CART);
    let credential = svid.credential(&cart());
    assert_eq!(credential.chain, given.chain);
    assert_eq!(credential.key.der(), given.key);
    assert_eq!((credential.not_before, credential.not_after), (at(10), at(100)));
    // Whoever does not say whom it names is asked nothing.
    let unnamed = Given {
        named: String::new(),
        ..given
    };
    assert_eq!(unnamed.raw().read().unwrap().id.as_str(), CART);
}

#[test]
fn what_breaks_the_standard_is_refused_by_name() {
    let authority = Authority::new();
    let good = authority.fresh(CART);
    let damaged = |damage: &dyn Fn(&mut Given)| {
        let mut given = good.clone();
        damage(&mut given);
        given
    };
    let cases = [
        (damaged(&|g| g.chain = vec![]), "no certificates"),
        (damaged(&|g| g.chain = vec![b"garbage".to_vec()]), "certificate"),
        (damaged(&|g| g.chain[0].truncate(100)), "certificate"),
        (damaged(&|g| g.key = b"garbage".to_vec()), "key"),
        (damaged(&|g| g.named = "spiffe://example.org/ns/shop/sa/other".into()), CART),
        (damaged(&|g| g.chain = vec![g.chain[0].clone(); 17]), "too many"),
        (damaged(&|g| g.chain[0].resize(LONGEST_CHAIN + 1, 0)), "bytes"),
        (
            authority.changed(CART, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "CA",
        ),
        (
            authority.changed(CART, |p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            "digitalSignature",
        ),
        (
            authority.changed(CART, |p| p.subject_alt_names = vec![SanType::DnsName("cart".try_into().unwrap())]),
            "SPIFFE",
        ),
        (
            authority.changed(CART, |p| {
                p.subject_alt_names.push(SanType::URI("spiffe://example.org/b".try_into().unwrap()))
            }),
            "URI",
        ),
        (authority.fresh("spiffe://example.org"), "path"),
    ];
    for (given, why) in cases {
        let Err(error) = given.raw().read() else {
            panic!("read, and not refused for {why}")
        };
        let text = error.to_string();
        assert!(text.contains(&format!("the SVID of {:?} cannot be used", given.named)), "{text}");
        assert!(text.contains(why), "{text}, and not {why}");
    }
}

#[test]
fn dates_are_judged_at_the_moment_that_is_asked() {
    let svid = Authority::new().svid(CART, 10, 100).raw().read().unwrap();
    assert!(
        svid.out_of_date(at(9))
            .is_some_and(|why| why.contains("it is valid from") && why.contains("a clock is wrong"))
    );
    assert_eq!(svid.out_of_date(at(10)), None);
    assert_eq!(svid.out_of_date(at(99)), None);
    assert!(
        svid.out_of_date(at(100))
            .is_some_and(|why| why.contains("it was valid until") && why.contains("a clock is wrong"))
    );
}

#[test]
fn a_bundle_is_its_certificates_once_each() {
    let (one, two) = (Authority::new().root(), Authority::new().root());
    let domain = "example.org".parse().unwrap();
    let read = |parts: &[&[u8]]| roots(&domain, &parts.concat());
    assert_eq!(read(&[&one, &two, &one]).unwrap(), [one.clone(), two.clone()]);
    assert!(read(&[]).unwrap_err().contains("no certificate"));
    assert!(read(&[&one, b"garbage"]).is_err());
    let many: Vec<_> = (0..=MOST_ROOTS).map(|_| Authority::new().root()).collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    assert!(read(&many).unwrap_err().contains("65 roots"));
    assert!(read(&[&vec![0; LONGEST_BUNDLE + 1]]).unwrap_err().contains("bytes"));
}

#[test]
fn a_domain_is_told_by_name_or_by_id() {
    assert_eq!(domain("example.org").unwrap().as_str(), "example.org");
    assert_eq!(domain("spiffe://example.org").unwrap().as_str(), "example.org");
    for bad in [
        "",
        "spiffe://",
        "spiffe://Example.org",
        "https://example.org",
        "example.org/ns",
        "spiffe://spiffe://a",
    ] {
        assert!(domain(bad).is_err(), "{bad}");
    }
}

/// The usages are rustls' to check, when the chain is verified.
#[test]
fn a_leaf_of_another_use_is_read() {
    let given = Authority::new().changed(CART, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]);
    assert!(given.raw().read().is_ok());
}

proptest! {
    #[test]
    fn whatever_comes_is_read_without_a_panic(data in proptest::collection::vec(0_u8.., 0..600)) {
        any_bytes(&data);
    }

    /// One flipped bit in the certificate is refused, or reads as what cannot be verified: see the account's tests.
    #[test]
    fn a_damaged_one_is_read_without_a_panic(at in 0_usize..10_000, bit in 0_u32..8, cut in 1_usize..10_000) {
        let mut given = Authority::new().fresh(CART);
        let index = at % given.chain[0].len();
        given.chain[0][index] ^= 1 << bit;
        let _ = given.raw().read();
        let keep = given.chain[0].len().saturating_sub(cut);
        given.chain[0].truncate(keep);
        prop_assert!(given.raw().read().is_err());
    }
}

/// The corpus of the fuzz target `spiffe`.
#[test]
fn the_corpus_is_read_without_a_panic() {
    ambient_testkit::corpus::replay(env!("CARGO_MANIFEST_DIR"), "spiffe", any_bytes);
}
