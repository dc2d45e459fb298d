//! How connections end: what was sent arrives whole, and every end arrives as what it was.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::{World, harness::Outcome};

use crate::mesh::{Family, Mesh, Way, ending, reset};

const MUCH: usize = 10_000_000;
const SOME: usize = 1_000_000;
const FEW: usize = 100_000;

pub(crate) fn both_ways_at_once_nothing_is_lost(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    for way in Way::ALL {
        let pair = mesh.open(way, Family::V4);
        thread::scope(|scope| {
            let sending = [(&pair.client, &up), (&pair.server, &down)].map(|(stream, pattern)| {
                scope.spawn(move || {
                    pattern.send(stream, MUCH);
                    stream.shutdown(Shutdown::Write).unwrap();
                })
            });
            let receiving =
                [(&pair.server, &up), (&pair.client, &down)].map(|(stream, pattern)| scope.spawn(move || pattern.receive(stream)));
            for received in receiving {
                assert_eq!(received.join().unwrap(), MUCH, "{way}");
            }
            sending.into_iter().for_each(|sent| sent.join().unwrap());
        });
    }
    Ok(())
}

/// Applications that leave Nagle's algorithm on, and write twice before they read, at both ends.
pub(crate) fn who_writes_twice_is_not_kept_waiting(world: &World) -> Outcome {
    const WRITES: [usize; 2] = [300, 20_000];
    const ROUNDS: usize = 20;
    let mesh = Mesh::start(world)?;
    let say = |mut stream: &TcpStream| WRITES.iter().for_each(|n| stream.write_all(&vec![7; *n]).unwrap());
    let hear = |mut stream: &TcpStream| stream.read_exact(&mut [0; WRITES[0] + WRITES[1]]).unwrap();
    for way in Way::ALL {
        let pair = mesh.open(way, Family::V4);
        pair.client.set_nodelay(false)?;
        pair.server.set_nodelay(false)?;
        let rounds = thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    hear(&pair.server);
                    say(&pair.server);
                }
            });
            let round = |_| {
                let begun = Instant::now();
                say(&pair.client);
                hear(&pair.client);
                begun.elapsed()
            };
            (0..ROUNDS).map(round).collect::<Vec<_>>()
        });
        // The kernel's delay is 40 ms; a busy machine may be as late now and then.
        let late = rounds.iter().filter(|took| **took >= Duration::from_millis(38)).count();
        assert!(late <= ROUNDS / 2, "{way}: {rounds:?}");
    }
    Ok(())
}

pub(crate) fn each_end_may_finish_first(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let (first, second) = (Pattern::new(3), Pattern::new(4));
    for way in Way::ALL {
        for client_first in [true, false] {
            let pair = mesh.open(way, Family::V6);
            let (mut early, late) = if client_first {
                (pair.client, pair.server)
            } else {
                (pair.server, pair.client)
            };
            // Nothing comes back while the first end speaks, and then everything although it has finished.
            thread::scope(|scope| {
                scope.spawn(|| {
                    first.send(&early, SOME);
                    early.shutdown(Shutdown::Write).unwrap();
                });
                assert_eq!(first.receive(&late), SOME, "{way}, client first: {client_first}");
            });
            thread::scope(|scope| {
                scope.spawn(|| second.send(&late, SOME));
                let mut answer = vec![0; SOME];
                (&early).read_exact(&mut answer).unwrap();
                assert!(second.is(&answer, 0), "{way}, client first: {client_first}");
            });
            drop(late);
            assert_eq!(ending(&mut early), "end", "{way}, client first: {client_first}");
            assert!(early.take_error().unwrap().is_none());
        }
    }
    Ok(())
}

