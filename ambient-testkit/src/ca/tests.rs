use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{BorrowedCertRevocationList, EndEntityCert, Error, KeyUsage, RevocationOptionsBuilder, anchor_from_trusted_cert};

use super::*;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    "td.example".parse().unwrap()
}

fn identity() -> Identity {
    Identity::new(&domain(), "shop", "cart").unwrap()
}

/// What a TLS peer would find, as a server's or as a client's certificate.
fn verify(credential: &Credential, root: &[u8], crl: Option<&[u8]>, server: bool) -> Result<(), Error> {
    let root = CertificateDer::from(root);
    let anchor = anchor_from_trusted_cert(&root)?;
    let chain: Vec<_> = credential.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let list = crl
        .map(BorrowedCertRevocationList::from_der)
        .transpose()?
        .map(webpki::CertRevocationList::from);
    let lists: Vec<_> = list.iter().collect();
    let revocation = if lists.is_empty() {
        None
    } else {
        Some(
            RevocationOptionsBuilder::new(&lists)
                .map(|b| b.with_depth(webpki::RevocationCheckDepth::EndEntity).build())
                .unwrap(),
        )
    };
    let time = UnixTime::since_unix_epoch(now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let usage = if server { KeyUsage::server_auth() } else { KeyUsage::client_auth() };
    EndEntityCert::try_from(&chain[0])?
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &chain[1..], time, usage, revocation, None)
        .map(drop)
}

#[test]
fn good_credentials_are_good_both_ways() {
    for ca in [
        Ca::at(&domain(), now()).unwrap(),
        Ca::at(&domain(), now()).unwrap().with_intermediate().unwrap(),
    ] {
        let credential = ca.issue(&identity()).unwrap();
        assert!(credential.is_valid_at(now()));
        for server in [true, false] {
            assert_eq!(verify(&credential, ca.root_der(), None, server), Ok(()));
        }
        let other = Ca::at(&domain(), now()).unwrap();
        assert!(verify(&credential, other.root_der(), None, true).is_err());
        assert!(KeyPair::try_from(credential.key.der()).is_ok());
    }
}

#[test]
fn each_breakage_is_found_as_itself() {
    let ca = Ca::at(&domain(), now()).unwrap();
    let fault = |leaf: Leaf| verify(&ca.issue_as(&identity(), &leaf).unwrap(), ca.root_der(), None, true).unwrap_err();
    assert!(matches!(fault(Leaf::expired(now())), Error::CertExpired { .. }));
    assert!(matches!(fault(Leaf::early(now())), Error::CertNotValidYet { .. }));
    assert!(matches!(fault(Leaf::for_code_signing()), Error::RequiredEkuNotFoundContext(_)));
    assert!(matches!(
        fault(Leaf {
            is_ca: true,
            ..Leaf::default()
        }),
        Error::CaUsedAsEndEntity
    ));
    let names = |leaf: Leaf| {
        let credential = ca.issue_as(&identity(), &leaf).unwrap();
        let der = CertificateDer::from(credential.chain[0].as_slice());
        EndEntityCert::try_from(&der)
            .unwrap()
            .valid_uri_names()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let other = Identity::new(&domain(), "shop", "stock").unwrap();
    assert_eq!(names(Leaf::default()), [identity().as_str()]);
    assert_eq!(
        names(Leaf::with_two_names(&identity(), &other)),
        [identity().as_str(), other.as_str()]
    );
    assert!(
        names(Leaf {
            uris: Some(Vec::new()),
            ..Leaf::default()
        })
        .is_empty()
    );
}

#[test]
fn a_revoked_leaf_is_found() {
    for ca in [
        Ca::at(&domain(), now()).unwrap(),
        Ca::at(&domain(), now()).unwrap().with_intermediate().unwrap(),
    ] {
        let leaf = |serial| {
            ca.issue_as(
                &identity(),
                &Leaf {
                    serial: Some(serial),
                    ..Leaf::default()
                },
            )
            .unwrap()
        };
        let crl = ca.revoke(&[7, 300]).unwrap();
        let check = |serial| verify(&leaf(serial), ca.root_der(), Some(&crl), true);
        assert_eq!((check(7), check(300)), (Err(Error::CertRevoked), Err(Error::CertRevoked)));
        assert_eq!(check(8), Ok(()));
    }
}
