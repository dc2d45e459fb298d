//! What Prometheus and the kubelet ask.

use ambient_core::Identity;
use http::StatusCode;

use super::{Answer, Asked, Context, answer::PLAIN};
use crate::{policies, zds};

pub(super) fn metrics(at: &Context, _: &Asked) -> Answer {
    let metrics = at.node.metrics.clone();
    Answer::stream("application/openmetrics-text; version=1.0.0; charset=utf-8", move |out| {
        metrics.write(out)
    })
}

pub(super) fn readiness(at: &Context, _: &Asked) -> Answer {
    if at.stop.is_told() {
        let open = at.node.metrics.live.count();
        let text = format!("not ready, pending: the node stops, and {open} connections are open\n");
        return Answer::whole(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, text);
    }
    let now = at.node.state.current();
    let (mut ready, mut text) = policies::readiness(now.as_deref().map(|now| &now.policies), &at.node.state.faults());
    if let Some(why) = at.node.agent.as_ref().and_then(|agent| zds::unready(&agent.borrow())) {
        ready = false;
        text = format!("{why}\n{text}");
    }
    text.push_str(&lacking(&at.node.certificates.lacking()));
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Answer::whole(status, PLAIN, text)
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

/// Identities that are named.
const NAMED: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

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
