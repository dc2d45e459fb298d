//! What an embedder gives: pods, a proxy, and a place to announce what is captured.

use std::{fmt, future::Future, io, net::IpAddr, pin::Pin, sync::Arc};

use ambient_core::{Capture, PodUid};

use crate::linux::Netns;

/// A future that can be sent and held behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A pod that is meant to be in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Its UID: the pod's identity together with its network namespace's.
    pub uid: PodUid,
    /// Its Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// All its addresses; by them its network namespace is found.
    pub addresses: Vec<IpAddr>,
    /// What it asks of its capture; a change of it is followed while the pod runs.
    pub capture: Capture,
    /// Whether something may have run in it. `false` where its status says that nothing has: found so, and with no TCP socket in
    /// its namespace, it is [new](crate::pods::Birth::New). `true` is never wrong.
    pub has_run: bool,
}

impl fmt::Display for PodSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.namespace, self.name, self.uid)
    }
}

/// What serves a pod's connections.
pub trait Proxy: Send + Sync {
    /// Begins to serve a pod; when the answer is `Ok`, all listeners of the pod's plan are up in its namespace.
    ///
    /// Called again for a pod that it serves already when one of its listeners was found missing, or when it is to stay although
    /// it was [drained](Proxy::drain): it then brings up what is missing; and when its Kubernetes namespace or service account
    /// is another: it then serves it as who it is now; and when what it asks of its capture is another.
    ///
    /// # Cancel safety
    /// The future is dropped when it takes longer than [`Config::patience`](crate::Config::patience). It is called again later, or
    /// [`Proxy::remove`] is: both must find what was begun.
    fn add<'a>(&'a self, pod: &'a PodSpec, namespace: Arc<Netns>) -> BoxFuture<'a, Result<(), ProxyError>>;

    /// Lets a pod's captured connections come to their end: takes what still comes until nothing has come for 100 ms, closes
    /// the TCP listeners then, and ends when nothing that was captured is open any more. DNS is answered until
    /// [`Proxy::remove`].
    ///
    /// Called once new connections go around the proxy, which takes at most some milliseconds to be so everywhere. The future
    /// is dropped after a short while and begun anew until it ends or the time is up ([`Config::drain`](crate::Config::drain)); a
    /// pod that is to stay after all is [added](Proxy::add) again meanwhile, and its listeners must then be up again.
    ///
    /// A proxy that cannot tell leaves it as it is: the pod's connections to the proxy's ports are then counted as the kernel
    /// lists them, and the listeners stay until [`Proxy::remove`].
    fn drain<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Drained> {
        let _ = uid;
        Box::pin(async { Drained::Unseen })
    }

    /// Resets every connection that a pod has open and takes no other: its TCP listeners are closed. DNS is answered until
    /// [`Proxy::remove`]. What translates connections is taken away when the future ends: whatever is open by then loses its
    /// redirection, so that its peer hears no more of it and its bytes go out as they are.
    ///
    /// Called once the pod's connections have ended, or had the time to, also for pods that were never added successfully;
    /// [`Proxy::remove`] follows.
    ///
    /// # Cancel safety
    /// The future is dropped when it takes longer than [`Config::patience`](crate::Config::patience), and begun again later.
    fn cut<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()>;

    /// Ends to serve a pod, and lets go of its namespace. Called also for pods that were never added successfully.
    ///
    /// # Cancel safety
    /// As of [`Proxy::cut`].
    fn remove<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()>;
}

/// What a proxy knows of the connections that it was to let end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Drained {
    /// All have ended, and no other is taken.
    Done,
    /// It cannot tell.
    Unseen,
}

/// Why a proxy cannot serve a pod: what failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ProxyError {
    /// What was being done, such as `listening on port 15001`.
    pub what: String,
    /// Why it failed. By its kind it is told what to do: `PermissionDenied` where a right is missing, `AddrInUse` where a port is another's,
    /// `NotConnected` where what serves is not there ([`Cause`](crate::pods::Cause)).
    pub source: io::Error,
}

/// Where it stands which pods are captured, for other nodes to see.
pub trait Announce: Send + Sync {
    /// The pods that an earlier process announced and did not take back: what is among them and not to be captured any more is
    /// [withdrawn](Self::withdrawn), also where nothing is left of it. Asked when it is first known which pods are meant to be in
    /// the mesh, before anything is done to any; where the answer is `None`, whenever that changes, until there is another.
    ///
    /// `None` says that it is not known here: where announcements go to a control plane, the mesh's state alone tells what has
    /// become of them.
    fn announced(&self) -> Option<Vec<PodUid>> {
        Some(Vec::new())
    }

    /// Says that a pod is captured; durable when the future ends. Called after proof; again only after
    /// [`withdrawn`](Self::withdrawn), or when it failed, or by the next process, or where the mesh's state, which is to tell of it
    /// ([`announced`](Self::announced) is `None`), does not: to say the same again must do no harm. An error of the kind
    /// `HostUnreachable` says that whoever keeps it was not reached, and so has refused nothing.
    fn captured<'a>(&'a self, pod: &'a PodSpec) -> BoxFuture<'a, io::Result<()>>;

    /// Takes that back; durable when the future ends, and the rules are taken away only then. Called also for a UID that was
    /// never announced by this process: an earlier one may have done so.
    fn withdrawn<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, io::Result<()>>;

    /// What to do where either fails, for people.
    fn remedy(&self) -> &'static str {
        "it is tried again by itself; the node's log says how it goes on"
    }
}
