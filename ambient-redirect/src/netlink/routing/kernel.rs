//! A kernel of a test's own: it has what it is given, does what it is asked unless that is to be refused, and remembers what it was
//! asked.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use socket2::{Domain, Socket as Pair, Type};

use super::*;
use crate::{
    netlink::{
        codec::{Message, NLM_F_CAPPED, NLM_F_MULTI},
        socket::{NLMSG_DONE, NLMSG_ERROR},
    },
    plan::SEGMENTS_TABLE,
};

/// What is routed, by a kernel that ends with the socket that [`Kernel::routing`] gave.
#[derive(Clone, Default)]
pub(crate) struct Kernel(Arc<Mutex<State>>);

#[derive(Default)]
pub(crate) struct State {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) routes: Vec<Route>,
    /// What it was asked, in order; of a listing of both families once.
    pub(crate) asked: Vec<Asked>,
    pub(crate) refused: BTreeSet<Asked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asked {
    ListAddresses,
    ListRules,
    ListRoutes,
    MakeRule,
    MakeRoute,
    DeleteRule,
    DeleteRoute,
    Way,
}

impl Kernel {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// How often it was asked that since it was last asked for.
    pub(crate) fn count(&self, what: Asked) -> usize {
        let asked = &mut self.state().asked;
        let before = asked.len();
        asked.retain(|one| *one != what);
        before - asked.len()
    }

    pub(crate) fn routing(&self) -> Routing {
        let (ours, theirs) = Pair::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let shared = self.0.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = std::io::Read::read(&mut &theirs, &mut buffer) {
                for message in codec::messages(&buffer[..length]) {
                    let answer = shared.lock().unwrap().answer(message);
                    // Whoever asked may be gone.
                    let _ = theirs.send(&answer);
                }
            }
        });
        Routing(Socket::over(ours.into()))
    }
}

impl State {
    fn answer(&mut self, message: Message<'_>) -> Vec<u8> {
        let (payload, family) = (message.payload, message.payload[0]);
        let is_ipv6 = family == AF_INET6;
        let lists = message.flags & NLM_F_DUMP == NLM_F_DUMP;
        let asked = match message.kind {
            RTM_GETADDR => Asked::ListAddresses,
            RTM_GETRULE => Asked::ListRules,
            RTM_GETROUTE if lists => Asked::ListRoutes,
            RTM_GETROUTE => Asked::Way,
            RTM_NEWRULE => Asked::MakeRule,
            RTM_DELRULE => Asked::DeleteRule,
            RTM_NEWROUTE => Asked::MakeRoute,
            RTM_DELROUTE => Asked::DeleteRoute,
            other => panic!("asked for {other}"),
        };
        if !lists || !is_ipv6 {
            self.asked.push(asked);
        }
        if self.refused.contains(&asked) {
            return numbered(vec![outcome(libc::ENOBUFS)], message.sequence);
        }
        let answers = match asked {
            Asked::ListAddresses => {
                let of = |ip: &IpAddr| address(RTM_NEWADDR, NLM_F_MULTI, 2, *ip, 32);
                listing(self.addresses.iter().map(of))
            }
            Asked::ListRules => {
                let of_family = self.policies.iter().filter(|policy| policy.ipv6 == is_ipv6);
                listing(of_family.map(|policy| policies::message(RTM_NEWRULE, NLM_F_MULTI, policy)))
            }
            Asked::ListRoutes => {
                let of_family = self.routes.iter().filter(|route| family_of(route.destination.addr()) == family);
                listing(of_family.map(|route| route_message(RTM_NEWROUTE, NLM_F_MULTI, route)))
            }
            Asked::Way => vec![route_message(RTM_NEWROUTE, 0, self.taken(is_ipv6))],
            Asked::MakeRule | Asked::DeleteRule => {
                let policy = policies::read("", payload).unwrap();
                let outcome = outcome(change(&mut self.policies, policy, asked == Asked::MakeRule));
                // A new one after those of its priority.
                self.policies.sort_by_key(|policy| policy.priority);
                vec![outcome]
            }
            Asked::MakeRoute | Asked::DeleteRoute => {
                let route = read_route("", payload).unwrap().unwrap();
                vec![outcome(change(&mut self.routes, route, asked == Asked::MakeRoute))]
            }
        };
        numbered(answers, message.sequence)
    }

    /// As what a pod sends by TCP would go, to everywhere.
    fn taken(&self, ipv6: bool) -> &Route {
        let has_ours = self.policies.iter().any(|p| p.ipv6 == ipv6 && p.table() == Some(SEGMENTS_TABLE));
        let table = if has_ours { SEGMENTS_TABLE } else { MAIN };
        let of_table = |route: &&Route| route.table == table && route.destination.addr().is_ipv6() == ipv6;
        self.routes
            .iter()
            .filter(of_table)
            .min_by_key(|r| r.destination.prefix_len())
            .unwrap()
    }
}

/// Gives what is wrong, as an errno.
fn change<T: PartialEq>(all: &mut Vec<T>, one: T, is_made: bool) -> i32 {
    match (all.iter().position(|other| *other == one), is_made) {
        (Some(_), true) => libc::EEXIST,
        (None, false) => libc::ENOENT,
        (None, true) => {
            all.push(one);
            0
        }
        (Some(at), false) => {
            all.remove(at);
            0
        }
    }
}

fn listing(parts: impl Iterator<Item = Writer>) -> Vec<Writer> {
    let mut end = Writer::default();
    end.begin(NLMSG_DONE, NLM_F_MULTI, &[0; 4]);
    parts.chain([end]).collect()
}

fn outcome(errno: i32) -> Writer {
    let mut message = Writer::default();
    let mut payload = (-errno).to_ne_bytes().to_vec();
    payload.extend([0; codec::HEADER]);
    message.begin(NLMSG_ERROR, NLM_F_CAPPED, &payload);
    message
}

/// As one datagram, each the answer to the same question.
fn numbered(answers: Vec<Writer>, sequence: u32) -> Vec<u8> {
    answers.into_iter().flat_map(|message| message.finish(sequence).0).collect()
}
