//! The node's own pages: metrics for Prometheus, readiness for the kubelet, and the admin pages for whoever may reach the
//! node's loopback.
//!
//! **To add a page**, write `fn(&Context, &Asked) -> Answer` in a file of `admin/` and give it a line in
//! [`routes`]. It runs on a thread that may block, and sees the node through its [`Context`]; what concerns capture alone takes
//! any [`Site`], as an enrolment without a proxy has pages too. What is long is
//! written piece by piece ([`Answer::stream`]), so that no page needs memory that grows with the mesh; what changes the
//! node takes POST alone ([`Takes::Post`]).
//!
//! All pages have a thread of their own: none is waited for by what carries connections.

mod answer;
mod clients;
mod dump;
mod explain;
mod listen;
mod log_level;
mod pods;
mod probes;
mod routes;
mod serve;
mod stop;

use std::{fmt, sync::Arc};

use ambient_core::{PodUid, Workload};
use ambient_redirect::{linux::Netns, plan::Options, pods::PodState, probes::ProbesState, zds::ClientState};
use tokio::sync::watch;

use crate::{Shared, certificates::Flaw, lookup::Places, pods::Pods, state::State, telemetry::Metrics};

pub(crate) use answer::{Answer, Asked, Out};
pub(crate) use listen::{At, Doors, Given, OpenError, otherwise};
pub(crate) use serve::Pages;
pub(crate) use stop::{Stop, Urgency};

/// What pages are served of: what they look at, and which there are.
pub(crate) trait Site: Send + Sync + Sized + 'static {
    /// For who is on the node.
    const ADMIN: &'static [Route<Self>];
    /// For Prometheus.
    const METRICS: &'static [Route<Self>];
    /// For the kubelet.
    const READINESS: &'static [Route<Self>];

    /// How it stands with the node's pods.
    fn standing(&self) -> &Standing;
}

/// What a page of a node may look at.
#[derive(Debug)]
pub(crate) struct Context {
    /// State, certificates, metrics, configuration.
    pub(crate) node: Arc<Shared>,
    /// The pods that are served, whoever has captured them.
    pub(crate) pods: Arc<Pods>,
    /// Places for the look-ups of pages: none of a pod's are taken.
    pub(crate) lookups: Arc<Places>,
    pub(crate) standing: Standing,
}

/// Gives what is wrong with the certificate that a pod is served with.
pub(crate) type Doubt = Box<dyn Fn(&PodUid) -> Option<Flaw> + Send + Sync>;
/// Gives the UID by which a workload is to be served, where that is known of somebody else than the mesh.
pub(crate) type Named = Box<dyn Fn(&Workload) -> Option<PodUid> + Send + Sync>;
/// Gives the namespace that a pod is served in.
pub(crate) type Served = Box<dyn Fn(&PodUid) -> Option<Arc<Netns>> + Send + Sync>;

/// How it stands with a node's pods, whoever serves them.
pub(crate) struct Standing {
    /// The node's name.
    pub(crate) node: Arc<str>,
    pub(crate) state: Arc<State>,
    pub(crate) metrics: Arc<Metrics>,
    /// What is captured, of pods that ask nothing else.
    pub(crate) capture: Options,
    /// How far each pod of this node is with its capture; `None` where that is an agent's of others.
    pub(crate) captures: Option<watch::Receiver<Arc<[PodState]>>>,
    /// How it stands with that agent; `None` where there is none.
    pub(crate) agent: Option<watch::Receiver<ClientState>>,
    /// How it stands with the kubelet's probes; `None` where they are let through nowhere.
    pub(crate) probes: Option<watch::Receiver<ProbesState>>,
    /// Whether the proxy is in this process, so that it is known what pods have open.
    pub(crate) proxied: bool,
    /// The UID of a workload's pod, as whoever hands pods over tells it.
    pub(crate) named: Named,
    /// The namespace that a pod is served in.
    pub(crate) namespace: Served,
    /// What is wrong with the certificate that a pod is served with.
    pub(crate) doubt: Doubt,
    /// What to do where captures cannot be announced.
    pub(crate) unannounced: &'static str,
    /// Tells the node to stop.
    pub(crate) stop: Stop,
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("node", &self.node).finish_non_exhaustive()
    }
}

/// A page: where it is, how it is asked for, and what answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<C> {
    /// The whole path.
    pub(crate) path: &'static str,
    /// How it is asked for.
    pub(crate) takes: Takes,
    /// What it is, for the index and for who asks in another way.
    pub(crate) about: &'static str,
    /// Gives the answer; may block.
    pub(crate) answer: fn(&C, &Asked) -> Answer,
}

/// How a page is asked for. GET never changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// It only tells.
    Get,
    /// It changes something.
    Post,
    /// It tells when it is read, and changes something when it is posted to.
    Both,
}
