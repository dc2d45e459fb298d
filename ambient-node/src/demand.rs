//! What is asked of the control plane as it is needed, where the mesh does not come whole.
//!
//! A connection to an address that the snapshot knows nothing of waits until that is asked for: by nobody's word the other
//! end is outside of the mesh. [`Names`] remembers what was asked for, pure; what is answered is kept up to date by the
//! control plane until it is given back, which is what happens to what nobody has needed for a while.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ambient_control::{AskError, OnDemand};
use ambient_core::{
    GatewayTarget, Mesh, Network, NetworkAddress, PodUid,
    route::{Outbound, Plan, Refusal, Route},
};
use tokio::time;

use crate::{Config, Shared, clock, state::Snapshot};
use names::{Account, Names, Need, Whose};

mod names;
#[cfg(test)]
mod tests;

/// How long a connection waits for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a DNS query does: its client asks again after 5 s, and what is not the mesh's must not wait for the mesh.
const BRIEFLY: Duration = Duration::from_secs(2);
/// Between two looks for what is not needed any more.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(30);

/// Why it is not known what is at an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DemandError {
    /// Nobody has answered in time.
    #[error("the control plane has not said within {1:?} whether {0} is in the mesh")]
    Unanswered(Arc<str>, Duration),
    /// It was said to be absent, which may have changed since the control plane is away.
    #[error("the control plane is away, and whether {0} is in the mesh by now is not known")]
    Stale(Arc<str>),
    /// It was not asked for.
    #[error("whether {0} is in the mesh is not asked: {1}")]
    NotAsked(Arc<str>, #[source] AskError),
    /// There is no room for one more who waits.
    #[error("too many connections wait for the control plane's word")]
    Busy,
    /// What one name needs needs another, and so on.
    #[error("what is at {0} hangs on too many other names")]
    TooFar(Arc<str>),
}

/// What is asked for as it is needed.
#[derive(Debug)]
pub(crate) struct Demand {
    source: Arc<dyn OnDemand>,
    names: Mutex<Names>,
}

impl Demand {
    pub(crate) fn new(source: Arc<dyn OnDemand>) -> Self {
        Self {
            source,
            names: Mutex::default(),
        }
    }

    /// Sees to it that what a name means is known: a snapshot that is looked at after this says all there is to say.
    /// `because` is what needs it, and keeps it.
    ///
    /// # Errors
    /// When nobody says it in time.
    ///
    /// Cancel safe.
    pub(crate) async fn know(&self, pod: &PodUid, name: &str, because: Option<&str>) -> Result<(), DemandError> {
        self.ask(Whose::Connections(pod), name, because, PATIENCE).await
    }

    async fn ask(&self, whose: Whose<'_>, name: &str, because: Option<&str>, patience: Duration) -> Result<(), DemandError> {
        let is_there = self.source.is_there();
        let (name, mut news) = {
            let mut names = self.names();
            let (name, asked) = names.need(whose, name, because, is_there, clock::steady());
            if let Some(given_back) = asked.ask()? {
                self.begin(&mut names, &name, given_back)?;
            }
            match names.answer(&name) {
                None => return Ok(()),
                Some(news) => (name, news),
            }
        };
        let _place = Place::take(self, whose).ok_or(DemandError::Busy)?;
        match time::timeout(patience, news.wait_for(|answered| *answered)).await {
            Ok(Ok(_)) => Ok(()),
            // Given back in the very moment: nobody says any more what it is.
            Ok(Err(_)) | Err(_) => Err(DemandError::Unanswered(name, patience)),
        }
    }

    /// Asks for a name that is remembered from now on.
    fn begin(&self, names: &mut Names, name: &Arc<str>, given_back: Vec<Arc<str>>) -> Result<(), DemandError> {
        if !given_back.is_empty() {
            self.source.give_back(given_back.iter().map(ToString::to_string).collect());
        }
        self.source.ask(name).map_err(|error| {
            names.forget(name);
            DemandError::NotAsked(name.clone(), error)
        })
    }

    /// Sees to it that the services that a DNS query may mean are known, as far as that is to be had in a moment: what is not
    /// the mesh's is others' to answer.
    pub(crate) async fn learn(&self, pod: &PodUid, names: &[String]) {
        self.hear_of(Whose::Queries(pod), names).await;
    }

    async fn hear_of(&self, whose: Whose<'_>, names: &[String]) {
        if !self.source.is_there() {
            return;
        }
        names.iter().for_each(|name| self.touch(whose, name, false));
        let all = async {
            for name in names {
                let _ = self.ask(whose, name, None, BRIEFLY).await;
            }
        };
        let _ = time::timeout(BRIEFLY, all).await;
    }

    /// Sees to it that who is at an address is known, as far as that is to be had in a moment: labels alone hang on it,
    /// and what the pod's own connections need loses no room to it.
    pub(crate) async fn meet(&self, pod: &PodUid, mesh: &Mesh, address: &NetworkAddress) {
        let name = named(&address.network, address.ip);
        match mesh.workload_by_address(address) {
            Some(_) => self.touch(Whose::Peers(pod), &name, true),
            None => self.hear_of(Whose::Peers(pod), &[name]).await,
        }
    }

