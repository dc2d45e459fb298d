//! A node in the making.

use std::{io, net::TcpListener, panic::AssertUnwindSafe, sync::Arc};

use ambient_control::{Issuer, Source};
use ambient_core::{Observer, observe::Event};
use ambient_redirect::{Announce, PodSpec};

use crate::{
    AnnounceNothing, Config, Ground, Node, StartError,
    admin::Given,
    embed::Listener,
    node::{Parts, Told},
    telemetry::Metrics,
};

/// What a [`Builder`] still has to be told. Of no use elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Unset;

/// A page of the node, as far as it has a listener of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Page {
    /// `/metrics`.
    Metrics,
    /// `/healthz/ready`.
    Readiness,
    /// The admin pages. A listener on a loopback address.
    Admin,
}

/// A [`Node`] in the making: what it is composed of. A source of state and an issuer of certificates are needed, and the types
/// see to it that they are there; everything else has a default.
///
/// ```
/// # use ambient_control::{BoxFuture, Batch, Issuer, Source};
/// # async fn example(source: impl Source + 'static, issuer: impl Issuer + 'static) -> Result<(), Box<dyn std::error::Error>> {
/// use ambient_node::{Config, Node};
///
/// let node = Node::builder(Config::new("node-1", "/run/netns")).source(source).issuer(issuer).build().await?;
/// let running = node.spawn();
/// running.ready().await;
/// running.drain();
/// running.join().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until it builds"]
pub struct Builder<S = Unset, I = Unset> {
    base: Base,
    source: S,
    issuer: I,
    announce: Arc<dyn Announce>,
    observer: Option<Arc<dyn Observer>>,
    pages: Given,
    pods: Vec<(PodSpec, Arc<dyn Listener>)>,
}

/// What it stands on.
enum Base {
    Config(Box<Config>),
    /// Checked already.
    Ground(Box<Ground>),
}

impl<S, I> std::fmt::Debug for Builder<S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl Node {
    /// A node in the making, that is configured so.
    pub fn builder(config: Config) -> Builder {
        Builder::on(Base::Config(config.into()))
    }
}

impl Ground {
    /// A node in the making on it: for who must know that it stands before anything else is made, such as a certificate
    /// authority.
    pub fn builder(self) -> Builder {
        Builder::on(Base::Ground(self.into()))
    }
}

impl Builder {
    fn on(base: Base) -> Self {
        Self {
            base,
            source: Unset,
            issuer: Unset,
            announce: Arc::new(AnnounceNothing),
            observer: None,
            pages: Given::default(),
            pods: Vec::new(),
        }
    }
}

impl<S, I> Builder<S, I> {
    /// Where the state of the mesh comes from.
    pub fn source(self, source: impl Source + 'static) -> Builder<Box<dyn Source>, I> {
        Builder {
            base: self.base,
            source: Box::new(source),
            issuer: self.issuer,
            announce: self.announce,
            observer: self.observer,
            pages: self.pages,
            pods: self.pods,
        }
    }

    /// Where certificates come from. An [`Arc`] of an issuer is one, for whoever uses it too.
    pub fn issuer(self, issuer: impl Issuer + 'static) -> Builder<S, Arc<dyn Issuer>> {
        Builder {
            base: self.base,
            source: self.source,
            issuer: Arc::new(issuer),
            announce: self.announce,
            observer: self.observer,
            pages: self.pages,
            pods: self.pods,
        }
    }

    /// Who tells the other nodes which pods are captured here; by default nobody does.
    pub fn announce(mut self, announce: Arc<dyn Announce>) -> Self {
        self.announce = announce;
        self
    }

    /// Somebody who is told what happens, besides the log and the metrics. Called on the data path, so that it must not block;
    /// one that panics is told of nothing more, and harms nothing.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// A listener that a page is served at, in the place of the address in [`Config`]: one that was opened before rights were
    /// given up, or was handed over by whoever started the process. A node on a [`Ground`] takes none: that has opened all of them.
    pub fn page(mut self, page: Page, listener: TcpListener) -> Self {
        match page {
            Page::Metrics => self.pages.metrics = Some(listener),
            Page::Readiness => self.pages.readiness = Some(listener),
            Page::Admin => self.pages.admin = Some(listener),
        }
        self
    }

