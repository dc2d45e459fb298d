use std::{collections::BTreeMap, sync::Arc};

use ambient_core::{Credential, Credentials as _, Identity, TrustDomain};
use serde::Serialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Pod;
use crate::{
    certificates::Certificates,
    text::{base64, rfc3339},
};

/// Certificates of an identity: its chain, and the roots of its trust domain.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    identity: String,
    state: &'static str,
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
pub(super) fn of(certificates: &Certificates, ours: &TrustDomain, pods: &[Pod]) -> impl Iterator<Item = View> {
    let mut all: BTreeMap<Identity, Option<Arc<Credential>>> = pods
        .iter()
        .filter_map(|pod| Identity::new(ours, &pod.spec.namespace, &pod.spec.service_account).ok())
        .map(|identity| (identity, None))
        .collect();
    all.extend(
        certificates
            .present()
            .into_iter()
            .map(|credential| (credential.identity.clone(), Some(credential))),
    );
    let trust = certificates.trust();
    all.into_iter().map(move |(identity, credential)| View {
        state: match credential {
            Some(_) => "Available",
            None => "Initializing",
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
