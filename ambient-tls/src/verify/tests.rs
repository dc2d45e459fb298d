#![cfg(feature = "aws-lc-rs")]

use ambient_core::Credential;
use proptest::prelude::*;
use rcgen::{BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::{ClientConnection, ServerConnection, crypto::CryptoProvider};

use super::*;
use crate::{
    peer_id,
    test_ca::{CART, Ca, ders, trust, verifier},
};

fn verify(ca: &Ca, credential: &Credential, role: Role) -> Result<SpiffeId, PeerError> {
    verifier(&trust(&[("cluster.local", ca)], &[]), Accepted::AnyTrusted).verify(&ders(credential), role)
}

#[test]
fn a_good_leaf_is_accepted_in_both_roles() {
    let ca = Ca::new();
    let leaf = ca.leaf(&[CART], |_| {});
    for role in [Role::Server, Role::Client] {
        assert_eq!(verify(&ca, &leaf, role).unwrap().as_str(), CART);
    }
    // Other kinds of names do not matter.
    let leaf = ca.leaf(&[CART], |params| {
        params.subject_alt_names.push(SanType::DnsName("cart.shop".try_into().unwrap()))
    });
    assert!(verify(&ca, &leaf, Role::Server).is_ok());
}

#[test]
fn exactly_one_uri_that_is_a_spiffe_id() {
    let ca = Ca::new();
    for uris in [
        &[][..],
        &[CART, CART],
        &[CART, "spiffe://cluster.local/ns/shop/sa/stock"],
        &["https://a/", CART],
    ] {
        assert_eq!(
            verify(&ca, &ca.leaf(uris, |_| {}), Role::Client),
            Err(PeerError::UriNames { count: uris.len() })
        );
    }
    for uri in [
        "https://cluster.local/ns/shop/sa/cart",
        "spiffe://",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/a//b",
    ] {
        assert!(
            matches!(
                verify(&ca, &ca.leaf(&[uri], |_| {}), Role::Client),
                Err(PeerError::NotSpiffe { .. })
            ),
            "{uri}"
        );
    }
    // Valid beside a name that is not text: [6] is a URI, 0xff is in no ASCII.
    let hidden = |params: &mut rcgen::CertificateParams| {
        let mut names = vec![0x30, 0];
        for uri in [CART.as_bytes(), b"spiffe://\xff"] {
            names.extend([0x86, uri.len() as u8]);
            names.extend(uri);
        }
        names[1] = (names.len() - 2) as u8;
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], names));
    };
    assert!(matches!(
        verify(&ca, &ca.leaf(&[], hidden), Role::Client),
        Err(PeerError::Unreadable { .. })
    ));
}

#[test]
fn a_domains_root_vouches_for_no_other_domain() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let both = trust(&[("cluster.local", &ours), ("other.example", &theirs)], &[]);
    let verifier = verifier(&both, Accepted::AnyTrusted);
    assert!(
        verifier
            .verify(&ders(&theirs.leaf(&["spiffe://other.example/x"], |_| {})), Role::Client)
            .is_ok()
    );
    let forged = theirs.leaf(&[CART], |_| {});
    let refused = verifier.verify(&ders(&forged), Role::Client).unwrap_err();
    assert!(
        matches!(
            refused,
            PeerError::Chain {
                source: ChainError::UnknownIssuer | ChainError::Other(_),
                ..
            }
        ),
        "{refused}"
    );
    let stranger = theirs.leaf(&["spiffe://third.example/x"], |_| {});
    let refused = verifier.verify(&ders(&stranger), Role::Client).unwrap_err();
    assert!(matches!(refused, PeerError::UntrustedDomain { .. }), "{refused}");
    assert_eq!(refused.origin(), ambient_core::Origin::Control);
}

