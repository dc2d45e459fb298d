//! Who is meant by `--from`.

use std::{borrow::Cow, net::IpAddr};

use ambient_core::{Identity, TrustDomain};

use super::{
    Failure,
    files::Files,
    near::{meant, or_there},
    outside::Outside,
};

/// The peer of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) identity: Option<Identity>,
    /// Where it is known.
    pub(super) ip: Option<IpAddr>,
    /// What should be known about how it was found.
    pub(super) note: Option<String>,
    /// Why the files say that it is not in the mesh, if they do.
    pub(super) outside: Option<Outside>,
}

impl Peer {
    /// `plaintext`, an identity with or without its beginning, or a pod of the files; else `NAMESPACE/ACCOUNT`. A name alone
    /// is that of a pod or account where the files have it in one namespace only.
    pub(super) fn find(text: &str, domain: &TrustDomain, files: &Files) -> Result<Self, Failure> {
        let (mut ip, mut note, mut outside) = (None, None, None);
        if matches!(text, "plaintext" | "none") {
            let identity = None;
            return Ok(Self {
                identity,
                ip,
                note,
                outside,
            });
        }
        let text = &*whole(text, files)?;
        let steps: Vec<&str> = text.split('/').collect();
        let uri = match steps[..] {
            _ if text.starts_with("spiffe://") => text.to_owned(),
            [_, "ns", _, "sa", _] => format!("spiffe://{text}"),
            ["ns", _, "sa", _] => format!("spiffe://{domain}/{text}"),
            [namespace, name] => {
                let pod = files.workload("--from", namespace, name)?;
                ip = pod.and_then(|w| w.ip);
                outside = pod.and_then(|w| files.outside(w));
                note = match pod {
                    Some(pod) if pod.account == name => None,
                    Some(pod) => Some(format!("{text} is a {} of the files, whose account is {}", pod.kind, pod.account)),
                    None if files.knows_account(namespace, name) => None,
                    None => {
                        let meant = meant(text, &files.peers()).map_or(String::new(), |meant| format!("; perhaps {meant} is meant"));
                        Some(format!(
                            "no pod and no ServiceAccount of the files is called {text}: it is taken for an account{meant}"
                        ))
                    }
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
        Ok(Self {
            identity,
            ip,
            note,
            outside,
        })
    }
}

/// A name alone with the one namespace that the files have it in; any other text as it is.
fn whole<'a>(text: &'a str, files: &Files) -> Result<Cow<'a, str>, Failure> {
    if text.contains('/') {
        return Ok(text.into());
    }
    let mut namespaces = files.namespaces_of(text).into_iter();
    match (namespaces.next(), namespaces.next()) {
        (Some(one), None) => Ok(format!("{one}/{text}").into()),
        (Some(one), Some(other)) => Err(Failure::usage(format!(
            "--from {text}: there is {one}/{text} and {other}/{text}: write which"
        ))),
        (None, _) => {
            let peers = files.peers();
            let names = peers.iter().filter_map(|peer| peer.split_once('/')).map(|(_, name)| name);
            let there = or_there(text, names, "they name none");
            Err(Failure::usage(format!(
                "--from {text}: no pod and no ServiceAccount of the files is called so: {there}; {FORMS}"
            )))
        }
    }
}

const FORMS: &str = "plaintext, spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, NAMESPACE/ACCOUNT or NAMESPACE/POD is wanted";
