//! Changes of namespaces, as the kernel tells them.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{JoinHandle, spawn_blocking},
};

use crate::{
    linux::{NetnsId, Own, Told},
    netlink::{self, Events},
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

/// Lets go of sockets on a thread that may block: to close one of nftables' the kernel waits until what was deleted last in its
/// namespace is gone, for some grace periods of its own ([nft_rcv_nl_event]).
///
/// [nft_rcv_nl_event]: https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/net/netfilter/nf_tables_api.c
pub(super) fn close(sockets: impl Send + 'static) {
    if Handle::try_current().is_ok() {
        drop(spawn_blocking(move || drop(sockets)));
    }
}

/// Watches one namespace from [`Watch::begin`] until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    id: NetnsId,
    changes: Changes,
    following: Mutex<Following>,
}

#[derive(Debug, Default)]
struct Following {
    tasks: Vec<JoinHandle<()>>,
    told: Vec<Arc<Told>>,
    /// How often it was begun.
    begun: u64,
}

impl Following {
    fn goes_on(&self) -> bool {
        !self.tasks.is_empty() && self.tasks.iter().all(|task| !task.is_finished())
    }

    /// Ends it, and closes its sockets where that may take its time: see [`close`].
    fn end(self) {
        let Self { tasks, told, .. } = self;
        tasks.iter().for_each(JoinHandle::abort);
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            // Each has a socket in its hands until it has ended.
            for task in tasks {
                let _ = task.await;
            }
            close(told);
        });
    }
}

/// What was told of a namespace until some moment: compared with a later one it says whether anything changed in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Heard {
    begun: u64,
    told: [u64; 2],
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
        let [nftables, routing] = &following.told[..] else { return None };
        let told = [nftables.heard()?, routing.heard()?];
        following.goes_on().then_some(Heard {
            begun: following.begun,
            told,
        })
    }

    /// Whether it is watched.
    pub(super) fn goes_on(&self) -> bool {
        self.following.lock().unwrap_or_else(PoisonError::into_inner).goes_on()
    }

    /// What is to be watched, of the calling thread's namespace: what changes from here on is told.
    pub(super) fn subscribe() -> Result<[Events; 2], netlink::Error> {
        Ok([Events::nftables()?, Events::routing()?])
    }

    /// Watches these, and the proxy's listeners.
    pub(super) fn begin(&self, events: [Events; 2], own: Arc<Own>) -> io::Result<()> {
        let mut following = Following::default();
        for events in events {
            let told = Arc::new(Told::new(events)?);
            let follow = follow(told.clone(), self.id, self.changes.clone());
            following.tasks.push(tokio::spawn(follow));
            following.told.push(told);
        }
        let follow = follow_proxy(own, self.id, self.changes.clone());
        following.tasks.push(tokio::spawn(follow));
        let mut former = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        following.begun = former.begun + 1;
        std::mem::replace(&mut *former, following).end();
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        std::mem::take(self.following.get_mut().unwrap_or_else(PoisonError::into_inner)).end();
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
