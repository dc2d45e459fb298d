//! What was asked for, on whose account, and who waits for it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ambient_control::AskError;
use ambient_core::PodUid;
use tokio::sync::watch;

use super::DemandError;

/// Names that connections need, which are remembered and subscribed to.
pub(super) const MOST: usize = 10_000;
/// Those that are asked for by DNS queries alone: of any name that a pod asks for it may be so, and connections need theirs more.
pub(super) const MOST_QUERIED: usize = MOST / 2;
/// Peers of connections that came: labels alone hang on them, and whoever connects from many addresses makes them many.
pub(super) const MOST_MET: usize = 4000;
/// One pod's part of each.
pub(super) const PART: usize = 4;
/// Who may wait at a time for names of one kind.
const WAITING: usize = 8192;
/// How many of them for one pod.
pub(super) const WAITING_OF_ONE: usize = WAITING / 4;
/// What has not been needed for so long is given back.
pub(super) const IDLE: Duration = Duration::from_secs(600);
/// How long an absence is believed when nobody would say any more that it has ended.
pub(super) const ABSENCE: Duration = Duration::from_secs(60);
/// What has not been needed for so long makes room for others where there is none.
pub(super) const IDLE_IF_FULL: Duration = Duration::from_secs(10);
/// How long it is not looked for room again, where there was none.
pub(super) const NO_ROOM: Duration = Duration::from_secs(1);
/// Names that one name leads to: its waypoint, and the gateway of its network.
const LED_TO: usize = 8;

/// Who needs a name. Whoever needs it first has it on his account, until somebody does whom its lack would harm more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose<'a> {
    /// The node itself, which needs few, and always.
    Node,
    /// Connections of a pod.
    Connections(&'a PodUid),
    /// DNS queries of a pod.
    Queries(&'a PodUid),
    /// Connections to a pod, to tell of their peers.
    Peers(&'a PodUid),
}

impl Whose<'_> {
    pub(super) fn account(self) -> Account {
        let (kind, pod) = match self {
            Self::Node => (Kind::Connections, None),
            Self::Connections(pod) => (Kind::Connections, Some(pod)),
            Self::Queries(pod) => (Kind::Queries, Some(pod)),
            Self::Peers(pod) => (Kind::Peers, Some(pod)),
        };
        Account { kind, pod: pod.cloned() }
    }

    /// Whether the lack of a name harms it more: names of queries and of peers go where connections need theirs.
    fn needs_it_more_than(self, account: &Account) -> bool {
        match self {
            Self::Node => account.pod.is_some(),
            Self::Connections(_) => account.kind != Kind::Connections,
            Self::Queries(_) | Self::Peers(_) => false,
        }
    }
}

/// What names are needed for. Each kind has its own room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Connections,
    Queries,
    Peers,
}

/// Whose a name is as long as it is remembered; no pod's where it is the node's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Account {
    kind: Kind,
    pod: Option<PodUid>,
}

impl Account {
    /// Whether what is on it takes from the same room.
    fn is_beside(&self, other: &Self) -> bool {
        self.kind == other.kind
    }

    fn most(&self) -> usize {
        match self.kind {
            Kind::Connections => MOST,
            Kind::Queries => MOST_QUERIED,
            Kind::Peers => MOST_MET,
        }
    }
}

/// What was asked for, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) all: HashMap<Arc<str>, Entry>,
    /// How many names are on whose account; none where there are none.
    counts: HashMap<Account, usize>,
    /// Whose names found no room, and when.
    full: HashMap<Account, Instant>,
    /// How many wait on whose account; none where nobody does.
    waiting: HashMap<Account, usize>,
    /// Since when nobody would answer.
    pub(super) away: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Entry {
    answered: watch::Sender<bool>,
    pub(super) used: Instant,
    account: Account,
    led_to: Vec<Arc<str>>,
}

impl Entry {
    fn is_awaited(&self) -> bool {
        self.answered.receiver_count() > 0
    }
}

