//! Connections to a pod that did not come through a tunnel: checked without an identity, and passed on.

use std::{net::SocketAddr, sync::Arc};

use ambient_authz::{Decision, Peer};
use ambient_core::{NetworkAddress, ports};
use ambient_hbone::RelayLimits;
use ambient_redirect::linux::{Direction as Captured, original_destination};

use crate::{
    Shared, clock,
    embed::Arrival,
    pod::Pod,
    session::{App, carry, dial, settle, source_for, was_cut},
    state::Snapshot,
    telemetry::{Account, Direction, Ends, Flag, Outcome, Reason, refused_early},
    watch::Subject,
    workers::Worker,
};

/// Serves one connection on a worker.
pub(crate) fn serve(node: Arc<Shared>, pod: Arc<Pod>, worker: Arc<Worker>, arrival: Arrival) {
    let home = worker.clone();
    worker.spawn(async move {
        let Arrival {
            stream, peer, destination, ..
        } = arrival;
        let to = destination.map_or_else(|| original_destination(&stream), Ok);
        // Before it is counted: a pod that has all it may have open is captured as well.
        if to.as_ref().is_ok_and(|to| pod.namespace.is_probe(Captured::Inbound, peer, *to)) {
            return;
        }
        let Some(app) = App::take(&node, &pod.room.inbound, stream) else {
            return;
        };
        match to {
            Ok(to) => {
                let passed_on = Box::pin(pass_on(&node, &pod, &home.relays, app, peer, to));
                tokio::select! {
                    () = passed_on => {}
                    () = was_cut(&pod) => {}
                }
            }
            // Not captured but dialled: nothing that this port is for.
            Err(error) => tracing::debug!(%peer, %error, "plaintext connection without an original destination"),
        }
    });
}

async fn pass_on(node: &Arc<Shared>, pod: &Arc<Pod>, relays: &RelayLimits, mut client: App, peer: SocketAddr, to: SocketAddr) {
    let opened = clock::steady();
    let snapshot = match pod.known(&node.state).await {
        Ok(snapshot) => snapshot,
        Err(unknown) => {
            return refused_early(&node.metrics, unknown.reason(), Direction::Inbound, peer, to, None, &unknown);
        }
    };
    let account = Account::open(&node.metrics, ends(&snapshot, pod, peer, to), opened);
    if ports::is_proxys_own(to.port()) {
        return account.close(&Outcome::failed(
            Flag::Connect,
            format_args!("port {} is the proxy's own", to.port()),
        ));
    }
    let workload = match pod.workload(&snapshot) {
        Ok(workload) => workload,
        Err(unknown) => return account.close(&Outcome::failed(Flag::Connect, unknown).because(Reason::UnknownWorkload)),
    };
    let subject = Subject {
        pod: pod.spec.uid.clone(),
        workload: workload.uid.clone(),
        peer: Peer::plaintext(),
        identity: pod.identity.clone(),
        source: peer.ip(),
        destination: to,
    };
    let (_registered, mut cut) = node.watch.register(subject.clone());
    // Decided on what is present after the registration: a change in between is either seen here or cut later.
    let snapshot = node.state.current().unwrap_or(snapshot);
    let target = match pod.target(&snapshot) {
        Ok(target) => target,
        Err(unknown) => return account.close(&Outcome::failed(Flag::Connect, unknown).because(Reason::UnknownWorkload)),
    };
    if let Decision::Deny(denial) = subject.decide(&snapshot, &target) {
        account.close(&Outcome::failed(
            Flag::Deny,
            format_args!("connection closed due to policy rejection: {denial}"),
        ));
        return client.refuse_quietly().await;
    }
    let mut server = match dial(node, pod, source_for(peer, to), to).await {
        Ok(server) => server,
        Err(error) => {
            let failed = Outcome::failed(Flag::Connect, format_args!("connection failed: {error}"));
            return account.close(&failed.because(Reason::of_dial(&error)));
        }
    };
    if carry(pod, relays, &mut client.stream, &mut server, Some(&mut cut), account)
        .await
        .is_some()
    {
        client.ended_well();
        settle(&server);
    }
}

fn ends(snapshot: &Snapshot, pod: &Pod, peer: SocketAddr, to: SocketAddr) -> Ends {
    let destination = pod.workload(snapshot).ok().cloned();
    let network = destination.as_ref().map(|w| w.network.clone()).unwrap_or_default();
    Ends {
        direction: Direction::Inbound,
        source: peer,
        source_workload: snapshot.mesh.workload_by_address(&NetworkAddress::new(network, peer.ip())).cloned(),
        source_identity: None,
        asked: to,
        destination: to,
        hbone: None,
        service: None,
        destination_workload: destination,
        destination_identity: None,
        waypoint: false,
        mutual_tls: false,
        local: false,
        retries: 0,
        avoided: 0,
    }
}
