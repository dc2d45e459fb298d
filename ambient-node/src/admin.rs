//! The node's own pages: metrics for Prometheus, readiness for the kubelet, and the admin pages for whoever may reach the
//! node's loopback.
//!
//! **To add a page**, write `fn(&Context, &Asked) -> Answer` in a file of `admin/` and give it a line in
//! [`routes::ADMIN`]. It runs on a thread that may block, and sees the node through its [`Context`]. What is long is
//! written piece by piece ([`Answer::stream`]), so that no page needs memory that grows with the mesh; what changes the
//! node takes POST alone ([`Takes::Post`]).
//!
//! All pages have a thread of their own: none is waited for by what carries connections.

mod answer;
mod dump;
mod explain;
mod listen;
mod log_level;
mod pods;
mod probes;
mod routes;
mod serve;
mod stop;

use std::sync::Arc;

use ambient_redirect::{pods::PodState, probes::ProbesState};
use tokio::sync::watch;

use crate::{Shared, pods::Pods};

pub(crate) use answer::{Answer, Asked, Out};
pub(crate) use listen::{Doors, Given, OpenError};
pub(crate) use serve::Pages;
pub(crate) use stop::{Stop, Urgency};

/// What a page may look at.
#[derive(Debug)]
pub(crate) struct Context {
    /// State, certificates, metrics, configuration.
    pub(crate) node: Arc<Shared>,
    /// The pods that are served, whoever has captured them.
    pub(crate) pods: Arc<Pods>,
    /// How far each pod of this node is with its capture.
    pub(crate) captures: watch::Receiver<Arc<[PodState]>>,
    /// How it stands with the kubelet's probes; `None` where they are let through nowhere.
    pub(crate) probes: Option<watch::Receiver<ProbesState>>,
    /// Tells the node to stop.
    pub(crate) stop: Stop,
}

/// A page: where it is, how it is asked for, and what answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// The whole path.
    pub(crate) path: &'static str,
    /// How it is asked for.
    pub(crate) takes: Takes,
    /// What it is, for the index and for who asks in another way.
    pub(crate) about: &'static str,
    /// Gives the answer; may block.
    pub(crate) answer: fn(&Context, &Asked) -> Answer,
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
