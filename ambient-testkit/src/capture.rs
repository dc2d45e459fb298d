//! What really passed over a wire.

mod frame;
mod ring;
mod stream;
mod table;
mod tls;

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use self::{ring::Ring, table::Table};
use crate::{Namespace, NamespaceError, sys};

/// A running capture of one interface: every frame, both ways, TCP put together to streams.
///
/// It keeps what it sees in windows: [`Capture::clear`] begins another one. A window in which a frame was missed
/// proves nothing, and [`Capture::seen`] says so instead of giving it. Dropped, it ends.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    turned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// How often the ring was emptied.
    turns: u64,
    stop: bool,
    /// Why the thread ended before it should.
    failed: Option<String>,
}

impl Capture {
    /// Begins to capture an interface of a namespace.
    ///
    /// # Errors
    /// When there is no such interface, or no memory for the ring (16 MiB).
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self, CaptureError> {
        let ring = namespace.run(|| Ring::open(interface)).map_err(CaptureError::Namespace)?;
        let wrap = |source| CaptureError::Interface {
            interface: interface.into(),
            source,
        };
        let ring = ring.map_err(wrap)?;
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("capture".into());
        let thread = thread.spawn({
            let shared = Arc::clone(&shared);
            move || read(ring, &shared)
        });
        Ok(Self {
            shared,
            thread: Some(thread.map_err(wrap)?),
        })
    }

    /// Everything of this window that passed before the call.
    ///
    /// Takes about 50 ms: the kernel hands frames over in blocks.
    ///
    /// # Errors
    /// [`CaptureError::Lossy`] when a frame of this window was missed.
    pub fn seen(&self) -> Result<Seen, CaptureError> {
        let state = self.settle()?;
        let loss = state.table.loss();
        if loss == Loss::default() {
            Ok(state.table.seen())
        } else {
            Err(CaptureError::Lossy(loss))
        }
    }

    /// Begins another window: what passed before the call is forgotten, except where in their streams the open
    /// connections stand.
    ///
    /// # Errors
    /// When the capture has failed.
    pub fn clear(&self) -> Result<(), CaptureError> {
        self.settle()?.table.clear();
        Ok(())
    }

    /// Waits until what has passed by now was read.
    fn settle(&self) -> Result<MutexGuard<'_, State>, CaptureError> {
        // The kernel hands a block over after one or two times this, and its clock may be a coarse one.
        thread::sleep(Duration::from_millis(5 * u64::from(ring::RETIRE_MS)));
        let state = self.shared.lock();
        // The turn that runs now may have passed the newest block already; the one after it has not.
        let wanted = state.turns + 2;
        let waiting = |state: &mut State| state.turns < wanted && state.failed.is_none();
        let (state, wait) = self
            .shared
            .turned
            .wait_timeout_while(state, DEADLINE, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(why) => Err(CaptureError::Ended(why.clone())),
            None if wait.timed_out() => Err(CaptureError::Ended("its thread does not get to run".into())),
            None => Ok(state),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The capture's thread.
fn read(mut ring: Ring, shared: &Shared) {
    loop {
        let ready = sys::readable([ring.as_fd()], Some(Duration::from_millis(u64::from(ring::RETIRE_MS))));
        let mut state = shared.lock();
        let State { table, .. } = &mut *state;
        ring.drain(|frame, cut| table.take(frame, cut));
        let dropped = ready.and_then(|_| ring.dropped());
        match dropped {
            Ok(dropped) => table.lost(dropped),
            Err(e) => state.failed = Some(e.to_string()),
        }
        state.turns += 1;
        shared.turned.notify_all();
        if state.stop || state.failed.is_some() {
            return;
        }
    }
}

/// What one window of a capture saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Frames of any kind.
    pub frames: u64,
    /// TCP connections with a frame in this window, in the order in which they were first heard of.
    pub connections: Vec<Connection>,
    /// UDP datagrams.
    pub datagrams: Vec<Datagram>,
    others: Vec<Vec<u8>>,
}

impl Seen {
    /// Whether these bytes passed in any stream, datagram or other frame, however a stream was cut into segments.
    pub fn contains(&self, marker: &[u8]) -> bool {
        let in_connections = self.connections.iter().any(|c| c.contains(marker));
        in_connections
            || self.datagrams.iter().any(|d| sys::contains(&d.payload, marker))
            || self.others.iter().any(|other| sys::contains(other, marker))
    }

    /// The connections to or from an address, whatever the port.
    pub fn connections_of(&self, address: std::net::IpAddr) -> impl Iterator<Item = &Connection> {
        self.connections
            .iter()
            .filter(move |c| c.client.ip() == address || c.server.ip() == address)
    }
}

/// A TCP connection, as far as one window saw it.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who opened it. Of a connection whose opening no window has seen: whoever was heard first.
    pub client: SocketAddr,
    /// The other end.
    pub server: SocketAddr,
    /// Its opening is in this window.
    pub opened: bool,
    /// It was reset.
    pub reset: bool,
    /// The client's bytes, in order, up to the first gap.
    pub to_server: Vec<u8>,
    /// The server's bytes, in order, up to the first gap.
    pub to_client: Vec<u8>,
    /// What it speaks, judged from its very beginning.
    pub speech: Speech,
    pieces: Vec<Vec<u8>>,
}

impl Connection {
    /// Whether these bytes passed in either direction.
    pub fn contains(&self, marker: &[u8]) -> bool {
        let ordered = [&self.to_server, &self.to_client];
        ordered.into_iter().chain(&self.pieces).any(|piece| sys::contains(piece, marker))
    }
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// Nothing: no byte has passed, in any window.
    Silent,
    /// TLS records and nothing else, from the first byte, in every direction that has carried any.
    Tls,
    /// Something else.
    Other,
    /// Its beginning was not seen, or a segment is missing.
    Unknown,
}

/// A UDP datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Frames that a window missed, for each reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// The kernel had no room for them.
    pub dropped: u64,
    /// They were longer than the ring allows.
    pub truncated: u64,
    /// The window was full: 256 MiB, or 262,144 connections and datagrams.
    pub over_limit: u64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} dropped by the kernel, {} cut short, {} over the window's limit",
            self.dropped, self.truncated, self.over_limit
        )
    }
}

/// A capture that cannot be had, or proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(NamespaceError),
    /// The interface could not be captured.
    #[error("capturing the interface {interface:?} failed: {source}")]
    Interface {
        /// The interface's name.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// Frames were missed.
    #[error("the capture is not whole and proves nothing: frames {0}")]
    Lossy(Loss),
    /// Reading failed.
    #[error("the capture has ended: {0}")]
    Ended(String),
}

const DEADLINE: Duration = Duration::from_secs(10);
