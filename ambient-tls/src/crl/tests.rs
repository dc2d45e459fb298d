#![cfg(feature = "aws-lc-rs")]

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::*;
use crate::test_ca::Ca;

#[test]
fn der_holds_one_and_pem_several() {
    let (one, two) = (Ca::named("one"), Ca::named("two"));
    let der = one.crl(&[1, 2]);
    let [crl] = &read_crls(&der).unwrap()[..] else { panic!() };
    assert_eq!((crl.der(), crl.issuer(), crl.entries()), (&der[..], "CN=one", 2));
    let pem = format!(
        "# of two authorities\n{}\r\n\n{}",
        one.crl_of(&[1], 2027).pem().unwrap(),
        two.crl_of(&[], 2027).pem().unwrap()
    );
    let crls = read_crls(pem.as_bytes()).unwrap();
    let read: Vec<_> = crls.iter().map(|crl| (crl.issuer(), crl.entries())).collect();
    assert_eq!(read, [("CN=one", 1), ("CN=two", 0)]);
}

#[test]
fn nothing_is_left_out_silently() {
    let ca = Ca::new();
    let good = ca.crl_of(&[1], 2027).pem().unwrap();
    let certificate = format!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{good}");
    let unknown = format!("{good}-----BEGIN CRL-----\nAAAA\n-----END CRL-----\n");
    let nested = format!("-----BEGIN X509 CRL-----\n{good}");
    let cut = good.replace("-----END", "-----DNE");
    for pem in [&certificate, &unknown, &nested, &cut] {
        let error = read_crls(pem.as_bytes()).unwrap_err();
        assert!(matches!(error, CrlError::Pem { .. }), "{pem}: {error}");
    }
    // Whoever reads it is shown words, and no bytes.
    let said = |pem: &str| read_crls(pem.as_bytes()).unwrap_err().to_string();
    let torn = &good[..good.len() / 2];
    assert!(
        said(torn).contains("it ends before the line \"-----END X509 CRL-----\""),
        "{}",
        said(torn)
    );
    let odd = good.replacen("CRL-----", "CRL----", 1);
    assert!(
        said(&odd).contains("a section begins with \"-----BEGIN X509 CRL----\""),
        "{}",
        said(&odd)
    );
    let garbled = format!("{good}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    let error = read_crls(garbled.as_bytes()).unwrap_err();
    assert!(matches!(error, CrlError::Unreadable { index: 1, .. }), "{error}");
    for nothing in [&b""[..], b"\n \n"] {
        assert_eq!(read_crls(nothing).unwrap_err(), CrlError::Missing);
    }
    for der in [&b"text"[..], &ca.der, &[ca.crl(&[1]), ca.crl(&[2])].concat()] {
        let error = read_crls(der).unwrap_err();
        assert!(matches!(error, CrlError::Unreadable { index: 0, .. }), "{error}");
    }
}

#[test]
fn a_signature_is_that_of_one_key() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let key = |ca: &Ca| {
        let der = CertificateDer::from(ca.der.clone());
        webpki::EndEntityCert::try_from(&der).unwrap().subject_public_key_info()
    };
    let algorithms = crate::provider().signature_verification_algorithms.all;
    let crl = Crl::read(&ours.crl(&[1])).unwrap();
    // Twice: asked, and remembered.
    for _ in 0..2 {
        assert!(crl.is_signed_by(&key(&ours), algorithms));
        assert!(!crl.is_signed_by(&key(&theirs), algorithms));
    }
    assert!(!crl.is_signed_by(&SubjectPublicKeyInfoDer::from(vec![1, 2, 3]), algorithms));
    for number in 0..100 {
        crl.is_signed_by(&SubjectPublicKeyInfoDer::from(vec![number]), algorithms);
    }
    assert_eq!(crl.signers.lock().unwrap().len(), SIGNERS);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// A list changed anywhere is refused, or no longer signed.
    #[test]
    fn one_flipped_bit_is_never_believed(at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        thread_local!(static GOOD: (Ca, Vec<u8>) = {
            let ca = Ca::new();
            let crl = ca.crl(&[1, 2, 3]);
            (ca, crl)
        });
        GOOD.with(|(ca, crl)| {
            let mut der = crl.clone();
            let at = at.index(der.len());
            der[at] ^= 1_u8 << bit;
            if let Ok(read) = read_crls(&der) {
                let root = CertificateDer::from(ca.der.clone());
                let key = webpki::EndEntityCert::try_from(&root).unwrap().subject_public_key_info();
                let algorithms = crate::provider().signature_verification_algorithms.all;
                prop_assert!(!read[0].is_signed_by(&key, algorithms), "byte {at}, bit {bit}");
            }
            Ok(())
        })?;
    }

    #[test]
    fn whatever_comes_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read_crls(&bytes).is_err());
    }

    #[test]
    fn whatever_comes_as_pem_is_read_without_a_panic(
        text in "(-----BEGIN X509 CRL-----|-----END X509 CRL-----|-----BEGIN |-----|[A-Za-z0-9+/=]{0,64}|\r?\n){0,20}",
    ) {
        prop_assert!(read_crls(text.as_bytes()).is_err());
    }

    #[test]
    fn a_cut_list_is_refused(keep in 0.0..1.0_f64) {
        let crl = Ca::new().crl(&[1, 2, 3]);
        let cut = &crl[..(crl.len() as f64 * keep) as usize];
        prop_assert!(read_crls(cut).is_err());
    }
}
