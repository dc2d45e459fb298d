//! Connections that a pod opens: routed, and carried to where they go, by tunnel where the other end is captured.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_core::{
    NetworkAddress, Workload, WorkloadUid,
    route::{self, Hints, Plan, Route},
};
use ambient_redirect::linux::Direction as Captured;
use tokio::time;

use self::open::{Failure, Far};
use crate::{
    Shared, clock,
    demand::{self, Demand, DemandError},
    embed::Arrival,
    entropy,
    pod::{Pod, UnknownPod},
    session::{App, carry, was_cut},
    state::Snapshot,
    telemetry::{Account, Direction, Ends, Flag, Outcome, Reason, refused_early},
    workers::Worker,
};

mod open;

/// How long to wait before a dial that met a change is routed again.
const AGAIN: Duration = Duration::from_millis(50);
/// Endpoints that one connection tries.
const MOST_TRIES: usize = 3;
/// No further endpoint is tried so long after the connection came: whoever opened it waits.
const TRYING: Duration = Duration::from_secs(10);
/// Names that are looked up for one connection.
pub(crate) const MOST_LOOKUPS: usize = MOST_TRIES + 1;
/// Names that the control plane is asked for, for one connection.
pub(crate) const MOST_NAMES: usize = 8;

/// Serves one connection on a worker. Most stand open for long, and many do: what only the opening needs has gone by then.
pub(crate) fn serve(node: Arc<Shared>, pod: Arc<Pod>, worker: Arc<Worker>, arrival: Arrival) {
    let share = worker.share(&pod.whose());
    let opening = Box::pin(open(node, pod, worker.clone(), arrival));
    worker.spawn(&share, move || async move {
        if let Some(standing) = opening.await {
            standing.relay().await;
        }
    });
}

async fn open(node: Arc<Shared>, pod: Arc<Pod>, home: Arc<Worker>, arrival: Arrival) -> Option<Box<Standing>> {
    let (app, peer, to) = App::captured(&node, &pod, &home, Captured::Outbound, arrival)?;
    let outbound = Outbound { node, pod, home, peer, to };
    tokio::select! {
        standing = outbound.open_way(app) => standing,
        // The carrying itself looks for this too, and then says how much it has carried.
        () = was_cut(&outbound.pod) => None,
    }
}

/// A connection that is open at both ends.
struct Standing {
    pod: Arc<Pod>,
    home: Arc<Worker>,
    far: Far,
    app: App,
    account: Account,
}

impl Standing {
    async fn relay(mut self: Box<Self>) {
        let Self {
            pod,
            home,
            app,
            far,
            account,
            ..
        } = &mut *self;
        let (relays, client) = (&home.relays, &mut app.stream);
        let well = match far {
            Far::Tcp(server) => carry(pod, relays, client, server, None, account).await,
            Far::Local(server, _) => carry(pod, relays, client, server, None, account).await,
            Far::Tunnel(server) | Far::Inner { stream: server, .. } => carry(pod, relays, client, server, None, account).await,
        };
        if well {
            self.far.ended_well();
            self.app.ended_well();
        }
    }
}

struct Outbound {
    node: Arc<Shared>,
    pod: Arc<Pod>,
    home: Arc<Worker>,
    peer: SocketAddr,
    to: SocketAddr,
}

/// What was learned of a connection's way so far.
struct Tried {
    hints: Hints,
    lookups: usize,
    /// Names that the control plane had answered before the snapshot was looked at.
    confirmed: Vec<String>,
    /// Endpoints that could not be reached by this connection.
    failed: Vec<WorkloadUid>,
    /// Why the last one could not.
    last: Option<Failure>,
}

/// Why nothing is open.
enum Unopened {
    /// By policy: whoever asked is answered with an end, and no reset.
    Refused,
    /// It was told of why.
    Told,
}

/// Why there is no plan.
enum NoPlan {
    Refused(route::Refusal),
    /// The control plane has said something: a newer snapshot may know it.
    Again,
    Unknown(DemandError),
}

