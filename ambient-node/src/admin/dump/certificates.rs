use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::SystemTime};

use ambient_core::{Credential, Credentials as _, Identity};
use serde::Serialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    certificates::Certificates,
    clock,
    text::{base64, rfc3339, rfc3339_of},
};

/// Certificates of an identity: its chain, and the roots of its trust domain.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    identity: String,
    state: Cow<'static, str>,
    cert_chain: Vec<Certificate>,
    root_certs: Vec<Certificate>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    /// A PEM, in base64 once more.
    pem: String,
    /// In decimal.
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

/// Sorted by identity. Those of pods that wait for theirs are there too.
pub(super) fn of(certificates: &Certificates, meant: impl Iterator<Item = Identity>) -> impl Iterator<Item = View> {
    let now = clock::wall();
    let mut all: BTreeMap<Identity, Option<Arc<Credential>>> = meant.map(|identity| (identity, None)).collect();
    all.extend(
        certificates
            .present()
            .into_iter()
            .map(|credential| (credential.identity.clone(), Some(credential))),
    );
    let trust = certificates.trust();
    let refused: BTreeMap<Identity, String> = certificates.refused().into_iter().collect();
    all.into_iter().map(move |(identity, credential)| View {
        state: match refused.get(&identity) {
            Some(why) => format!("Unavailable: peers refuse it: {why}").into(),
            None => state(credential.as_deref(), || certificates.failure(&identity), now),
        },
        cert_chain: credential
            .iter()
            .flat_map(|c| &c.chain)
            .map(|der| Certificate::from(&**der))
            .collect(),
        root_certs: match credential {
            Some(_) => trust
                .roots(identity.trust_domain())
                .iter()
                .map(|der| Certificate::from(&**der))
                .collect(),
            None => Vec::new(),
        },
        identity: identity.to_string(),
    })
}

/// ztunnel's words, of which the last has a reason behind it.
fn state(credential: Option<&Credential>, failure: impl FnOnce() -> Option<String>, now: SystemTime) -> Cow<'static, str> {
    if credential.is_some_and(|credential| credential.is_valid_at(now)) {
        return "Available".into();
    }
    let of_another_time = |of: &Credential| {
        let [from, to] = [of.not_before, of.not_after].map(rfc3339_of);
        format!("it is {}, and the one that is there holds from {from} to {to}", rfc3339_of(now))
    };
    match failure().or_else(|| credential.map(of_another_time)) {
        Some(why) => format!("Unavailable: {why}").into(),
        None => "Initializing".into(),
    }
}

impl From<&[u8]> for Certificate {
    fn from(der: &[u8]) -> Self {
        let read = X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
        let date = |time: i64| rfc3339(time.try_into().unwrap_or(0));
        let validity = read.as_ref().map(|certificate| certificate.validity());
        Self {
            pem: base64(pem(der).as_bytes()),
            serial_number: read.as_ref().map(|c| c.tbs_certificate.serial.to_string()).unwrap_or_default(),
            valid_from: validity.map(|v| date(v.not_before.timestamp())).unwrap_or_default(),
            expiration_time: validity.map(|v| date(v.not_after.timestamp())).unwrap_or_default(),
        }
    }
}

/// RFC 7468: lines of 64 characters.
fn pem(der: &[u8]) -> String {
    let text = base64(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_does_not_hold_is_not_available() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let held = Credential {
            identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            chain: vec![],
            key: Arc::new(vec![0].into()),
            not_before: at(100),
            not_after: at(200),
        };
        let told = |held, failure: Option<&str>, now| state(held, || failure.map(str::to_owned), at(now)).into_owned();
        assert_eq!(told(None, None, 150), "Initializing");
        assert_eq!(told(None, Some("nobody answers"), 150), "Unavailable: nobody answers");
        assert_eq!(told(Some(&held), Some("nobody answers"), 150), "Available");
        assert_eq!(told(Some(&held), Some("nobody answers"), 200), "Unavailable: nobody answers");
        for now in [99, 200] {
            let told = told(Some(&held), None, now);
            assert!(told.starts_with("Unavailable: it is 1970-01-01T00:0"), "{told}");
            assert!(told.ends_with("holds from 1970-01-01T00:01:40Z to 1970-01-01T00:03:20Z"), "{told}");
        }
    }
}
