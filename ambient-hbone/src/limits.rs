//! Bounds and deadlines.

use std::time::Duration;

use tokio::time::Instant;

use crate::proto::{
    engine::{Spare, Terms},
    frame,
};

/// The bounds of a [`Pool`](crate::Pool) or a [`Server`](crate::Server); each side reads those that concern it.
///
/// Worst case for the memory of a tunnel, each end, when every reader has stopped: `streams × stream_window` of what has
/// come, `streams × 16 KiB` of what is to go (`send_buffer` where the peer takes data and the network does not), and about
/// 5 MiB of frames, buffers and TLS, of which an idle tunnel keeps next to nothing. A stream may hold the buffer of 256 KiB
/// that the first of what waits was read to, and [`relay`](crate::relay()) one more. Beyond that windows have grown by at
/// most `window_growth` in all tunnels together whose limits are clones of each other. A stream whose reader has stopped
/// costs its own window and nobody else's: the connection window is wider than all streams together, so it is never what
/// holds a stream up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// For [`Dial`](crate::Dial) to bring a connection. 10 s.
    pub dial: Duration,
    /// For the TLS handshake and the HTTP/2 preface together. 10 s.
    pub handshake: Duration,
    /// From CONNECT to its answer, in which the peer's node dials the application. 20 s, twice what that dial may take.
    pub answer: Duration,
    /// A tunnel without a stream is closed after between once and twice this. 5 min.
    pub idle: Duration,
    /// A peer from which nothing comes, not even the answer to a PING, is given up after at most this. 20 s.
    pub dead_peer: Duration,
    /// Streams at a time in a tunnel: at most this many are opened by a pool, or accepted by a server. 200 (as a pool: and
    /// no more than the peer allows).
    pub streams: u32,
    /// Tunnels at a time for one speaker and destination, where each is full; a stream beyond them is refused. As many again may stand
    /// beside them that take no new streams: made with an earlier credential, or left by their peer. 16.
    pub tunnels: usize,
    /// Bytes of a stream that may wait for its reader, at first; taken as 64 KiB where it is less. 256 KiB.
    pub stream_window: u32,
    /// The same for a stream that is read as fast as its bytes come, while that is what holds the peer up: its window
    /// grows up to this. 16 MiB, enough for 10 Gbit/s over 10 ms.
    pub stream_window_max: u32,
    /// Bytes by which the windows of all streams together may have grown; those of one tunnel by no more than they leave to others, which
    /// is half at most. Set it before the limits are cloned, and the clones share it. 256 MiB.
    pub window_growth: WindowGrowth,
    /// The same at first, for streams to a destination with [`Destination::ample`](crate::Destination::ample), as far as
    /// `ample_windows` goes. 4 MiB, as Istio's ztunnel has it for all.
    pub ample_window: u32,
    /// Bytes by which the first windows of all such streams together may be larger than those of others: each has up to a 64th of what
    /// is left. Set it before the limits are cloned, and the clones share it. 512 MiB.
    pub ample_windows: WindowGrowth,
    /// From how many streams in a tunnel on another one is made for its speaker and destination, so that they spread over
    /// the cores of the peer; up to [`spread_over`](Self::spread_over). 64.
    pub spread_from: u32,
    /// Tunnels to spread over; more are made only when these are full. 1 makes none that is not needed. 2.
    pub spread_over: usize,
    /// Bytes of a stream that may wait to be sent. 256 KiB.
    pub send_buffer: usize,
    /// The largest DATA frame accepted, in bytes. 1 MiB.
    pub max_frame: u32,
    /// Decoded bytes of a header list. 16 KiB.
    pub header_list: u32,
    /// Bytes that are sent behind a CONNECT before its answer, and kept until it comes; see
    /// [`Pool::connect_with`](crate::Pool::connect_with). 64 KiB.
    pub early_data: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(10),
            handshake: Duration::from_secs(10),
            answer: Duration::from_secs(20),
            idle: Duration::from_secs(300),
            dead_peer: Duration::from_secs(20),
            streams: 200,
            tunnels: 16,
            stream_window: 256 << 10,
            stream_window_max: 16 << 20,
            window_growth: WindowGrowth::new(256 << 20),
            ample_window: 4 << 20,
            ample_windows: WindowGrowth::new(512 << 20),
            spread_from: 64,
            spread_over: 2,
            send_buffer: 256 << 10,
            max_frame: 1 << 20,
            header_list: 16 << 10,
            early_data: 64 << 10,
        }
    }
}

impl Limits {
    /// What an engine is to hold to.
    pub(crate) fn terms(&self) -> Terms {
        let first = self.stream_window.clamp(frame::DEFAULT_WINDOW, frame::WIDEST_WINDOW);
        Terms {
            streams: self.streams,
            windows: [first, self.stream_window_max.clamp(first, frame::WIDEST_WINDOW)],
            spare: self.window_growth.0.clone(),
            ample: (self.ample_window.min(frame::WIDEST_WINDOW), self.ample_windows.0.clone()),
            frame: self.max_frame.clamp(frame::DEFAULT_FRAME, (1 << 24) - 1),
            header_list: self.header_list,
            send_buffer: self.send_buffer.max(1),
        }
    }
}

/// When that much time will have passed; of more than any clock tells, so late that nobody sees it.
pub(crate) fn after(limit: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(limit).unwrap_or(now + NEVER)
}

/// Thirty years.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A budget for the growth of windows: see [`Limits::window_growth`] and [`Limits::ample_windows`]. Clones draw on the same.
#[derive(Clone, Debug)]
pub struct WindowGrowth(Spare);

impl WindowGrowth {
    /// A budget of this many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Spare::new(bytes))
    }
}
