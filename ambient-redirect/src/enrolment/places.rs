//! The namespaces that have a name in one directory, and those that pods' processes run in.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant as Tick,
};

use super::{
    perform::Room,
    watch::{Changes, Watch},
};
use crate::{
    find::Whose,
    linux::{ApplyError, Inside, Names, Netns, NetnsError, NetnsId, Processes, Segments, Stranger, is_shortage},
    netlink::Routing,
    plan::IpFamily,
    pods::{Birth, Cause, Seen},
};

/// All of them, held open.
#[derive(Debug)]
pub(super) struct Places {
    directory: PathBuf,
    /// Those of pods' processes, where they are looked at.
    processes: Option<Arc<Mutex<Processes>>>,
    node: Arc<str>,
    own: Arc<Netns>,
    places: BTreeMap<NetnsId, Place>,
    /// Tells of names; `None` where nobody does.
    names: Option<Names>,
    /// Something may be otherwise than at the last look.
    changed: bool,
    /// When the last look was begun.
    looked: Option<Instant>,
    /// Not all of what it saw could be looked into.
    incomplete: bool,
    /// Why, of one of them.
    unseen: Option<Cause>,
    /// Descriptors or memory were short for it.
    short: bool,
    /// All names were gone at once, and none has come since.
    emptied: bool,
}

#[derive(Debug)]
struct Place {
    namespace: Arc<Netns>,
    seen: Seen,
    room: Option<Arc<Room>>,
    /// Nothing of ours has been put into it since that was last seen.
    clear: bool,
    /// It was handed over: it is there until its pod has left, or has another, whether or not it has a name; if it had one, it is
    /// gone with that.
    given: bool,
    /// It has a name, or had one.
    named: bool,
    /// Pods' processes were seen in it, last at this time. It need not have a name then.
    inhabited: Option<Instant>,
}

type Beside = (Arc<[Stranger]>, Arc<[(IpFamily, Segments)]>);

/// What a look at the directory, and at processes, found.
pub(super) type Scan = io::Result<Found>;

/// `None` for one that was known and was not looked into again.
type Looked = BTreeMap<NetnsId, Option<(Arc<Netns>, Seen)>>;

/// What there is.
#[derive(Debug, Default)]
pub(super) struct Found {
    found: Looked,
    /// Whose processes are where.
    inhabited: BTreeMap<NetnsId, Whose>,
    /// Those that only processes show.
    unnamed: BTreeSet<NetnsId>,
    /// Some could not be looked into.
    incomplete: bool,
    /// Why, of the first of them that is a network namespace.
    unseen: Option<Cause>,
    /// Of a name it could not be seen what is behind it: not to see is not to know, and what was there stays.
    blind: bool,
    /// Descriptors or memory were short: whichever could not be looked into may be the very one that is looked for.
    short: bool,
}

impl Found {
    /// What was seen in a namespace; where nothing could be, why is taken note of.
    fn seen(&mut self, looked: Result<(Arc<Netns>, Seen), ApplyError>) -> Option<(Arc<Netns>, Seen)> {
        if let Err(error) = &looked {
            self.short |= error.is_shortage();
        }
        looked.map_err(|error| self.unseen.get_or_insert_with(|| error.into())).ok()
    }

    /// One that could not be opened.
    fn opened(&mut self, opened: Result<Netns, NetnsError>) -> Option<Netns> {
        if let Err(error) = &opened
            && error.is_shortage()
        {
            self.lacks(error.to_string().into());
        }
        opened.ok()
    }

    /// Descriptors or memory are short.
    fn lacks(&mut self, why: Cause) {
        self.short = true;
        self.unseen.get_or_insert(why);
    }

    /// What is in a namespace that was looked into before, now. Where that cannot be told, what was known of it stays: it may
    /// be that whose address another claims.
    fn again(&mut self, namespace: &Arc<Netns>) -> Option<(Arc<Netns>, Seen)> {
        let read = namespace.run(|| Ok::<_, ApplyError>(Routing::open()?.addresses()?));
        let addresses = read.map_err(ApplyError::from).flatten();
        self.has_now(namespace, addresses.map(|all| all.into_iter().map(|a| a.ip).collect()))
    }