    /// A pod that is served at a listener of the embedder's, in the network namespace of this process. Where there is any, the
    /// node captures none itself, and [`Config::netns_dir`] is not looked at.
    ///
    /// It speaks for the workload of the mesh whose [`Workload::pod`](ambient_core::Workload::pod) is the pod's UID, of the
    /// service account that both name. Its connections are refused while the source tells of none: each after the five seconds in
    /// which it may come still, and in the log once. That the names or addresses are alike is not enough.
    ///
    /// # Rights
    /// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` in that namespace, as for pods that are captured: connections are made from the
    /// addresses of those for whom they are made, and bear the proxy's mark. A user namespace of one's own gives both.
    pub fn pod(mut self, pod: PodSpec, listener: impl Listener) -> Self {
        self.pods.push((pod, Arc::new(listener)));
        self
    }
}

impl Builder<Box<dyn Source>, Arc<dyn Issuer>> {
    /// Checks what the node needs, takes its ports and starts its threads. Touches no pod; [`Node::run`] or [`Node::spawn`] does.
    ///
    /// # Errors
    /// When something that it needs is missing; the error says what to do. Nothing is left behind then.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has time and I/O (`enable_all`).
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn build(self) -> Result<Node, StartError> {
        let ground = match self.base {
            Base::Ground(ground) => match self.pages.any() {
                Some(page) => return Err(StartError::OpenedAlready(page)),
                None => *ground,
            },
            Base::Config(config) if self.pods.is_empty() => Ground::with_pages(*config, self.pages).await?,
            Base::Config(config) => Ground::without_capture(*config, self.pages).await?,
        };
        let metrics = Arc::new(Metrics::default());
        let told = Told(Some(metrics.clone()));
        let observer: Arc<dyn Observer> = match self.observer {
            None => Arc::new(told),
            Some(theirs) => {
                let theirs: Arc<dyn Observer> = Arc::new(Guarded::new(theirs));
                metrics.tell(theirs.clone());
                Arc::new(Both(told, theirs))
            }
        };
        let parts = Parts {
            source: self.source,
            issuer: self.issuer,
            announce: self.announce,
            observer,
            metrics,
            pods: self.pods,
        };
        Node::compose(ground, parts).await
    }
}

/// Tells two.
struct Both(Told, Arc<dyn Observer>);

impl Observer for Both {
    fn observe(&self, event: &Event<'_>) {
        self.0.observe(event);
        self.1.observe(event);
    }
}

/// An observer of somebody else's: what it does wrong must harm no connection.
struct Guarded {
    observer: Arc<dyn Observer>,
    failed: std::sync::atomic::AtomicBool,
}

impl Guarded {
    fn new(observer: Arc<dyn Observer>) -> Self {
        Self {
            observer,
            failed: false.into(),
        }
    }
}

impl Observer for Guarded {
    fn observe(&self, event: &Event<'_>) {
        use std::sync::atomic::Ordering::Relaxed;
        if self.failed.load(Relaxed) {
            return;
        }
        // What it leaves half done is its own, and it is not asked again.
        let observed = std::panic::catch_unwind(AssertUnwindSafe(|| self.observer.observe(event)));
        if observed.is_err() && !self.failed.swap(true, Relaxed) {
            tracing::error!("the observer that was given has panicked; it is told of nothing more");
        }
    }
}

/// Why listeners that were given cannot be used.
pub(crate) fn unblock(listener: TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn an_observer_that_panics_is_asked_once() {
        struct Panics(Arc<AtomicU32>);
        impl Observer for Panics {
            fn observe(&self, _: &Event<'_>) {
                self.0.fetch_add(1, Ordering::Relaxed);
                panic!("as an observer should not");
            }
        }
        let asked = Arc::new(AtomicU32::new(0));
        let guarded = Guarded::new(Arc::new(Panics(asked.clone())));
        for _ in 0..3 {
            guarded.observe(&Event::PodReleased {
                pod: &"uid".into(),
                lost: false,
            });
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
