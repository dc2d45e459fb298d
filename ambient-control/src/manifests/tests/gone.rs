//! Pods that are deleted while their node is away.

use std::time::SystemTime;

use super::*;
use crate::serve::Captures as _;

/// What a control plane watches and keeps.
struct Kept {
    watched: Watched,
    statuses: Arc<Statuses>,
}

impl Kept {
    fn over(dir: &Path) -> Self {
        let statuses = Statuses::new(dir, || SystemTime::UNIX_EPOCH);
        let mut config = Config::new(dir);
        config.kept = Some(statuses.clone());
        let (dir, settings, mut reported) = config.into_parts();
        reported.round = ROUND;
        let directory = Directory::new(dir, settings);
        Self {
            watched: Watched { directory, reported },
            statuses,
        }
    }

    fn rounds(&mut self, rounds: u32) {
        (0..rounds * ROUND).for_each(|_| Looked::look(&mut self.watched));
    }

    async fn say(&self, node: &str, uid: &str, captured: bool) {
        self.statuses.report(node, &uid.into(), &[], captured).await.unwrap();
    }
}

/// Looks of a round, few enough to be made here.
const ROUND: u32 = 600;

fn report(dir: &Path, node: &str) -> serde_json::Value {
    let mut report: serde_json::Value = serde_json::from_slice(&fs::read(dir.join(format!("status/{node}.json"))).unwrap()).unwrap();
    let pods: Vec<&String> = report["pods"].as_object().unwrap().keys().collect();
    report["pods"] = serde_json::json!(pods);
    report
}

fn says(dir: &Path, node: &str, pods: &[&str], withdrawn: &[&str]) {
    let wanted = serde_json::json!({ "node": node, "pods": pods, "withdrawn": withdrawn });
    assert_eq!(report(dir, node), wanted);
}

#[tokio::test]
async fn a_pod_that_is_gone_stands_in_no_report_also_where_its_node_is_away_and_after_a_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::write(dir.join("a.yaml"), pod("a", "u1", "10.0.0.1")).unwrap();
    fs::write(dir.join("b.yaml"), pod("b", "u2", "10.0.0.2")).unwrap();
    fs::write(dir.join("c.yaml"), pod("c", "u3", "10.0.0.3")).unwrap();
    let mut control = Kept::over(dir);
    for uid in ["u1", "u2"] {
        control.say("node-1", uid, true).await;
    }
    control.say("node-2", "u3", true).await;
    control.say("node-2", "u9", false).await;
    control.rounds(3);
    says(dir, "node-1", &["u1", "u2"], &[]);
    says(dir, "node-2", &["u3"], &[]);
    // One goes while nobody is there but the control plane.
    fs::remove_file(dir.join("b.yaml")).unwrap();
    control.rounds(1);
    says(dir, "node-1", &["u1", "u2"], &[]);
    control.rounds(2);
    says(dir, "node-1", &["u1"], &[]);
    // And one while not even that is.
    drop(control);
    fs::remove_file(dir.join("c.yaml")).unwrap();
    let mut control = Kept::over(dir);
    control.rounds(3);
    says(dir, "node-2", &[], &[]);
    says(dir, "node-1", &["u1"], &[]);
    // Whatever its node says then.
    control.say("node-1", "u2", false).await;
    says(dir, "node-1", &["u1"], &["u2"]);
    control.rounds(3);
    says(dir, "node-1", &["u1"], &[]);
}

#[tokio::test]
async fn nothing_is_forgotten_of_what_may_be_there() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let (one, two) = (pod("a", "u1", "10.0.0.1"), pod("b", "u2", "10.0.0.2"));
    fs::write(dir.join("a.yaml"), &one).unwrap();
    fs::write(dir.join("b.yaml"), &two).unwrap();
    let mut control = Kept::over(dir);
    for uid in ["u1", "u2"] {
        control.say("node-1", uid, true).await;
    }
    control.rounds(1);
    // What cannot be read, now or ever, and an object that is not what it must be, might be that pod.
    for other in ["kind: [", &two.replace("10.0.0.2", "10.0.0.2.2")] {
        fs::remove_file(dir.join("b.yaml")).unwrap();
        fs::write(dir.join("d.yaml"), other).unwrap();
        control.rounds(3);
        says(dir, "node-1", &["u1", "u2"], &[]);
        fs::remove_file(dir.join("d.yaml")).unwrap();
        fs::write(dir.join("b.yaml"), &two).unwrap();
        control.rounds(1);
    }
    // One that goes and comes back within a round has never been gone.
    for _ in 0..3 {
        fs::remove_file(dir.join("b.yaml")).unwrap();
        (0..ROUND / 2).for_each(|_| Looked::look(&mut control.watched));
        fs::write(dir.join("b.yaml"), &two).unwrap();
        (0..ROUND / 2).for_each(|_| Looked::look(&mut control.watched));
    }
    says(dir, "node-1", &["u1", "u2"], &[]);
    // Nor one that was there in between.
    let mut look = |looks: u32| (0..looks).for_each(|_| Looked::look(&mut control.watched));
    look(ROUND - 1);
    for _ in 0..3 {
        fs::remove_file(dir.join("b.yaml")).unwrap();
        look(2);
        fs::write(dir.join("b.yaml"), &two).unwrap();
        look(ROUND - 2);
    }
    says(dir, "node-1", &["u1", "u2"], &[]);
    // As where the directory is not mounted, at a restart too.
    for name in ["a.yaml", "b.yaml"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    control.rounds(3);
    let mut again = Kept::over(dir);
    again.rounds(3);
    says(dir, "node-1", &["u1", "u2"], &[]);
}
