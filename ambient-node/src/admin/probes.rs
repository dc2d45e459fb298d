//! What Prometheus and the kubelet ask.

use http::StatusCode;

use super::{Answer, Asked, Context, answer::PLAIN};
use crate::readiness::Readiness;

pub(super) fn metrics(at: &Context, _: &Asked) -> Answer {
    let metrics = at.node.metrics.clone();
    metrics.certificates_missing(at.node.certificates.lacking().len());
    metrics.state_faults(at.node.state.faults().len());
    Answer::stream("application/openmetrics-text; version=1.0.0; charset=utf-8", move |out| {
        metrics.write(out)
    })
}

pub(super) fn readiness(at: &Context, _: &Asked) -> Answer {
    let readiness = Readiness {
        node: at.node.clone(),
        stop: at.stop.clone(),
    };
    let (ready, text) = readiness.now();
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Answer::whole(status, PLAIN, text)
}
