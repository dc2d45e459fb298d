//! Why a stream has ended, and whether that is usual.

use tonic::Status;

use super::Client;
use crate::StreamEnd;

/// Why a stream has ended.
pub(super) enum End {
    /// As streams do: the control plane closes them every half hour, and when it goes.
    Usual(StreamEnd, String),
    /// Something is wrong.
    Failed(StreamEnd, String),
    /// Nobody listens any more.
    Dropped,
}

impl Client {
    /// The stream was closed, as its last words say.
    pub(super) fn closed(&self, status: Option<Status>) -> End {
        match status.filter(|status| status.code() != tonic::Code::Ok) {
            Some(status) => self.ended(&status),
            None => End::Usual(StreamEnd::Complete, "the control plane has closed it".into()),
        }
    }

    pub(super) fn ended(&self, status: &Status) -> End {
        self.config.endpoint.heard(status);
        match (ended(status), self.config.endpoint.token_shown()) {
            (End::Failed(how, why), Some(shown)) if status.code() == tonic::Code::Unauthenticated => {
                End::Failed(how, format!("{why}; {shown}"))
            }
            (end, _) => end,
        }
    }
}

fn ended(status: &Status) -> End {
    let message = status.message();
    let why = match std::error::Error::source(status) {
        Some(source) => format!("{:?}: {message}: {}", status.code(), crate::istiod::transport::whole(source)),
        None => format!("{:?}: {message}", status.code()),
    };
    let usual = match status.code() {
        tonic::Code::Cancelled | tonic::Code::DeadlineExceeded | tonic::Code::Unknown => true,
        tonic::Code::Unavailable => message.contains("transport is closing") || message.contains("received prior goaway"),
        _ => false,
    };
    match usual {
        true => End::Usual(StreamEnd::Reconnect, why),
        false => End::Failed(StreamEnd::Error, why),
    }
}
