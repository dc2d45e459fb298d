//! What Prometheus and the kubelet ask.

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
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Answer::whole(status, PLAIN, text)
}