/// The chain of a leaf by an authority below a root.
fn below(root: &Ca, uri: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Result<SpiffeId, PeerError> {
    let authority = root.limited("an intermediate", change);
    let mut chain = ders(&authority.leaf(&[uri], |_| {}));
    chain.push(CertificateDer::from(authority.der.clone()));
    verifier(
        &trust(&[("cluster.local", root), ("other.example", root)], &[]),
        Accepted::AnyTrusted,
    )
    .verify(&chain, Role::Client)
}

#[test]
fn an_intermediate_vouches_only_in_the_domain_that_it_names() {
    let root = Ca::new();
    let named = |uris: &'static [&str]| {
        move |params: &mut rcgen::CertificateParams| {
            params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        }
    };
    let good: [&[&str]; 4] = [
        &[],
        &["spiffe://cluster.local"],
        &["spiffe://cluster.local/node/a"],
        &["https://other.example/"],
    ];
    for uris in good {
        assert!(below(&root, CART, named(uris)).is_ok(), "{uris:?}");
    }
    let bad: [&[&str]; 5] = [
        &["spiffe://other.example"],
        &["spiffe://cluster.local.other"],
        &["spiffe://cluster.local", "spiffe://other.example"],
        &["spiffe:cluster.local"],
        &["spiffe://cluster.local:80"],
    ];
    for uris in bad {
        let refused = below(&root, CART, named(uris)).unwrap_err();
        assert!(
            matches!(
                refused,
                PeerError::Chain {
                    source: ChainError::ForeignAuthority { .. },
                    ..
                }
            ),
            "{uris:?}: {refused}"
        );
    }
    // The root vouches for both domains; what it has limited vouches for one.
    let refused = below(&root, "spiffe://other.example/x", named(&["spiffe://cluster.local"])).unwrap_err();
    assert!(refused.to_string().contains("spiffe://cluster.local"), "{refused}");
    assert!(below(&root, "spiffe://other.example/x", named(&["spiffe://other.example"])).is_ok());
}

#[test]
fn an_authority_beside_the_path_does_not_matter() {
    let root = Ca::new();
    let beside = root.limited("beside", |params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://other.example".try_into().unwrap())];
    });
    let mut chain = ders(&root.leaf(&[CART], |_| {}));
    chain.push(CertificateDer::from(beside.der));
    let verifier = verifier(&trust(&[("cluster.local", &root)], &[]), Accepted::AnyTrusted);
    assert!(verifier.verify(&chain, Role::Client).is_ok());
}

#[test]
fn constraints_on_uris_refuse_and_those_on_hosts_hold() {
    let root = Ca::new();
    // permittedSubtrees of one URI: the leaf's own domain.
    let on_uris = |params: &mut rcgen::CertificateParams| {
        let base = b"cluster.local";
        let mut der = vec![0x30, 0, 0xa0, 0, 0x30, 0, 0x86, base.len() as u8];
        der.extend(base);
        for (at, behind) in [(1, 2), (3, 4), (5, 6)] {
            der[at] = (der.len() - behind) as u8;
        }
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    };
    let refused = below(&root, CART, on_uris).unwrap_err();
    assert!(
        matches!(
            refused,
            PeerError::Chain {
                source: ChainError::NameConstraints,
                ..
            }
        ),
        "{refused}"
    );
    let no_hosts = |params: &mut rcgen::CertificateParams| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: Vec::new(),
            excluded_subtrees: vec![rcgen::GeneralSubtree::DnsName(String::new())],
        });
    };
    assert!(below(&root, CART, no_hosts).is_ok());
    let authority = root.limited("an intermediate", no_hosts);
    let leaf = authority.leaf(&[CART], |params| {
        params
            .subject_alt_names
            .push(SanType::DnsName("istiod.istio-system.svc".try_into().unwrap()));
    });
    let mut chain = ders(&leaf);
    chain.push(CertificateDer::from(authority.der));
    let refused = verifier(&trust(&[("cluster.local", &root)], &[]), Accepted::AnyTrusted).verify(&chain, Role::Server);
    assert!(refused.unwrap_err().to_string().contains("name constraints"));
}