    fn has_now(&mut self, namespace: &Arc<Netns>, addresses: Result<Vec<IpAddr>, ApplyError>) -> Option<(Arc<Netns>, Seen)> {
        self.seen(addresses.map(|all| (namespace.clone(), found_with(all))))
    }
}

/// A namespace with these addresses, of which nothing else is known.
fn found_with(addresses: Vec<IpAddr>) -> Seen {
    Seen {
        addresses,
        left_behind: None,
        birth: Birth::Running,
        whose: None,
    }
}

impl Places {
    pub(super) fn new(directory: PathBuf, proc: Option<PathBuf>, node: Arc<str>) -> Result<Self, NetnsError> {
        Ok(Self {
            directory,
            processes: proc.map(|proc| Arc::new(Mutex::new(Processes::new(proc)))),
            node,
            own: Arc::new(Netns::current()?),
            places: BTreeMap::new(),
            names: None,
            changed: true,
            looked: None,
            incomplete: false,
            unseen: None,
            short: false,
            emptied: false,
        })
    }

    /// Has the kernel tell of names from here on. Must be called within a runtime.
    pub(super) fn listen(&mut self) {
        self.names = Names::new().ok();
    }

    /// Waits for a name to come or go; for ever where that is known already, or nobody tells.
    pub(super) async fn change(&mut self) {
        match &self.names {
            Some(names) if !self.changed => {
                if names.changed().await.is_err() {
                    self.names = None;
                }
                self.changed = true;
            }
            _ => std::future::pending().await,
        }
    }

    /// Whether a look would show anything new: what the kernel does not tell of is looked for now and then.
    pub(super) fn is_due(&self, again: bool) -> bool {
        let age = self.looked.map(|then| Tick::now().into_std().saturating_duration_since(then));
        let by_processes = self.places.values().any(|place| place.inhabited.is_some());
        let longest = if self.incomplete || by_processes { LULL / 2 } else { LONGEST };
        again || self.changed || self.names.is_none() || age.is_none_or(|age| age >= longest)
    }

    /// Looks at the directory, and into every namespace that is new; with `again` into every one without a pod.
    pub(super) fn scan(&mut self, again: bool, paired: impl Fn(NetnsId) -> bool) -> JoinHandle<Scan> {
        // What changes from here on may not be seen by it.
        self.changed = false;
        let known: BTreeMap<NetnsId, Option<Arc<Netns>>> = self
            .places
            .iter()
            .map(|(id, place)| (*id, (again && !paired(*id)).then(|| place.namespace.clone())))
            .collect();
        let (directory, node, own) = (self.directory.clone(), self.node.clone(), self.own.id());
        let named = self.places.iter().filter(|(_, place)| place.named).map(|(id, _)| *id);
        let named: Vec<NetnsId> = named.collect();
        // Those that have a pod are asked for only where nothing but processes shows that they are there.
        let by_processes = again || self.places.values().any(|place| place.inhabited.is_some());
        let processes = self.processes.clone().filter(|_| by_processes);
        self.looked = Some(Tick::now().into_std());
        spawn_blocking(move || {
            let mut found = Found::default();
            let reading = |e: io::Error| of_directory(&directory, &e);
            look(&directory, &node, own, &known, &mut found).map_err(reading)?;
            if named.iter().any(|id| !found.found.contains_key(id)) {
                // Names that change while they are listed can be missed, as of one that is exchanged with another.
                look(&directory, &node, own, &known, &mut found).map_err(reading)?;
            }
            if let Some(processes) = processes {
                let mut processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(e) = around(&mut processes, &node, &known, &mut found) {
                    // What has a name is found without them.
                    (found.incomplete, found.blind) = (true, true);
                    found.short |= is_shortage(&e);
                    found.unseen.get_or_insert_with(|| of_directory(processes.proc(), &e).into());
                } else if let Some(hidden) = processes.hidden() {
                    found.unseen.get_or_insert_with(|| Cause::Hidden(hidden.to_string()));
                }
            }
            Ok(found)
        })
    }

