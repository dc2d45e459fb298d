//! What the nodes say they have captured: `status/NODE.json`, read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::PathBuf,
};

use ambient_core::PodUid;
use serde::Deserialize;

use super::directory::{Sight, names_of_reports, read};
use crate::{
    objects::{Objects, Report},
    plain, whole,
};

/// The reports of all nodes.
pub(super) struct Reports {
    dir: PathBuf,
    /// By the name of the file.
    files: BTreeMap<String, ReportFile>,
    unreachable: Option<io::Error>,
    memory: Option<Memory>,
}

/// What the nodes have said, kept by one of them over its own restart: a report that is lost meanwhile takes nothing back.
struct Memory {
    path: PathBuf,
    kept: BTreeMap<String, BTreeSet<PodUid>>,
}

impl Memory {
    /// Writes down what is known now, if it is other than what was.
    fn keep(&mut self, objects: &Objects) {
        let known = || {
            objects.reports().filter_map(|(node, report)| match report {
                Report::Captured(pods) if !pods.is_empty() => Some((node, pods)),
                _ => None,
            })
        };
        if known().eq(self.kept.iter().map(|(node, pods)| (&**node, pods))) {
            return;
        }
        let known: BTreeMap<_, _> = known().map(|(node, pods)| (node.to_owned(), pods.clone())).collect();
        let draft = self.path.with_extension("draft");
        let content = serde_json::to_vec(&known).map_err(io::Error::from);
        let written = content.and_then(|content| whole::replace(&self.path, &draft, 0o644, |file| file.write_all(&content)));
        match written {
            Ok(_) => self.kept = known,
            // Tried again at the next look; until then only a restart would miss it.
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "what other nodes have captured cannot be written down"),
        }
    }
}

#[derive(Default)]
struct ReportFile {
    taken: Option<Sight>,
    /// Whether it was read again after a look that saw what was taken: two replacements within one tick of the file
    /// system's clock look alike.
    confirmed: bool,
    error: Option<String>,
}

/// A report as it is written. What else a pod's entry says is for people.
#[derive(Deserialize)]
#[serde(expecting = "a map with node and pods")]
struct Written {
    node: String,
    pods: BTreeMap<String, serde::de::IgnoredAny>,
    /// Without it, what a report lacks is withdrawn.
    #[serde(default)]
    withdrawn: Option<BTreeSet<PodUid>>,
}

impl Written {
    /// What the node has captured, as far as anybody knows: what it says now, and what it said before of pods that still
    /// are, unless it takes that back.
    fn captured(self, objects: &Objects) -> BTreeSet<PodUid> {
        let mut captured: BTreeSet<PodUid> = self.pods.into_keys().map(PodUid::from).collect();
        if let (Some(withdrawn), Some(Report::Captured(before))) = (self.withdrawn, objects.reported(&self.node)) {
            let kept = before.iter().filter(|uid| !withdrawn.contains(*uid) && objects.may_have_pod(uid));
            captured.extend(kept.cloned());
        }
        captured
    }
}

impl Reports {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            files: BTreeMap::new(),
            unreachable: None,
            memory: None,
        }
    }

    /// Begins with what this node wrote down before it was restarted, and goes on writing it down.
    pub(super) fn remember(&mut self, node: &str, objects: &mut Objects) {
        let path = self.dir.join(format!(".{node}.known.json"));
        let kept: BTreeMap<String, BTreeSet<PodUid>> = match read(&path).map(|(content, _)| serde_json::from_slice(&content)) {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "what was known of other nodes before the restart cannot be read");
                BTreeMap::new()
            }
            // The first start.
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was known of other nodes before the restart cannot be read");
                BTreeMap::new()
            }
        };
        for (node, pods) in &kept {
            objects.report(node, Report::Captured(pods.clone()));
        }
        self.memory = Some(Memory { path, kept });
    }

    /// Takes every report that is another than before. Reports are replaced by rename, so one look is enough; one that
    /// is gone or cannot be read changes nothing that was said before. Gives whether there may be something to tell of it.
    pub(super) fn look(&mut self, objects: &mut Objects) -> bool {
        let mut news = self.unreachable.take().is_some();
        let before = self.files.len();
        let of_nodes = || fs::metadata(&self.dir).and_then(|meta| plain::is_its_owners(&self.dir, &meta));
        let names = match of_nodes().and_then(|()| names_of_reports(&self.dir)) {
            Ok(names) => names,
            // No node has said anything yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.clear();
                return before > 0 || news;
            }
            Err(error) => {
                self.unreachable = Some(error);
                return true;
            }
        };
        self.files.retain(|name, _| names.contains(name));
        news |= self.files.len() != before;
        for name in names {
            news |= self.look_at(name, objects);
        }
        if let Some(memory) = &mut self.memory {
            memory.keep(objects);
        }
        news
    }

    /// Gives whether it was read.
    fn look_at(&mut self, name: String, objects: &mut Objects) -> bool {
        let Some(node) = name.strip_suffix(".json").map(str::to_owned) else {
            return false;
        };
        let path = self.dir.join(&name);
        let file = self.files.entry(name).or_default();
        let seen = fs::metadata(&path).ok().and_then(|meta| Sight::of(&meta));
        if seen.is_some() && seen == file.taken && file.confirmed {
            return false;
        }
        file.confirmed = seen == file.taken;
        file.taken = seen;
        let report = read(&path)
            .map_err(|e| e.to_string())
            .and_then(|(content, _)| parse(&node, &content));
        file.error = match report {
            Ok(written) => {
                let captured = written.captured(objects);
                objects.report(&node, Report::Captured(captured));
                None
            }
            Err(why) => {
                let then = match objects.reported(&node) {
                    Some(Report::Captured(_)) => "what it said before stays in force",
                    Some(Report::Unknown) | None => {
                        // It may have captured any of them.
                        objects.report(&node, Report::Unknown);
                        "every pod of it that is to be in the mesh is taken for captured"
                    }
                };
                Some(format!("{}: {why}; {then}", path.display()))
            }
        };
        true
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        let unreachable = self
            .unreachable
            .iter()
            .map(|e| format!("{}: {e}; what was read before stays in force", self.dir.display()));
        unreachable.chain(self.files.values().filter_map(|file| file.error.clone()))
    }
}

/// Whatever the bytes are: they are the report of the node that they name, or of none.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let named = |node: &str| parse(node, bytes).map(|written| written.pods.len());
    assert!(named("").is_err() || named("node-1").is_err());
}

fn parse(node: &str, content: &[u8]) -> Result<Written, String> {
    let written: Written = serde_json::from_slice(content).map_err(|e| format!("is not a node's report: {e}"))?;
    if written.node != node {
        return Err(format!("is not the report of {node}: node: it is that of {:?}", written.node));
    }
    Ok(written)
}
