//! What stays open where no labels are known: policies that select pods by them were not asked.

use std::fmt::Write as _;

use ambient_authz::{
    Conn, Policies, decide,
    explain::one_line,
    kubernetes::{Selecting, SelectingKind, peer_authentication},
};
use ambient_core::PolicyKey;
use serde::Serialize;

use super::{
    address::{self, Known},
    files::Files,
    target::Target,
};

/// What was not asked, and whether it could make the answer another.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Open {
    /// Whether it could not: the answer holds for every pod that may be meant, and every address that is not known.
    pub(super) settled: bool,
    /// What was not asked.
    pub(super) unasked: Vec<Unasked>,
    /// What is answered for the pods of the files.
    pub(super) pods: Vec<Verdict>,
    /// How many more pods there are.
    pub(super) more_pods: usize,
}

/// A policy that was not asked, as it selects pods by their labels.
#[derive(Debug, Serialize)]
pub(super) struct Unasked {
    /// Such as `ALLOW shop/stock`.
    policy: String,
    /// Where it stands.
    place: Option<String>,
    /// The labels that it selects by, such as `app=stock`.
    selects: String,
    /// What to call instead of `--to` as it was, so that it is asked.
    ask: String,
}

/// The answer for a pod of the files.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    /// `NAMESPACE/NAME`.
    pub(super) pod: String,
    pub(super) allowed: bool,
    /// The first line of its explanation.
    pub(super) reason: String,
    /// Why no node asks policies for it, where the files say that of it.
    pub(super) outside: Option<String>,
}

impl Open {
    /// What is open of a connection that was decided on without a pod's labels.
    pub(super) fn of(target: &Target, files: &Files, policies: &Policies, conn: &Conn<'_>, known: Known) -> Self {
        let selecting = match target.labels {
            Some(_) => Vec::new(),
            None => files.resources.selecting(&target.workload.namespace),
        };
        Self {
            settled: settled(target, files, policies, (conn, known), &selecting),
            unasked: selecting.iter().map(|s| Unasked::of(s, target, files)).collect(),
            pods: Vec::new(),
            more_pods: 0,
        }
    }

    /// The first line where the answer hangs on the pod.
    pub(super) fn reason(&self, namespace: &str) -> String {
        match self.unasked.len() {
            1 => format!("1 policy that selects pods of {namespace} by their labels was not asked, and may turn the answer"),
            all => format!("{all} policies that select pods of {namespace} by their labels were not asked, and may turn the answer"),
        }
    }

    /// All of it as text, before what is answered for a pod that nothing selects.
    pub(super) fn text(&self, namespace: &str, most: usize) -> String {
        let mut text = format!("DEPENDS ON THE POD: {}\n", one_line(&self.reason(namespace)));
        if !self.pods.is_empty() {
            text += "\nthe pods in the files:\n";
        }
        for Verdict { pod, reason, outside, .. } in &self.pods {
            let outside = outside
                .as_ref()
                .map_or(String::new(), |why| format!(" (but it is not in the mesh: {why})"));
            let _ = writeln!(text, "  {}", one_line(&format!("{pod}: {reason}{outside}")));
        }
        more(&mut text, self.more_pods);
        text += "\nnot asked:\n";
        for unasked in self.unasked.iter().take(most) {
            let place = unasked.place.as_ref().map_or(String::new(), |place| format!(" ({place})"));
            let told = format!("{}{place}, for {}: ask {}", unasked.policy, unasked.selects, unasked.ask);
            let _ = writeln!(text, "  {}", one_line(&told));
        }
        more(&mut text, self.unasked.len().saturating_sub(most));
        text + "\na pod that none of them selects:\n\n"
    }
}

impl Unasked {
    fn of(selecting: &Selecting<'_>, target: &Target, files: &Files) -> Self {
        let (namespace, name) = selecting.key.as_str().split_once('/').unwrap_or_default();
        let name = name.strip_prefix("peer_authentication_").unwrap_or(name);
        let what = match selecting.kind {
            SelectingKind::Policy { action, dry_run: false } => format!("{action}"),
            SelectingKind::Policy { action, dry_run: true } => format!("{action} in dry run"),
            SelectingKind::PeerAuthentication => "PeerAuthentication".into(),
            SelectingKind::Unreadable => "unreadable".into(),
        };
        let labels = selecting.selector.labels();
        let selects = labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let of = &target.workload.namespace;
        let pod = files
            .workloads
            .iter()
            .find(|w| *w.namespace == **of && selecting.selector.selects(&w.labels));
        Self {
            policy: format!("{what} {namespace}/{name}"),
            place: files.place_of(selecting.key.as_str(), None),
            ask: match pod {
                Some(pod) => format!("--to {of}/{}", pod.name),
                None => format!("--to {of} --labels {selects}"),
            },
            selects,
        }
    }
}

/// Whether no labels could make the answer another.
///
/// One more AuthorizationPolicy turns it, or no set of them does: a DENY that does not match changes nothing, and an ALLOW that
/// does not either where another admits. What is listed for PeerAuthentications takes the place of what else would be, so each
/// way that it can be is tried with each; and as a policy may say something of addresses that are not known, all of it with each of those.
fn settled(target: &Target, files: &Files, policies: &Policies, (conn, known): (&Conn<'_>, Known), selecting: &[Selecting<'_>]) -> bool {
    if selecting.is_empty() {
        return true;
    }
    let mut workload = target.workload.clone();
    let peers = files.resources.peer_authentications();
    let mut ways = vec![workload.policies.clone()];
    let mut one_more: Vec<Option<&PolicyKey>> = vec![None];
    for selecting in selecting {
        match selecting.kind {
            SelectingKind::Policy { dry_run: true, .. } => {}
            SelectingKind::Policy { .. } | SelectingKind::Unreadable => one_more.push(Some(&selecting.key)),
            SelectingKind::PeerAuthentication => {
                let labels = selecting.selector.labels();
                ways.push(peer_authentication::keys(peers, &workload.namespace, labels));
            }
        }
    }
    ways.sort_unstable();
    ways.dedup();
    let Some(places) = address::places(policies, conn, known) else {
        return false;
    };
    if ways.len() * one_more.len() * places.len() > MOST_TRIED {
        return false;
    }
    let unselected: Vec<bool> = places.iter().map(|conn| decide(policies, &workload, conn).is_allow()).collect();
    ways.iter().all(|way| {
        one_more.iter().all(|key| {
            workload.policies = way.iter().chain(*key).cloned().collect();
            let mut answers = places.iter().zip(&unselected);
            answers.all(|(conn, allowed)| decide(policies, &workload, conn).is_allow() == *allowed)
        })
    })
}

fn more(text: &mut String, more: usize) {
    if more > 0 {
        let _ = writeln!(text, "  … and {more} more");
    }
}

/// So many answers are tried before it is taken for open.
const MOST_TRIED: usize = 100_000;
