//! What Prometheus and the kubelet ask.

use http::StatusCode;

use super::{Answer, Asked, Context, answer::PLAIN};
use crate::policies;

pub(super) fn metrics(at: &Context, _: &Asked) -> Answer {
    let metrics = at.node.metrics.clone();
    Answer::stream("application/openmetrics-text; version=1.0.0; charset=utf-8", move |out| {
        metrics.write(out)
    })
}

pub(super) fn readiness(at: &Context, _: &Asked) -> Answer {
    let now = at.node.state.current();
    let (ready, text) = policies::readiness(now.as_deref().map(|now| &now.policies), &at.node.state.faults());
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Answer::whole(status, PLAIN, text)
}