    /// A pod's connection needs a name, and what the snapshot knows of it is gone by; `known` where it knows it. It is asked for if it
    /// never was, so that it is kept up to date.
    pub(crate) fn needs(&self, pod: &PodUid, name: &str, known: bool) {
        self.touch(Whose::Connections(pod), name, known);
    }

    fn touch(&self, whose: Whose<'_>, name: &str, known: bool) {
        let is_there = self.source.is_there();
        let mut names = self.names();
        let (name, need) = names.need(whose, name, None, is_there, clock::steady());
        if let Need::Ask(given_back) = need
            && self.begin(&mut names, &name, given_back).is_ok()
            && known
        {
            names.answered(&name);
        }
    }

    /// These are answered: by the snapshot that is published now.
    pub(crate) fn answered(&self, answered: &[Arc<str>]) {
        let mut names = self.names();
        for name in answered {
            names.answered(name);
        }
    }

    /// What is needed whoever asks for it: what the mesh says of the pod that this process runs in, and what this node's own pods are
    /// reached by as long as they are here.
    fn keep(&self, config: &Config, now: Option<&Snapshot>) {
        if let Some(own) = &config.own_pod {
            self.touch(Whose::Node, config.workload_of_pod(&own.namespace, &own.name).as_str(), false);
        }
        let Some(now) = now else { return };
        for workload in now.mesh.workloads_of_node(&config.node) {
            for membership in &workload.services {
                let known = now.mesh.service(&membership.service).is_some();
                self.touch(Whose::Node, &membership.service.to_string(), known);
            }
        }
    }

    /// Gives back what nobody needs any more, for as long as it is polled. `keep` says at the beginning, and each time, what is needed.
    async fn sweep(&self, keep: impl Fn(&Self)) {
        loop {
            keep(self);
            time::sleep(BETWEEN_SWEEPS).await;
            self.give_back_idle(clock::steady());
        }
    }

    fn give_back_idle(&self, now: Instant) {
        let is_there = self.source.is_there();
        // Held until it is given back: whoever needs a name anew meanwhile must not ask for it before that.
        let mut names = self.names();
        let idle = names.sweep(is_there, now);
        if !idle.is_empty() {
            tracing::debug!(count = idle.len(), "names that nobody has needed for a while are given back");
            self.source.give_back(idle.iter().map(ToString::to_string).collect());
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps what is needed always, and gives back what nobody needs any more. Never ends.
pub(crate) async fn give_back(shared: Arc<Shared>) {
    match &shared.demand {
        Some(demand) => {
            demand
                .sweep(|demand| demand.keep(&shared.config, shared.state.current().as_deref()))
                .await
        }
        None => std::future::pending().await,
    }
}

/// One who waits.
struct Place<'a>(&'a Demand, Account);

impl<'a> Place<'a> {
    fn take(demand: &'a Demand, whose: Whose<'_>) -> Option<Self> {
        let account = whose.account();
        let room = demand.names().wait(&account);
        room.then_some(Self(demand, account))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self(demand, account) = self;
        demand.names().leave(account);
    }
}

/// The name of what is at a connection's destination.
pub(crate) fn destination(asked: &Outbound<'_>) -> String {
    named(&asked.source.network, asked.destination.ip())
}

/// How the control plane is asked for an address.
fn named(network: &Network, ip: IpAddr) -> String {
    format!("{}/{}", network.as_str(), ip.to_canonical())
}

/// What a route hangs on that the snapshot does not know, by its name; it may be known not to be there.
pub(crate) fn needed(mesh: &Mesh, asked: &Outbound<'_>, route: &Route) -> Option<String> {
    match route {
        Route::Go(Plan::Passthrough(to)) => {
            let address = NetworkAddress::new(asked.source.network.clone(), to.ip());
            let known = mesh.service_by_vip(&address, &asked.source.namespace).is_some() || mesh.workload_by_address(&address).is_some();
            // What stays on the host's own loopback is nobody's.
            (!known && !to.ip().is_loopback()).then(|| destination(asked))
        }
        Route::Refuse(Refusal::NoWaypoint(target) | Refusal::NoGateway(target)) => Some(name_of(target)),
        Route::Refuse(Refusal::NoEndpoint(service)) => Some(service.to_string()),
        _ => None,
    }
}

fn name_of(target: &GatewayTarget) -> String {
    match target {
        GatewayTarget::Hostname(name) => name.to_string(),
        GatewayTarget::Address(address) => named(&address.network, address.ip),
    }
}

/// The services that a DNS name may be, as a client in a namespace means it: of the cluster's names the namespace is in
/// them, and others are looked for in the client's own.
pub(crate) fn service_names(hostnames: &[String], namespace: &str, cluster_domain: &str) -> Vec<String> {
    let suffix = format!(".svc.{cluster_domain}");
    let mut names = Vec::new();
    for hostname in hostnames {
        let Some(before) = hostname.strip_suffix(&suffix) else {
            names.push(format!("{namespace}/{hostname}"));
            continue;
        };
        let Some((service, of)) = before.rsplit_once('.') else { continue };
        names.push(format!("{of}/{hostname}"));
        // The name of a pod may stand before it.
        if let Some((_, service)) = service.split_once('.') {
            names.push(format!("{of}/{service}.{of}{suffix}"));
        }
    }
    names
}