impl Tried {
    fn new(pod: &Pod, opened: Instant) -> Self {
        Self {
            hints: Hints {
                draw: entropy::word(),
                avoid: pod.outliers.now(opened),
                resolved: None,
            },
            lookups: 0,
            confirmed: Vec::new(),
            failed: Vec::new(),
            last: None,
        }
    }

    /// Whether a plan leads to an endpoint that was tried already, as no other is left.
    fn knows(&self, plan: &Plan) -> bool {
        plan.destination().is_some_and(|destination| self.failed.contains(&destination.uid))
    }
}

impl Outbound {
    /// Opens the way; who is refused by policy is answered.
    async fn open_way(&self, mut app: App) -> Option<Box<Standing>> {
        match self.way(&mut app).await {
            Ok((far, account)) => Some(Box::new(Standing {
                pod: self.pod.clone(),
                home: self.home.clone(),
                far,
                app,
                account,
            })),
            Err(Unopened::Refused) => {
                app.refuse_quietly().await;
                None
            }
            Err(Unopened::Told) => None,
        }
    }

    /// Opens the way to the destination, or tells of why there is none.
    async fn way(&self, app: &mut App) -> Result<(Far, Account), Unopened> {
        let opened = clock::steady();
        let mut account: Option<Account> = None;
        let mut tried = Tried::new(&self.pod, opened);
        loop {
            let snapshot = match self.pod.known(&self.node.state).await {
                Ok(snapshot) => snapshot,
                Err(unknown) => return Err(self.unknown(account, &unknown)),
            };
            let source = match self.pod.workload(&snapshot) {
                Ok(source) => source,
                Err(unknown) => return Err(self.unknown(account, &unknown)),
            };
            let plan = match self.route(&snapshot, source, &mut tried).await {
                Ok(plan) if !tried.knows(&plan) => plan,
                Ok(_) => break,
                Err(NoPlan::Again) => continue,
                Err(NoPlan::Unknown(error)) => {
                    let account = account.unwrap_or_else(|| self.account(&snapshot, source, None, &tried, opened));
                    account.close(&Outcome::failed(Flag::Connect, error).because(Reason::NoState));
                    return Err(Unopened::Told);
                }
                Err(NoPlan::Refused(refusal)) => {
                    // What could not be reached is the better reason, where there is nothing else left.
                    if tried.last.is_some() {
                        break;
                    }
                    let account = account.unwrap_or_else(|| self.account(&snapshot, source, None, &tried, opened));
                    account.close(&Outcome::failed(Flag::Connect, refusal).because(Reason::NoRoute));
                    return Err(Unopened::Told);
                }
            };
            // Open before the dial, so that one that is cut while it dials is told of too.
            let mut present = match account.take() {
                Some(account) => account.reroute(self.ends(&snapshot, source, Some(&plan), &tried)),
                None => self.account(&snapshot, source, Some(&plan), &tried, opened),
            };
            let beside = match &plan {
                Plan::Tunnel(tunnel) => self.node.locals.beside(&self.node, &self.pod, tunnel),
                _ => None,
            };
            present.is_local(beside.is_some());
            let failure = match self.open(source, &plan, beside, app).await {
                // A dial may take long, and the other end be captured meanwhile: no byte was sent, so it goes by tunnel.
                Ok(Far::Tcp(_)) if self.is_tunnelled_now(&tried.hints) => {
                    account = Some(present);
                    continue;
                }
                Ok(far) => {
                    if let Some(destination) = plan.destination() {
                        self.pod.outliers.remove(&destination.uid);
                    }
                    present.proven(far.proven());
                    if let Far::Inner { who, .. } = &far {
                        present.found(who.clone());
                    }
                    return Ok((far, present));
                }
                Err(failure) => failure,
            };
            if failure.outcome.flag == Flag::Revoked {
                self.node.metrics.refused_as_revoked(Direction::Outbound);
            }
            if let (true, Plan::Tunnel(tunnel)) = (failure.answered, &plan)
                && let ([only], None) = (&tunnel.accepted[..], &tunnel.inner)
            {
                // It has answered, so that it has proven to be the one that it may be. Of two tunnels nobody knows which has.
                present.proven(Some(only.clone()));
            }
            account = Some(present);
            if failure.refused && self.may_be_news(&plan) {
                time::sleep(AGAIN).await;
                continue;
            }
            let elsewhere = failure.elsewhere && self.may_go_elsewhere(&plan, &mut tried, opened);
            tried.last = Some(failure);
            if !elsewhere {
                break;
            }
        }
        Err(self.give_up(account, tried.last))
    }

