//! What lies in the directory: one look after the other, without a clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use ambient_authz::{Scope, policy::Unreadable};
use ambient_core::{PodUid, PolicyKey};
use rustix::io::Errno;

use super::{
    MeshConfig,
    document::{self, Item},
    mesh_config::is_mesh_config,
    reports::Reports,
    tree::TextError,
};
use crate::{
    Batch, Fault,
    objects::{Kind, Object, ObjectKey, Objects, Settings},
    plain,
};

#[cfg(test)]
mod tests;

/// The directory as it was seen last.
pub(super) struct Directory {
    dir: PathBuf,
    root_namespace: Arc<str>,
    cluster_id: Arc<str>,
    ztunnel_nodes: BTreeSet<Arc<str>>,
    /// What the ConfigMap said when the settings were made.
    mesh: Option<MeshConfig>,
    /// Where it says something else now, and what.
    mesh_fault: Option<(ObjectKey, String, String)>,
    objects: Objects,
    /// By their names, whatever bytes these are: what is left out could hold a policy that refuses.
    files: BTreeMap<OsString, Manifest>,
    round: Round,
    /// Which files hold an object: the first of them counts.
    claims: BTreeMap<ObjectKey, Vec<OsString>>,
    reports: Reports,
    unreachable: Option<io::Error>,
    told_faults: Arc<[Fault]>,
    /// Kinds that were said to be passed over.
    passed_over: BTreeSet<String>,
}

/// From one reading of the directory's names to the next.
#[derive(Default)]
struct Round {
    /// The directory as the last look saw it.
    seen: Option<Sight>,
    /// For so many looks everything is looked at, whatever there is.
    whole: u8,
    /// Names that were not looked at yet.
    left: Vec<OsString>,
    /// What the last look saw and did not take: it is looked at again with the next.
    pending: BTreeSet<OsString>,
    /// Whether a look since the last batch may have found what is told.
    news: bool,
}

/// A file of manifests.
#[derive(Default)]
struct Manifest {
    /// What the last look saw; `None` if it saw nothing.
    seen: Option<Sight>,
    /// What was taken last.
    taken: Option<Sight>,
    /// What is in force of it.
    items: BTreeMap<ObjectKey, Item>,
    /// Whether it could ever be read.
    good: bool,
    /// What is wrong with the content that was read last.
    error: Option<TextError>,
    /// Why the last look could not read it.
    trouble: Option<Trouble>,
    /// Lines that hold what stands further up.
    repeated: Vec<TextError>,
    /// Objects of it that are not what they must be, and whether an earlier version of each stays in force.
    broken: Vec<(ObjectKey, TextError, bool)>,
}

/// Why the file system does not let us read a file.
struct Trouble {
    error: TextError,
    /// Looks in a row that could not read it.
    looks: u32,
    /// Whether it is this process, or the machine, that is short of something.
    ours: bool,
}

impl Trouble {
    /// Whether the file counts as not seen yet, if nothing of it was ever readable.
    fn may_pass(&self) -> bool {
        self.ours && self.looks < LOOKS_FOR_OURS
    }
}

/// What says nothing of the file: without descriptors, memory or threads no file can be read.
fn is_ours(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR];
    Errno::from_io_error(error).is_some_and(|errno| ours.contains(&errno))
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Set by the kernel alone, so that a copy with an old date is seen too.
    changed: (i64, i64),
}

impl Sight {
    /// `None` for what is no plain file.
    pub(crate) fn of(meta: &Metadata) -> Option<Self> {
        meta.is_file().then(|| Self::of_any(meta))
    }

    fn of_any(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// What helps against that.
fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => ": nothing is wrong with the file; raise the limit of open files (LimitNOFILE, ulimit -n)",
        Some(Errno::AGAIN) => {
            ": nothing is wrong with the file, and no thread can be had to read it; raise the limit of threads of the user (ulimit -u) or the cgroup \
             (pids.max)"
        }
        Some(Errno::NOMEM) => ": nothing is wrong with the file, and memory is lacking",
        _ => "",
    }
}

