//! Counts what becomes of a pod's queries.

use std::sync::{Arc, Mutex, PoisonError};

use ambient_core::PodUid;
use ambient_dns::observe::{Event, Observer};

use crate::{Shared, telemetry::DnsSource};

/// Counts for one pod. Its series go when it is dropped, unless another pod of the same service goes on with them.
pub(super) struct Count {
    node: Arc<Shared>,
    pod: PodUid,
    source: Mutex<Option<DnsSource>>,
}

impl Count {
    pub(super) fn new(node: Arc<Shared>, pod: PodUid) -> Self {
        Self {
            node,
            pod,
            source: Mutex::default(),
        }
    }
}

impl Observer for Count {
    fn observe(&self, event: &Event) {
        let metrics = &self.node.metrics.dns;
        let now = self.node.state.current();
        let workload = now.as_ref().and_then(|now| now.mesh.workload_by_pod(&self.pod));
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        // A workload that is gone meanwhile leaves what it was called.
        if let Some(workload) = workload
            && !source.as_ref().is_some_and(|source| source.is_of(workload))
        {
            let new = metrics.source(workload);
            if let Some(old) = source.replace(new) {
                metrics.release(&old);
            }
        }
        metrics.count(source.as_ref(), event);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if let Some(source) = self.source.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            self.node.metrics.dns.release(&source);
        }
    }
}
