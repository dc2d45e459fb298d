//! What this node says it has captured: `status/NODE.json`, written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use ambient_core::PodUid;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex as AsyncMutex, task};

use super::directory;
use crate::whole;

/// What a node tells the other nodes of the same directory: which pods it has captured, and of which it has taken that
/// back.
///
/// ```json
/// {"node": "node-1", "pods": {"UID": {"ips": ["10.0.0.5"], "captured_at": "2026-11-23T20:31:50Z"}}, "withdrawn": ["UID"]}
/// ```
///
/// A withdrawal is said and never concluded: a report that lost its pods, and one that a node begins anew and fills pod by
/// pod, takes nothing back. (A report without the key `withdrawn` is of somebody who does not say; what it lacks is
/// withdrawn.)
///
/// A pod is to be reported once its capture is proven, and withdrawn before its rules go. The file is replaced as a
/// whole and is on the disk when a call returns. One value for each node: two would undo each other's reports.
#[derive(Clone, Debug)]
pub struct Status(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    written: Mutex<Written>,
    /// One change at a time takes a thread to write: who reports without end is not to have all of them.
    turn: Arc<AsyncMutex<()>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    node: String,
    pods: BTreeMap<PodUid, Captured>,
    /// Announced by this node once, and no longer; until the pod is gone or captured again.
    #[serde(default)]
    withdrawn: BTreeSet<PodUid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Captured {
    ips: Vec<IpAddr>,
    /// RFC 3339, UTC.
    captured_at: String,
}

impl Status {
    /// The status of a node in a directory of manifests, as the node's last run left it: a restart withdraws nothing.
    /// Writes nothing yet: the directory `status` is made with the first report.
    ///
    /// # Errors
    /// When `node` cannot be the name of a file, when there is no such directory, when the present file is not this node's
    /// report (remove it, if the node has nothing captured), or when the file system refuses.
    pub fn open(dir: impl AsRef<Path>, node: &str) -> io::Result<Self> {
        if node.is_empty() || node.starts_with('.') || node.contains(['/', '\0']) {
            let why = format!("{node:?} cannot be the name of a node");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let dir = dir.as_ref().join("status");
        let path = dir.join(format!("{node}.json"));
        let named = |e: io::Error| named(&path, e);
        // One that is not there was misnamed; nothing is made before there is something to say.
        let parent = dir.parent().unwrap_or(&dir);
        fs::read_dir(parent).map_err(|e| self::named(parent, e))?;
        let written = match directory::read(&path) {
            Ok((content, _)) => serde_json::from_slice::<Written>(&content)
                .ok()
                .filter(|written| written.node == node)
                .ok_or_else(|| {
                    let why = format!("is not a report of the node {node}: remove it once no pod of the node is captured");
                    named(io::Error::new(io::ErrorKind::InvalidData, why))
                })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Written {
                node: node.into(),
                pods: BTreeMap::new(),
                withdrawn: BTreeSet::new(),
            },
            Err(e) => return Err(named(e)),
        };
        Ok(Self(Arc::new(Inner {
            path,
            written: Mutex::new(written),
            turn: Arc::default(),
        })))
    }

    /// A pod is captured: its peers may reach it by tunnel from now on.
    ///
    /// A change that is dropped before its turn has come, while others are being written, is not made; after that it is, even if
    /// the future is dropped.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub async fn captured(&self, uid: &PodUid, ips: &[IpAddr], at: SystemTime) -> io::Result<()> {
        let entry = Captured {
            ips: ips.to_vec(),
            captured_at: rfc3339(at),
        };
        let uid = uid.clone();
        self.change(move |next| {
            next.withdrawn.remove(&uid);
            // Proven again, as after a restart: since when it is captured stays what it was.
            let same = next.pods.get(&uid).is_some_and(|before| before.ips == entry.ips);
            if !same {
                next.pods.insert(uid, entry);
            }
        })
        .await
    }

    /// A pod is about to be let go, or is gone. Said also of one that is not reported: an earlier process may have reported
    /// it in a file that is lost.
    ///
    /// A change that is dropped before its turn has come, while others are being written, is not made; after that it is, even if
    /// the future is dropped.
    ///
    /// # Errors
    /// When the file cannot be written; then peers still reach the pod by tunnel, and it must not be let go.
    pub async fn withdrawn(&self, uid: &PodUid) -> io::Result<()> {
        let uid = uid.clone();
        self.change(move |next| {
            next.pods.remove(&uid);
            next.withdrawn.insert(uid);
            // Of a node's pods, so many cannot be: who is forgotten here is refused, and never sent in plaintext.
            while next.withdrawn.len() > MOST_WITHDRAWN {
                next.withdrawn.pop_first();
            }
        })
        .await
    }

    /// Forgets every pod that is not known, such as those that were deleted while the node was down.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub async fn retain(&self, known: impl Fn(&PodUid) -> bool) -> io::Result<()> {
        let gone = self.named().into_iter().filter(|uid| !known(uid)).collect();
        self.change(move |next| next.forget(&gone)).await
    }

    /// Every pod that it names, captured or withdrawn.
    pub(super) fn named(&self) -> BTreeSet<PodUid> {
        let written = self.0.lock();
        written.pods.keys().chain(&written.withdrawn).cloned().collect()
    }

    /// Forgets pods that are gone; may block.
    pub(super) fn forget(&self, gone: &BTreeSet<PodUid>) -> io::Result<()> {
        // A file that names none of them is left alone: it may be another process that writes it.
        if self.named().is_disjoint(gone) {
            return Ok(());
        }
        self.0.change(|next| next.forget(gone))
    }

    /// Whose status it is.
    pub fn node(&self) -> String {
        self.0.lock().node.clone()
    }

    /// The pods that are reported now, in order.
    pub fn pods(&self) -> Vec<PodUid> {
        self.0.lock().pods.keys().cloned().collect()
    }

    /// Writes the report again if somebody has removed or changed it.
    pub(super) async fn mend(&self) -> io::Result<()> {
        self.change(|_| {}).await
    }

    async fn change(&self, change: impl FnOnce(&mut Written) + Send + 'static) -> io::Result<()> {
        let inner = self.0.clone();
        let turn = inner.turn.clone().lock_owned().await;
        let done = task::spawn_blocking(move || {
            let done = inner.change(change);
            drop(turn);
            done
        });
        done.await
            .unwrap_or_else(|_| Err(named(&self.0.path, io::Error::other("not written, as the program is ending"))))
    }
}

