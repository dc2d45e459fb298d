#![cfg(feature = "aws-lc-rs")]

use super::*;
use crate::{
    Accepted, ChainError, Role,
    test_ca::{CART, Ca, OURS, bundles, ders, trust, verifier},
};

/// Who of these chains is refused as revoked; the others are accepted, in both roles.
fn revoked(trust: &Arc<Trust>, chains: &[Vec<CertificateDer<'static>>]) -> Vec<usize> {
    let verifier = verifier(trust, Accepted::AnyTrusted);
    let is_revoked = |chain: &Vec<CertificateDer<'static>>| {
        let [server, client] = [Role::Server, Role::Client].map(|role| verifier.verify(chain, role));
        assert_eq!(server, client, "both directions are alike");
        let of_running = trust.revoked(&trust.peer(chain).unwrap());
        match server {
            Ok(_) => assert_eq!(of_running, None, "what a new handshake may, a running connection may too"),
            Err(PeerError::Chain { source, .. }) => assert_eq!(Some(source), of_running.map(ChainError::Revoked)),
            Err(other) => panic!("{other}"),
        }
        client.is_err()
    };
    (0..chains.len()).filter(|index| is_revoked(&chains[*index])).collect()
}

#[test]
fn who_is_listed_is_refused_and_nobody_else() {
    let ca = Ca::new();
    let chains = [ca.cart(1), ca.cart(2), ca.cart(3)];
    assert_eq!(revoked(&trust(&[(OURS, &ca)], &[]), &chains), [0_usize; 0]);
    assert_eq!(revoked(&trust(&[(OURS, &ca)], &[(OURS, &ca.crl(&[]))]), &chains), [0_usize; 0]);
    let trust = trust(&[(OURS, &ca)], &[(OURS, &ca.crl(&[2, 7]))]);
    assert_eq!(trust.faults(), []);
    assert_eq!(revoked(&trust, &chains), [1]);
    let why = verifier(&trust, Accepted::AnyTrusted).verify(&chains[1], Role::Client).unwrap_err();
    let why = why.to_string();
    assert!(
        why.contains(CART) && why.contains("number 02") && why.contains("CN=a root"),
        "{why}"
    );
}

#[test]
fn several_lists_of_one_issuer_all_count() {
    let ca = Ca::new();
    let trust = trust(&[(OURS, &ca)], &[(OURS, &ca.crl(&[1])), (OURS, &ca.crl(&[3]))]);
    assert_eq!(revoked(&trust, &[ca.cart(1), ca.cart(2), ca.cart(3)]), [0, 2]);
}

#[test]
fn the_whole_chain_counts() {
    let root = Ca::new();
    let between = root.intermediate("between", 20);
    let chain = |serial| {
        let mut chain = between.cart(serial);
        chain.push(CertificateDer::from(between.der.clone()));
        chain
    };
    let chains = [chain(1), chain(2)];
    let by_between = between.crl(&[2]);
    assert_eq!(revoked(&trust(&[(OURS, &root)], &[(OURS, &by_between)]), &chains), [1]);
    // The root revokes the authority between, and with it all below.
    let by_root = root.crl(&[20]);
    let both = trust(&[(OURS, &root)], &[(OURS, &by_between), (OURS, &by_root)]);
    assert_eq!(revoked(&both, &chains), [0, 1]);
    // A root's list speaks of what the root has issued, not of equal numbers below.
    assert_eq!(
        revoked(&trust(&[(OURS, &root)], &[(OURS, &root.crl(&[1, 2]))]), &chains),
        [0_usize; 0]
    );
}

#[test]
fn two_roots_of_one_name_do_not_speak_for_each_other() {
    // As when a mesh changes its root: the name stays, the key does not.
    let (old, new) = (Ca::named("mesh"), Ca::named("mesh"));
    let chains = [old.cart(1), new.cart(1), old.cart(2), new.cart(2)];
    let roots = [(OURS, &old), (OURS, &new)];
    assert_eq!(revoked(&trust(&roots, &[(OURS, &old.crl(&[1]))]), &chains), [0]);
    assert_eq!(
        revoked(&trust(&roots, &[(OURS, &old.crl(&[1])), (OURS, &new.crl(&[2]))]), &chains),
        [0, 3]
    );
}

#[test]
fn an_authority_of_the_same_name_that_the_peer_adds_changes_nothing() {
    let root = Ca::new();
    let between = root.intermediate("between", 20);
    let decoy = root.intermediate("between", 21);
    let trust = trust(&[(OURS, &root)], &[(OURS, &between.crl(&[1]))]);
    for others in [[&decoy, &between], [&between, &decoy]] {
        let mut chain = between.cart(1);
        chain.extend(others.map(|ca| CertificateDer::from(ca.der.clone())));
        assert_eq!(revoked(&trust, &[chain]), [0]);
    }
}

#[test]
fn lists_of_strangers_and_of_other_domains_say_nothing() {
    let (ours, theirs, stranger) = (Ca::named("ours"), Ca::named("theirs"), Ca::named("stranger"));
    let chains = [ours.cart(1)];
    let roots = [(OURS, &ours), ("other.example", &theirs)];
    let (list, strange) = (ours.crl(&[1]), stranger.crl(&[1]));
    let misplaced = trust(&roots, &[("other.example", &list), (OURS, &strange)]);
    assert_eq!(misplaced.faults(), []);
    assert_eq!(revoked(&misplaced, &chains), [0_usize; 0]);
    // A CRL alone makes no domain trusted.
    let alone = trust(&[], &[(OURS, &list)]);
    let refused = verifier(&alone, Accepted::AnyTrusted).verify(&chains[0], Role::Client);
    assert!(matches!(refused, Err(PeerError::UntrustedDomain { .. })));
}

