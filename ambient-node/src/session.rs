//! What every kind of connection does the same way: bounds, sockets that end as a reset until they end well, the
//! carrying of bytes, and how it is told.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    os::fd::AsFd,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use ambient_hbone::{
    Duplex, RelayLimits, StreamError, Tally, TunnelLost,
    relay::{End, Relaying, Side},
};
use ambient_redirect::linux::{self, Direction as Captured};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, time};

use crate::{
    KeepAlive, Shared,
    bounds::{Kind, Place},
    embed::Arrival,
    local::Cut,
    pod::{Pod, Stage},
    telemetry::{Account, Closer, Flag, OpenSocket, Outcome, Reason},
    unread::Unread,
    watch::Watched,
    workers::Worker,
};

/// The application's side of a connection.
///
/// From its accept on, closing it is a reset, also when the process is killed; only [`App::ended_well`] changes that.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) stream: Unread,
    /// Counted against the pod's bound until it is dropped.
    _place: Place,
    _open: OpenSocket,
}

impl App {
    /// Takes a connection in, unless the pod has too many: then it is reset, as is all that is dropped before it has an owner.
    /// Needs the runtime of the worker that will serve it.
    pub(crate) fn take(node: &Shared, home: &Worker, kind: &Kind, stream: StdStream) -> Option<Self> {
        let Some(place) = kind.take() else {
            node.metrics.connection_shed(kind.direction);
            return None;
        };
        Some(Self {
            stream: Unread::new(home.acks.prompt(TcpStream::from_std(stream).ok()?)),
            _place: place,
            _open: node.metrics.socket(kind.direction),
        })
    }

    /// Takes a connection in that was captured, with who opened it and whom it was meant for. None of one that only proves the
    /// capture, of one too many, and of one that was not captured but dialled: nothing that these ports are for.
    pub(crate) fn captured(
        node: &Shared,
        pod: &Pod,
        home: &Worker,
        direction: Captured,
        arrival: Arrival,
    ) -> Option<(Self, SocketAddr, SocketAddr)> {
        let Arrival {
            stream, peer, destination, ..
        } = arrival;
        let to = destination.map_or_else(|| linux::original_destination(&stream), Ok);
        // Before it is counted: a pod that has all it may have open is captured as well.
        if to.as_ref().is_ok_and(|to| pod.namespace.is_probe(direction, peer, *to)) {
            return None;
        }
        let kind = match direction {
            Captured::Inbound => &pod.room.inbound,
            Captured::Outbound => &pod.room.outbound,
        };
        let app = Self::take(node, home, kind, stream)?;
        match to {
            Ok(to) => Some((app, peer, to)),
            Err(error) => {
                tracing::debug!(%peer, %error, "{direction:?} connection without an original destination");
                None
            }
        }
    }

    /// Closing it is a close from now on.
    pub(crate) fn ended_well(&self) {
        settle(self.stream.socket());
    }

    /// The empty reply of a refusal by policy: closed without a byte, and without a reset.
    pub(crate) async fn refuse_quietly(mut self) {
        ambient_hbone::refuse_quietly(&mut self.stream).await;
        self.ended_well();
    }
}

/// A connection to an application, or to whoever stands at an address: closing it is a reset until [`settle`].
pub(crate) async fn dial(node: &Shared, pod: &Pod, from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = node
        .sockets
        .tcp_connect(&pod.namespace, from, to, node.config.connect_timeout)
        .await?;
    linux::cut_when_dropped(&stream, true)?;
    keep_alive(&stream, &node.config.keep_alive)?;
    Ok(stream)
}

/// The client's own address, where it can stand in a connection to the application: one of the same family, and not
/// the application's own.
pub(crate) fn source_for(peer: SocketAddr, to: SocketAddr) -> Option<IpAddr> {
    let ip = peer.ip().to_canonical();
    (ip.is_ipv4() == to.ip().is_ipv4() && ip != to.ip() && !ip.is_loopback()).then_some(ip)
}

/// From now on, closing this socket is a close and not a reset.
pub(crate) fn settle(stream: &TcpStream) {
    // Fails only for what is no socket.
    let _ = linux::cut_when_dropped(stream, false);
}

/// Moves bytes between a client and a server until both are done, or until it must stop; and tells the account how that ended.
/// Gives whether that was in good order.
///
/// Whoever calls owns the two ends: after anything but an orderly end dropping them is a reset on both sides.
pub(crate) fn carry<'c, C: Duplex + 'static, S: Duplex + 'static>(
    pod: &'c Pod,
    relays: &'c RelayLimits,
    client: &'c mut C,
    server: &'c mut S,
    watched: Option<&'c mut Watched>,
    account: &'c mut Account,
) -> impl Future<Output = bool> + Send + use<'c, C, S> {
    account.established();
    // Not an `async fn`, nor one future within others: those have room for each argument twice, and most that is carried stands idle.
    let mut carrying = Carrying {
        relaying: Relaying::new(client, server),
        relays,
        client,
        server,
        watched,
        account,
    };
    async move {
        let mut stopped = pin!(pod.reaches(Stage::Cut));
        poll_fn(|cx| carrying.poll(cx, stopped.as_mut(), || pod.is_cut())).await
    }
}