impl Written {
    fn forget(&mut self, gone: &BTreeSet<PodUid>) {
        self.pods.retain(|uid, _| !gone.contains(uid));
        self.withdrawn.retain(|uid| !gone.contains(uid));
    }
}

impl Inner {
    /// A thread that panicked with the lock has changed nothing: the value is replaced as the last step.
    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Written)) -> io::Result<()> {
        let mut written = self.lock();
        let mut next = written.clone();
        change(&mut next);
        // A file that somebody has removed or changed is written again all the same.
        if next != *written || !self.holds(&next) {
            self.replace(&next)?;
            *written = next;
        }
        Ok(())
    }

    /// Whether the file says just this; one with nothing to say need not be there.
    fn holds(&self, wanted: &Written) -> bool {
        match directory::read(&self.path) {
            Ok((content, _)) => serde_json::from_slice::<Written>(&content).is_ok_and(|found| found == *wanted),
            Err(e) => e.kind() == io::ErrorKind::NotFound && wanted.pods.is_empty() && wanted.withdrawn.is_empty(),
        }
    }

    fn replace(&self, written: &Written) -> io::Result<()> {
        let named = |e| named(&self.path, e);
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        let draft = dir.join(format!(".{}.json.new", written.node));
        let result = (|| {
            let mut content = serde_json::to_vec_pretty(written)?;
            content.push(b'\n');
            // Whatever the process lets others do: what stands here says who is captured.
            match fs::DirBuilder::new().mode(0o755).create(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            whole::replace(&self.path, &draft, 0o644, |file| file.write_all(&content)).map(drop)
        })();
        result.map_err(named)
    }
}

