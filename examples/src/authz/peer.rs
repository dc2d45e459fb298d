//! Who is meant by `--from`.

use std::net::IpAddr;

use ambient_core::{Identity, TrustDomain};

use super::{Failure, files::Found};

/// The peer of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) identity: Option<Identity>,
    /// Where it is known.
    pub(super) ip: Option<IpAddr>,
}

impl Peer {
    /// `plaintext`, an identity with or without its beginning, or a pod of the files; else `NAMESPACE/ACCOUNT`.
    pub(super) fn find(text: &str, domain: &TrustDomain, workloads: &[Found]) -> Result<Self, Failure> {
        if matches!(text, "plaintext" | "none") {
            return Ok(Self { identity: None, ip: None });
        }
        let steps: Vec<&str> = text.split('/').collect();
        let (uri, ip) = match steps[..] {
            _ if text.starts_with("spiffe://") => (text.to_owned(), None),
            [_, "ns", _, "sa", _] => (format!("spiffe://{text}"), None),
            ["ns", _, "sa", _] => (format!("spiffe://{domain}/{text}"), None),
            [namespace, name] => {
                let pod = workloads.iter().find(|w| w.namespace == namespace && w.name == name);
                let account = pod.map_or(name, |w| w.account.as_str());
                (format!("spiffe://{domain}/ns/{namespace}/sa/{account}"), pod.and_then(|w| w.ip))
            }
            _ => return Err(Failure::usage(format!("--from {text}: {FORMS}"))),
        };
        let identity = uri
            .parse()
            .map_err(|error| Failure::usage(format!("--from {text}: {error}; {FORMS}")))?;
        Ok(Self {
            identity: Some(identity),
            ip,
        })
    }
}

const FORMS: &str = "plaintext, spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, NAMESPACE/ACCOUNT or NAMESPACE/POD is wanted";
