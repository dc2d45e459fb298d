//! One stream in a tunnel: CONNECT, what goes along with it, and its answer.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{io::AsyncRead, time::timeout_at};

use super::{ConnectError, Lease, Phase};
use crate::{
    Destination, Limits, Stream, TunnelLost, limits,
    proto::{connect::Answer, engine::Cut},
    relay::{Buffer, RelayLimits},
    tunnel::{Held, Line},
};

/// What goes along with a request, and is kept until it is answered.
pub(super) struct Early<'r, R> {
    /// Where it comes from; none where nothing is to go along.
    from: Option<&'r mut R>,
    buffer: Buffer,
    limits: RelayLimits,
    most: usize,
    kept: Vec<Bytes>,
    len: usize,
    ended: bool,
}

impl<'r, R: AsyncRead + Unpin> Early<'r, R> {
    pub(super) fn new(from: Option<&'r mut R>, most: usize) -> Self {
        Self {
            from: from.filter(|_| most > 0),
            buffer: Buffer::default(),
            limits: RelayLimits {
                buffer: most,
                ..RelayLimits::default()
            },
            most,
            kept: Vec::new(),
            len: 0,
            ended: false,
        }
    }

    /// All that is kept.
    pub(super) fn into_bytes(self) -> Bytes {
        match <[Bytes; 1]>::try_from(self.kept) {
            Ok([all]) => all,
            Err(several) => several.concat().into(),
        }
    }

    /// Sends again what an earlier request was sent with.
    fn resume(&self, held: &Held) -> Result<(), Cut> {
        let mut engine = held.line.engine();
        for bytes in &self.kept {
            engine.send(held.key, bytes.clone())?;
        }
        if self.ended { engine.finish(held.key) } else { Ok(()) }
    }

    /// Reads on and sends what it reads. Ready when that fails; a stream that takes no more says why elsewhere.
    fn poll_feed(&mut self, held: &Held, cx: &mut Context<'_>) -> Poll<std::io::Error> {
        while let Some(from) = self.from.as_mut().filter(|_| !self.ended && self.len < self.most) {
            let Ok(room) = ready!(held.line.engine().poll_room(held.key, cx)) else {
                return Poll::Pending;
            };
            let bytes = match ready!(self.buffer.poll_read(cx, &mut **from, room.min(self.most - self.len), &self.limits)) {
                Ok(bytes) => bytes,
                Err(e) => return Poll::Ready(e),
            };
            let mut engine = held.line.engine();
            let sent = if bytes.is_empty() {
                self.ended = true;
                engine.finish(held.key)
            } else {
                self.len += bytes.len();
                self.kept.push(bytes.clone());
                engine.send(held.key, bytes)
            };
            if sent.is_err() {
                return Poll::Pending;
            }
        }
        Poll::Pending
    }
}

/// Opens a stream; with an error the lease is given back.
pub(super) async fn open<R: AsyncRead + Unpin>(
    lease: Lease,
    destination: &Destination,
    early: &mut Early<'_, R>,
    limits: &Limits,
) -> Result<Stream, ConnectError> {
    let peer = destination.peer;
    let late = |phase| {
        let limit = limits.answer;
        move |_| ConnectError::Timeout { peer, phase, limit }
    };
    let deadline = limits::after(limits.answer);
    let line = Arc::clone(lease.tunnel().line());
    let opened = poll_fn(|cx| {
        line.engine()
            .poll_open(cx, &destination.authority, &destination.headers, destination.ample)
    });
    // Until then nothing has left.
    let key = timeout_at(deadline, opened).await.map_err(late(Phase::Place))?;
    let held = Held::new(&line, key.map_err(|_| unsent(peer, &line))?);
    let answer = timeout_at(deadline, answer(&held, early)).await.map_err(late(Phase::Answer))?;
    let answer = answer.map_err(|failed| match failed {
        Failed::Cut(cut) => unanswered(peer, cut, &line),
        Failed::Early(source) => ConnectError::Early { source: Arc::new(source) },
    })?;
    if !answer.status.is_success() {
        return Err(ConnectError::Refused {
            peer,
            status: answer.status,
        });
    }
    Ok(Stream::opened(held, answer.headers, early.len as u64, early.ended, lease))
}

enum Failed {
    Cut(Cut),
    Early(std::io::Error),
}

async fn answer<R: AsyncRead + Unpin>(held: &Held, early: &mut Early<'_, R>) -> Result<Answer, Failed> {
    // What stands in the way of that is told as the answer.
    let _ = early.resume(held);
    poll_fn(|cx| {
        if let Poll::Ready(answer) = held.line.engine().poll_answer(held.key, cx) {
            return Poll::Ready(answer.map_err(Failed::Cut));
        }
        early.poll_feed(held, cx).map(|e| Err(Failed::Early(e)))
    })
    .await
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

fn unanswered(peer: SocketAddr, cut: Cut, line: &Line) -> ConnectError {
    match (cut, line.lost()) {
        (Cut::ByPeer(code) | Cut::Here(code), _) => ConnectError::Reset { peer, code: code.0 },
        (Cut::Unprocessed, _) => unsent(peer, line),
        (Cut::Lost, Some(TunnelLost::Ended)) => ConnectError::Closed,
        (Cut::Lost, Some(TunnelLost::Io { source })) if is_alert(source) => ConnectError::Handshake {
            peer,
            source: Arc::clone(source),
        },
        (Cut::Lost, _) => ConnectError::Lost {
            peer,
            source: line.reason(),
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