    /// Takes over what was found and gives all that is there; `None` where the look failed, so that nothing is known anew.
    pub(super) fn take(&mut self, scan: Scan) -> Option<BTreeMap<NetnsId, Seen>> {
        let Found {
            mut found,
            inhabited,
            unnamed,
            incomplete,
            blind,
            unseen,
            short,
        } = match scan {
            Ok(found) => found,
            Err(error) => {
                (self.changed, self.unseen) = (true, Some(error.into()));
                return None;
            }
        };
        let lost = self
            .places
            .iter()
            .filter(|(id, place)| place.named && place.room.is_some() && !found.contains_key(id));
        let lost = lost.count();
        let none_is_named = found.keys().all(|id| unnamed.contains(id));
        // As where a mount has gone, rather than each of several pods.
        self.emptied = none_is_named && !blind && (lost > 1 || self.emptied && lost > 0);
        if self.emptied {
            let why = format!(
                "{}: no network namespace has a name there any more, where pods had theirs: mount it again",
                self.directory.display()
            );
            (self.changed, self.unseen) = (true, Some(why.into()));
            return None;
        }
        self.incomplete = incomplete;
        self.unseen = unseen;
        self.short = short;
        let now = Tick::now().into_std();
        for (id, place) in &mut self.places {
            if blind && !found.contains_key(id) {
                found.insert(*id, None);
                continue;
            }
            // Between two containers no process may be there, but names come and go with a pod.
            let named = found.contains_key(id) && !unnamed.contains(id);
            place.given &= named || !place.named;
            place.named |= named;
        }
        self.places
            .retain(|id, place| found.contains_key(id) || place.room.is_some() || place.given);
        let lives = |place: &Place| place.inhabited.is_some_and(|then| now < then + LULL);
        let given = self.places.iter().filter(|(_, place)| place.given || lives(place));
        let mut seen: BTreeMap<NetnsId, Seen> = given.map(|(id, place)| (*id, place.seen.clone())).collect();
        for (id, fresh) in found {
            match (self.places.get_mut(&id), fresh) {
                (Some(place), fresh) => {
                    if let Some((_, fresh)) = fresh {
                        place.seen.addresses = fresh.addresses;
                    }
                    if let Some(whose) = inhabited.get(&id) {
                        place.seen.whose = Some(whose.clone());
                        place.inhabited = place.inhabited.map(|_| now);
                    }
                    seen.insert(id, place.seen.clone());
                }
                (None, Some((namespace, mut fresh))) => {
                    fresh.whose = inhabited.get(&id).cloned();
                    let unnamed = unnamed.contains(&id);
                    seen.insert(id, fresh.clone());
                    self.places.insert(
                        id,
                        Place {
                            namespace,
                            clear: fresh.left_behind.is_none(),
                            seen: fresh,
                            room: None,
                            given: false,
                            named: !unnamed,
                            inhabited: unnamed.then_some(now),
                        },
                    );
                }
                (None, None) => (),
            }
        }
        Some(seen)
    }

    /// Why a namespace, or what shows namespaces, could not be looked into at the last look; `None` where all could.
    pub(super) fn unseen(&self) -> Option<Cause> {
        self.unseen.clone()
    }

    /// Whether descriptors or memory were short for the last look.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// A namespace is handed over, in which nothing has run.
    pub(super) fn give(&mut self, namespace: Arc<Netns>, addresses: &[IpAddr]) {
        let place = self.places.entry(namespace.id()).or_insert_with(|| Place {
            namespace,
            seen: Seen {
                birth: Birth::New,
                ..found_with(addresses.to_vec())
            },
            room: None,
            clear: true,
            given: true,
            named: false,
            inhabited: None,
        });
        place.given = true;
    }

    /// Whether it is the namespace of the node itself, which no pod has.
    pub(super) fn is_own(&self, id: NetnsId) -> bool {
        self.own.id() == id
    }

    /// Its pod has another namespace: where nothing but that it was handed over has shown that it is there, it is not there any
    /// more. Gives whether that is so.
    pub(super) fn take_back(&mut self, id: NetnsId) -> bool {
        let place = self.places.get_mut(&id).filter(|place| !place.named);
        place.is_some_and(|place| std::mem::take(&mut place.given))
    }

