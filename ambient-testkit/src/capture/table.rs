//! All that a window of a capture has seen.

use std::{collections::HashMap, net::SocketAddr};

use super::{
    Connection, Datagram, Loss, Seen, Speech,
    frame::{Frame, Segment},
    stream::Stream,
};

/// The connections and datagrams seen, up to a bound of bytes kept.
#[derive(Debug, Default)]
pub(super) struct Table {
    connections: Vec<Entry>,
    /// The newest connection of a pair of ends, the lesser end first.
    newest: HashMap<(SocketAddr, SocketAddr), usize>,
    datagrams: Vec<Datagram>,
    /// Payloads of frames that are neither TCP nor UDP.
    others: Vec<Vec<u8>>,
    frames: u64,
    kept: usize,
    loss: Loss,
}

#[derive(Debug)]
struct Entry {
    /// Who opened it; of one that was open before, whoever was heard first.
    client: SocketAddr,
    server: SocketAddr,
    to_server: Stream,
    to_client: Stream,
    /// Its opening was seen in this window.
    opened: bool,
    /// A frame of it was seen in this window.
    active: bool,
    reset: bool,
    /// Directions that have ended.
    ended: [bool; 2],
}

impl Table {
    pub(super) fn take(&mut self, frame: &[u8], truncated: bool) {
        self.frames += 1;
        self.loss.truncated += u64::from(truncated);
        if self.kept > KEPT_LIMIT || self.connections.len() + self.datagrams.len() + self.others.len() > ENTRY_LIMIT {
            self.loss.over_limit += 1;
            return;
        }
        match Frame::parse(frame) {
            Frame::Tcp(segment) => self.take_segment(&segment),
            Frame::Udp(datagram) => {
                self.kept += datagram.payload.len();
                self.datagrams.push(Datagram {
                    from: datagram.from,
                    to: datagram.to,
                    payload: datagram.payload.to_vec(),
                });
            }
            Frame::Ip(payload) | Frame::NotIp(payload) | Frame::Damaged(payload) => {
                self.kept += payload.len();
                self.others.push(payload.to_vec());
            }
        }
    }

    fn take_segment(&mut self, segment: &Segment<'_>) {
        let ends = if segment.from <= segment.to {
            (segment.from, segment.to)
        } else {
            (segment.to, segment.from)
        };
        let known = self
            .newest
            .get(&ends)
            .copied()
            .filter(|index| !self.connections[*index].is_begun_anew(segment));
        let index = known.unwrap_or_else(|| {
            // The answer to a SYN that was not seen comes from the server.
            let answer = segment.syn && segment.ack;
            let (client, server) = if answer {
                (segment.to, segment.from)
            } else {
                (segment.from, segment.to)
            };
            self.connections.push(Entry::new(client, server));
            self.newest.insert(ends, self.connections.len() - 1);
            self.connections.len() - 1
        });
        self.kept += self.connections[index].take(segment);
    }

    pub(super) fn lost(&mut self, dropped: u64) {
        self.loss.dropped += dropped;
    }

    /// Begins another window.
    pub(super) fn clear(&mut self) {
        self.connections.retain(|c| !c.reset && c.ended != [true; 2]);
        self.newest.clear();
        for (index, connection) in self.connections.iter_mut().enumerate() {
            connection.clear();
            let (a, b) = (connection.client, connection.server);
            // Later ones of the same ends come later, and stay.
            self.newest.insert((a.min(b), a.max(b)), index);
        }
        (self.datagrams, self.others, self.frames, self.kept, self.loss) = (Vec::new(), Vec::new(), 0, 0, Loss::default());
    }

    pub(super) fn loss(&self) -> Loss {
        self.loss
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            frames: self.frames,
            connections: self.connections.iter().filter(|c| c.active).map(Entry::seen).collect(),
            datagrams: self.datagrams.clone(),
            others: self.others.clone(),
        }
    }
}

impl Entry {
    fn new(client: SocketAddr, server: SocketAddr) -> Self {
        let (to_server, to_client) = (Stream::default(), Stream::default());
        Self {
            client,
            server,
            to_server,
            to_client,
            opened: false,
            active: false,
            reset: false,
            ended: [false; 2],
        }
    }

    /// Whether a SYN opens another connection between the same ends.
    fn is_begun_anew(&self, segment: &Segment<'_>) -> bool {
        // Only the opening one tells: its answer has the other direction's numbers.
        let stream = if segment.from == self.client {
            &self.to_server
        } else {
            &self.to_client
        };
        segment.syn && !segment.ack && (segment.from != self.client || stream.is_begun_anew(segment))
    }

    fn take(&mut self, segment: &Segment<'_>) -> usize {
        let outward = segment.from == self.client;
        self.active = true;
        self.opened |= segment.syn && outward;
        self.reset |= segment.rst;
        self.ended[usize::from(outward)] |= segment.fin;
        let stream = if outward { &mut self.to_server } else { &mut self.to_client };
        stream.take(segment)
    }

    fn clear(&mut self) {
        self.to_server.clear();
        self.to_client.clear();
        (self.opened, self.active) = (false, false);
    }

    fn seen(&self) -> Connection {
        let streams = [&self.to_server, &self.to_client];
        Connection {
            client: self.client,
            server: self.server,
            opened: self.opened,
            reset: self.reset,
            to_server: self.to_server.bytes().to_vec(),
            to_client: self.to_client.bytes().to_vec(),
            pieces: streams.iter().flat_map(|s| s.pieces().skip(1).map(<[u8]>::to_vec)).collect(),
            speech: speech(streams),
        }
    }
}

fn speech(streams: [&Stream; 2]) -> Speech {
    let mut speech = Speech::Silent;
    for stream in streams.into_iter().filter(|s| !s.is_silent()) {
        match (stream.is_from_start() && !stream.has_gap(), stream.is_tls()) {
            (true, false) => return Speech::Other,
            (true, true) if speech == Speech::Silent => speech = Speech::Tls,
            (true, true) => {}
            (false, _) => speech = Speech::Unknown,
        }
    }
    speech
}

/// Bytes that one window keeps.
const KEPT_LIMIT: usize = 256 << 20;
/// Connections, datagrams and other frames that one window keeps.
const ENTRY_LIMIT: usize = 1 << 18;
