//! Who is at the other end of a connection: a stranger at first, then a node, for as long as what it has shown is good.

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::Status;

use super::{
    admission::Caller,
    grpc::Shared,
    per_node::{OneOf, PerNode},
    strangers::Stranger,
    streams::{LEAST_LOOK, LONGEST_LOOK, PARTING},
};
use crate::istiod::now;

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Guest {
    stranger: Stranger,
    connections: PerNode,
    /// As what it was admitted last.
    known: watch::Sender<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    caller: Caller,
    /// Its node's place.
    _place: OneOf,
}

impl Guest {
    /// Nobody yet; `connections` are those of all nodes.
    pub(super) fn new(stranger: Stranger, connections: PerNode) -> Self {
        Self {
            stranger,
            connections,
            known: watch::channel(None).0,
        }
    }

    /// Whether nothing has said so far that it is a node.
    pub(super) fn is_stranger(&self) -> bool {
        self.stranger.is_stranger()
    }

    /// It was admitted, and takes one of its node's places where it had none. `false` where its node has all of them: then it
    /// stays what it was.
    pub(super) fn is_known(&self, caller: &Caller) -> bool {
        let mut has_place = true;
        self.known.send_if_modified(|known| match known {
            Some(known) if known.caller.node == caller.node => {
                let other = known.caller.proof != caller.proof;
                if other {
                    known.caller = caller.clone();
                }
                other
            }
            _ => match self.connections.one_more(&caller.node) {
                Some(_place) => {
                    let caller = caller.clone();
                    *known = Some(Known { caller, _place });
                    true
                }
                None => {
                    has_place = false;
                    false
                }
            },
        });
        if has_place {
            self.stranger.is_known();
        }
        has_place
    }

    /// Ends once what it was admitted by last is no longer good, and gives its node and why.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn known_no_more(&self, shared: &Shared) -> (String, Status) {
        let (mut known, mut admission) = (self.known.subscribe(), shared.admission.subscribe());
        loop {
            let caller = known.borrow_and_update().as_ref().map(|known| known.caller.clone());
            let Some(caller) = caller else {
                // Its sender is here.
                let _ = known.changed().await;
                continue;
            };
            if let Err(why) = shared.door.still(&caller, now()) {
                // What is open on it gets a moment to hear why. Who has shown something else by then goes on.
                if timeout(PARTING, known.changed()).await.is_err() {
                    return (caller.node, why);
                }
                continue;
            }
            // By the wall clock, which may be set: never long.
            let good = caller.good_for(now()).clamp(LEAST_LOOK, LONGEST_LOOK);
            tokio::select! {
                _ = known.changed() => {}
                _ = admission.changed() => {}
                () = sleep(good) => {}
            }
        }
    }
}
