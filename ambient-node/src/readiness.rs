//! Whether a node is ready, and what is wrong.

use std::{sync::Arc, time::SystemTime};

use ambient_control::Fault;
use ambient_core::Identity;
use ambient_redirect::pods::PodState;

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
        let by_policies = policies::readiness(now.as_deref().map(|now| &now.policies), &node.state.faults());
        let unserved = node.agent.as_ref().and_then(|agent| zds::unready(&agent.borrow()));
        let (ready, mut text) = both(by_policies, unserved);
        for fault in faults_beside(&node.state.faults(), node.certificates.faults()) {
            text.push_str(&line(&fault));
        }
        text.push_str(&lacking(&node.certificates.lacking()));
        text.push_str(&served(&node.certificates.refused(), REFUSED));
        text.push_str(&served(&node.certificates.unrenewed(), UNRENEWED));
        text.push_str(&of_before(&node.certificates.of_before()));
        text.push_str(&unkept(node.certificates.unkept()));
        (ready, text)
    }
}

/// The same where a pod or the agent is wanting as well: that comes first, and nowhere is it called ready.
fn both((ready, text): (bool, String), unready: Option<String>) -> (bool, String) {
    let Some(why) = unready else { return (ready, text) };
    let rest = text.strip_prefix(policies::READY).unwrap_or(&text);
    (false, line(&format!("not ready, pending: {why}")) + rest)
}

/// What is wrong with what certificates come from, without what is told of the source of state already: both may go by the same
/// files.
pub(crate) fn faults_beside(of_state: &[Fault], of_certificates: Vec<String>) -> Vec<String> {
    let told = |fault: &String| of_state.iter().any(|told| told.what == *fault);
    of_certificates.into_iter().filter(|fault| !told(fault)).collect()
}

/// Whatever it holds, it is one line.
fn line(what: &str) -> String {
    what.replace(['\n', '\r'], " ") + "\n"
}

/// Whose certificates are missing, where any are.
fn lacking(identities: &[Identity]) -> String {
    if identities.is_empty() {
        return String::new();
    }
    format!(
        "{} waiting for a certificate, and what needs it is refused until then: {}\n",
        identities.len(),
        few(identities.iter().map(Identity::as_str))
    )
}

/// By a certificate that goes on while there is no other.
const UNRENEWED: &str = "until the end of a certificate that was not renewed yet";
/// By one that is good for nothing any more.
const REFUSED: &str = "with a certificate that peers refuse, until there is another, which is asked for";

/// That some are served with a certificate that is not as it should be, where any are, and why that of the first is so.
fn served(identities: &[(Identity, String)], how: &str) -> String {
    let Some((_, why)) = identities.first() else {
        return String::new();
    };
    let names = few(identities.iter().map(|(identity, _)| identity.as_str()));
    line(&format!("{} served {how}: {names}; the first as {why}", identities.len()))
}

/// Rules of others that come before captures; nothing where there are none.
pub(crate) fn strangers(pods: &[PodState]) -> String {
    let with = pods.iter().filter(|pod| !pod.strangers.is_empty());
    let names: Vec<String> = with.map(|pod| format!("{}/{}", pod.spec.namespace, pod.spec.name)).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        "{} of the pods have rules of others before their capture, and what those take does not reach the proxy (`ambient pods` tells \
         which): {}\n",
        names.len(),
        few(names.iter().map(String::as_str))
    )
}

/// Some of their names: a mesh of many is not told of in full.
fn few<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let few: Vec<&str> = names.take(NAMED).collect();
    few.join(", ") + &more
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

/// Identities, or pods, that are named.
const NAMED: usize = 20;

#[cfg(test)]
mod tests {
    use ambient_core::Capture;
    use ambient_redirect::{
        PodSpec,
        linux::{RulePlace, Stranger},
        pods::{Direction, State},
    };

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
    fn certificates_that_were_not_renewed_are_told_of_with_a_reason() {
        assert_eq!(served(&[], UNRENEWED), "");
        let one = |name: &str| {
            (
                format!("spiffe://d/ns/shop/sa/{name}").parse().unwrap(),
                "the authority says:\nno".to_owned(),
            )
        };
        assert_eq!(
            served(&[one("a"), one("b")], UNRENEWED),
            "2 served until the end of a certificate that was not renewed yet: spiffe://d/ns/shop/sa/a, spiffe://d/ns/shop/sa/b; the \
             first as the authority says: no\n"
        );
    }

    #[test]
    fn certificates_that_peers_refuse_are_told_of_with_a_reason() {
        let one = ("spiffe://d/ns/shop/sa/a".parse().unwrap(), "its root\nis gone".to_owned());
        assert_eq!(
            served(&[one], REFUSED),
            "1 served with a certificate that peers refuse, until there is another, which is asked for: spiffe://d/ns/shop/sa/a; the \
             first as its root is gone\n"
        );
    }

    #[test]
    fn who_is_not_ready_is_nowhere_called_ready() {
        let ready = || (true, "ready\na.yaml:7: no\n".to_owned());
        assert_eq!(both(ready(), None), ready());
        let (is, text) = both(ready(), Some("no node agent is connected: it\nis away".into()));
        assert!(!is);
        assert_eq!(text, "not ready, pending: no node agent is connected: it is away\na.yaml:7: no\n");
        let waits = (false, "not ready, pending: the mesh's state has not arrived\n".to_owned());
        let (is, text) = both(waits, Some("2 pods are not served".into()));
        assert!(!is);
        assert_eq!(
            text,
            "not ready, pending: 2 pods are not served\nnot ready, pending: the mesh's state has not arrived\n"
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_of_both_is_told_once() {
        let texts = |texts: &[&str]| -> Vec<String> { texts.iter().map(ToString::to_string).collect() };
        let of_state = [Fault::from("token: gone".to_owned())];
        assert_eq!(faults_beside(&of_state, texts(&["token: gone", "crl: torn"])), ["crl: torn"]);
        assert_eq!(line("a\r\nb"), "a  b\n");
    }

    #[test]
    fn pods_with_rules_of_others_are_named_and_not_all_of_very_many() {
        let pod = |n: usize, with: bool| {
            let spec = PodSpec {
                uid: format!("uid-{n}").as_str().into(),
                namespace: "shop".into(),
                name: format!("p{n}").into(),
                service_account: "default".into(),
                addresses: Vec::new(),
                capture: Capture::default(),
                has_run: true,
            };
            let stranger = Stranger {
                place: RulePlace::Chain {
                    table: "ip nat".into(),
                    chain: "OUTPUT".into(),
                },
                direction: Direction::Outbound,
                does: "TCP is redirected".into(),
            };
            PodState {
                strangers: with.then_some(stranger).into_iter().collect(),
                ..PodState::new(spec, State::Joining)
            }
        };
        assert_eq!(strangers(&[pod(0, false)]), "");
        let few = strangers(&[pod(0, false), pod(1, true)]);
        assert!(few.starts_with("1 of the pods") && few.ends_with(": shop/p1\n"), "{few}");
        let many: Vec<PodState> = (10..40).map(|n| pod(n, true)).collect();
        let text = strangers(&many);
        assert!(text.starts_with("30 of") && text.ends_with("shop/p29, and 10 more\n"), "{text}");
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
