#![cfg(feature = "aws-lc-rs")]

use super::*;
use crate::test_ca::{At, CART, Ca, NOW, OURS, bundles};

fn configs() -> Configs {
    Configs::new(Arc::new(crate::provider())).with_time(Arc::new(At(NOW)))
}

#[test]
fn what_has_not_changed_is_not_made_again() {
    let (ca, configs) = (Ca::new(), configs());
    let given = Arc::new(bundles(&[(OURS, &ca)], &[]));
    let credential = Arc::new(ca.leaf(&[CART], |_| {}));
    let trust = configs.trust(&given);
    assert!(Arc::ptr_eq(&trust, &configs.trust(&given)));
    let server = |credential, trust, accepted| configs.server(credential, trust, accepted).unwrap();
    let first = server(&credential, &trust, &Accepted::AnyTrusted);
    assert!(Arc::ptr_eq(&first, &server(&credential, &trust, &Accepted::AnyTrusted)));

    // Another of anything it is made of makes another.
    assert!(!Arc::ptr_eq(&first, &server(&credential, &trust, &Accepted::AnyWorkload)));
    let renewed = Arc::new(ca.leaf(&[CART], |_| {}));
    assert!(!Arc::ptr_eq(&first, &server(&renewed, &trust, &Accepted::AnyTrusted)));
    let first = server(&credential, &trust, &Accepted::AnyTrusted);
    let newer = configs.trust(&Arc::new(bundles(&[(OURS, &ca)], &[])));
    assert!(!Arc::ptr_eq(&trust, &newer));
    let second = server(&credential, &newer, &Accepted::AnyTrusted);
    assert!(!Arc::ptr_eq(&first, &second));
    // Whoever still has the older trust gets no newer one, and spoils nothing for the others.
    assert!(!Arc::ptr_eq(&second, &server(&credential, &trust, &Accepted::AnyTrusted)));
    assert!(Arc::ptr_eq(&second, &server(&credential, &newer, &Accepted::AnyTrusted)));
}

#[test]
fn keys_are_bounded_and_go_with_their_credentials() {
    let (ca, configs) = (Ca::new(), configs());
    let trust = configs.trust(&Arc::new(bundles(&[(OURS, &ca)], &[])));
    let credential = ca.leaf(&[CART], |_| {});
    let held: Vec<_> = (0..KEYS + 10).map(|_| Arc::new(credential.clone())).collect();
    for credential in &held {
        configs.client(credential, &trust, Accepted::AnyTrusted).unwrap();
        configs.client(credential, &trust, Accepted::AnyTrusted).unwrap();
    }
    assert_eq!(configs.kept().keys.len(), KEYS);
    let last = Arc::clone(&held[KEYS]);
    drop(held);
    configs.client(&last, &trust, Accepted::AnyTrusted).unwrap();
    assert_eq!(configs.kept().keys.len(), 1);
}

#[test]
fn an_unusable_key_is_refused_each_time_and_not_kept() {
    let (ca, configs) = (Ca::new(), configs());
    let trust = configs.trust(&Arc::default());
    let mut credential = ca.leaf(&[CART], |_| {});
    credential.key = Arc::new(vec![1, 2, 3].into());
    let credential = Arc::new(credential);
    for _ in 0..2 {
        let refused = configs.server(&credential, &trust, &Accepted::AnyTrusted).unwrap_err();
        assert_eq!(refused.identity().as_str(), CART);
    }
    assert!(configs.kept().keys.is_empty());
}
