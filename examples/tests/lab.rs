//! The lab as a person runs it: the whole mesh, every step, and nothing left behind.
#![cfg(feature = "lab")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: its functions outside of #[test] fail it just as well, and it waits for a real process"
)]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_ambient");

/// The objects that `lab --json` printed, and its exit code; `None` where the kernel refuses a namespace.
fn run_lab(more: &[&str]) -> Option<(Vec<Value>, i32)> {
    // Whatever the mask of who runs it.
    let output = Command::new("sh")
        .args(["-c", "umask 0 && exec \"$0\" \"$@\"", LAB, "lab", "--json"])
        .args(more)
        // What is set for a node of the machine's own is for no node of the lab.
        .envs([
            ("TRUST_DOMAIN", "elsewhere"),
            ("INPOD_UDS", "/nowhere/zds.sock"),
            ("AMBIENT_STATE_DIR", "/nowhere"),
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let objects: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect();
    let code = output.status.code().unwrap();
    if let [only] = objects.as_slice()
        && let Some(why) = only.get("skipped")
    {
        assert_eq!(code, 2);
        ambient_testkit::skipped(format_args!("the lab: {why}"));
        return None;
    }
    if code != 0 {
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Some((objects, code))
}

/// What `/proc` tells of this machine's network and mounts, as this process sees them.
fn outside() -> Vec<String> {
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let mut seen: Vec<String> = [names("/sys/class/net"), names("/run/netns")].concat();
    seen.sort();
    seen.push(std::fs::read_to_string("/proc/self/mounts").unwrap());
    seen.push(std::fs::read_to_string("/proc/net/route").unwrap());
    seen
}

#[test]
fn every_step_passes_and_nothing_is_left() {
    all_pass(&[]);
}

#[test]
#[cfg(feature = "control")]
fn every_step_passes_with_nodes_that_live_on_a_control_plane() {
    all_pass(&["--control"]);
}

fn all_pass(more: &[&str]) {
    let before = outside();
    let Some((objects, code)) = run_lab(more) else { return };
    let (last, steps) = objects.split_last().unwrap();
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(step["step"], index + 1, "{step}");
        assert_eq!(step["ok"], true, "{step}");
        assert!(
            step["expect"].is_string() && step["got"].is_string() && step["name"].is_string() && step["ms"].is_u64(),
            "{step}"
        );
    }
    assert!(steps.len() >= 13, "only {} steps", steps.len());
    assert_eq!((&last["passed"], &last["failed"]), (&Value::from(steps.len()), &Value::from(0)));
    assert_eq!(code, 0);
    assert_eq!(outside(), before);
}

/// A lab that is kept, killed when dropped.
struct Kept(Child);

impl Kept {
    /// None where the kernel refuses a namespace; that is told by a line alone, as another exit is no refusal, whatever its code.
    fn start() -> Option<Self> {
        let mut child = Command::new(LAB)
            .args(["lab", "--json", "--keep"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen: Vec<Value> = Vec::new();
        for line in lines.map_while(Result::ok) {
            let object: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
            if object["ready"].is_string() {
                return Some(Self(child));
            }
            seen.push(object);
        }
        let code = child.wait().unwrap().code();
        let [only] = seen.as_slice() else {
            panic!("the lab was never ready: {code:?} {seen:#?}")
        };
        let why = only["skipped"].as_str();
        assert_eq!((code, why.is_some()), (Some(2), true), "the lab was never ready: {only}");
        ambient_testkit::skipped(format_args!("a kept lab: {}", why.unwrap_or_default()));
        None
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn exec(pod: &str, command: &[&str]) -> (i32, String) {
    let output = Command::new(LAB)
        .args(["lab", "exec", pod, "--"])
        .args(command)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
    )
}

#[test]
fn a_kept_lab_runs_programs_in_its_pods_and_goes_down_at_a_word() {
    let before = outside();
    let Some(mut lab) = Kept::start() else { return };
    assert_eq!(exec("sleep", &["sh", "-c", "exit 7"]).0, 7);
    let (code, resolv) = exec("sleep", &["cat", "/etc/resolv.conf"]);
    assert!(code == 0 && resolv.contains("svc.cluster.local"), "{code}: {resolv}");
    assert_ne!(exec("nobody", &["true"]).0, 0);
    // Where the machine has curl, it is the neutral client.
    if Command::new("curl")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
    {
        let (code, answer) = exec("sleep", &["curl", "-sS", "--max-time", "5", "http://web-api:8080/"]);
        assert!(code == 0 && answer.contains("purchase-history"), "{code}: {answer}");
        let (code, answer) = exec("notsleep", &["curl", "-sS", "--max-time", "5", "http://web-api:8080/"]);
        assert_eq!(code, 52, "{answer}");
    } else {
        ambient_testkit::skipped("curl as a client in the lab: this machine has none");
    }
    let down = Command::new(LAB).args(["lab", "down"]).output().unwrap();
    assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    let started = Instant::now();
    while lab.0.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(10), "the lab goes on after `lab down`");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(outside(), before);
}