impl Manifest {
    /// Whether what the last look saw was not taken.
    fn is_pending(&self) -> bool {
        self.seen != self.taken || self.trouble.is_some()
    }

    fn wrong(&self) -> Option<&TextError> {
        self.trouble.as_ref().map(|trouble| &trouble.error).or(self.error.as_ref())
    }
}

impl Directory {
    pub(super) fn new(dir: PathBuf, settings: Settings) -> Self {
        Self {
            reports: Reports::new(dir.join("status")),
            dir,
            root_namespace: settings.root_namespace.clone(),
            cluster_id: settings.cluster_id.clone(),
            ztunnel_nodes: settings.ztunnel_nodes.clone(),
            mesh: None,
            mesh_fault: None,
            objects: Objects::new(settings),
            files: BTreeMap::new(),
            round: Round::default(),
            claims: BTreeMap::new(),
            unreachable: None,
            told_faults: Arc::new([]),
            passed_over: BTreeSet::new(),
        }
    }

    /// Begins with what a node that watches knew of the others before it was restarted.
    pub(super) fn remember(&mut self, node: &str) {
        self.reports.remember(node, &mut self.objects);
    }

    /// What the ConfigMap `istio` is to say as long as this is watched.
    pub(super) fn expect(&mut self, mesh: Option<MeshConfig>) {
        self.mesh = mesh;
    }

    /// Looks at everything, or where there is much and the directory is what it was, at some of it in turn; files that this look and
    /// the one before saw alike are taken. Where one is found that has changed, all are looked at next: another may hold now what it
    /// held. Looks are to be a tenth of a second apart at least.
    pub(super) fn look(&mut self) {
        let seen = fs::metadata(&self.dir).ok().map(|meta| Sight::of_any(&meta));
        if seen.is_none() || seen != self.round.seen {
            // The next one too: what changes twice within one tick of the file system's clock looks alike.
            self.round.whole = 2;
        }
        self.round.seen = seen;
        if self.round.whole > 0 || self.round.left.is_empty() {
            match self.names() {
                Ok(names) => self.round.left = names,
                Err(error) => {
                    // Nothing is known to be removed; it is read again with the next look.
                    self.unreachable = Some(error);
                    self.round.seen = None;
                    self.round.news = true;
                    return;
                }
            }
            self.round.news |= self.unreachable.take().is_some();
        }
        let least = match self.round.whole {
            0 => self.round.left.len().saturating_sub(AT_ONCE),
            _ => 0,
        };
        self.round.whole = self.round.whole.saturating_sub(1);
        let before = std::mem::take(&mut self.round.pending);
        self.round.news |= !before.is_empty();
        let mut now = before.clone();
        now.extend(self.round.left.drain(least..));
        // What is gone last: another may hold what it held.
        let is_gone = |name: &OsString| self.files.get(name).is_some_and(|file| file.seen.is_none());
        let (gone, there): (Vec<_>, Vec<_>) = now.into_iter().partition(is_gone);
        for name in there.into_iter().chain(gone) {
            self.look_at(&name);
            let Some(file) = self.files.get(&name).filter(|file| file.is_pending()) else {
                continue;
            };
            if file.trouble.is_none() && !before.contains(&name) {
                self.round.whole = self.round.whole.max(1);
            }
            self.round.pending.insert(name);
        }
        self.round.news |= !self.round.pending.is_empty();
        self.round.news |= self.reports.look(&mut self.objects);
    }

