//! How much of it there may be.

use std::time::Duration;

/// Bounds of what is served: as they are, unless somebody has a reason for others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Certificates that a node may have signed at once. More than any node has pods, so that all of them may need one in the
    /// same moment.
    pub(super) signed_at_once: u32,
    /// Reports that a node may make at once: each of its pods may be let go and captured again in the same moment.
    pub(super) reported_at_once: u32,
    /// Connections from one place on which nobody is known to be a node yet. Nodes that share an address come one after the
    /// other within milliseconds, and again where there was no room.
    pub(super) of_a_place: usize,
    /// Connections of a node: those of its present process, and some that have not been found to be dead yet.
    pub(super) of_a_node: usize,
    /// How long a connection may be open on which nobody is known.
    pub(super) introducing: Duration,
    /// How long the authority may take to sign.
    pub(super) signing: Duration,
    /// How long a report may take to be kept.
    pub(super) keeping: Duration,
    /// Changes, and removals, that are remembered one by one: who is further behind is told whatever has changed since, and
    /// where even the removals are forgotten it has to say anew what it has.
    pub(super) remembered: usize,
    /// Changes that are told one by one: more are looked for among all, which takes no memory.
    pub(super) one_by_one: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            signed_at_once: 1_000,
            reported_at_once: 2_000,
            of_a_place: 64,
            of_a_node: 32,
            introducing: Duration::from_secs(15),
            signing: Duration::from_secs(10),
            keeping: Duration::from_secs(5),
            remembered: 65_536,
            one_by_one: 4_096,
        }
    }
}
