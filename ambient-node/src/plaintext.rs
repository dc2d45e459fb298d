//! Connections to a pod that did not come through a tunnel: checked without an identity, and passed on.

use std::{net::SocketAddr, sync::Arc};

use ambient_authz::{Decision, Peer};
use ambient_core::{NetworkAddress, ports, route};
use ambient_redirect::linux::Direction as Captured;

use crate::{
    Shared,
    acks::Prompt,
    clock,
    embed::Arrival,
    pod::Pod,
    session::{App, carry, dial, settle, source_for, was_cut},
    shares::Whose,
    state::Snapshot,
    telemetry::{Account, Direction, Ends, Flag, Outcome, Reason, refused_early},
    watch::{Subject, Watched},
    workers::Worker,
};

/// Serves one connection on a worker. What only the opening needs has gone while it stands.
pub(crate) fn serve(node: Arc<Shared>, pod: Arc<Pod>, worker: Arc<Worker>, arrival: Arrival) {
    let share = worker.share(&Whose::Peer(arrival.peer.ip()));
    let opening = Box::pin(open(node, pod, worker.clone(), arrival));
    worker.spawn(&share, move || async move {
        if let Some(standing) = opening.await {
            standing.relay().await;
        }
    });
}

async fn open(node: Arc<Shared>, pod: Arc<Pod>, home: Arc<Worker>, arrival: Arrival) -> Option<Box<Standing>> {
    let (app, peer, to) = App::captured(&node, &pod, &home, Captured::Inbound, arrival)?;
    tokio::select! {
        standing = open_way(&node, &pod, &home, app, peer, to) => standing,
        () = was_cut(&pod) => None,
    }
}

/// A connection that is open at both ends.
struct Standing {
    pod: Arc<Pod>,
    home: Arc<Worker>,
    server: Prompt,
    watched: Watched,
    client: App,
    account: Account,
}

impl Standing {
    async fn relay(mut self: Box<Self>) {
        let Self {
            pod,
            home,
            client,
            server,
            watched,
            account,
            ..
        } = &mut *self;
        if carry(pod, &home.relays, &mut client.stream, server, Some(watched), account).await {
            self.client.ended_well();
            settle(self.server.socket());
        }
    }
}

/// Asks the policies, and connects; or tells of why not.
async fn open_way(
    node: &Arc<Shared>,
    pod: &Arc<Pod>,
    home: &Arc<Worker>,
    client: App,
    peer: SocketAddr,
    to: SocketAddr,
) -> Option<Box<Standing>> {
    let opened = clock::steady();
    if ports::is_proxys_own(to.port()) {
        // Nobody's connection to the pod: an agent that proves a capture opens such ones, too.
        let own = route::Refusal::OwnPort(to.port());
        refused_early(&node.metrics, Reason::BadRequest, Direction::Inbound, peer, to, None, &own);
        return None;
    }
    let snapshot = match pod.known(&node.state).await {
        Ok(snapshot) => snapshot,
        Err(unknown) => {
            refused_early(&node.metrics, unknown.reason(), Direction::Inbound, peer, to, None, &unknown);
            return None;
        }
    };
    let account = Account::open(&node.metrics, ends(&snapshot, pod, peer, to), opened);
    let workload = match pod.workload(&snapshot) {
        Ok(workload) => workload,
        Err(unknown) => {
            account.close(&Outcome::failed(Flag::Connect, unknown).because(Reason::UnknownWorkload));
            return None;
        }
    };
    let subject = Subject {
        server: pod.server.clone(),
        workload: workload.uid.clone(),
        peer: Arc::new(Peer::plaintext()),
        source: peer.ip(),
        destination: to,
    };
    let watched = node.watch.register(subject.clone());
    // Decided on what is present after the registration: a change in between is either seen here or cut later.
    let snapshot = node.state.current().unwrap_or(snapshot);
    let target = match pod.target(&snapshot) {
        Ok(target) => target,
        Err(unknown) => {
            account.close(&Outcome::failed(Flag::Connect, unknown).because(Reason::UnknownWorkload));
            return None;
        }
    };
    if let Decision::Deny(denial) = subject.decide(&snapshot, &target) {
        account.close(&Outcome::failed(
            Flag::Deny,
            format_args!("connection closed due to policy rejection: {denial}"),
        ));
        client.refuse_quietly().await;
        return None;
    }
    let server = match dial(node, pod, source_for(peer, to), to).await {
        Ok(server) => server,
        Err(error) => {
            let failed = Outcome::failed(Flag::Connect, format_args!("connection failed: {error}"));
            account.close(&failed.because(Reason::of_dial(&error)));
            return None;
        }
    };
    Some(Box::new(Standing {
        pod: pod.clone(),
        home: home.clone(),
        server: home.acks.prompt(server),
        watched,
        client,
        account,
    }))
}

fn ends(snapshot: &Snapshot, pod: &Pod, peer: SocketAddr, to: SocketAddr) -> Ends {
    let destination = pod.workload(snapshot).ok().cloned();
    let network = destination.as_ref().map(|w| w.network.clone()).unwrap_or_default();
    let service = destination.as_ref().and_then(|w| snapshot.mesh.service_at(w, to.port())).cloned();
    Ends {
        direction: Direction::Inbound,
        source: peer,
        source_workload: snapshot.mesh.workload_by_address(&NetworkAddress::new(network, peer.ip())).cloned(),
        source_identity: None,
        application: to,
        destination: to,
        hbone: None,
        guessed: service.is_some(),
        service,
        destination_identity: destination.is_some().then(|| pod.identity.clone()),
        destination_workload: destination,
        waypoint: false,
        double: false,
        mutual_tls: false,
        local: false,
        retries: 0,
        avoided: 0,
    }
}
