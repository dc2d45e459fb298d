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
    following: Mutex<Following>,
}

#[derive(Debug, Default)]
struct Following {
    tasks: Vec<AbortHandle>,
    told: Vec<Arc<Told>>,
    /// How often it was begun.
    begun: u64,
}

impl Following {
    fn goes_on(&self) -> bool {
        !self.tasks.is_empty() && self.tasks.iter().all(|task| !task.is_finished())
    }
}

/// What was told of a namespace until some moment: compared with a later one it says whether anything changed in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    begun: u64,
    told: Vec<u64>,
}

impl Watch {
    pub(super) fn new(id: NetnsId, changes: Changes) -> Self {
        Self {
            id,
            changes,
            following: Mutex::default(),
        }
    }

    /// What was told so far, all that the kernel had to tell of; `None` where that is not known, or more has come that is looked
    /// at in a moment.
    pub(super) fn heard(&self) -> Option<Heard> {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let told = following.told.iter().map(|told| told.heard()).collect::<Option<_>>();
        following.goes_on().then_some(Heard {
            begun: following.begun,
            told: told?,
        })
    }

    /// Begins to watch, unless it does.
    pub(super) async fn start(&self, namespace: &Arc<Netns>) -> Result<(), String> {
        if self.following.lock().unwrap_or_else(PoisonError::into_inner).goes_on() {
            return Ok(());
        }
        let own = namespace.own().clone();
        let namespace = namespace.clone();
        let open = spawn_blocking(move || namespace.run(|| Ok([Events::nftables()?, Events::routing()?])));
        let events = open.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let events: [Events; 2] = events.map_err(|e: crate::netlink::Error| e.to_string())?;
        let mut following = Following::default();
        for events in events {
            let told = Arc::new(Told::new(events).map_err(|e| e.to_string())?);
            let follow = follow(told.clone(), self.id, self.changes.clone());
            following.tasks.push(tokio::spawn(follow).abort_handle());
            following.told.push(told);
        }
        let follow = follow_proxy(own, self.id, self.changes.clone());
        following.tasks.push(tokio::spawn(follow).abort_handle());
        let mut former = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        following.begun = former.begun + 1;
        std::mem::replace(&mut *former, following).tasks.iter().for_each(AbortHandle::abort);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let following = self.following.get_mut().unwrap_or_else(PoisonError::into_inner);
        following.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn follow(told: Arc<Told>, id: NetnsId, changes: Changes) {
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
