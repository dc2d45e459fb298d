//! One stream in a tunnel: CONNECT and its answer.

use std::{net::SocketAddr, sync::Arc};

use h2::Reason;
use tokio::time::{Instant, timeout_at};

use super::{ConnectError, Lease, Phase};
use crate::{Destination, Limits, Stream, TunnelLost, proto::connect, tunnel::Line};

/// Opens a stream; with an error the lease is given back.
pub(super) async fn open(lease: Lease, destination: &Destination, limits: &Limits) -> Result<Stream, ConnectError> {
    let peer = destination.peer;
    let head = connect::head(&destination.authority, &destination.headers).map_err(|e| ConnectError::Request {
        authority: destination.authority.to_string(),
        why: e.to_string(),
    })?;
    let late = |_| ConnectError::Timeout {
        peer,
        phase: Phase::Answer,
        limit: limits.answer,
    };
    let deadline = Instant::now() + limits.answer;
    let line = Arc::clone(lease.tunnel().line());

    let requests = lease.tunnel().requests().ok_or(ConnectError::Unprocessed { peer })?;
    let ready = timeout_at(deadline, requests.ready()).await.map_err(late)?;
    let sent = ready.and_then(|mut requests| requests.send_request(head, false));
    let Ok((response, send)) = sent else {
        // A tunnel that takes no streams is of no use to the next one either.
        lease.tunnel().retire();
        return Err(unsent(peer, &line));
    };
    let answer = timeout_at(deadline, response).await.map_err(late)?;
    let answer = answer.map_err(|e| {
        let error = unanswered(peer, &e, &line);
        if matches!(error, ConnectError::Unprocessed { .. }) && e.is_go_away() {
            lease.tunnel().retire();
        }
        error
    })?;
    if !answer.status().is_success() {
        return Err(ConnectError::Refused {
            peer,
            status: answer.status(),
        });
    }
    let (parts, recv) = answer.into_parts();
    Ok(Stream::new(recv, send, parts.headers, line, Some(lease)))
}

/// The request never left.
pub(super) fn unsent(peer: SocketAddr, line: &Line) -> ConnectError {
    match line.lost() {
        Some(TunnelLost::Ended) => ConnectError::Closed,
        // A peer's alert comes after our side of the handshake is done: then another tunnel would fare no better.
        Some(TunnelLost::Io { source }) if is_alert(source) => ConnectError::Handshake {
            peer,
            source: Arc::clone(source),
        },
        _ => ConnectError::Unprocessed { peer },
    }
}

fn unanswered(peer: SocketAddr, error: &h2::Error, line: &Line) -> ConnectError {
    match (error.reason(), line.lost()) {
        (Some(Reason::REFUSED_STREAM), _) if error.is_reset() => ConnectError::Unprocessed { peer },
        (Some(reason), _) if error.is_reset() => ConnectError::Reset { peer, code: reason.into() },
        (_, Some(TunnelLost::Ended)) => ConnectError::Closed,
        (_, Some(TunnelLost::Io { source })) if is_alert(source) => ConnectError::Handshake {
            peer,
            source: Arc::clone(source),
        },
        // Streams up to the one named in a GOAWAY go on: one that ends by it was not looked at.
        (Some(Reason::NO_ERROR), None) if error.is_go_away() && error.is_remote() => ConnectError::Unprocessed { peer },
        (_, lost) => ConnectError::Lost {
            peer,
            source: lost.cloned().unwrap_or_else(|| TunnelLost::from_h2(error)),
        },
    }
}

/// Whether the peer refused us by a TLS alert.
fn is_alert(error: &std::io::Error) -> bool {
    matches!(
        error.get_ref().and_then(|held| held.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::AlertReceived(alert)) if *alert != rustls::AlertDescription::CloseNotify
    )
}