/// What is to be done about a name that is needed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It is remembered.
    Known,
    /// It is to be asked for, and these are to be given back to make room.
    Ask(Vec<Arc<str>>),
    /// It was absent, and that is not believed any more.
    Stale(Arc<str>),
    /// There is no room.
    Full(Arc<str>),
}

impl Need {
    pub(super) fn ask(self) -> Result<Option<Vec<Arc<str>>>, DemandError> {
        match self {
            Self::Known => Ok(None),
            Self::Ask(given_back) => Ok(Some(given_back)),
            Self::Stale(name) => Err(DemandError::Stale(name)),
            Self::Full(name) => Err(DemandError::NotAsked(name, AskError::TooMuch)),
        }
    }
}

impl Names {
    /// A name is needed now.
    pub(super) fn need(&mut self, whose: Whose<'_>, name: &str, because: Option<&str>, is_there: bool, now: Instant) -> (Arc<str>, Need) {
        self.note_absence(is_there, now);
        let name = match self.all.get_key_value(name) {
            Some((name, _)) => name.clone(),
            None => name.into(),
        };
        if let Some(leads) = because.and_then(|because| self.all.get_mut(because))
            && leads.led_to.len() < LED_TO
            && !leads.led_to.contains(&name)
        {
            leads.led_to.push(name.clone());
        }
        let stale = self.away.is_some_and(|since| now.duration_since(since) >= ABSENCE);
        if let Some(entry) = self.all.get_mut(&name) {
            entry.used = now;
            let need = match stale && *entry.answered.borrow() {
                true => Need::Stale(name.clone()),
                false => Need::Known,
            };
            if whose.needs_it_more_than(&entry.account) {
                self.take_over(&name, whose.account());
            }
            return (name, need);
        }
        let account = whose.account();
        let Some(given_back) = self.room_for(&account, now) else {
            return (name.clone(), Need::Full(name));
        };
        *self.counts.entry(account.clone()).or_default() += 1;
        let entry = Entry {
            answered: watch::Sender::new(false),
            used: now,
            account,
            led_to: Vec::new(),
        };
        self.all.insert(name.clone(), entry);
        (name, Need::Ask(given_back))
    }

    /// A name goes over to an account that needs it more, as far as there is room; the node has it in any case.
    fn take_over(&mut self, name: &str, account: Account) {
        let has_room = account.pod.is_none() || self.has_room(&account);
        if let Some(entry) = self.all.get_mut(name).filter(|_| has_room) {
            discount(&mut self.counts, &entry.account);
            *self.counts.entry(account.clone()).or_default() += 1;
            entry.account = account;
        }
    }

    /// One more waits on an account, if there is room.
    pub(super) fn wait(&mut self, account: &Account) -> bool {
        let all: usize = self.waiting.iter().filter(|(of, _)| of.is_beside(account)).map(|(_, n)| n).sum();
        let room = all < WAITING && self.waiting.get(account).is_none_or(|own| *own < WAITING_OF_ONE);
        if room {
            *self.waiting.entry(account.clone()).or_default() += 1;
        }
        room
    }

