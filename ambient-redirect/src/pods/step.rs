//! What is done, and in which words it fails.

use std::fmt;

/// What is done for a pod. Exhaustive, so that who says what to do where one fails forgets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The pod's TCP is refused.
    Close,
    /// The proxy is asked to listen.
    Listen,
    /// Rules and routes are put in force.
    Enforce,
    /// It is proven that all of it stands.
    Prove,
    /// The pod's TCP is refused no more: it is captured.
    Open,
    /// It is announced that the pod is captured.
    Announce,
    /// It is verified that all of it still stands.
    Verify,
    /// The announcement is taken back.
    Withdraw,
    /// New connections go as they would without a mesh; what is captured stays so.
    Release,
    /// What is captured is waited for.
    Drain,
    /// The proxy is told to reset what the pod has open, and to take no other.
    Cut,
    /// Rules and routes are taken away.
    Clear,
    /// The proxy is told to let go.
    Remove,
}

impl Step {
    /// The name of its failure for programs.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Close => "cannot-refuse",
            Self::Listen => "cannot-listen",
            Self::Enforce => "cannot-enforce",
            Self::Prove => "cannot-prove",
            Self::Open => "cannot-open",
            Self::Announce => "cannot-announce",
            Self::Verify => "cannot-verify",
            Self::Withdraw => "cannot-withdraw",
            Self::Release => "cannot-release",
            Self::Drain => "cannot-drain",
            Self::Cut => "cannot-cut",
            Self::Clear => "cannot-clear",
            Self::Remove => "cannot-remove",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Close => "its TCP cannot be refused",
            Self::Listen => "the proxy cannot listen",
            Self::Enforce => "the rules cannot be put in force",
            Self::Prove => "the capture cannot be proven",
            Self::Open => "its TCP is still refused",
            Self::Announce => "the capture cannot be announced",
            Self::Verify => "the capture cannot be verified",
            Self::Withdraw => "the announcement cannot be taken back",
            Self::Release => "new connections cannot be let by",
            Self::Drain => "open connections cannot be waited for",
            Self::Cut => "the proxy does not cut what is open",
            Self::Clear => "the rules cannot be taken away",
            Self::Remove => "the proxy does not let go",
        })
    }
}
