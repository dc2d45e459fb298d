//! Bounds and deadlines.

use std::time::Duration;

/// The bounds of a [`Pool`](crate::Pool) or a [`Server`](crate::Server); each side reads those that concern it.
///
/// Worst case for the memory of one tunnel, each end: `streams × (stream_window + send_buffer)` of data, plus
/// `frame_overhead`, plus about 200 KiB of buffers around TLS. A stream whose reader has stopped costs its own window and
/// nobody else's: the connection window is wider than all streams together, so it is never what holds a stream up.
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
    /// Tunnels at a time for one speaker and destination; a stream beyond them is refused. 16.
    pub tunnels: usize,
    /// Bytes of a stream that may wait for its reader. 1 MiB.
    pub stream_window: u32,
    /// Bytes of a stream that may wait to be sent. 256 KiB.
    pub send_buffer: usize,
    /// The largest DATA frame accepted, in bytes. 1 MiB.
    pub max_frame: u32,
    /// Decoded bytes of a header list. 16 KiB.
    pub header_list: u32,
    /// Bytes of a tunnel's memory that unread small DATA frames may cost beyond their payload; a tunnel that takes more
    /// is closed with ENHANCE_YOUR_CALM. 16 MiB.
    pub frame_overhead: usize,
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
            stream_window: 1 << 20,
            send_buffer: 256 << 10,
            max_frame: 1 << 20,
            header_list: 16 << 10,
            frame_overhead: 16 << 20,
        }
    }
}

impl Limits {
    /// The widest window HTTP/2 has, so that streams are bounded one by one and never by each other.
    pub(crate) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
}