    /// Tells of a connection that could be opened nowhere.
    fn give_up(&self, account: Option<Account>, failure: Option<Failure>) -> Unopened {
        let (Some(account), Some(failure)) = (account, failure) else {
            return Unopened::Told;
        };
        let by_policy = failure.by_policy;
        account.close(&failure.told(self.pod.is_cut()));
        if by_policy { Unopened::Refused } else { Unopened::Told }
    }

    /// The plan, once all names that it hangs on are looked up.
    async fn route(&self, snapshot: &Snapshot, source: &Workload, tried: &mut Tried) -> Result<Plan, NoPlan> {
        let asked = route::Outbound {
            source,
            destination: self.to,
        };
        loop {
            let routed = route::outbound(&snapshot.mesh, &asked, &tried.hints);
            if let Some(demand) = &self.node.demand {
                self.see_to(demand, snapshot, &asked, &routed, tried).await?;
            }
            match routed {
                Route::Go(plan) => return Ok(plan),
                Route::Refuse(refusal) => return Err(NoPlan::Refused(refusal)),
                Route::Need(lookup) if tried.lookups >= MOST_LOOKUPS => {
                    return Err(NoPlan::Refused(route::Refusal::Unresolved(lookup.0)));
                }
                Route::Need(lookup) => {
                    tried.lookups += 1;
                    self.node.metrics.name_asked(source, &self.pod.identity, &lookup.0);
                    let found = self.node.lookups.find(&lookup, &self.pod.room.lookups).await;
                    tried.hints.resolved = Some((lookup, found));
                }
            }
        }
    }

    /// Sees to it that the route hangs on nothing that nobody has been asked for.
    async fn see_to(
        &self,
        demand: &Demand,
        snapshot: &Snapshot,
        asked: &route::Outbound<'_>,
        routed: &Route,
        tried: &mut Tried,
    ) -> Result<(), NoPlan> {
        let destination = demand::destination(asked);
        let needed = demand::needed(&snapshot.mesh, asked, routed);
        let Some(name) = needed.as_ref().filter(|name| !tried.confirmed.contains(name)) else {
            demand.needs(&self.pod.spec.uid, &destination, needed.is_none());
            return Ok(());
        };
        if tried.confirmed.len() >= MOST_NAMES {
            return Err(NoPlan::Unknown(DemandError::TooFar(destination.into())));
        }
        let because = (*name != destination).then_some(&*destination);
        demand.know(&self.pod.spec.uid, name, because).await.map_err(NoPlan::Unknown)?;
        tried.confirmed.push(name.clone());
        Err(NoPlan::Again)
    }

    /// Whether another endpoint of the service may be tried; the one that failed is passed over for a while, by the pod's other
    /// connections too.
    fn may_go_elsewhere(&self, plan: &Plan, tried: &mut Tried, opened: Instant) -> bool {
        let service = match plan {
            Plan::Passthrough(_) => return false,
            Plan::Direct(direct) => direct.service.as_ref(),
            Plan::Tunnel(tunnel) => tunnel.service.as_ref(),
        };
        let Some(destination) = plan.destination().filter(|_| service.is_some()) else {
            return false;
        };
        let now = clock::steady();
        if self.pod.outliers.add(&destination.uid, now) {
            tracing::info!(workload = %destination.uid, "an endpoint cannot be reached: others are chosen before it for a while");
        }
        tried.failed.push(destination.uid.clone());
        tried.hints.avoid.push(destination.uid.clone());
        tried.failed.len() < MOST_TRIES && now.duration_since(opened) < TRYING
    }