#[test]
fn an_old_list_stays_in_force_and_tells_its_date() {
    let ca = Ca::new();
    let old = ca.crl_of(&[1], 2020).der().to_vec();
    let trust = trust(&[(OURS, &ca)], &[(OURS, &old)]);
    assert_eq!(revoked(&trust, &[ca.cart(1), ca.cart(2)]), [0]);
    let (domain, crl) = trust.crls().next().unwrap();
    assert_eq!((domain.as_str(), crl.entries(), crl.issuer()), (OURS, 1, "CN=a root"));
    let year = std::time::Duration::from_secs(1_577_836_800);
    assert_eq!(crl.next_update(), std::time::SystemTime::UNIX_EPOCH + year);
}

#[test]
fn an_unusable_list_without_one_before_closes_its_domain_and_no_other() {
    let (ours, theirs) = (Ca::named("ours"), Ca::named("theirs"));
    let roots = [(OURS, &ours), ("other.example", &theirs)];
    let mut cut = ours.crl(&[1]);
    cut.pop();
    let mut forged = ours.crl(&[1]);
    *forged.last_mut().unwrap() ^= 1;
    let impostor = Ca::named("ours").crl(&[1]);
    for bad in [&b"no CRL"[..], &[], &cut, &forged, &impostor] {
        let trust = trust(&roots, &[(OURS, &ours.crl(&[7])), (OURS, bad)]);
        let [fault] = trust.faults() else { panic!("{:?}", trust.faults()) };
        assert_eq!(fault.domain.as_str(), OURS);
        assert!(fault.to_string().contains("CRL 2"), "{fault}");
        let verifier = verifier(&trust, Accepted::AnyTrusted);
        let refused = verifier.verify(&ours.cart(2), Role::Client).unwrap_err();
        assert!(matches!(refused, PeerError::UnusableCrl { .. }), "{refused}");
        assert_eq!(refused.origin(), ambient_core::Origin::Control);
        let stranger = ders(&theirs.leaf(&["spiffe://other.example/x"], |_| {}));
        assert!(verifier.verify(&stranger, Role::Client).is_ok());
    }
}

#[test]
fn an_unusable_list_leaves_the_last_good_ones_in_force() {
    let ca = Ca::new();
    let roots = [(OURS, &ca)];
    let chains = [ca.cart(1), ca.cart(2), ca.cart(3)];
    let first = trust(&roots, &[(OURS, &ca.crl(&[1]))]);
    assert_eq!(revoked(&first, &chains), [0]);
    // The good one beside it counts as well: neither is lost.
    let second = Arc::new(first.renew(&bundles(&roots, &[(OURS, &ca.crl(&[2])), (OURS, b"no CRL")])));
    assert_eq!(second.faults().len(), 1);
    assert_eq!(revoked(&second, &chains), [0, 1]);
    // Whatever was good in a faulty set does not pile up.
    let third = Arc::new(second.renew(&bundles(&roots, &[(OURS, b"no CRL"), (OURS, &ca.crl(&[3]))])));
    assert_eq!(revoked(&third, &chains), [0, 2]);
    assert_eq!(third.crls().count(), 2);
    // Mended: what is given is in force, and nothing else.
    let fourth = Arc::new(third.renew(&bundles(&roots, &[(OURS, &ca.crl(&[2]))])));
    assert_eq!(fourth.faults(), []);
    assert_eq!(revoked(&fourth, &chains), [1]);
    // No list is no fault: whoever gives none means it.
    let fifth = Arc::new(fourth.renew(&bundles(&roots, &[])));
    assert_eq!(revoked(&fifth, &chains), [0_usize; 0]);
    // Where there was none, nothing says who is revoked, whether the process is new or not.
    let sixth = Arc::new(fifth.renew(&bundles(&roots, &[(OURS, b"no CRL")])));
    let refused = verifier(&sixth, Accepted::AnyTrusted).verify(&chains[2], Role::Client);
    assert!(matches!(refused, Err(PeerError::UnusableCrl { .. })), "{refused:?}");
}

#[test]
fn a_list_that_stays_is_not_read_again() {
    let ca = Ca::new();
    let list = ca.crl(&[1]);
    let first = trust(&[(OURS, &ca)], &[(OURS, &list)]);
    let second = first.renew(&bundles(&[(OURS, &ca)], &[(OURS, &list), (OURS, &ca.crl(&[2]))]));
    let kept = |trust: &Trust| Arc::as_ptr(&trust.domains.values().next().unwrap().crls[0]);
    assert_eq!(kept(&first), kept(&second));
}

#[test]
fn a_peer_is_remembered_beyond_the_root_that_vouched_for_it() {
    let (old, new) = (Ca::named("old"), Ca::named("new"));
    let before = trust(&[(OURS, &old), (OURS, &new)], &[]);
    let peers = [old.cart(1), old.cart(2), new.cart(1)].map(|chain| before.peer(&chain).unwrap());
    assert_eq!(peers[0].id().as_str(), CART);
    let after = before.renew(&bundles(&[(OURS, &new)], &[]));
    assert!(
        peers.iter().all(|peer| after.revoked(peer).is_none()),
        "the root has gone, and no one is revoked"
    );
    let after = after.renew(&bundles(&[(OURS, &new)], &[(OURS, &old.crl(&[1]))]));
    let revoked: Vec<_> = peers.iter().map(|peer| after.revoked(peer).is_some()).collect();
    assert_eq!(revoked, [true, false, false]);
}