#[test]
fn dates_and_uses_are_checked() {
    let ca = Ca::new();
    let chain = |credential: &Credential, role| match verify(&ca, credential, role) {
        Err(PeerError::Chain { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    let expired = ca.leaf(&[CART], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    // By the one date or the other a clock that is off is found, be it the machine's or the authority's.
    let told = chain(&expired, Role::Client);
    assert!(matches!(&told, ChainError::Expired { ended, now } if ended < now), "{told}");
    assert!(
        told.to_string()
            .starts_with("it was valid until 2020-01-01T00:00:00Z, and here it is 20"),
        "{told}"
    );
    assert!(
        told.to_string().ends_with("a clock is wrong: check those of both machines"),
        "{told}"
    );
    let early = ca.leaf(&[CART], |params| params.not_before = rcgen::date_time_ymd(2100, 1, 1));
    let told = chain(&early, Role::Client);
    assert!(matches!(&told, ChainError::NotYetValid { begins, now } if now < begins), "{told}");
    assert!(
        told.to_string()
            .starts_with("it is valid from 2100-01-01T00:00:00Z, and here it is 20"),
        "{told}"
    );
    assert!(
        told.to_string().ends_with("a clock is wrong: check those of both machines"),
        "{told}"
    );
    let only_server = ca.leaf(&[CART], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
    });
    assert!(verify(&ca, &only_server, Role::Server).is_ok());
    assert_eq!(chain(&only_server, Role::Client), ChainError::WrongUsage);
    let only_client = ca.leaf(&[CART], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
    });
    assert_eq!(chain(&only_client, Role::Server), ChainError::WrongUsage);
    let authority = ca.leaf(&[CART], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(
        matches!(chain(&authority, Role::Client), ChainError::Other(_)),
        "a CA's certificate is no workload's"
    );
}

#[test]
fn long_and_empty_chains_are_refused_unread() {
    let ca = Ca::new();
    let leaf = ders(&ca.leaf(&[CART], |_| {}));
    let verifier = verifier(&trust(&[("cluster.local", &ca)], &[]), Accepted::AnyTrusted);
    assert_eq!(verifier.verify(&[], Role::Client), Err(PeerError::NoCertificate));
    let long = vec![leaf[0].clone(); MAX_CHAIN + 1];
    assert_eq!(
        verifier.verify(&long, Role::Client),
        Err(PeerError::LongChain {
            certificates: MAX_CHAIN + 1
        })
    );
}

#[test]
fn whole_ids_are_compared() {
    let ca = Ca::new();
    let trust = trust(&[("cluster.local", &ca)], &[]);
    let leaf = ders(&ca.leaf(&[CART], |_| {}));
    let accepts = |uris: &[&str]| {
        let accepted = Accepted::any_of(uris.iter().map(|uri| uri.parse::<Identity>().unwrap()));
        verifier(&trust, accepted).verify(&leaf, Role::Server)
    };
    assert!(accepts(&["spiffe://cluster.local/ns/shop/sa/stock", CART]).is_ok());
    for others in [
        &[][..],
        &["spiffe://cluster.local/ns/shop/sa/car"],
        &["spiffe://cluster.local/ns/shop/sa/cart2"],
    ] {
        let refused = accepts(others).unwrap_err();
        assert!(matches!(refused, PeerError::WrongPeer { .. }));
        assert!(refused.to_string().contains(CART), "{refused}");
    }
}

#[test]
fn the_form_of_a_workload_can_be_demanded() {
    let ca = Ca::new();
    let trust = trust(&[("cluster.local", &ca)], &[]);
    let ask = |uri: &str, accepted| verifier(&trust, accepted).verify(&ders(&ca.leaf(&[uri], |_| {})), Role::Client);
    assert!(ask(CART, Accepted::AnyWorkload).is_ok());
    for other in [
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/shop",
        "spiffe://cluster.local/ns/shop/sa/cart/x",
        "spiffe://cluster.local/sa/cart/ns/shop",
        "spiffe://cluster.local/node/n1",
    ] {
        assert!(ask(other, Accepted::AnyTrusted).is_ok(), "{other}");
        let refused = ask(other, Accepted::AnyWorkload).unwrap_err();
        assert!(matches!(refused, PeerError::NotWorkload { .. }), "{other}: {refused}");
        assert!(refused.to_string().contains(other), "{refused}");
    }
    // A chain that does not hold is refused as that, whatever it names.
    let forged = ders(&Ca::new().leaf(&["spiffe://cluster.local/x"], |_| {}));
    let refused = verifier(&trust, Accepted::AnyWorkload).verify(&forged, Role::Client);
    assert!(matches!(refused, Err(PeerError::Chain { .. })));
}

/// Carries bytes between two connections until nothing moves; the first error of each side.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> (Option<rustls::Error>, Option<rustls::Error>) {
    let (mut at_client, mut at_server) = (None, None);
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        if !wire.is_empty() && server.read_tls(&mut &wire[..]).is_ok() {
            at_server = at_server.or_else(|| server.process_new_packets().err());
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        if !wire.is_empty() && client.read_tls(&mut &wire[..]).is_ok() {
            at_client = at_client.or_else(|| client.process_new_packets().err());
        }
    }
    (at_client, at_server)
}

#[test]
fn a_handshake_agrees_on_the_meshs_terms() {
    let ca = Ca::new();
    let trust = trust(&[("cluster.local", &ca)], &[]);
    let leaf = ca.leaf(&[CART], |_| {});
    let both = verifier(&trust, Accepted::any_of([leaf.identity.clone()]));
    let mut client = ClientConnection::new(both.client_config(&leaf).unwrap(), ServerName::try_from("10.0.0.1").unwrap()).unwrap();
    let mut server = ServerConnection::new(both.server_config(&leaf).unwrap()).unwrap();
    assert_eq!(shake(&mut client, &mut server), (None, None));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(server.server_name(), None);
    assert_eq!(
        client.negotiated_key_exchange_group().unwrap().name(),
        rustls::NamedGroup::X25519MLKEM768
    );
    assert_eq!(
        server.negotiated_cipher_suite().unwrap().suite(),
        rustls::CipherSuite::TLS13_AES_256_GCM_SHA384
    );
    assert_eq!(peer_id(server.peer_certificates().unwrap()).unwrap().as_str(), CART);
    assert!(CryptoProvider::get_default().is_none(), "nothing is installed for the process");
}

#[test]
fn the_reason_survives_through_rustls_and_io() {
    let ca = Ca::new();
    let trust = trust(&[("cluster.local", &ca)], &[]);
    let leaf = ca.leaf(&[CART], |_| {});
    let till = Accepted::any_of(["spiffe://cluster.local/ns/shop/sa/till".parse().unwrap()]);
    let client = verifier(&trust, till).client_config(&leaf).unwrap();
    let server = verifier(&trust, Accepted::AnyTrusted).server_config(&leaf).unwrap();
    let mut client = ClientConnection::new(client, ServerName::try_from("10.0.0.1").unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (at_client, at_server) = shake(&mut client, &mut server);
    let error = std::io::Error::new(std::io::ErrorKind::InvalidData, at_client.unwrap());
    assert!(matches!(PeerError::of(&error), Some(PeerError::WrongPeer { .. })), "{error:?}");
    let error = std::io::Error::other(Arc::new(error));
    assert!(matches!(PeerError::of(&error), Some(PeerError::WrongPeer { .. })), "{error:?}");
    assert!(matches!(at_server, Some(rustls::Error::AlertReceived(_))));
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let leaf = ca.leaf(&[CART], |_| {});
    let verifier = verifier(&trust(&[("cluster.local", &ca)], &[]), Accepted::AnyTrusted);
    let config = rustls::ClientConfig::builder_with_details(Arc::clone(&verifier.trust.provider), Arc::clone(&verifier.time))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier.clone()));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("10.0.0.1").unwrap()).unwrap();
    let mut server = ServerConnection::new(verifier.server_config(&leaf).unwrap()).unwrap();
    let (_, at_server) = shake(&mut client, &mut server);
    assert_eq!(at_server, Some(rustls::Error::NoCertificatesPresented));
}

