//! Of a server that has the last word, whatever becomes of the streams.

use super::*;

/// A server that does as delta xDS says: it remembers for each stream what its client has.
#[derive(Default)]
struct Server {
    truth: BTreeMap<usize, u32>,
    sent: BTreeMap<String, String>,
    /// Whether it has said anything on this stream: the first answer is owed.
    said: bool,
    nonce: u32,
}

impl Server {
    fn open(&mut self, request: &DeltaDiscoveryRequest) {
        self.sent = request.initial_resource_versions.clone().into_iter().collect();
        self.said = false;
    }

    /// What the client lacks, as far as one response goes.
    fn push(&mut self, most: usize) -> Option<DeltaDiscoveryResponse> {
        let truth: BTreeMap<String, (usize, String)> = self.truth.iter().map(|(n, version)| (uid(*n), (*n, version.to_string()))).collect();
        let changed = truth.iter().filter(|(name, (_, version))| self.sent.get(*name) != Some(version));
        let resources: Vec<Resource> = changed.take(most).map(|(_, (n, _))| resource(*n, self.truth[n])).collect();
        let gone: Vec<String> = self.sent.keys().filter(|name| !truth.contains_key(*name)).cloned().collect();
        if std::mem::replace(&mut self.said, true) && resources.is_empty() && gone.is_empty() {
            return None;
        }
        for resource in &resources {
            self.sent.insert(resource.name.clone(), resource.version.clone());
        }
        self.sent.retain(|name, _| truth.contains_key(name));
        self.nonce += 1;
        Some(response(Kind::Address, &self.nonce.to_string(), resources, &gone))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u32),
    Drop(usize),
    Push(usize),
    Reopen,
    Lose(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12usize, 1..16u32).prop_map(|(n, version)| Step::Put(n, version)),
        3 => (0..12usize).prop_map(Step::Drop),
        6 => (1..5usize).prop_map(Step::Push),
        1 => Just(Step::Reopen),
        1 => (1..5usize).prop_map(Step::Lose),
        2 => (0..40u64).prop_map(Step::Wait),
    ]
}

/// In bytes: nothing that is held fits, some of what may be held does, or all of it.
fn longest() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 150..700usize, Just(usize::MAX)]
}

proptest! {
    /// Whatever the server changes, wherever streams break, whatever is lost with them, and however little of what is held a
    /// request may name: once it has said all it has to say and the grace is over, the client holds what the server holds, but for
    /// what cannot be read.
    #[test]
    fn a_session_ends_with_the_servers_truth(steps in prop::collection::vec(step(), 0..60), longest in longest()) {
        let mut now = now();
        let (mut session, mut server, mut mesh) = (session(), Server::default(), Mesh::default());
        session.settings.longest_request = longest;
        let open = |session: &mut Session, server: &mut Server, now| {
            session.handle_closed();
            session.handle_opened(now);
            server.open(&drain(session)[0]);
        };
        let take = |session: &mut Session, mesh: &mut Mesh, response: DeltaDiscoveryResponse, now| {
            let nonce = response.nonce.clone();
            let received = session.handle_whole(now, response);
            *mesh = apply(mesh, received.changes);
            let answers = drain(session);
            prop_assert_eq!(answers.len(), 1);
            prop_assert_eq!(&answers[0].response_nonce, &nonce);
            prop_assert_eq!(answers[0].error_detail.is_some(), !received.refused.is_empty());
            Ok(())
        };
        open(&mut session, &mut server, now);
        for step in steps {
            match step {
                Step::Put(n, version) => drop(server.truth.insert(n, version)),
                Step::Drop(n) => drop(server.truth.remove(&n)),
                Step::Push(most) => {
                    if let Some(response) = server.push(most) {
                        take(&mut session, &mut mesh, response, now)?;
                    }
                }
                Step::Reopen => open(&mut session, &mut server, now),
                Step::Lose(most) => {
                    // Sent, and lost with the stream.
                    server.push(most);
                    open(&mut session, &mut server, now);
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            mesh = apply(&mesh, session.handle_timeout(now).changes);
        }
        open(&mut session, &mut server, now);
        while let Some(response) = server.push(usize::MAX) {
            take(&mut session, &mut mesh, response, now)?;
        }
        mesh = apply(&mesh, session.handle_timeout(now + GRACE).changes);
        let held: BTreeMap<String, String> =
            mesh.workloads().map(|w| (w.uid.to_string(), w.canonical_revision.to_string())).collect();
        let readable: BTreeMap<String, String> =
            server.truth.iter().filter(|(_, v)| **v != 13).map(|(n, v)| (uid(*n), v.to_string())).collect();
        for (name, version) in &readable {
            prop_assert_eq!(held.get(name), Some(version));
        }
        // What is held besides is the last good version of what cannot be read now.
        let unreadable: BTreeSet<String> = server.truth.iter().filter(|(_, v)| **v == 13).map(|(n, _)| uid(*n)).collect();
        for name in held.keys().filter(|name| !readable.contains_key(*name)) {
            prop_assert!(unreadable.contains(name), "{} is held and nowhere", name);
        }
        prop_assert_eq!(session.faults().len(), unreadable.len());
    }
}
