//! What a namespace holds at the edges of a pod's life: before its capture is proven, while it joins, while it leaves.

use super::{
    Action, Chain, ChainKind, Hook, IpFamily, Match as M, Options, PROBE_PORT, PROXY_MARK, Plan, Protocol, REPLY_MARK, Rule, TABLES, Table,
};

/// The mark of a connection that was open when its pod joined, under [`MARK_MASK`](super::MARK_MASK): it goes on outside of
/// the mesh. Told from [`REPLY_MARK`] by its bits, and on no packet.
pub const KEPT_MARK: u32 = 0x6b7;

impl Plan {
    /// All that a namespace holds whose pod's TCP is refused and not captured yet.
    ///
    /// What a pod's processes open and what is opened to them gets a reset, except by the loopback device; see
    /// [`Plan::and_closed`] for what goes on.
    pub fn closed(options: &Options) -> Self {
        Self {
            tables: vec![closed(options)],
            rules: Vec::new(),
            routes: Vec::new(),
            segments: Vec::new(),
            listeners: Vec::new(),
        }
    }

    /// This plan, and the pod's TCP is refused: nothing is opened but the connections that prove the capture. What is
    /// captured already goes on, and so does what was kept, and what the proxy sends; what is neither, and speaks, is reset.
    #[must_use]
    pub fn and_closed(mut self, options: &Options) -> Self {
        self.tables.push(closed(options));
        self
    }

    /// This plan without what captures: new connections go as they would without a mesh, and those that are captured go on,
    /// as NAT stays hooked and the way back to the proxy stays.
    #[must_use]
    pub fn leaving(&self) -> Self {
        let mut tables: Vec<Table> = self
            .tables
            .iter()
            .filter(|t| t.name != GUARD && t.name != CLOSED)
            .cloned()
            .collect();
        for table in tables.iter_mut().filter(|t| t.name == NAT) {
            for chain in &mut table.chains {
                // Replies to the proxy are routed by their mark; nothing else is left to be decided.
                chain
                    .rules
                    .retain(|rule| rule.action == Action::Accept && rule.matches.contains(&M::Mark(REPLY_MARK)));
            }
        }
        Self {
            tables,
            rules: self.rules.clone(),
            routes: self.routes.clone(),
            segments: Vec::new(),
            listeners: Vec::new(),
        }
    }

    /// What makes the kernel track connections, and marks those that are opened as [kept](KEPT_MARK). It goes only after what
    /// captures has come, so that whatever is not captured bears the mark.
    pub fn tracking() -> Self {
        Self {
            tables: vec![tracking()],
            rules: Vec::new(),
            routes: Vec::new(),
            segments: Vec::new(),
            listeners: Vec::new(),
        }
    }

    /// This plan in the moment in which it comes: without what refuses to be gone around, as a packet that was let by before may
    /// still be on its way to where that would be asked of it, and with what [tracks](Plan::tracking).
    #[must_use]
    pub(crate) fn coming(&self) -> Self {
        let mut plan = self.clone();
        plan.tables.retain(|table| table.name != GUARD);
        plan.tables.push(tracking());
        plan.segments.clear();
        plan
    }
}

fn tracking() -> Table {
    let rule = Rule::new(
        [M::Protocol(Protocol::Tcp), M::Opens, M::NotMark(PROXY_MARK)],
        Action::MarkConnection(KEPT_MARK),
        "connections that are opened before they are captured",
    );
    Table {
        name: TRACKING,
        sets: Vec::new(),
        chains: vec![
            Chain::new(Hook::Prerouting, ChainKind::Filter, -150, vec![rule.clone()]),
            Chain::new(Hook::Output, ChainKind::Filter, -150, vec![rule]),
        ],
    }
}