    /// Whether a namespace stands where it was found: by its name, or by a process in it.
    pub(super) fn is_named_still(&self, id: NetnsId) -> bool {
        let place = self.places.get(&id);
        let there = place.and_then(|place| std::fs::metadata(place.namespace.path()).ok());
        there.is_some_and(|there| (there.dev(), there.ino()) == (id.dev, id.ino))
    }

    /// The room of a namespace that has a pod from now on.
    pub(super) fn room(&mut self, id: NetnsId, changes: &Changes) -> Option<Arc<Room>> {
        let place = self.places.get_mut(&id)?;
        let namespace = place.namespace.clone();
        place.clear &= place.room.is_some();
        Some(
            place
                .room
                .get_or_insert_with(|| Arc::new(Room::new(namespace, Arc::new(Watch::new(id, changes.clone())))))
                .clone(),
        )
    }

    /// What others have in the way in a namespace, and the segments of what is captured, as it was looked at last.
    pub(super) fn beside(&self, id: NetnsId) -> Option<Beside> {
        let room = self.places.get(&id)?.room.as_ref()?;
        Some((room.strangers(), room.segments()))
    }

    /// Nothing of ours is in a namespace any more.
    pub(super) fn cleared(&mut self, id: NetnsId) {
        if let Some(place) = self.places.get_mut(&id) {
            place.seen.left_behind = None;
            place.clear = true;
        }
    }

    /// A namespace has no pod any more. Unless it was cleared it is forgotten, so that the next look, should it find it,
    /// looks for what was left in it.
    pub(super) fn leave(&mut self, id: NetnsId) {
        match self.places.get_mut(&id) {
            Some(place) if place.clear => {
                place.room = None;
                place.given = false;
            }
            _ => {
                self.places.remove(&id);
                self.changed = true;
            }
        }
    }
}

/// The namespaces around pods' processes: those without a name as well.
fn around(processes: &mut Processes, node: &str, known: &BTreeMap<NetnsId, Option<Arc<Netns>>>, found: &mut Found) -> io::Result<()> {
    for (id, (whose, path)) in few_of_each(processes.look()?) {
        if !found.found.contains_key(&id) && found.found.len() < MOST {
            let looked = match known.get(&id) {
                Some(None) => None,
                Some(Some(namespace)) => found.again(namespace),
                None => {
                    // The process may have ended, and its number be another's.
                    let open = found.opened(Netns::open(&path)).filter(|n| n.id() == id);
                    let fresh = open.map(|n| look_into(Arc::new(n), node));
                    let Some(fresh) = fresh.and_then(|fresh| found.seen(fresh)) else {
                        found.incomplete = true;
                        continue;
                    };
                    Some(fresh)
                }
            };
            found.found.insert(id, looked);
            found.unnamed.insert(id);
        }
        found.inhabited.insert(id, whose);
    }
    Ok(())
}

/// Of each pod the namespaces of its oldest processes, its own before those that it has made: whoever may make them may make any number.
fn few_of_each(all: BTreeMap<NetnsId, (Whose, PathBuf)>) -> Vec<(NetnsId, (Whose, PathBuf))> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by(|(_, (a, _)), (_, (b, _))| (&a.pod, a.started, a.pid).cmp(&(&b.pod, b.started, b.pid)));
    let few = all
        .chunk_by(|(_, (a, _)), (_, (b, _))| a.pod == b.pod)
        .flat_map(|of_one| of_one.iter().take(OF_EACH));
    few.cloned().collect()
}

fn look(directory: &Path, node: &str, own: NetnsId, known: &BTreeMap<NetnsId, Option<Arc<Netns>>>, all: &mut Found) -> io::Result<()> {
    let device = std::fs::metadata("/proc/thread-self/ns/net")?.dev();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if leads_nowhere(&e) => continue,
            Err(e) => {
                if is_shortage(&e) {
                    all.lacks(format!("{}: {e}", path.display()).into());
                }
                // One name must not hide the others.
                (all.incomplete, all.blind) = (true, true);
                continue;
            }
        };
        let id = NetnsId {
            dev: metadata.dev(),
            ino: metadata.ino(),
        };
        // A name is made before the namespace is mounted on it, and is a plain file until then.
        let found = &mut all.found;
        if id.dev != device || id == own || found.contains_key(&id) || found.len() >= MOST {
            continue;
        }
        match known.get(&id) {
            Some(None) => {
                found.insert(id, None);
            }
            Some(Some(namespace)) => {
                let again = all.again(namespace);
                all.found.insert(id, again);
            }
            None => {
                // One that is gone by now, or no network namespace, is none of ours.
                let fresh = all.opened(Netns::open(&path)).map(|n| look_into(Arc::new(n), node));
                let Some(fresh) = fresh.and_then(|fresh| all.seen(fresh)) else {
                    all.incomplete = true;
                    continue;
                };
                all.found.insert(fresh.0.id(), Some(fresh));
            }
        }
    }
    Ok(())
}

