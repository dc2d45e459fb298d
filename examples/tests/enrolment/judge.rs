//! What may be seen of whom, and when.

use std::{collections::BTreeMap, net::IpAddr};

use ambient_testkit::capture::{Seen, Speech};

use super::peer::{Call, FIRST_PORT, HELLO};

const SECOND: u64 = 1_000_000;
/// A capture is known to all nodes so much after it is written: 250 ms are promised, on a machine with nothing else to do.
const KNOWN: u64 = 3 * SECOND;
/// How long what is damaged may stay so; what is promised is tested without a storm around it.
const MENDED: u64 = 3 * SECOND;

/// What is known of one pod. Times are microseconds.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) node: String,
    pub(crate) account: u16,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) born: u64,
    pub(crate) died: Option<u64>,
    /// From when on its UID was seen in its node's status, until when it was not to be there.
    pub(crate) covered: Vec<(u64, Option<u64>)>,
    pub(crate) damaged: Vec<u64>,
}

/// A stretch of time on the wire.
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) seen: Seen,
}

/// All that was seen.
#[derive(Default)]
pub(crate) struct Evidence {
    pub(crate) lives: BTreeMap<String, Life>,
    /// When the process of a node was away.
    pub(crate) down: BTreeMap<String, Vec<(u64, u64)>>,
}

/// What was seen, to see that something was.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) plain: usize,
    pub(crate) tls: usize,
    pub(crate) answered: usize,
    pub(crate) refused: usize,
    /// Refused because a pod is not who had its address or its account's turn before.
    pub(crate) not_taken_for_another: usize,
}

impl Life {
    pub(crate) fn cover(&mut self, now: u64) {
        if self.covered.last().is_none_or(|(_, until)| until.is_some()) {
            self.covered.push((now, None));
        }
    }

    pub(crate) fn uncover(&mut self, now: u64) {
        if let Some((_, until @ None)) = self.covered.last_mut() {
            *until = Some(now);
        }
    }

    fn is_covered(&self, from: u64, to: u64) -> bool {
        self.covered
            .iter()
            .any(|(begun, until)| *begun <= from && until.is_none_or(|until| to <= until))
    }

    fn lives(&self, from: u64, to: u64) -> bool {
        self.born <= to && self.died.is_none_or(|died| from <= died)
    }
}

impl Evidence {
    /// Whether a pod's rules may be gone: from a damage until it is mended, where time without a process does not count.
    fn is_damaged(&self, life: &Life, from: u64, to: u64) -> bool {
        life.damaged.iter().any(|at| {
            let mut until = at + MENDED;
            for (begun, ended) in self.down.get(&life.node).into_iter().flatten() {
                if *begun < until && at < ended {
                    until = until.max(ended + MENDED);
                }
            }
            *at <= to && from <= until
        })
    }

    /// What must not pass between the nodes: bytes in the clear, from an enrolled pod to one whose capture is known.
    pub(crate) fn wire(&self, window: &Window, tally: &mut Tally) -> Vec<String> {
        let mut leaks = Vec::new();
        let (from, to) = (window.from, window.to);
        for connection in window.seen.connections.iter().filter(|c| c.opened) {
            match connection.speech {
                Speech::Tls => tally.tls += 1,
                Speech::Other => {
                    tally.plain += 1;
                    let said = String::from_utf8_lossy(&connection.to_server).into_owned();
                    let Some(client) = said.strip_prefix(HELLO).and_then(|said| said.lines().next()) else {
                        leaks.push(format!("{} says {said:?} to {}", connection.client, connection.server));
                        continue;
                    };
                    let answered = String::from_utf8_lossy(&connection.to_client);
                    let known = |life: &Life| life.is_covered(from.saturating_sub(KNOWN), to);
                    let server = connection.server.ip();
                    let mut servers = match self.lives.get(answered.trim_end()) {
                        Some(life) => vec![life],
                        None => {
                            let there = |life: &&Life| life.addresses.contains(&server) && life.lives(from, to);
                            self.lives.values().filter(there).collect()
                        }
                    };
                    // Of two that had the address one is not known to be captured.
                    let captured = !servers.is_empty() && servers.iter().all(|s| known(s));
                    let leaves = self
                        .lives
                        .get(client)
                        .is_some_and(|client| client.is_covered(from, to) && !self.is_damaged(client, from, to));
                    if captured && leaves {
                        let server = servers.remove(0);
                        leaks.push(format!(
                            "{client} {} says {said:?} to {} ({server:?}), and hears {answered:?}, between {from} and {to}; it is {:?}",
                            connection.client,
                            connection.server,
                            self.lives.get(client)
                        ));
                    }
                }
                _ => (),
            }
        }
        leaks
    }

    /// What must not come of a call: an answer of a captured pod by the port of an account that is not the caller's, since only
    /// that account may call it.
    pub(crate) fn call(&self, caller: &str, call: &Call, tally: &mut Tally) -> Option<String> {
        let (Some(client), own) = (self.lives.get(caller), |life: &Life| FIRST_PORT + life.account) else {
            return Some(format!("nobody is {caller}"));
        };
        let is_own = call.to.port() == own(client);
        let Ok(name) = &call.heard else {
            tally.refused += 1;
            tally.not_taken_for_another += usize::from(!is_own);
            return None;
        };
        let Some(server) = self.lives.get(name) else {
            return Some(format!("{caller} is answered by {name:?}"));
        };
        let covered = server.is_covered(call.begun, call.ended) && !self.is_damaged(server, call.begun, call.ended);
        tally.answered += usize::from(covered && is_own);
        (covered && !is_own).then(|| {
            format!(
                "{caller} ({client:?}) was taken for another by {name} ({server:?}), at {} between {} and {}",
                call.to, call.begun, call.ended
            )
        })
    }
}
