//! Who is meant by `--from`.

use std::net::IpAddr;

use ambient_core::{Identity, TrustDomain};

use super::{Failure, files::Files};

/// The peer of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) identity: Option<Identity>,
    /// Where it is known.
    pub(super) ip: Option<IpAddr>,
    /// What should be known about how it was found.
    pub(super) note: Option<String>,
}

impl Peer {
    /// `plaintext`, an identity with or without its beginning, or a pod of the files; else `NAMESPACE/ACCOUNT`.
    pub(super) fn find(text: &str, domain: &TrustDomain, files: &Files) -> Result<Self, Failure> {
        let (mut ip, mut note) = (None, None);
        if matches!(text, "plaintext" | "none") {
            let identity = None;
            return Ok(Self { identity, ip, note });
        }
        let steps: Vec<&str> = text.split('/').collect();
        let uri = match steps[..] {
            _ if text.starts_with("spiffe://") => text.to_owned(),
            [_, "ns", _, "sa", _] => format!("spiffe://{text}"),
            ["ns", _, "sa", _] => format!("spiffe://{domain}/{text}"),
            [namespace, name] => {
                let pod = files.workload("--from", namespace, name)?;
                ip = pod.and_then(|w| w.ip);
                note = match pod {
                    Some(pod) if pod.account == name => None,
                    Some(pod) => Some(format!("{text} is a {} of the files, whose account is {}", pod.kind, pod.account)),
                    None if files.knows_account(namespace, name) => None,
                    None => Some(format!(
                        "no pod and no ServiceAccount of the files is called {text}: it is taken for an account"
                    )),
                };
                let account = pod.map_or(name, |w| w.account.as_str());
                format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
            }
            _ => return Err(Failure::usage(format!("--from {text}: {FORMS}"))),
        };
        let identity = uri
            .parse()
            .map_err(|error| Failure::usage(format!("--from {text}: {error}; {FORMS}")))?;
        let identity = Some(identity);
        Ok(Self { identity, ip, note })
    }
}

const FORMS: &str = "plaintext, spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, NAMESPACE/ACCOUNT or NAMESPACE/POD is wanted";
