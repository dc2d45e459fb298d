//! What is printed: progress for a person, one object a step for a program.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;
use serde_json::json;

/// What came of one step.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) number: u8,
    pub(crate) name: &'static str,
    pub(crate) did: &'static str,
    pub(crate) expect: &'static str,
    pub(crate) got: String,
    pub(crate) ok: bool,
    pub(crate) took: Duration,
}

/// Prints steps as they end, and counts them.
#[derive(Debug)]
pub(crate) struct Reporter {
    json: bool,
    passed: u32,
    failed: u32,
}

impl Reporter {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            passed: 0,
            failed: 0,
        }
    }

    /// Says on standard error what goes on.
    pub(crate) fn progress(&self, what: &str) {
        // Nobody may be listening; the lab goes on.
        let _ = writeln!(io::stderr(), "lab: {what}");
    }

    /// Prints a step that has ended.
    pub(crate) fn step(&mut self, outcome: &Outcome) {
        if outcome.ok {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        let text = if self.json { as_json(outcome) } else { as_text(outcome) };
        print(&text);
    }

    /// Prints the counts; says whether every step has passed.
    pub(crate) fn end(&self) -> bool {
        print(&self.counts());
        self.failed == 0
    }

    fn counts(&self) -> String {
        let (passed, failed) = (self.passed, self.failed);
        if self.json {
            json(&Counts { passed, failed })
        } else {
            format!("{passed} steps passed, {failed} failed")
        }
    }

    /// Says, in one line, that the lab stays up, and how to use it.
    pub(crate) fn ready(&self, line: &str) {
        if self.json {
            print(&json!({"ready": line}).to_string());
        } else {
            print(&format!("ready: {line}"));
        }
    }

    /// Says why there is no lab here.
    pub(crate) fn skipped(&self, why: &str) {
        if self.json {
            print(&json!({"skipped": why}).to_string());
        } else {
            self.progress(&format!("skipped: {why}"));
        }
    }
}

/// A step for a program to read, its keys in the order in which they are promised.
#[derive(Serialize)]
struct StepLine<'a> {
    step: u8,
    name: &'a str,
    expect: &'a str,
    got: &'a str,
    ok: bool,
    ms: u64,
}

/// The last line.
#[derive(Serialize)]
struct Counts {
    passed: u32,
    failed: u32,
}

fn as_json(o: &Outcome) -> String {
    json(&StepLine {
        step: o.number,
        name: o.name,
        expect: o.expect,
        got: &o.got,
        ok: o.ok,
        ms: milliseconds(o.took),
    })
}

/// Structures of texts, numbers and truths always have a JSON form.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn as_text(o: &Outcome) -> String {
    let verdict = if o.ok { "ok" } else { "FAILED" };
    format!(
        "{:>2}. {} - {verdict} ({} ms)\n    done:     {}\n    expected: {}\n    seen:     {}",
        o.number,
        o.name,
        milliseconds(o.took),
        o.did,
        o.expect,
        o.got.replace('\n', "\n              ")
    )
}

fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

fn print(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_object_with_the_promised_keys() {
        let outcome = Outcome {
            number: 3,
            name: "n",
            did: "d",
            expect: "e",
            got: "a\n\"b\"".into(),
            ok: true,
            took: Duration::from_millis(12),
        };
        let line = as_json(&outcome);
        assert_eq!(line.lines().count(), 1);
        assert!(line.starts_with(r#"{"step":3,"name":"n","expect":"e","got":"#), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            value,
            json!({"step": 3, "name": "n", "expect": "e", "got": "a\n\"b\"", "ok": true, "ms": 12})
        );
        assert!(as_text(&outcome).starts_with(" 3. n - ok (12 ms)"));
    }

    #[test]
    fn the_last_line_counts() {
        let reporter = Reporter {
            json: true,
            passed: 12,
            failed: 1,
        };
        assert_eq!(reporter.counts(), r#"{"passed":12,"failed":1}"#);
        assert_eq!(Reporter { json: false, ..reporter }.counts(), "12 steps passed, 1 failed");
    }
}