/// Bytes that are moved, and who may end that.
struct Carrying<'c, C, S> {
    relaying: Relaying,
    relays: &'c RelayLimits,
    client: &'c mut C,
    server: &'c mut S,
    watched: Option<&'c mut Watched>,
    account: &'c mut Account,
}

impl<C: Duplex + 'static, S: Duplex + 'static> Carrying<'_, C, S> {
    /// `stopped`: the pod or the node stops. Who must end is asked first: what ends with it, as its tunnel may, is not the reason.
    fn poll(&mut self, cx: &mut Context<'_>, stopped: Pin<&mut impl Future<Output = ()>>, is_cut: impl FnOnce() -> bool) -> Poll<bool> {
        let Self {
            client, server, account, ..
        } = self;
        if let Some(watched) = &mut self.watched
            && let Poll::Ready(why) = watched.poll_cut(cx)
        {
            let changed = Outcome::failed(Flag::Deny, format_args!("connection closed due to policy change: {why}"));
            account.end(&changed.because(Reason::PolicyChanged).by(Closer::Proxy));
            return Poll::Ready(false);
        }
        if stopped.poll(cx).is_ready() {
            account.end(&drained());
            return Poll::Ready(false);
        }
        let tally = ready!(self.relaying.poll(cx, *client, *server, self.relays, account.progress()));
        if let Some(first_byte) = tally.first_byte {
            account.answered_after(first_byte);
        }
        // Others may have been told of it before this one, and have ended its tunnel.
        if matches!(tally.end, End::Failed { .. }) && is_cut() {
            account.end(&drained());
            return Poll::Ready(false);
        }
        Poll::Ready(ended(account, tally))
    }
}

/// The pod or the node has stopped.
pub(crate) fn drained() -> Outcome {
    let stopped = Outcome::failed(Flag::None, "connection closed due to connection drain");
    stopped.because(Reason::Drain).by(Closer::Proxy)
}

/// By its ends; gives whether that was in good order.
fn ended(account: &mut Account, tally: Tally) -> bool {
    // The client is the relay's first side.
    let closer = |side| match side {
        Side::A => (Closer::Client, Reason::ClientReset),
        Side::B => (Closer::Server, Reason::ServerReset),
    };
    match tally.end {
        End::Orderly { first } => {
            account.end(&Outcome::orderly().by(closer(first).0));
            true
        }
        End::Failed { side, ref error, .. } => {
            let lost = match StreamError::of(error) {
                Some(StreamError::Lost { source }) => Some(source),
                _ => None,
            };
            let why = lost.and_then(Reason::of_tunnel).or_else(|| Cut::of(error).map(Reason::of_cut));
            let outcome = broken_off(why, lost, closer(side), &tally.end);
            account.end(&outcome);
            false
        }
    }
}

/// A connection that an end has broken off, or what that end was carried by, for a reason of its own.
pub(crate) fn broken_off(why: Option<Reason>, lost: Option<&TunnelLost>, by_end: (Closer, Reason), error: &dyn fmt::Display) -> Outcome {
    let (end, reason) = by_end;
    match why {
        Some(Reason::CertRevoked) => {
            let text = format_args!("connection closed: peer certificate revoked by CRL: {error}");
            Outcome::failed(Flag::Revoked, text).by(Closer::Proxy)
        }
        Some(Reason::NoCertificate) => Outcome::failed(Flag::Identity, error).by(Closer::Proxy),
        // Where the peer is silent it was given up here.
        Some(Reason::TunnelLost) if !matches!(lost, Some(TunnelLost::PeerSilent)) => {
            Outcome::failed(Flag::None, error).because(Reason::TunnelLost).by(end)
        }
        Some(why) => Outcome::failed(Flag::None, error).because(why).by(Closer::Proxy),
        None => Outcome::failed(Flag::None, error).because(reason).by(end),
    }
}

/// A breath after the pod was cut, so that what is being carried can tell of itself.
pub(crate) async fn was_cut(pod: &Pod) {
    pod.reaches(Stage::Cut).await;
    time::sleep(Duration::from_millis(100)).await;
}

/// Has the kernel notice that the other end is gone.
pub(crate) fn keep_alive(stream: &impl AsFd, how: &KeepAlive) -> io::Result<()> {
    let socket = SockRef::from(stream);
    if how.enabled {
        let probes = TcpKeepalive::new()
            .with_time(how.time)
            .with_interval(how.interval)
            .with_retries(how.retries);
        socket.set_tcp_keepalive(&probes)?;
    }
    if how.user_timeout {
        let all = how.time.saturating_add(how.interval.saturating_mul(how.retries));
        socket.set_tcp_user_timeout(Some(all.min(LONGEST)))?;
    }
    Ok(())
}

/// The kernel counts milliseconds, in 31 bits.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

#[cfg(test)]
mod tests;
