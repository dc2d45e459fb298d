//! Changes of namespaces, as the kernel tells them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_blocking},
};

use crate::{
    linux::{Netns, NetnsId, Own, Told},
    netlink::Events,
};

/// The namespaces in which something has changed: each once, however often.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    changed: Mutex<BTreeSet<NetnsId>>,
    notify: Notify,
}

impl Changes {
    pub(super) async fn wait(&self) {
        self.0.notify.notified().await;
    }

    pub(super) fn take(&self) -> BTreeSet<NetnsId> {
        std::mem::take(&mut self.0.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, id: NetnsId) {
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.0.notify.notify_one();
    }
}

/// Watches one namespace from [`Watch::start`] until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    id: NetnsId,
    changes: Changes,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Watch {
    pub(super) fn new(id: NetnsId, changes: Changes) -> Self {
        Self {
            id,
            changes,
            tasks: Mutex::default(),
        }
    }

    /// Begins to watch, unless it does.
    pub(super) async fn start(&self, namespace: &Arc<Netns>) -> Result<(), String> {
        {
            let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            if !tasks.is_empty() && tasks.iter().all(|t| !t.is_finished()) {
                return Ok(());
            }
        }
        let own = namespace.own().clone();
        let namespace = namespace.clone();
        let open = spawn_blocking(move || namespace.run(|| Ok([Events::nftables()?, Events::routing()?])));
        let events = open.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let events: [Events; 2] = events.map_err(|e: crate::netlink::Error| e.to_string())?;
        let mut tasks = Vec::new();
        for events in events {
            let told = Told::new(events).map_err(|e| e.to_string())?;
            tasks.push(tokio::spawn(follow(told, self.id, self.changes.clone())).abort_handle());
        }
        tasks.push(tokio::spawn(follow_proxy(own, self.id, self.changes.clone())).abort_handle());
        let former = std::mem::replace(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner), tasks);
        former.iter().for_each(AbortHandle::abort);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .for_each(AbortHandle::abort);
    }
}

async fn follow(mut told: Told, id: NetnsId, changes: Changes) {
    while told.changed().await.is_ok() {
        changes.note(id);
    }
}

async fn follow_proxy(own: Arc<Own>, id: NetnsId, changes: Changes) {
    loop {
        own.listener_lost().await;
        changes.note(id);
    }
}