pub(crate) fn a_reset_arrives_as_a_reset(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let pattern = Pattern::new(5);
    for way in Way::ALL {
        for by_client in [true, false] {
            let pair = mesh.open(way, Family::V4);
            let (mut far, mut near) = if by_client {
                (pair.server, pair.client)
            } else {
                (pair.client, pair.server)
            };
            let mut bytes = vec![0; FEW];
            thread::scope(|scope| {
                scope.spawn(|| pattern.send(&near, FEW));
                (&far).read_exact(&mut bytes).unwrap();
            });
            assert!(pattern.is(&bytes, 0), "{way}, by the client: {by_client}");
            // Answered and read, so that nothing is unread anywhere and the reset is the near end's own doing.
            far.write_all(b"k").unwrap();
            near.read_exact(&mut [0]).unwrap();
            reset(near);
            assert_eq!(ending(&mut far), "reset", "{way}, by the client: {by_client}");
        }
        // Also of an end that had finished already, and was waiting for an answer.
        let mut pair = mesh.open(way, Family::V4);
        pair.converse()?;
        pair.client.shutdown(Shutdown::Write)?;
        assert_eq!(ending(&mut pair.server), "end", "{way}");
        reset(pair.server);
        assert_eq!(ending(&mut pair.client), "reset", "{way}");
    }
    Ok(())
}

/// However the reset overtakes, or meets, what was sent before it.
pub(crate) fn what_is_cut_short_never_looks_complete(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    let pattern = Pattern::new(6);
    for way in Way::ALL {
        for turn in 0..60 {
            let pair = mesh.open(way, Family::V4);
            let (mut far, near) = if turn % 2 == 0 {
                (pair.server, pair.client)
            } else {
                (pair.client, pair.server)
            };
            let sent = FEW / 20 * (turn / 2);
            pattern.send(&near, sent);
            reset(near);
            let (mut received, mut buffer) = (0, vec![0; PERIOD]);
            let end = loop {
                match far.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(n) => {
                        assert!(pattern.is(&buffer[..n], received), "{way}, turn {turn}");
                        received += n;
                    }
                    Err(error) => break Err(error),
                }
            };
            assert!(
                matches!(&end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset),
                "{way}, turn {turn}, {received} of {sent} bytes: {end:?}"
            );
        }
    }
    Ok(())
}

pub(crate) fn applications_see_the_client(world: &World) -> Outcome {
    let mesh = Mesh::start(world)?;
    for way in [Way::Tunnel, Way::Inbound, Way::Outbound] {
        for family in [Family::V4, Family::V6] {
            let mut pair = mesh.open(way, family);
            pair.converse()?;
            let (from, to) = mesh.ends(way);
            assert_eq!(pair.server.peer_addr()?.ip(), from.ip(family), "{way}, {family:?}");
            assert_eq!(pair.server.local_addr()?.ip(), to.ip(family), "{way}, {family:?}");
            assert_eq!(pair.client.peer_addr()?, pair.server.local_addr()?, "{way}, {family:?}");
        }
    }
    Ok(())
}

/// Bytes that tell where in their stream they belong: their period is a prime, and no buffer's size divides into it.
struct Pattern(Vec<u8>);

const PERIOD: usize = 65_521;

impl Pattern {
    fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let mut once: Vec<u8> = std::iter::repeat_with(next).take(PERIOD).collect();
        // Twice, so that any stretch of a period lies in one piece.
        once.extend_from_within(..);
        Self(once)
    }

    fn send(&self, mut stream: &TcpStream, count: usize) {
        let mut sent = 0;
        while sent < count {
            let length = PERIOD.min(count - sent);
            let from = sent % PERIOD;
            stream.write_all(&self.0[from..from + length]).unwrap();
            sent += length;
        }
    }

    /// Reads to the end and gives how many bytes there were; each must be the one that belongs there.
    fn receive(&self, mut stream: &TcpStream) -> usize {
        let (mut received, mut buffer) = (0, vec![0; PERIOD]);
        loop {
            let n = stream.read(&mut buffer).unwrap();
            if n == 0 {
                return received;
            }
            assert!(
                self.is(&buffer[..n], received),
                "other bytes than were sent, within {n} after {received}"
            );
            received += n;
        }
    }

    fn is(&self, bytes: &[u8], at: usize) -> bool {
        let begun = at % PERIOD;
        let (head, tail) = bytes.split_at(bytes.len().min(PERIOD));
        head == &self.0[begun..begun + head.len()] && (tail.is_empty() || self.is(tail, at + head.len()))
    }
}
