//! Whether a node is ready, and what is wrong.

use std::{sync::Arc, time::SystemTime};

use ambient_core::Identity;

use crate::{Shared, admin::Stop, policies, text::rfc3339, zds};

/// How a node stands, for who asks.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    pub(crate) node: Arc<Shared>,
    pub(crate) stop: Stop,
}

impl Readiness {
    /// Whether it is ready now, and what is wrong, as text.
    pub(crate) fn now(&self) -> (bool, String) {
        let node = &self.node;
        if self.stop.is_told() {
            let open = node.metrics.live.count();
            return (
                false,
                format!("not ready, pending: the node stops, and {open} connections are open\n"),
            );
        }
        let now = node.state.current();
        let (mut ready, mut text) = policies::readiness(now.as_deref().map(|now| &now.policies), &node.state.faults());
        if let Some(why) = node.agent.as_ref().and_then(|agent| zds::unready(&agent.borrow())) {
            ready = false;
            text = format!("{why}\n{text}");
        }
        text.push_str(&lacking(&node.certificates.lacking()));
        text.push_str(&of_before(&node.certificates.of_before()));
        text.push_str(&unkept(node.certificates.unkept()));
        (ready, text)
    }
}

/// Whose certificates are missing, where any are; a mesh of many is not told of in full.
fn lacking(identities: &[Identity]) -> String {
    if identities.is_empty() {
        return String::new();
    }
    let few: Vec<&str> = identities.iter().take(NAMED).map(Identity::as_str).collect();
    let more = match identities.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!(
        "{} waiting for a certificate, and what needs it is refused until then: {}{more}\n",
        identities.len(),
        few.join(", ")
    )
}

/// Whose certificates are of before the process's start, where any are.
fn of_before(identities: &[(Identity, SystemTime)]) -> String {
    let Some(first) = identities.iter().map(|(_, end)| *end).min() else {
        return String::new();
    };
    let end = first.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    format!(
        "{} served with the certificate of before this start, as the issuer has given no other yet; the first ends at {}\n",
        identities.len(),
        rfc3339(end)
    )
}

/// What a restart would lack, where it would lack anything.
fn unkept(owed: Option<(usize, bool, String)>) -> String {
    let Some((certificates, roots, why)) = owed else {
        return String::new();
    };
    let count = match certificates {
        0 => None,
        1 => Some("1 certificate".to_owned()),
        many => Some(format!("{many} certificates")),
    };
    let what: Vec<_> = count.into_iter().chain(roots.then(|| "the roots".into())).collect();
    format!(
        "not kept for a restart: {}, as {why}; it is tried again until that is done\n",
        what.join(" and ")
    )
}

/// Identities that are named.
const NAMED: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_before_are_told_of_with_the_first_that_ends() {
        assert_eq!(of_before(&[]), "");
        let end = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let some = [("a", 1_800_000_060), ("b", 1_800_000_000)]
            .map(|(name, at)| (format!("spiffe://d/ns/shop/sa/{name}").parse().unwrap(), end(at)));
        let text = of_before(&some);
        assert!(
            text.starts_with("2 served") && text.ends_with("ends at 2027-01-15T08:00:00Z\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_kept_is_told_of() {
        assert_eq!(unkept(None), "");
        let told = |certificates, roots| unkept(Some((certificates, roots, "no room".into())));
        assert_eq!(
            told(2, true),
            "not kept for a restart: 2 certificates and the roots, as no room; it is tried again until that is done\n"
        );
        assert!(told(0, true).contains(": the roots, as") && told(1, false).contains(": 1 certificate, as"));
    }

    #[test]
    fn identities_that_wait_are_named_and_not_all_of_very_many() {
        assert_eq!(lacking(&[]), "");
        let many: Vec<Identity> = (10..40).map(|n| format!("spiffe://d/ns/shop/sa/a{n}").parse().unwrap()).collect();
        let one = lacking(&many[..1]);
        assert_eq!(
            one,
            "1 waiting for a certificate, and what needs it is refused until then: spiffe://d/ns/shop/sa/a10\n"
        );
        let text = lacking(&many);
        assert!(
            text.starts_with("30 waiting") && text.contains("sa/a29, and 10 more") && !text.contains("sa/a30"),
            "{text}"
        );
    }
}
