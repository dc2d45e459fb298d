#![cfg(feature = "aws-lc-rs")]

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, SanType, SignatureAlgorithm};

use super::*;
use crate::{
    Accepted, Trust, Verifier, provider,
    test_ca::{CART, Ca, OURS, verifier},
};

/// A certificate of its own of `cart`, in PEM, and its key.
fn cart(algorithm: &'static SignatureAlgorithm) -> (String, KeyPair) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(CART.try_into().unwrap())];
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 1, 2);
    (params.self_signed(&key).unwrap().pem(), key)
}

/// What PKCS#8 holds of a key: SEC1 of an elliptic curve, PKCS#1 of RSA.
fn bare(key: &KeyPair) -> Vec<u8> {
    let der = key.serialize_der();
    let (_, outer) = Any::from_der(&der).unwrap();
    let (rest, _version) = Any::from_der(outer.data).unwrap();
    let (rest, _algorithm) = Any::from_der(rest).unwrap();
    let (_, octets) = Any::from_der(rest).unwrap();
    octets.data.to_vec()
}

fn section(label: &str, der: &[u8]) -> String {
    ::pem::encode(&::pem::Pem::new(label, der))
}

#[test]
fn a_credential_is_what_its_leaf_says() {
    let (chain, key) = cart(&rcgen::PKCS_ECDSA_P256_SHA256);
    let credential = read_credential(&provider(), chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert_eq!(credential.identity.as_str(), CART);
    let day = Duration::from_secs(24 * 60 * 60);
    let january = SystemTime::UNIX_EPOCH + 20_454 * day;
    assert_eq!((credential.not_before, credential.not_after), (january, january + day));
    assert_eq!(credential.chain.len(), 1);
    assert_eq!(credential.key.der(), key.serialize_der());
    // Both in one file, and more certificates behind the leaf.
    let root = Ca::new();
    let one = [key.serialize_pem(), chain, section("CERTIFICATE", &root.der)].concat();
    let credential = read_credential(&provider(), one.as_bytes(), one.as_bytes()).unwrap();
    assert_eq!(credential.chain[1..], [root.der]);
}

#[test]
fn a_key_may_be_written_as_openssl_does() {
    let curves = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384];
    for (algorithm, label) in curves
        .map(|curve| (curve, "EC PRIVATE KEY"))
        .into_iter()
        .chain([(&rcgen::PKCS_RSA_SHA256, "RSA PRIVATE KEY")])
    {
        let (chain, key) = cart(algorithm);
        // What `openssl ecparam -genkey` puts before the key.
        let pem = section("EC PARAMETERS", &[6, 1, 1]) + &section(label, &bare(&key));
        let credential = read_credential(&provider(), chain.as_bytes(), pem.as_bytes()).unwrap();
        let trust = Arc::new(Trust::new(&Arc::new(provider()), &Default::default()));
        Verifier::new(&trust, Accepted::AnyTrusted).client_config(&credential).unwrap();
    }
}

#[test]
fn what_is_no_credential_is_refused_in_words() {
    let (chain, key) = cart(&rcgen::PKCS_ECDSA_P256_SHA256);
    let (_, other) = cart(&rcgen::PKCS_ECDSA_P256_SHA256);
    let gateway = Ca::new().leaf(&["spiffe://cluster.local/gateway"], |_| ());
    let nobody = Ca::new().leaf(&[], |_| ());
    let pem = |credential: &Credential| section("CERTIFICATE", &credential.chain[0]);
    let key = key.serialize_pem();
    for (chain, key, why) in [
        ("", &*key, "the certificate chain cannot be used: it holds no certificate"),
        (&key, &key, "the certificate chain cannot be used: it holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\n", &key, "it ends before the line"),
        (&section("CERTIFICATE", b"nothing"), &key, "its leaf cannot be read"),
        (&pem(&nobody), &key, "its leaf bears 0 URI names"),
        (&pem(&gateway), &key, "the form is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT"),
        (&chain, &chain, "the private key cannot be used: it holds nothing of that kind"),
        (&chain, &other.serialize_pem(), "KeyMismatch"),
        (
            &chain,
            &section("PRIVATE KEY", b"nothing"),
            "the credential of spiffe://cluster.local/ns/shop/sa/cart cannot be used",
        ),
    ] {
        let error = read_credential(&provider(), chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_credential_of_somebody_else_is_not_shown() {
    let ca = Ca::new();
    let mut credential = ca.leaf(&[CART], |_| ());
    credential.identity = "spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap();
    let verifier = verifier(&crate::test_ca::trust(&[(OURS, &ca)], &[]), Accepted::AnyTrusted);
    let refusals = [verifier.client_config(&credential).err(), verifier.server_config(&credential).err()];
    for error in refusals.map(Option::unwrap) {
        assert_eq!(
            error.to_string(),
            "the credential of spiffe://cluster.local/ns/shop/sa/stock cannot be used: its certificate is that of \
             spiffe://cluster.local/ns/shop/sa/cart; it must be issued anew"
        );
    }
}

#[test]
fn roots_are_read_all_or_none() {
    let [one, two] = ["one", "two"].map(|name| section("CERTIFICATE", &Ca::named(name).der));
    let roots = read_roots(format!("# ours\n{one}{two}").as_bytes()).unwrap();
    assert_eq!(roots.len(), 2);
    assert_eq!(
        read_roots(b"").unwrap_err().to_string(),
        "the roots cannot be read: it holds no certificate"
    );
    let error = read_roots(format!("{one}{}", section("CERTIFICATE", b"nothing")).as_bytes()).unwrap_err();
    assert!(matches!(error, RootsError::Unreadable { index: 1, .. }), "{error}");
}
