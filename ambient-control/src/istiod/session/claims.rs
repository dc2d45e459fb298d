//! What only one resource can have: a pod, and what it is reached at.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Instant,
};

use ambient_core::{NetworkMode, PodUid, mesh::Update};

use super::{super::read::Read, Come, Kind, Known, Received, come::Content};
use crate::Change;

/// What a resource claims for itself.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The pod that it is, where that is said.
    pod: Option<PodUid>,
    /// The first two of its addresses, hashed; nothing is 0. Two that are the same by chance do no harm: what is to go in any
    /// case goes earlier.
    places: [u32; 2],
}

impl Claims {
    pub(super) fn of(change: &Change) -> Self {
        match change {
            Change::Mesh(Update::Workload(workload)) => {
                // The address of its node is not its own.
                let is_own = workload.network_mode == NetworkMode::Standard;
                let own = workload.addresses.iter().filter(|ip| is_own && !ip.is_unspecified());
                Self {
                    pod: workload.pod.clone(),
                    places: places(own.map(|ip| (&workload.network, *ip))),
                }
            }
            Change::Mesh(Update::Service(service)) => Self {
                pod: None,
                places: places(service.vips.iter().map(|vip| (&vip.network, vip.ip))),
            },
            _ => Self::default(),
        }
    }

    fn places(&self) -> impl Iterator<Item = u32> + use<> {
        self.places.into_iter().filter(|place| *place != 0)
    }
}

fn places<T: Hash>(of: impl Iterator<Item = T>) -> [u32; 2] {
    let mut places = [0; 2];
    for (place, of) in places.iter_mut().zip(of) {
        let mut hasher = DefaultHasher::new();
        of.hash(&mut hasher);
        *place = (hasher.finish() as u32).max(1);
    }
    places
}

/// What is to be removed, and when.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// `None` while more may be told of it: it is not missed yet.
    pub(super) until: Option<Instant>,
    /// Names that are to be answered before that.
    pub(super) owed: HashSet<Box<str>>,
    /// Whether it is so much that it is told.
    pub(super) is_much: bool,
    names: HashSet<Arc<str>>,
    /// Who of them is where; also those that have come back.
    at: HashMap<u32, Vec<Arc<str>>>,
}

impl Waiting {
    pub(super) fn add(&mut self, name: &Arc<str>, claims: &Claims) {
        if self.names.insert(name.clone()) {
            claims
                .places()
                .for_each(|place| self.at.entry(place).or_default().push(name.clone()));
        }
    }

    /// It is there again.
    pub(super) fn take(&mut self, name: &str) {
        self.names.remove(name);
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    /// These names are owed no longer.
    pub(super) fn answer(&mut self, names: &[impl AsRef<str>]) {
        for name in names {
            self.owed.remove(name.as_ref());
        }
    }
}

impl Known {
    /// A resource has what it claims from now on. What waits to be removed and has some of it goes at once: the control plane
    /// has not forgotten it, but given it away.
    ///
    /// # Errors
    /// Which other one has its pod, and does not wait; then nobody has lost anything.
    pub(super) fn claim(&mut self, kind: Kind, name: &Arc<str>, claims: &Claims, received: &mut Received) -> Result<(), String> {
        if let Some(pod) = &claims.pod
            && let Some(other) = self.pods.get(pod).filter(|other| *other != name)
            && !self.waiting.as_ref().is_some_and(|waiting| waiting.has(other))
        {
            return Err(format!(
                "extensions[{}].uid: {} is the pod of {other} already, and a pod is one workload",
                super::super::read::POD,
                pod.as_str()
            ));
        }
        self.make_room(kind, name, claims, received);
        let before = self.held.get(name).and_then(|held| held.claims.pod.as_ref());
        if let Some(before) = before.filter(|before| claims.pod.as_ref() != Some(before)) {
            self.pods.remove(before);
        }
        if let Some(pod) = &claims.pod {
            self.pods.insert(pod.clone(), name.clone());
        }
        Ok(())
    }

    fn make_room(&mut self, kind: Kind, name: &Arc<str>, claims: &Claims, received: &mut Received) {
        let Some(waiting) = &mut self.waiting else { return };
        let before = self.held.get(name).map(|held| held.claims.places).unwrap_or_default();
        // Where more may be told nobody has given anything away, but for a pod, which is one workload.
        let is_missed = waiting.until.is_some();
        let new = claims.places().filter(|place| is_missed && !before.contains(place));
        let mut given: Vec<_> = new.filter_map(|place| waiting.at.remove(&place)).flatten().collect();
        given.extend(claims.pod.as_ref().and_then(|pod| self.pods.get(pod)).cloned());
        given.retain(|other| other != name && waiting.names.remove(other));
        if waiting.names.is_empty() {
            (self.waiting, self.waited) = (None, None);
        }
        for name in given {
            self.let_go(kind, &name, received);
        }
    }

    /// What was claimed is to be had.
    pub(super) fn forgo(&mut self, claims: &Claims) {
        if let Some(pod) = &claims.pod {
            self.pods.remove(pod);
        }
    }
}

/// Of names that stand twice in one response, and do not say the same, the later ones say nothing: which is right nobody knows,
/// and what was said first is not to hang on what comes behind it.
pub(super) fn refuse_doubles(come: &mut Vec<Come>) {
    let mut first: HashMap<Arc<str>, usize> = HashMap::with_capacity(come.len());
    let mut doubles = Vec::new();
    for (at, one) in come.iter().enumerate() {
        match first.get(&one.name) {
            None => drop(first.insert(one.name.clone(), at)),
            Some(before) => doubles.push((*before, at)),
        }
    }
    if doubles.is_empty() {
        return;
    }
    let mut needless = HashSet::new();
    for (before, at) in doubles {
        match (&come[before].content, &come[at].content) {
            (Content::Of(_, Ok(one)), Content::Of(_, Ok(other))) if same(one, other) => drop(needless.insert(at)),
            (Content::Of(_, Ok(_)), Content::Of(kind, Ok(_))) => {
                let why = "it came twice in one response, and not the same: the first counts";
                come[at].content = Content::Of(*kind, Err(why.into()));
            }
            _ => {}
        }
    }
    let mut at = 0..;
    come.retain(|_| at.next().is_none_or(|at| !needless.contains(&at)));
}

fn same(one: &Read, other: &Read) -> bool {
    match (&one.change, &other.change) {
        (Change::Mesh(Update::Workload(one)), Change::Mesh(Update::Workload(other))) => one == other,
        (Change::Mesh(Update::Service(one)), Change::Mesh(Update::Service(other))) => one == other,
        (Change::Policy(one), Change::Policy(other)) => one == other,
        (Change::Trust(one), Change::Trust(other)) => one == other,
        _ => false,
    }
}