    /// The names of all manifests that there are, or were.
    fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = names(&self.dir, &["yaml", "yml", "json"])?;
        if names.is_empty() && self.files.values().any(|file| !file.items.is_empty()) {
            // As where what was mounted there is not any more.
            return Err(io::Error::other(EMPTIED));
        }
        names.extend(self.files.keys().cloned());
        Ok(names.into_iter().collect())
    }

    /// Why the directory itself cannot be read, if it cannot.
    pub(super) fn unreachable(&mut self) -> Option<io::Error> {
        self.unreachable.take()
    }

    /// Whether every file was taken as the last look saw it.
    pub(super) fn is_settled(&self) -> bool {
        self.looked_twice() && self.unsettled().is_empty()
    }

    pub(super) fn unsettled(&self) -> Vec<String> {
        let unsettled = self
            .files
            .iter()
            .filter(|(_, file)| file.seen != file.taken && file.trouble.is_none());
        unsettled.map(|(name, _)| name.to_string_lossy().into_owned()).collect()
    }

    fn looked_twice(&self) -> bool {
        // A directory without files has nothing to agree on.
        self.files.values().all(|file| file.taken.is_some() || file.trouble.is_some())
    }

    /// Which of some pods are in none of the manifests, as far as that can be known: what cannot be read might hold any of
    /// them, and where there is no file at all the directory may be the wrong one.
    pub(super) fn lacks(&self, mut pods: BTreeSet<PodUid>) -> BTreeSet<PodUid> {
        let whole = |file: &Manifest| file.wrong().is_none() && file.broken.is_empty();
        if self.unreachable.is_some() || self.files.is_empty() || !self.is_settled() || !self.files.values().all(whole) {
            return BTreeSet::new();
        }
        pods.retain(|uid| !self.objects.has_pod(uid));
        pods
    }

    /// Whether a pod is in the manifests.
    pub(super) fn has_pod(&self, uid: &PodUid) -> bool {
        self.objects.has_pod(uid)
    }

    /// What is wrong with a file of which nothing is in force.
    pub(super) fn broken_file(&self) -> Option<String> {
        let (name, file) = self.files.iter().find(|(_, file)| file.wrong().is_some() && !file.good)?;
        Some(format!("{}:{}", self.dir.join(name).display(), file.wrong()?))
    }

    /// What became different since the last batch; `None` if nothing, unless one is wanted all the same.
    pub(super) fn batch(&mut self, always: bool) -> Option<Batch> {
        let changes = self.objects.changes();
        for (key, warning) in self.objects.warnings() {
            tracing::warn!(object = %key, place = self.place(&key, &warning.path), "{warning}");
        }
        let looked = std::mem::take(&mut self.round.news) || always || !changes.is_empty();
        let faults = looked.then(|| self.faults());
        let faults = faults.filter(|faults| **faults != *self.told_faults);
        let news = faults.is_some();
        if let Some(faults) = faults {
            for fault in faults.iter().filter(|fault| !self.told_faults.contains(fault)) {
                tracing::error!("{fault}");
            }
            self.told_faults = faults.into();
        }
        (always || news || !changes.is_empty()).then(|| Batch {
            changes,
            synced: true,
            faults: self.told_faults.clone(),
            ..Batch::default()
        })
    }

    fn look_at(&mut self, name: &OsStr) {
        let path = self.dir.join(name);
        let looked = fs::metadata(&path).and_then(|meta| match meta.is_dir() {
            // Directories are left alone.
            true => Ok(None),
            false => plain::is_plain(&meta).map(|()| Sight::of(&meta)),
        });
        let looked = match looked {
            // A link that leads to nothing is there: it cannot be read, and is no removal of what it held.
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::symlink_metadata(&path).map(|link| Some(Sight::of_any(&link))),
            other => other,
        };
        let seen = match looked {
            Ok(seen) => seen,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return self.trouble(name, &error),
        };
        let Some(file) = self.files.get_mut(name) else {
            if seen.is_some() {
                let file = Manifest {
                    seen,
                    ..Manifest::default()
                };
                self.files.insert(name.into(), file);
            }
            return;
        };
        let agreed = file.seen == seen;
        file.seen = seen;
        match seen {
            _ if !agreed => {}
            None => self.drop_file(name),
            Some(sight) if file.taken != seen => self.take(name, &path, sight),
            Some(_) => file.trouble = None,
        }
    }

    fn take(&mut self, name: &OsStr, path: &Path, sight: Sight) {
        let (content, read) = match read(path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return self.trouble(name, &io::Error::new(error.kind(), DANGLING));
            }
            // It is tried again with every look.
            Err(error) => return self.trouble(name, &error),
        };
        if read != Some(sight) {
            return;
        }
        let document = match document::read(&content) {
            Ok(document) => document,
            Err(error) => return self.trouble(name, &error),
        };
        let Some(file) = self.files.get_mut(name) else { return };
        file.taken = Some(sight);
        file.trouble = None;
        if content.iter().all(u8::is_ascii_whitespace) {
            if !file.items.is_empty() || file.error.is_some() {
                file.error.get_or_insert_with(|| TextError {
                    line: 0,
                    path: String::new(),
                    why: "became empty: if nothing is meant write an empty List, or remove it where there are others".into(),
                });
            } else if !file.good {
                // Nothing good yet either: a file that is still being written begins like this.
                self.objects.readmit(&file_key(name));
            }
            return;
        }
        match document {
            Ok(content) => self.accept(name, content),
            Err(error) => self.fail(name, error),
        }
    }

    fn accept(&mut self, name: &OsStr, content: document::Content) {
        for kind in content.unknown {
            if self.passed_over.len() < MAX_PASSED_OVER && self.passed_over.insert(kind.clone()) {
                tracing::warn!(
                    file = %name.display(),
                    "objects of the kind {kind} are passed over: nothing of the mesh is read from them"
                );
            }
        }
        for ignored in content.ignored {
            if ignored.node.is_none_or(|node| !self.ztunnel_nodes.contains(&*node)) {
                tracing::warn!("{}:{}", self.dir.join(name).display(), ignored.what);
            }
        }
        let mut items = BTreeMap::new();
        let mut repeated = Vec::new();
        for item in content.items {
            if items.contains_key(&item.key) {
                repeated.push(TextError {
                    line: item.line,
                    path: "metadata.name".into(),
                    why: format!("{} stands further up in this file already; this one does not count", item.key),
                });
            } else {
                items.insert(item.key.clone(), item);
            }
        }
        let Some(file) = self.files.get_mut(name) else { return };
        file.good = true;
        file.error = None;
        file.repeated = repeated;
        file.broken.clear();
        for (key, error) in content.broken {
            let here = items.contains_key(&key);
            let before = file.items.remove(&key).filter(|_| !here);
            file.broken.push((key.clone(), error, before.is_some()));
            items.extend(before.map(|before| (key, before)));
        }
        let now: Vec<ObjectKey> = items.keys().cloned().collect();
        let before = std::mem::replace(&mut file.items, items);
        self.objects.readmit(&file_key(name));
        for key in before.keys().filter(|key| now.binary_search(key).is_err()) {
            self.release(key, name);
        }
        for key in now {
            let claims = self.claims.entry(key.clone()).or_default();
            if !claims.iter().any(|claim| claim == name) {
                claims.push(name.into());
            }
            if claims.first().is_some_and(|first| first == name) {
                self.put(&key, name);
            }
        }
    }

    fn fail(&mut self, name: &OsStr, error: TextError) {
        let file = self.files.entry(name.into()).or_default();
        file.error = Some(error.clone());
        file.broken.clear();
        if !file.good {
            self.refuse(name, &error);
        }
    }

    /// A file that the file system does not let us read now.
    fn trouble(&mut self, name: &OsStr, io: &io::Error) {
        let error = TextError {
            line: 0,
            path: String::new(),
            why: format!("cannot be read: {io}{}", remedy(io)),
        };
        let file = self.files.entry(name.into()).or_default();
        let before = file.trouble.take();
        let looks = before.as_ref().map_or(1, |before| before.looks.saturating_add(1));
        let trouble = Trouble {
            ours: is_ours(io),
            error,
            looks,
        };
        let as_before = |before: Trouble| before.error == trouble.error && before.may_pass() == trouble.may_pass();
        let news = !before.is_some_and(as_before);
        let refuse = (news && !file.good && !trouble.may_pass()).then(|| trouble.error.clone());
        file.trouble = Some(trouble);
        if let Some(error) = refuse {
            self.refuse(name, &error);
        }
    }

    /// Nothing of a file was ever readable: it could hold a policy that refuses anything.
    fn refuse(&mut self, name: &OsStr, error: &TextError) {
        self.objects.refuse(Unreadable {
            key: file_key(name),
            namespace: self.root_namespace.clone(),
            scope: Scope::Global,
            only_new: true,
            dry_run: false,
            error: format!("{}:{error}", self.dir.join(name).display()),
        });
    }

    fn drop_file(&mut self, name: &OsStr) {
        let Some(file) = self.files.remove(name) else { return };
        self.objects.readmit(&file_key(name));
        for key in file.items.keys() {
            self.release(key, name);
        }
    }

    fn release(&mut self, key: &ObjectKey, name: &OsStr) {
        let Some(claims) = self.claims.get_mut(key) else { return };
        let first = claims.first().is_some_and(|first| first == name);
        claims.retain(|claim| claim != name);
        match claims.first().cloned() {
            Some(heir) if first => self.put(key, &heir),
            Some(_) => {}
            None => {
                self.claims.remove(key);
                self.objects.remove(key);
                if key.kind == Kind::ConfigMap && self.mesh_fault.as_ref().is_some_and(|(of, _, _)| of == key) {
                    self.mesh_fault = None;
                }
            }
        }
    }

    fn put(&mut self, key: &ObjectKey, name: &OsStr) {
        let item = self.files.get(name).and_then(|file| file.items.get(key));
        if let Some(item) = item {
            if let (Object::ConfigMap(object), Some(mesh)) = (&item.object, &self.mesh)
                && is_mesh_config(object)
            {
                let other = match MeshConfig::of(object, &self.cluster_id) {
                    Ok(now) if now == *mesh => None,
                    Ok(_) => Some((
                        "data".to_owned(),
                        "is another than at the start; it takes effect with the next".to_owned(),
                    )),
                    Err(unfit) => Some((unfit.path, format!("{}; what it said at the start stays in force", unfit.why))),
                };
                self.mesh_fault = other.map(|(path, why)| (key.clone(), path, why));
            }
            self.objects.set(item.object.clone());
        }
    }

    fn faults(&self) -> Vec<Fault> {
        let dir = self.dir.display();
        let mut faults: Vec<Fault> = Vec::new();
        if let Some(error) = &self.unreachable {
            faults.push(format!("{dir}: {error}; what was read from it before stays in force").into());
        }
        let is_well = |file: &Manifest| file.wrong().is_none() && file.repeated.is_empty() && file.broken.is_empty();
        for (name, file) in self.files.iter().filter(|(_, file)| !is_well(file)) {
            let path = self.dir.join(name);
            let path = path.display();
            if let Some(error) = file.wrong() {
                let waits = file.error.is_none() && file.trouble.as_ref().is_some_and(Trouble::may_pass);
                let then = match (file.good, waits) {
                    (true, _) => "its last good content stays in force",
                    (false, true) => "it counts as not there yet, and is read again",
                    (false, false) if file.trouble.as_ref().is_some_and(|trouble| trouble.ours) => {
                        "it could hold any policy: new connections to pods of the mesh are refused until it can be read"
                    }
                    (false, false) => "new connections to pods of the mesh are refused until it is mended or removed",
                };
                faults.push(Fault {
                    what: format!("{path}:{error}; {then}"),
                    policy: (!file.good && !waits).then(|| file_key(name)),
                });
            }
            faults.extend(file.repeated.iter().map(|error| format!("{path}:{error}").into()));
            faults.extend(file.broken.iter().map(|(key, error, kept)| {
                let then = match kept {
                    true => "its last good version stays in force",
                    false => "it does not count until it is mended",
                };
                format!("{path}:{error}; {key}: {then}, and nothing else is affected").into()
            }));
        }
        for (key, claims) in self.claims.iter().filter(|(_, claims)| claims.len() > 1) {
            let first = &claims[0];
            let place = self.place(key, "metadata.name");
            for other in &claims[1..] {
                let line = self.line(other, key, "metadata.name");
                let other = self.dir.join(other);
                let what = format!(
                    "{}:{line}: metadata.name: {key} stands in {} already ({place}); this one does not count",
                    other.display(),
                    first.display()
                );
                faults.push(what.into());
            }
        }
        for unread in self.objects.unread() {
            let place = self.place(&unread.object, &unread.error.path);
            let then = match unread.last_good {
                true => "its last good version stays in force",
                false => "no version of it could be read so far",
            };
            faults.push(Fault {
                what: format!("{place}: {}; {}: {then}", unread.error, unread.object),
                policy: Some(unread.error.key.clone()),
            });
        }
        for (key, first) in self.objects.shared_uids() {
            let place = self.place(&key, "metadata.uid");
            let what = format!("{place}: metadata.uid: {key} has the UID of {first}, and so is never captured; remove one of them");
            faults.push(what.into());
        }
        if let Some((key, path, why)) = &self.mesh_fault {
            faults.push(format!("{}: {path}: {why}; {key}", self.place(key, path)).into());
        }
        faults.extend(self.objects.problems().into_iter().map(|problem| {
            let place = self.place(&problem.object, &problem.what.path);
            format!("{place}: {}; {}", problem.what, problem.object).into()
        }));
        faults.extend(self.reports.faults().map(Fault::from));
        faults
    }

    /// `FILE:LINE` of a field of an object.
    fn place(&self, key: &ObjectKey, path: &str) -> String {
        let Some(name) = self.claims.get(key).and_then(|claims| claims.first()) else {
            return self.dir.display().to_string();
        };
        format!("{}:{}", self.dir.join(name).display(), self.line(name, key, path))
    }

    fn line(&self, name: &OsStr, key: &ObjectKey, path: &str) -> u64 {
        let item = self.files.get(name).and_then(|file| file.items.get(key));
        item.map_or(0, |item| item.line_of(path))
    }
}

