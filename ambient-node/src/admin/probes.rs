//! What Prometheus and the kubelet ask.

use http::StatusCode;

use super::{Answer, Asked, Context, Site, answer::PLAIN};
use crate::{
    readiness::{Readiness, faults_beside, strangers},
    zds::Apart,
};

pub(super) fn metrics(at: &Context, asked: &Asked) -> Answer {
    at.node.metrics.certificates_missing(at.node.certificates.lacking().len());
    at.node.metrics.certificates_refused(at.node.certificates.refused().len());
    let of_certificates = faults_beside(&at.node.state.faults(), at.node.certificates.faults());
    metrics_with(at, asked, of_certificates.len())
}

pub(super) fn metrics_of<C: Site>(at: &C, asked: &Asked) -> Answer {
    metrics_with(at, asked, 0)
}

/// The text is the same for everyone; who does not say that it reads OpenMetrics is told that it is plain text, as by ztunnel: to
/// a reader of Prometheus' older form what the newer one has more of are comments.
fn metrics_with<C: Site>(at: &C, asked: &Asked, more_faults: usize) -> Answer {
    let metrics = at.standing().metrics.clone();
    metrics.state_faults(at.standing().state.faults().len() + more_faults);
    let kind = match asked.open_metrics {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => PLAIN,
    };
    Answer::stream(kind, move |out| metrics.write(out))
}

pub(super) fn readiness(at: &Context, _: &Asked) -> Answer {
    let readiness = Readiness {
        node: at.node.clone(),
        stop: at.standing.stop.clone(),
    };
    told(readiness.now(), at)
}

pub(super) fn readiness_of_enrolment(at: &Apart, _: &Asked) -> Answer {
    told(at.readiness(), at)
}

/// What is said of captures besides makes nobody unready.
fn told<C: Site>((ready, mut text): (bool, String), at: &C) -> Answer {
    if let Some(captures) = &at.standing().captures {
        text.push_str(&strangers(&captures.borrow()));
    }
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Answer::whole(status, PLAIN, text)
}