    /// Whether it would be carried by tunnel if it were routed at this moment.
    fn is_tunnelled_now(&self, hints: &Hints) -> bool {
        let Some(snapshot) = self.node.state.current() else { return false };
        let Ok(source) = self.pod.workload(&snapshot) else { return false };
        let asked = route::Outbound {
            source,
            destination: self.to,
        };
        matches!(route::outbound(&snapshot.mesh, &asked, hints), Route::Go(Plan::Tunnel(_)))
    }

    /// Whether the destination's way was changing a moment ago: then a refusal may only say that the news is under way.
    fn may_be_news(&self, plan: &Plan) -> bool {
        let settled = plan
            .destination()
            .and_then(|destination| self.node.state.settles_at(&destination.uid));
        settled.is_some_and(|settled| clock::steady() < settled)
    }

    fn account(&self, snapshot: &Snapshot, source: &Arc<Workload>, plan: Option<&Plan>, tried: &Tried, opened: Instant) -> Account {
        Account::open(&self.node.metrics, self.ends(snapshot, source, plan, tried), opened)
    }

    /// Both ends, as far as the plan knows them; who the other end is stands only once it has proven it.
    fn ends(&self, snapshot: &Snapshot, source: &Arc<Workload>, plan: Option<&Plan>, tried: &Tried) -> Ends {
        let mut ends = Ends {
            direction: Direction::Outbound,
            source: self.peer,
            source_workload: Some(source.clone()),
            source_identity: None,
            application: self.to,
            destination: self.to,
            hbone: None,
            service: None,
            destination_workload: None,
            destination_identity: None,
            waypoint: false,
            double: false,
            mutual_tls: false,
            local: false,
            // A few at most.
            retries: tried.failed.len() as u32,
            avoided: 0,
            guessed: false,
        };
        match plan {
            // What was asked for is known also where there is no way to it.
            None => {
                let at = NetworkAddress::new(source.network.clone(), self.to.ip());
                ends.service = snapshot.mesh.service_by_vip(&at, &source.namespace).cloned();
                if ends.service.is_none() {
                    ends.destination_workload = snapshot.mesh.workload_by_address(&at).cloned();
                }
            }
            Some(Plan::Passthrough(_)) => {}
            Some(Plan::Direct(direct)) => {
                ends.destination = direct.to;
                ends.destination_workload = Some(direct.destination.clone());
                ends.service = direct.service.clone();
            }
            Some(Plan::Tunnel(tunnel)) => {
                ends.destination = tunnel.peer;
                ends.hbone = Some(tunnel.authority.clone());
                // Until somebody behind it has answered, a gateway is as far as it goes.
                ends.destination_workload = Some(tunnel.destination.clone());
                ends.service = tunnel.service.clone();
                ends.source_identity = Some(self.pod.identity.clone());
                ends.waypoint = tunnel.waypoint;
                ends.double = tunnel.inner.is_some();
                ends.mutual_tls = true;
            }
        }
        // By way of a waypoint or a gateway it is that one that chooses among them.
        if let Some(service) = ends.service.as_ref().filter(|_| !ends.waypoint && !ends.double) {
            let avoided = tried.hints.avoid.iter().filter(|uid| !tried.failed.contains(uid));
            let avoided = avoided.filter(|uid| snapshot.mesh.endpoint(&service.name, uid).is_some()).count();
            ends.avoided = u32::try_from(avoided).unwrap_or(u32::MAX);
        }
        ends
    }

    /// Tells of a connection of a pod that the mesh does not know, or knows no longer since the connection was begun.
    fn unknown(&self, account: Option<Account>, unknown: &UnknownPod) -> Unopened {
        let (metrics, reason) = (&self.node.metrics, unknown.reason());
        match account {
            Some(account) => account.close(&Outcome::failed(Flag::Connect, unknown).because(reason)),
            None => refused_early(metrics, reason, Direction::Outbound, self.peer, self.to, None, unknown),
        }
        Unopened::Told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// What each connection that stands idle holds of its own here, in bytes.
    #[test]
    fn a_connection_that_stands_is_small() {
        let (future, standing) = (size_of_future(|standing: Box<Standing>| standing.relay()), size_of::<Standing>());
        assert!(future <= 392, "{future}");
        assert!(standing <= 336, "{standing}");
    }
}