/// What refuses in the name of a file; no resource can have such a name.
fn file_key(name: &OsStr) -> PolicyKey {
    match name.to_str() {
        Some(name) => format!("manifests//{name}").into(),
        // As they are told two such names may look alike, and one that is mended would let in what the other refuses. No name has
        // a slash: it is another than that of any text.
        None => format!("manifests///{}", name.as_bytes().escape_ascii()).into(),
    }
}

/// The names in a directory with one of some extensions, in order; also those that are no text.
pub(super) fn names(dir: &Path, extensions: &[&str]) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let extension = Path::new(&name).extension();
        if !name.as_bytes().starts_with(b".") && extension.is_some_and(|e| extensions.iter().any(|one| e == *one)) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The names of reports in a directory, in order. A node's name is text: what is none is no node's report.
pub(super) fn names_of_reports(dir: &Path) -> io::Result<BTreeSet<String>> {
    let names = names(dir, &["json"])?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// A file's content, and what it looked like when all of it had been read. One that others may write to is not read: it says
/// what anybody of them wants.
pub(crate) fn read(path: &Path) -> io::Result<(Vec<u8>, Option<Sight>)> {
    let (content, meta) = plain::read(path, MAX_FILE)?;
    plain::is_its_owners(path, &meta)?;
    Ok((content, Sight::of(&meta)))
}

const DANGLING: &str = "it is a link to what is not there: put that there, or remove the link if nothing is meant";
const EMPTIED: &str = "none of its manifests is there any more: put them back, or one with an empty List if nothing is meant";
const MAX_FILE: u64 = 64 << 20;
/// Of files that nothing says anything of, so many are looked at in one look: it takes less than a hundredth of a processor.
const AT_ONCE: usize = 256;
/// Five seconds: a shortage that lasts is no reason to do without a policy.
const LOOKS_FOR_OURS: u32 = 50;
/// Of kinds that are passed over, so many are remembered and named.
const MAX_PASSED_OVER: usize = 1000;
