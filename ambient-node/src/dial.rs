//! Dialling other nodes' proxies, from the namespace of the pod that speaks.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ambient_hbone::{BoxFuture, BoxedIo, Dial, Speaker, SpeakerKey};
use ambient_redirect::linux::{Netns, Sockets};

/// Opens a pod's tunnels where the pod stands.
#[derive(Debug)]
pub(crate) struct Dialler {
    sockets: Sockets,
    timeout: Duration,
    namespaces: RwLock<HashMap<SpeakerKey, Arc<Netns>>>,
}

impl Dialler {
    pub(crate) fn new(sockets: Sockets, timeout: Duration) -> Self {
        Self {
            sockets,
            timeout,
            namespaces: RwLock::default(),
        }
    }

    /// A pod that may speak from now on.
    pub(crate) fn add(&self, speaker: &SpeakerKey, namespace: Arc<Netns>) {
        self.namespaces
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(speaker.clone(), namespace);
    }

    /// A pod that is gone.
    pub(crate) fn remove(&self, speaker: &SpeakerKey) {
        self.namespaces.write().unwrap_or_else(PoisonError::into_inner).remove(speaker);
    }
}

impl Dial for Dialler {
    fn dial<'a>(&'a self, speaker: &'a Speaker, peer: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let namespace = self
                .namespaces
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&speaker.key)
                .cloned();
            let namespace = namespace.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pod has left this node"))?;
            let stream = self.sockets.tcp_connect(&namespace, None, peer, self.timeout).await?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}
