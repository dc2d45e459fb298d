//! The namespaces that have a name in one directory.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::{JoinHandle, spawn_blocking};

use ambient_core::PodUid;

use super::{
    perform::Room,
    watch::{Changes, Watch},
};
use crate::{
    linux::{Inside, Netns, NetnsError, NetnsId},
    pods::Seen,
};

/// All of them, held open.
#[derive(Debug)]
pub(super) struct Places {
    directory: PathBuf,
    own: Arc<Netns>,
    places: BTreeMap<NetnsId, Place>,
}

#[derive(Debug)]
struct Place {
    namespace: Arc<Netns>,
    seen: Seen,
    room: Option<Arc<Room>>,
}

/// What a look at the directory found; `None` for one that was known and was not looked into again.
pub(super) type Scan = io::Result<BTreeMap<NetnsId, Option<(Arc<Netns>, Seen)>>>;

impl Places {
    pub(super) fn new(directory: PathBuf) -> Result<Self, NetnsError> {
        Ok(Self { directory, own: Arc::new(Netns::current()?), places: BTreeMap::new() })
    }

    /// Looks at the directory, and into every namespace that is new; with `again` into every one without a pod.
    pub(super) fn scan(&self, again: bool, paired: impl Fn(NetnsId) -> bool) -> JoinHandle<Scan> {
        let known: BTreeMap<NetnsId, Option<Arc<Netns>>> = self
            .places
            .iter()
            .map(|(id, place)| (*id, (again && !paired(*id)).then(|| place.namespace.clone())))
            .collect();
        let (directory, own) = (self.directory.clone(), self.own.id());
        spawn_blocking(move || look(&directory, own, &known))
    }

    /// Takes over what was found and gives all that is there; `None` where the look failed, so that nothing is known anew.
    pub(super) fn take(&mut self, scan: Scan) -> Option<BTreeMap<NetnsId, Seen>> {
        let found = scan.ok()?;
        self.places.retain(|id, place| found.contains_key(id) || place.room.is_some());
        let mut seen = BTreeMap::new();
        for (id, fresh) in found {
            match (self.places.get_mut(&id), fresh) {
                (Some(place), fresh) => {
                    if let Some((_, fresh)) = fresh {
                        place.seen.addresses = fresh.addresses;
                    }
                    seen.insert(id, place.seen.clone());
                }
                (None, Some((namespace, fresh))) => {
                    seen.insert(id, fresh.clone());
                    self.places.insert(id, Place { namespace, seen: fresh, room: None });
                }
                (None, None) => (),
            }
        }
        Some(seen)
    }

    /// The room of a namespace that has a pod from now on.
    pub(super) fn room(&mut self, id: NetnsId, changes: &Changes) -> Option<Arc<Room>> {
        let place = self.places.get_mut(&id)?;
        let namespace = place.namespace.clone();
        Some(place.room.get_or_insert_with(|| Arc::new(Room::new(namespace, Arc::new(Watch::new(id, changes.clone()))))).clone())
    }

    /// Nothing of ours is in a namespace any more.
    pub(super) fn cleared(&mut self, id: NetnsId) {
        if let Some(place) = self.places.get_mut(&id) {
            place.seen.left_behind = None;
        }
    }

    /// A namespace has no pod any more; the next look tells whether it is still there.
    pub(super) fn leave(&mut self, id: NetnsId) {
        if let Some(place) = self.places.get_mut(&id) {
            place.room = None;
        }
    }
}

fn look(directory: &Path, own: NetnsId, known: &BTreeMap<NetnsId, Option<Arc<Netns>>>) -> Scan {
    let device = std::fs::metadata("/proc/thread-self/ns/net")?.dev();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            // Not to see is not to know: what was there stays.
            Err(e) => return Err(e),
        };
        let id = NetnsId { dev: metadata.dev(), ino: metadata.ino() };
        // A name is made before the namespace is mounted on it, and is a plain file until then.
        if id.dev != device || id == own || found.contains_key(&id) || found.len() >= MOST {
            continue;
        }
        match known.get(&id) {
            Some(None) => {
                found.insert(id, None);
            }
            Some(Some(namespace)) => {
                found.insert(id, look_into(namespace.clone(), false));
            }
            None => {
                // One that is gone by now, or no network namespace, is none of ours.
                let Some(fresh) = Netns::open(&path).ok().and_then(|n| look_into(Arc::new(n), true)) else { continue };
                found.insert(fresh.0.id(), Some(fresh));
            }
        }
    }
    Ok(found)
}

fn look_into(namespace: Arc<Netns>, first: bool) -> Option<(Arc<Netns>, Seen)> {
    let mut inside = Inside::open(&namespace).ok()?;
    let addresses: Vec<IpAddr> = inside.addresses().ok()?;
    let left_behind: Option<Option<PodUid>> = if first { inside.owner().ok()?.map(|owner| owner.pod) } else { None };
    Some((namespace, Seen { addresses, left_behind }))
}

/// More namespaces than a node has pods, by far.
const MOST: usize = 4096;