/// An error with where it was.
fn of_directory(directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("reading {}: {error}", directory.display()))
}

/// Whether a name, most often a link, names nothing at all.
fn leads_nowhere(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG)
    )
}

/// At the first look: addresses, and what a node of that name has left behind there.
fn look_into(namespace: Arc<Netns>, node: &str) -> Result<(Arc<Netns>, Seen), ApplyError> {
    let mut inside = Inside::open(&namespace)?;
    let addresses: Vec<IpAddr> = inside.addresses()?;
    let left_behind = inside.left_behind(node)?;
    let seen = Seen {
        left_behind,
        ..found_with(addresses)
    };
    Ok((namespace, seen))
}

/// A namespace that only processes show is there for so long after the last of them.
const LULL: Duration = Duration::from_secs(2);
/// A look at what nobody tells of is so old at most: names that are links, processes.
const LONGEST: Duration = Duration::from_secs(5);
/// More namespaces than a node has pods, by far.
const MOST: usize = 4096;
/// Namespaces that only processes show, of one pod: it has one.
const OF_EACH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_that_makes_namespaces_its_own_is_looked_into_and_few_others() {
        let made = |n: u64, pod: &str, started| {
            let whose = Whose {
                pod: pod.into(),
                started,
                pid: u32::try_from(n).unwrap(),
            };
            (NetnsId { dev: 4, ino: n }, (whose, PathBuf::new()))
        };
        // Its own bears a higher number than those that it makes.
        let many = (0..1000)
            .map(|n| made(n, "maker", 100 + n))
            .chain([made(5000, "maker", 1), made(7000, "other", 900)]);
        let few: Vec<u64> = few_of_each(many.collect()).iter().map(|(id, _)| id.ino).collect();
        assert_eq!(few, [5000, 0, 1, 2, 3, 4, 5, 6, 7000]);
    }

    #[test]
    fn what_cannot_be_read_again_keeps_the_addresses_that_it_was_seen_with() {
        let own = Arc::new(Netns::current().unwrap());
        let mut places = Places::new("/nowhere".into(), None, "node-1".into()).unwrap();
        let look = |places: &mut Places, addresses: Result<Vec<IpAddr>, ApplyError>| {
            let mut found = Found::default();
            let now = found.has_now(&own, addresses);
            found.found.insert(own.id(), now);
            places.take(Ok(found)).unwrap()
        };
        let addresses = vec![IpAddr::from([10, 0, 0, 2])];
        look(&mut places, Ok(addresses.clone()));
        assert_eq!((places.is_short(), places.unseen()), (false, None));
        let no_thread = NetnsError::Thread(io::Error::from_raw_os_error(libc::EAGAIN));
        let seen = look(&mut places, Err(no_thread.into()));
        assert_eq!(seen[&own.id()].addresses, addresses);
        assert!(places.is_short());
        let mut found = Found::default();
        let open = |e| NetnsError::Open {
            path: "/x".into(),
            source: io::Error::from_raw_os_error(e),
        };
        assert!(
            found.opened(Err(open(libc::ENOENT))).is_none() && !found.short && found.unseen.is_none(),
            "it is gone"
        );
        assert!(found.opened(Err(open(libc::EMFILE))).is_none());
        assert!(found.short && found.unseen.is_some_and(|why| why.to_string().contains("(os error 24)")));
        assert!(look(&mut places, Ok(vec![]))[&own.id()].addresses.is_empty());
    }
}
