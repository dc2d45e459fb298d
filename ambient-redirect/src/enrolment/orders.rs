//! What others ask of a running enrolment: to take a new pod's namespace, to close what was kept.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use ambient_core::PodUid;

use crate::{PodSpec, linux::Netns, pods::Kept};

/// Hands the namespaces of new pods over, before anything runs in them.
#[derive(Clone, Debug)]
pub struct HandOver(pub(super) mpsc::Sender<Order>);

/// Closes connections that were kept.
#[derive(Clone, Debug)]
pub struct KeptConnections(pub(super) mpsc::Sender<Order>);

/// Why a namespace was not taken; nothing was done to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// It is another pod's, or the pod has another, as what stood there before is still being let go: asked again a moment later
    /// it may be taken.
    #[error("the namespace of {pod} is not taken yet: {why}")]
    Passing {
        /// The pod.
        pod: Box<PodSpec>,
        /// Why.
        why: String,
    },
    /// It is another pod's, or the node's own, or the pod has another: to ask again is of no use.
    #[error("the namespace of {pod} is not taken: {why}")]
    Refused {
        /// The pod.
        pod: Box<PodSpec>,
        /// Why.
        why: String,
    },
    /// The pod's TCP is not refused: what was to do so failed, and is tried again.
    #[error("the TCP of {pod} cannot be refused: {why}; start nothing in it")]
    Open {
        /// The pod.
        pod: Box<PodSpec>,
        /// Why.
        why: String,
    },
    /// Nobody enrols any more.
    #[error("the enrolment of this node has ended")]
    Ended,
}

#[derive(Debug)]
pub(super) enum Order {
    Take {
        pod: Box<PodSpec>,
        namespace: Arc<Netns>,
        answer: oneshot::Sender<Result<(), HandOverError>>,
    },
    Close {
        uid: PodUid,
        connections: Vec<Kept>,
        answer: oneshot::Sender<usize>,
    },
}

impl HandOver {
    /// Hands a new pod's namespace over. When it ends well, the pod's TCP is refused with a reset, until it is captured and
    /// that is proven; or until it turns out, within half a minute, that the pod is not meant to be in the mesh.
    ///
    /// The caller has to know that nothing runs in the namespace yet: what does would be refused as well. A pod that is not
    /// handed over is found by its address, and joins as one that runs, unless its status says that nothing has run in it: see
    /// [`ExistingConnections`](super::ExistingConnections) and [`PodSpec::has_run`].
    ///
    /// # Errors
    /// Where the namespace is another pod's, or the rules cannot be put in force. Nothing may be started in it then. Only
    /// [`HandOverError::Passing`] passes by itself.
    ///
    /// # Cancel safety
    /// The namespace may be taken although the future was dropped.
    pub async fn take(&self, pod: PodSpec, namespace: Arc<Netns>) -> Result<(), HandOverError> {
        let (answer, answered) = oneshot::channel();
        let pod = Box::new(pod);
        let order = Order::Take { pod, namespace, answer };
        self.0.send(order).await.map_err(|_| HandOverError::Ended)?;
        answered.await.unwrap_or(Err(HandOverError::Ended))
    }
}

impl KeptConnections {
    /// Closes connections of a pod that were kept, with a reset to both ends, and gives how many there were to close. One
    /// that has ended meanwhile is none, whoever has its addresses now.
    ///
    /// # Cancel safety
    /// They may be closed although the future was dropped.
    pub async fn close(&self, uid: PodUid, connections: Vec<Kept>) -> usize {
        let (answer, answered) = oneshot::channel();
        let order = Order::Close { uid, connections, answer };
        if self.0.send(order).await.is_err() {
            return 0;
        }
        answered.await.unwrap_or(0)
    }
}

/// Orders that wait to be looked at: whoever gives more waits.
pub(super) const ORDERS: usize = 64;