fn closed(options: &Options) -> Table {
    // Without IPv6 nothing redirects it, and it goes around the proxy as it always does.
    let family = (!options.ipv6).then_some(M::Family(IpFamily::V4));
    let tcp = M::Protocol(Protocol::Tcp);
    let refusal = |tests: &[M], why| {
        let matches: Vec<M> = family.into_iter().chain([tcp]).chain(tests.iter().copied()).collect();
        Rule::new(matches, Action::Reset, why)
    };
    let families: &[IpFamily] = if options.ipv6 {
        &[IpFamily::V4, IpFamily::V6]
    } else {
        &[IpFamily::V4]
    };
    let probes = families.iter().map(|f| {
        Rule::new(
            [tcp, M::Destination(f.probe()), M::DestinationPort(PROBE_PORT)],
            Action::Accept,
            "what proves the capture",
        )
    });
    let mut output: Vec<Rule> = probes.collect();
    output.extend([
        Rule::new([M::ConnectionMark(REPLY_MARK)], Action::Accept, "replies to the proxy"),
        Rule::new([M::ConnectionMark(KEPT_MARK)], Action::Accept, "what was open before"),
        // Somebody else's rules may have translated it already.
        refusal(&[M::Opens, M::NotToLoopback, M::NotMark(PROXY_MARK)], "what the pod would open"),
        // Asked before destinations are changed, so that it holds for what is redirected since before.
        Rule::new([M::Redirected], Action::Accept, "what is captured already"),
        refusal(
            &[M::NotToLoopback, M::NotMark(PROXY_MARK), M::NotReset],
            "what the pod would send around the proxy",
        ),
    ]);
    let mut input = Vec::new();
    if options.inbound {
        input.push(refusal(
            &[M::Opens, M::NotFromLoopback, M::NotMark(PROXY_MARK)],
            "what would be opened to the pod",
        ));
    }
    Table {
        name: CLOSED,
        sets: Vec::new(),
        chains: vec![
            Chain::new(Hook::Input, ChainKind::Filter, 5, input),
            // After mangle, before nat.
            Chain::new(Hook::Output, ChainKind::Filter, -110, output),
        ],
    }
}

/// What captures stands in it.
pub(crate) const NAT: &str = TABLES[0];
const GUARD: &str = TABLES[3];
/// What refuses.
pub(crate) const CLOSED: &str = TABLES[4];
const TRACKING: &str = TABLES[5];

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(plan: &Plan) -> usize {
        let rules = plan.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules);
        rules.filter(|r| r.action == Action::Reset).count()
    }

    #[test]
    fn what_is_closed_refuses_whether_or_not_it_is_captured() {
        let options = Options::default();
        let (closed, whole) = (Plan::closed(&options), Plan::new(&options));
        assert_eq!((closed.tables.len(), refusals(&closed)), (1, 3));
        let both = whole.clone().and_closed(&options);
        assert_eq!(refusals(&both), refusals(&whole) + 3);
        assert_eq!((both.rules, both.listeners), (whole.rules, whole.listeners));
    }

    #[test]
    fn what_leaves_captures_and_refuses_nothing_and_stays_hooked() {
        for bits in 0..8 {
            let options = Options {
                ipv6: bits & 1 != 0,
                dns: bits & 2 != 0,
                probes: bits & 4 != 0,
                ..Options::default()
            };
            let whole = Plan::new(&options);
            let leaving = whole.clone().and_closed(&options).leaving();
            let rules: Vec<&Rule> = leaving.tables.iter().flat_map(|t| &t.chains).flat_map(|c| &c.rules).collect();
            assert!(
                rules.iter().all(|r| !matches!(r.action, Action::Reset | Action::Redirect(_))),
                "{rules:?}"
            );
            let hooks = |plan: &Plan| {
                plan.tables
                    .iter()
                    .find(|t| t.name == NAT)
                    .map(|t| t.chains.iter().map(|c| c.hook).collect::<Vec<_>>())
            };
            assert_eq!(hooks(&leaving), hooks(&whole));
            assert_eq!(
                leaving.tables.iter().find(|t| t.name == TABLES[1]),
                whole.tables.iter().find(|t| t.name == TABLES[1])
            );
            assert_eq!((leaving.rules, leaving.routes), (whole.rules, whole.routes));
        }
    }

    #[test]
    fn what_tracks_decides_nothing() {
        let tracking = Plan::tracking();
        let rules: Vec<&Rule> = tracking.tables[0].chains.iter().flat_map(|c| &c.rules).collect();
        assert!(rules.iter().all(|r| r.action == Action::MarkConnection(KEPT_MARK)));
        assert_eq!(rules.len(), 2, "what goes and what comes");
    }

    #[test]
    fn what_comes_refuses_nothing_and_marks_what_it_does_not_capture() {
        let whole = Plan::new(&Options::default());
        let coming = whole.coming();
        assert_eq!(refusals(&coming), 0);
        let names: Vec<&str> = coming.tables.iter().map(|t| t.name).collect();
        assert_eq!(names, [TABLES[0], TABLES[1], TABLES[2], TRACKING]);
        // Whoever is not redirected any more was marked before that was decided.
        let of = |name: &str, hook| {
            let table = coming.tables.iter().find(|t| t.name == name).unwrap();
            table.chains.iter().find(|c| c.hook == hook).unwrap().priority
        };
        for hook in [Hook::Prerouting, Hook::Output] {
            assert!(of(TRACKING, hook) < of(NAT, hook));
        }
    }

    #[test]
    fn marks_are_told_apart() {
        assert!([PROXY_MARK, REPLY_MARK].iter().all(|mark| *mark != KEPT_MARK));
        assert_eq!(KEPT_MARK & super::super::MARK_MASK, KEPT_MARK);
    }
}