    /// One waits no more.
    pub(super) fn leave(&mut self, account: &Account) {
        discount(&mut self.waiting, account);
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn all_waiting(&self) -> usize {
        self.waiting.values().sum()
    }

    /// Where to wait for a name's answer; `None` where it is here.
    pub(super) fn answer(&self, name: &str) -> Option<watch::Receiver<bool>> {
        let entry = self.all.get(name)?;
        (!*entry.answered.borrow()).then(|| entry.answered.subscribe())
    }

    pub(super) fn answered(&mut self, name: &str) {
        if let Some(entry) = self.all.get(name) {
            entry.answered.send_replace(true);
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        if let Some(entry) = self.all.remove(name) {
            discount(&mut self.counts, &entry.account);
        }
    }

    /// Whether there is room for one more on an account while all keep what they have.
    fn has_room(&self, account: &Account) -> bool {
        let all: usize = self.counts.iter().filter(|(of, _)| of.is_beside(account)).map(|(_, n)| n).sum();
        !self.has_its_part(account) && all < account.most()
    }

    fn has_its_part(&self, account: &Account) -> bool {
        account.pod.is_some() && self.count(account) >= account.most() / PART
    }

    /// What is forgotten, so that there is room for one more on an account; `None` where there is none.
    fn room_for(&mut self, account: &Account, now: Instant) -> Option<Vec<Arc<str>>> {
        if self.has_room(account) {
            return Some(Vec::new());
        }
        // Each look goes through all names, and whoever asks for ever more must not have all others wait for that.
        if self.full.get(account).is_some_and(|at| now.duration_since(*at) < NO_ROOM) {
            return None;
        }
        let given_back = match self.has_its_part(account) {
            true => self.make_room(account, now, |of| of == account),
            false => self.make_room(account, now, |of| of.is_beside(account)),
        };
        if given_back.is_empty() {
            self.full.insert(account.clone(), now);
            return None;
        }
        self.full.remove(account);
        Some(given_back)
    }

    /// Of the pod that has most, of some, forgets the half of the names that have not been needed for the longest time; gives them. It
    /// is a time at all, where whoever wants the room has not far less than that pod. Nobody gives anything to who has more.
    fn make_room(&mut self, account: &Account, now: Instant, some: impl Fn(&Account) -> bool) -> Vec<Arc<str>> {
        // What the node needs itself others give up for at once.
        let own = account.pod.as_ref().map_or(0, |_| self.count(account));
        let mut may_go: HashMap<&Account, Vec<(Instant, Arc<str>)>> = HashMap::new();
        for (name, entry) in &self.all {
            let of = &entry.account;
            let has = self.count(of);
            let idle = if own < has / 2 { Duration::ZERO } else { IDLE_IF_FULL };
            let is_some = of.pod.is_some() && some(of) && has >= own;
            if is_some && !entry.is_awaited() && now.duration_since(entry.used) >= idle {
                may_go.entry(of).or_default().push((entry.used, name.clone()));
            }
        }
        let Some((half, mut by_use)) = may_go
            .into_iter()
            .map(|(of, names)| (self.count(of), names))
            .max_by_key(|(has, _)| *has)
            .map(|(has, names)| (has.div_ceil(2), names))
        else {
            return Vec::new();
        };
        by_use.sort_unstable();
        by_use.truncate(half);
        let given_back: Vec<_> = by_use.into_iter().map(|(_, name)| name).collect();
        for name in &given_back {
            self.forget(name);
        }
        given_back
    }

    #[cfg(test)]
    pub(super) fn has_no_counts(&self) -> bool {
        self.counts.is_empty()
    }

    fn count(&self, account: &Account) -> usize {
        self.counts.get(account).copied().unwrap_or_default()
    }

    /// Forgets what has not been needed for a while, and gives it.
    pub(super) fn sweep(&mut self, is_there: bool, now: Instant) -> Vec<Arc<str>> {
        self.note_absence(is_there, now);
        self.full.retain(|_, at| now.duration_since(*at) < NO_ROOM);
        // Whoever leads to something needs it.
        let recent = |entry: &Entry| now.duration_since(entry.used) < IDLE || entry.is_awaited();
        let led_to: Vec<(Arc<str>, Instant)> = self
            .all
            .values()
            .filter(|entry| recent(entry))
            .flat_map(|entry| entry.led_to.iter().map(|name| (name.clone(), entry.used)))
            .collect();
        for (name, used) in led_to {
            if let Some(entry) = self.all.get_mut(&name) {
                entry.used = entry.used.max(used);
            }
        }
        let idle: Vec<Arc<str>> = self
            .all
            .iter()
            .filter(|(_, entry)| !recent(entry))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &idle {
            self.forget(name);
        }
        idle
    }

    fn note_absence(&mut self, is_there: bool, now: Instant) {
        match is_there {
            true => self.away = None,
            false => drop(self.away.get_or_insert(now)),
        }
    }
}

/// One less is on an account.
fn discount(counts: &mut HashMap<Account, usize>, account: &Account) {
    if let Some(count) = counts.get_mut(account) {
        *count -= 1;
        if *count == 0 {
            counts.remove(account);
        }
    }
}
