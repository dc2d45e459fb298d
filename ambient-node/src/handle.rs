//! A node that runs on a task of its own, and how it is told what to do.

use std::time::Duration;

use tokio::{task::JoinHandle, time};

use crate::{
    Node, RunError,
    admin::{Stop, Urgency},
    readiness::Readiness,
};

/// Between two looks whether a node is ready.
const GLANCE: Duration = Duration::from_millis(10);

/// A node that runs. Dropped without [`Running::join`] it drains: what is open may go on until the deadline.
#[derive(Debug)]
pub struct Running {
    readiness: Readiness,
    stop: Stop,
    task: Option<JoinHandle<Result<(), RunError>>>,
}

impl Node {
    /// Runs it on a task of its own, on the present runtime: which does what [`Node::run`] does and should have little else to
    /// do, as it accepts connections.
    ///
    /// # Panics
    /// Outside of a runtime of tokio.
    pub fn spawn(self) -> Running {
        let (readiness, stop) = (self.readiness(), self.stop());
        let task = tokio::spawn(self.run(std::future::pending()));
        Running {
            readiness,
            stop,
            task: Some(task),
        }
    }
}

impl Running {
    /// Waits until the node is ready, as `/healthz/ready` says: the whole state of the mesh is here, no unreadable policy refuses
    /// everything, and with [`Config::zds`](crate::Config::zds) an agent has named all its pods and each is served. A node that stops is
    /// not ready, nor one whose remembered state has become too old. Also ends when the node has ended: [`Running::join`] then says
    /// why. Cancel safe.
    pub async fn ready(&self) {
        while !self.is_ready() && !self.is_over() {
            time::sleep(GLANCE).await;
        }
    }

    /// Whether it is ready now.
    pub fn is_ready(&self) -> bool {
        !self.is_over() && self.readiness.now().0
    }

    /// Why it is not ready, and what else is wrong, as `/healthz/ready` tells it.
    pub fn condition(&self) -> String {
        self.readiness.now().1
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells it to stop: nothing new is taken, peers are told, and what is open may go on for
    /// [`Config::drain`](crate::Config::drain). [`Running::join`] waits for that.
    pub fn drain(&self) {
        self.stop.tell(Urgency::Graceful);
    }

    /// Tells it to stop now: what is open is reset.
    pub fn shutdown(&self) {
        self.stop.tell(Urgency::Immediate);
    }

    /// Waits until it has ended, as it was told to or by itself.
    ///
    /// # Errors
    /// When a part of the node has failed.
    ///
    /// # Cancel safety
    /// Dropping the future has the node drain.
    pub async fn join(mut self) -> Result<(), RunError> {
        self.ended().await
    }

    /// The same, of one that may have to be told something still. Once it has ended, that it has ended is all that is said again.
    ///
    /// # Errors
    /// When a part of the node has failed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&mut self) -> Result<(), RunError> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let ran = task.await;
        self.task = None;
        ran.unwrap_or_else(|error| Err(RunError::of("the node itself", Some(error))))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain();
    }
}
