//! What a control plane has done and refused, counted.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A caller showed nothing by which it is known, or nothing that is good now.
    Credential,
    /// A caller said that it is another node than its credential names.
    Node,
    /// A certificate was asked for an identity of which no pod is on the node.
    Identity,
    /// A capture was reported of a pod that is not on the node.
    Pod,
    /// What was asked for cannot be understood.
    Request,
    /// The authority did not sign.
    Authority,
    /// There was no room for another connection, or another stream of a node.
    Room,
    /// There was none for another connection of whoever has not shown to be a node.
    Strangers,
    /// A node has asked for more certificates, or made more reports, than it can need.
    Often,
    /// A node's report could not be kept.
    Keeping,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Credential,
        Self::Node,
        Self::Identity,
        Self::Pod,
        Self::Request,
        Self::Authority,
        Self::Room,
        Self::Strangers,
        Self::Often,
        Self::Keeping,
    ];

    /// As a label bears it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Node => "node",
            Self::Identity => "identity",
            Self::Pod => "pod",
            Self::Request => "request",
            Self::Authority => "authority",
            Self::Room => "room",
            Self::Strangers => "strangers",
            Self::Often => "often",
            Self::Keeping => "keeping",
        }
    }
}

/// Counts of one control plane.
#[derive(Debug, Default)]
pub struct Counts {
    refused: [AtomicU64; Refusal::ALL.len()],
    joined: AtomicU64,
    signed: AtomicU64,
    reports: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    cut: AtomicU64,
    faults: AtomicU64,
    authority_faults: AtomicU64,
}

impl Counts {
    /// How often something was refused for this reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize].load(Ordering::Relaxed)
    }

    /// Certificates that were given to nodes.
    pub fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
    }

    /// Streams that were ended because what their node is known by has ended or was revoked.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Streams that are open.
    pub fn streams(&self) -> u64 {
        let closed = self.closed.load(Ordering::Relaxed);
        self.opened.load(Ordering::Relaxed).saturating_sub(closed)
    }

    /// What is wrong now with what the source of state reads.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// What is wrong now with the authority; see [`Signer::faults`](crate::ca::Signer::faults).
    pub fn authority_faults(&self) -> u64 {
        self.authority_faults.load(Ordering::Relaxed)
    }

    /// All of it in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let counters = [
            ("node_certificates", "Certificates given to nodes.", self.joined()),
            ("certificates", "Certificates signed for pods.", self.signed.load(Ordering::Relaxed)),
            (
                "reports",
                "Reports of captures that were kept.",
                self.reports.load(Ordering::Relaxed),
            ),
            (
                "streams_cut",
                "Streams ended because their node's credential had ended or was revoked.",
                self.cut(),
            ),
        ];
        // Writing to a text never fails.
        for (name, help, value) in counters {
            let name = format!("ambient_control_{name}_total");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
        }
        let name = "ambient_control_refusals_total";
        let _ = write!(text, "# HELP {name} What was refused to callers.\n# TYPE {name} counter\n");
        for why in Refusal::ALL {
            let _ = writeln!(text, "{name}{{reason=\"{}\"}} {}", why.word(), self.refused(why));
        }
        for (name, help, value) in [
            ("streams", "Open streams.", self.streams()),
            (
                "source_faults",
                "What is wrong now with what state is read from; the log names each.",
                self.faults(),
            ),
            (
                "authority_faults",
                "What is wrong now with the authority, such as a file of it that cannot be read; the log names each.",
                self.authority_faults(),
            ),
        ] {
            let name = format!("ambient_control_{name}");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        }
        text
    }

    pub(super) fn refuse(&self, why: Refusal) {
        add(&self.refused[why as usize]);
    }

    pub(super) fn join(&self) {
        add(&self.joined);
    }

    pub(super) fn sign(&self) {
        add(&self.signed);
    }

    pub(super) fn report(&self) {
        add(&self.reports);
    }

    pub(super) fn open(&self) {
        add(&self.opened);
    }

    pub(super) fn close(&self) {
        add(&self.closed);
    }

    pub(super) fn cut_one(&self) {
        add(&self.cut);
    }

    pub(super) fn are_wrong(&self, faults: usize) {
        self.faults.store(faults as u64, Ordering::Relaxed);
    }

    pub(super) fn authority_is_wrong(&self, faults: usize) {
        self.authority_faults.store(faults as u64, Ordering::Relaxed);
    }
}

fn add(to: &AtomicU64) {
    to.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_counted_is_told() {
        let counts = Counts::default();
        counts.refuse(Refusal::Identity);
        counts.refuse(Refusal::Identity);
        counts.join();
        counts.open();
        counts.open();
        counts.close();
        counts.are_wrong(3);
        counts.authority_is_wrong(4);
        let text = counts.text();
        for line in [
            "ambient_control_refusals_total{reason=\"identity\"} 2",
            "ambient_control_refusals_total{reason=\"credential\"} 0",
            "ambient_control_node_certificates_total 1",
            "ambient_control_streams 1",
            "ambient_control_source_faults 3",
            "ambient_control_authority_faults 4",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        assert!(
            text.lines().all(|line| line.starts_with("# ") || line.split(' ').count() == 2),
            "{text}"
        );
    }
}