/// Withdrawals that are remembered.
const MOST_WITHDRAWN: usize = 4096;

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A moment as RFC 3339 in UTC, to the second.
fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years; a year of it begins in March, so that the leap day is the last.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_465_910, "2026-11-23T20:31:50Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    /// However many are made, one takes a thread to write, and one whose asker has gone before its turn is not made.
    #[tokio::test]
    async fn changes_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let status = Status::open(dir.path(), "node-1").unwrap();
        let turn = status.0.turn.clone().lock_owned().await;
        let (one, two) = (PodUid::from("u1"), PodUid::from("u2"));
        let waits = status.captured(&one, &[], UNIX_EPOCH);
        let gone = tokio::time::timeout(Duration::from_millis(50), status.captured(&two, &[], UNIX_EPOCH));
        let (done, ()) = tokio::join!(waits, async {
            gone.await.unwrap_err();
            assert_eq!(status.pods(), []);
            drop(turn);
        });
        done.unwrap();
        assert_eq!(status.pods(), [one]);
    }

    #[tokio::test]
    async fn a_restart_withdraws_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let uids: [PodUid; 3] = ["u1", "u2", "u3"].map(PodUid::from);
        let ips = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let status = Status::open(dir.path(), "node-1").unwrap();
        let path = dir.path().join("status/node-1.json");
        assert!(!path.exists());
        for uid in &uids {
            status.captured(uid, &ips, UNIX_EPOCH).await.unwrap();
        }
        status.withdrawn(&uids[1]).await.unwrap();
        drop(status);
        let status = Status::open(dir.path(), "node-1").unwrap();
        assert_eq!(status.pods(), [uids[0].clone(), uids[2].clone()]);
        // Proven again: nothing is written.
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        status.captured(&uids[0], &ips, UNIX_EPOCH + Duration::from_secs(9)).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        status.retain(|uid| *uid != uids[0]).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({ "node": "node-1", "pods": {
            "u3": { "ips": ["10.0.0.1", "fd00::1"], "captured_at": "1970-01-01T00:00:00Z" } }, "withdrawn": ["u2"] });
        assert_eq!(json, expected);
        assert_eq!(fs::read_dir(dir.path().join("status")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_others_changed_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let status = Status::open(dir.path(), "n").unwrap();
        status.mend().await.unwrap();
        assert!(!dir.path().join("status").exists());
        status.captured(&"u1".into(), &[], UNIX_EPOCH).await.unwrap();
        let path = dir.path().join("status/n.json");
        let good = fs::read(&path).unwrap();
        for bad in ["", "{", r#"{"node":"n","pods":{}}"#] {
            fs::write(&path, bad).unwrap();
            status.mend().await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), good);
        }
        fs::remove_dir_all(dir.path().join("status")).unwrap();
        status.mend().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), good);
    }

    #[test]
    fn what_is_no_report_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("status")).unwrap();
        let path = dir.path().join("status/n.json");
        for bad in ["", "{", "[]", r#"{"node":"other","pods":{}}"#] {
            fs::write(&path, bad).unwrap();
            let error = Status::open(dir.path(), "n").unwrap_err();
            assert!(error.to_string().contains("n.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
        for bad in ["", ".", "..", "a/b", ".n"] {
            assert!(Status::open(dir.path(), bad).is_err());
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let status = Status::open(dir.path(), "n").unwrap();
        status.captured(&"u1".into(), &[], UNIX_EPOCH).await.unwrap();
        // What stands in the way of the draft, also for root.
        fs::create_dir(dir.path().join("status/.n.json.new")).unwrap();
        let error = status.withdrawn(&"u1".into()).await.unwrap_err();
        assert!(error.to_string().contains("status/n.json"), "{error}");
        assert_eq!(status.pods(), ["u1".into()]);
        fs::remove_dir(dir.path().join("status/.n.json.new")).unwrap();
        status.withdrawn(&"u1".into()).await.unwrap();
        assert!(status.pods().is_empty());
    }
}
