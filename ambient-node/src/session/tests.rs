use std::{net::TcpListener, sync::Arc, task::Waker};

use ambient_authz::Peer;
use ambient_control::{Batch, Change};
use ambient_core::{Workload, mesh::Update};
use ambient_hbone::ConnectError;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::{
    clock,
    state::State,
    telemetry::{
        Direction, Ends, Metrics,
        log::{Format, kept},
    },
    watch::{Server, Subject, Watch},
};

/// A stream that has ended, with its tunnel if that is lost.
struct Lost(Option<TunnelLost>);

impl Lost {
    fn error(&self) -> io::Error {
        match &self.0 {
            Some(source) => StreamError::Lost { source: source.clone() }.into(),
            None => io::ErrorKind::ConnectionReset.into(),
        }
    }
}

impl AsyncRead for Lost {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(self.error()))
    }
}

impl AsyncWrite for Lost {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(self.error()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection on the list to a pod that the mesh ceases to know if it is to be cut.
fn watched(cut: bool) -> Watched {
    let (state, watch) = (State::default(), Arc::new(Watch::default()));
    let mut workload = Workload::new("c//Pod/shop/a", "shop", "a");
    workload.pod = Some("a".into());
    let (uid, identity) = (workload.uid.clone(), workload.identity().unwrap());
    let apply = |change| {
        let batch = Batch {
            changes: vec![Change::Mesh(change)],
            synced: true,
            ..Batch::default()
        };
        let changed = state.apply(batch, clock::steady());
        watch.recheck(&state.current().unwrap(), &changed);
    };
    apply(Update::Workload(Arc::new(workload)));
    let server = Arc::new(Server { pod: "a".into(), identity });
    let watched = watch.register(Subject {
        server,
        workload: uid.clone(),
        peer: Arc::new(Peer::plaintext()),
        source: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], 80).into(),
    });
    if cut {
        apply(Update::RemoveWorkload(uid));
    }
    watched
}

/// What has ended with it, of which each may be why.
fn ended_with(lost: Lost, cut: bool, stops: bool, is_cut: bool) -> String {
    kept::logged(Format::Text, || {
        let metrics = Arc::new(Metrics::default());
        let ends = Ends {
            direction: Direction::Inbound,
            source: ([10, 0, 0, 1], 1).into(),
            source_workload: None,
            source_identity: None,
            application: ([10, 0, 0, 2], 80).into(),
            destination: ([10, 0, 0, 2], 80).into(),
            hbone: None,
            service: None,
            guessed: false,
            destination_workload: None,
            destination_identity: None,
            waypoint: false,
            double: false,
            mutual_tls: false,
            local: false,
            retries: 0,
            avoided: 0,
        };
        let (mut server, _application) = tokio::io::duplex(64);
        let (relays, mut client, mut watched) = (RelayLimits::default(), lost, watched(cut));
        let mut account = Account::open(&metrics, ends, clock::steady());
        let mut carrying = Carrying {
            relaying: Relaying::new(&mut client, &mut server),
            relays: &relays,
            client: &mut client,
            server: &mut server,
            watched: Some(&mut watched),
            account: &mut account,
        };
        let stopped = pin!(async move {
            if !stops {
                std::future::pending::<()>().await;
            }
        });
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(carrying.poll(cx, stopped, || is_cut), Poll::Ready(false));
    })
}

#[test]
fn what_is_lost_with_its_end_is_not_the_reason() {
    for (cut, stops, is_cut, reason) in [
        (false, false, false, "client_reset"),
        (false, true, true, "drain"),
        // It was not told yet, and its tunnel was.
        (false, false, true, "drain"),
        (true, false, false, "policy_changed"),
        (true, true, true, "policy_changed"),
    ] {
        let lines = ended_with(Lost(None), cut, stops, is_cut);
        assert!(lines.contains(&format!("reason={reason:?}")), "{lines}");
    }
}

/// Neither end has broken it off.
#[test]
fn what_is_lost_with_its_tunnel_is_told_so() {
    let io = || io::Error::from(io::ErrorKind::ConnectionReset).into();
    for (lost, reason, by) in [
        (TunnelLost::PeerSilent, "tunnel_lost", "proxy"),
        (io(), "tunnel_lost", "client"),
        (TunnelLost::Closed, "tunnel_lost", "client"),
        (TunnelLost::CertificateExpired { of_peer: true }, "cert_expired", "proxy"),
        (TunnelLost::IdentityWithdrawn, "no_certificate", "proxy"),
        (TunnelLost::Ended, "drain", "proxy"),
    ] {
        let connect = ConnectError::Lost {
            peer: ([10, 0, 0, 3], 15008).into(),
            source: lost.clone(),
        };
        let told = ended_with(Lost(Some(lost)), false, false, false);
        for part in [format!("reason={reason:?}"), format!("closed_by={by:?}")] {
            assert!(told.contains(&part), "{part}: {told}");
        }
        assert_eq!(Reason::of_connect(&connect).as_str(), reason, "{connect}");
    }
}

#[test]
fn silence_is_asked_about_as_it_is_configured() {
    let asked = |how: &KeepAlive| {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        keep_alive(&socket, how).unwrap();
        let socket = SockRef::from(&socket);
        let times = [socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()];
        (
            socket.keepalive().unwrap(),
            times.map(|time| time.as_secs()),
            socket.tcp_keepalive_retries().unwrap(),
            socket.tcp_user_timeout().unwrap(),
        )
    };
    assert_eq!(asked(&KeepAlive::default()), (true, [180, 180], 9, None));
    let other = KeepAlive {
        time: Duration::from_secs(30),
        interval: Duration::from_secs(5),
        retries: 3,
        user_timeout: true,
        ..KeepAlive::default()
    };
    assert_eq!(asked(&other), (true, [30, 5], 3, Some(Duration::from_secs(45))));
    let off = KeepAlive { enabled: false, ..other };
    let (on, .., timeout) = asked(&off);
    assert_eq!((on, timeout), (false, Some(Duration::from_secs(45))));
    let longest = KeepAlive {
        time: Duration::from_secs(32_767),
        interval: Duration::from_secs(32_767),
        retries: 127,
        ..other
    };
    assert_eq!(asked(&longest), (true, [32_767, 32_767], 127, Some(LONGEST)));
}