#[test]
fn a_key_of_another_certificate_is_refused_at_once() {
    let ca = Ca::new();
    let mut leaf = ca.leaf(&[CART], |_| {});
    leaf.key = ca.leaf(&[CART], |_| {}).key;
    let verifier = verifier(&trust(&[("cluster.local", &ca)], &[]), Accepted::AnyTrusted);
    assert!(verifier.client_config(&leaf).is_err());
    leaf.key = Arc::new(vec![1, 2, 3].into());
    let refused = verifier.server_config(&leaf).unwrap_err();
    assert!(refused.to_string().contains(CART), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// A certificate changed anywhere names nobody, or does not hold.
    #[test]
    fn one_flipped_bit_is_never_accepted(at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        thread_local!(static GOOD: (Arc<Trust>, Credential) = {
            let ca = Ca::new();
            (trust(&[("cluster.local", &ca)], &[]), ca.leaf(&[CART], |_| {}))
        });
        GOOD.with(|(trust, leaf)| {
            let mut der = leaf.chain[0].clone();
            let at = at.index(der.len());
            der[at] ^= 1_u8 << bit;
            let verdict = verifier(trust, Accepted::AnyTrusted).verify(&[CertificateDer::from(der)], Role::Client);
            prop_assert!(verdict.is_err(), "byte {at}, bit {bit}");
            Ok(())
        })?;
    }

    #[test]
    fn whatever_comes_is_read_without_a_panic(der in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(peer_id(&[CertificateDer::from(der)]).is_err());
    }

    #[test]
    fn a_cut_certificate_is_refused(keep in 0.0..1.0_f64) {
        let leaf = Ca::new().leaf(&[CART], |_| {});
        let der = &leaf.chain[0];
        let cut = der[..(der.len() as f64 * keep) as usize].to_vec();
        prop_assert!(peer_id(&[CertificateDer::from(cut)]).is_err());
    }
}
