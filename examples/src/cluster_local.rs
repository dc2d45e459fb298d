//! What `cluster.local` in a policy means, as flags say it.

/// What it means where the mesh's trust domain has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ClusterLocal {
    /// The mesh's own trust domain, as Istio documents it.
    Own,
    /// The trust domain of this name, as Istio has it at L4.
    Literal,
}

impl ClusterLocal {
    pub(crate) fn is_own(self) -> bool {
        self == Self::Own
    }
}
