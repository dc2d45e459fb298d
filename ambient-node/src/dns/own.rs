//! A pod's own `resolv.conf`, as one of its processes sees it.
//!
//! The file is the pod's and may be anything, also while it is read: it is opened beneath the root of a process that is in
//! the pod's network namespace and not in this process's mount namespace, no link leads out of that root, and no more than
//! a moderate file is read of it.

use std::{
    fs, io,
    io::Read as _,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use ambient_dns::resolv;
use ambient_redirect::linux::NetnsId;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use tokio::{
    sync::{Semaphore, watch},
    time,
};

use crate::clock;

#[cfg(test)]
mod tests;

/// What is known of a pod's `resolv.conf`; nothing where it cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) nameservers: Arc<[SocketAddr]>,
    pub(super) search: Arc<[String]>,
}

/// The file, looked for when it is needed, and again after [`KEPT`].
#[derive(Debug)]
pub(super) struct Own {
    namespace: NetnsId,
    known: watch::Sender<Known>,
    looked: Mutex<Option<Instant>>,
    /// Has one place: a look.
    looking: Arc<Semaphore>,
    /// Where it was found last: looked at first, so that not all processes of the node are gone through each time.
    process: AtomicU32,
}

impl Own {
    pub(super) fn new(namespace: NetnsId) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            known: watch::Sender::default(),
            looked: Mutex::default(),
            looking: Arc::new(Semaphore::new(1)),
            process: AtomicU32::new(0),
        })
    }

    /// What is known now; a look is begun if that is old.
    pub(super) fn present(self: &Arc<Self>) -> Known {
        self.look();
        self.known.borrow().clone()
    }

    /// What is known now, or by the first look.
    pub(super) async fn fresh(self: &Arc<Self>) -> Known {
        let mut known = self.known.subscribe();
        if let Some(looking) = self.look()
            && known.borrow().nameservers.is_empty()
        {
            // A task that panicked has found nothing.
            let _ = looking.await;
        }
        known.borrow_and_update().clone()
    }

    fn look(self: &Arc<Self>) -> Option<tokio::task::JoinHandle<()>> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::steady();
        if looked.is_some_and(|looked| now.saturating_duration_since(looked) < KEPT) {
            return None;
        }
        *looked = Some(now);
        // One at a time: the file may lie where reading never ends.
        let looking = self.looking.clone().try_acquire_owned().ok()?;
        let own = self.clone();
        let find = move || {
            own.find();
            drop(looking);
        };
        Some(tokio::spawn(in_turn(&TURNS, &STUCK, find)))
    }

    fn find(&self) {
        let last = self.process.load(Ordering::Relaxed);
        let (process, found) = look_at(last, self.namespace).or_else(|| find(self.namespace)).unwrap_or_default();
        self.process.store(process, Ordering::Relaxed);
        self.known.send_replace(found);
    }
}

/// Has a thread do it when there is a turn, and ends when it is done. What takes too long gives its turn to others, as long as there are
/// not too many such.
async fn in_turn(turns: &Semaphore, stuck: &'static Semaphore, work: impl FnOnce() + Send + 'static) {
    // None of them is ever closed.
    let turn = turns.acquire().await;
    let mut done = tokio::task::spawn_blocking(work);
    if time::timeout(LONG, &mut done).await.is_ok() {
        return;
    }
    match stuck.try_acquire() {
        Ok(place) => {
            drop(turn);
            tokio::spawn(async move {
                let _ = done.await;
                drop(place);
            });
        }
        Err(_) => drop(done.await),
    }
}

/// The first process that is found in a network namespace and has a root of its own, and what its file says.
fn find(namespace: NetnsId) -> Option<(u32, Known)> {
    let numbers = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut processes: Vec<u32> = numbers.collect();
    processes.sort_unstable();
    processes.into_iter().find_map(|process| look_at(process, namespace))
}

/// What the file of a process says, if that is in a network namespace and has a root of its own.
fn look_at(process: u32, namespace: NetnsId) -> Option<(u32, Known)> {
    let net = fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
    if (net.dev(), net.ino()) != (namespace.dev, namespace.ino) {
        return None;
    }
    let ours = fs::metadata("/proc/self/ns/mnt").ok()?;
    let mounts = fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?;
    if mounts.ino() == ours.ino() {
        return None;
    }
    let text = read(&format!("/proc/{process}/root")).ok()?;
    Some((process, known(&text)))
}

/// The text of `etc/resolv.conf` below a directory, as a process that has it for its root would read it.
fn read(root: &str) -> io::Result<String> {
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Not blocking: it may be a pipe that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = openat2(&root, "etc/resolv.conf", flags, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut text = Vec::new();
    fs::File::from(file).take(MOST).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn known(text: &str) -> Known {
    let read = resolv::parse(text);
    Known {
        nameservers: read.nameservers.into_iter().map(|ip| SocketAddr::new(ip, 53)).collect(),
        search: read.search.into_iter().take(MOST_SEARCHED).collect(),
    }
}

/// So many pods' files are looked for at a time.
static TURNS: Semaphore = Semaphore::const_new(2);

/// How long a look may take before others have its turn: the file may lie on a network, or be answered for by the pod itself.
const LONG: Duration = Duration::from_secs(2);
/// Looks that took longer and go on; each has a thread.
static STUCK: Semaphore = Semaphore::const_new(32);

/// How old what is known may be: the kubelet writes the file once, and what writes it again is in no hurry.
const KEPT: Duration = Duration::from_secs(30);
/// Kubernetes allows 32 search domains of 2048 bytes together.
const MOST: u64 = 16 * 1024;
const MOST_SEARCHED: usize = 32;
