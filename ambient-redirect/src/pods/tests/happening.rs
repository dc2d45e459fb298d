//! What may happen to a node.

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Happening {
    Want(Vec<usize>),
    See(Vec<(u64, usize)>),
    /// Descriptors were short for it: what is new is not told of.
    SeeInPart(Vec<(u64, usize)>),
    Squat(Vec<usize>),
    End {
        which: usize,
        well: bool,
    },
    Linger(usize),
    Give(u64, usize),
    Break(u64),
    Pass(u64),
}

pub(super) fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => prop::collection::vec(0usize..5, 0..4).prop_map(Happening::Want),
        2 => places().prop_map(Happening::See),
        1 => places().prop_map(Happening::SeeInPart),
        2 => prop::collection::vec(0usize..3, 0..4).prop_map(Happening::Squat),
        8 => (0usize..4, prop::bool::weighted(0.8)).prop_map(|(which, well)| Happening::End { which, well }),
        2 => (0usize..4).prop_map(Happening::Linger),
        1 => (1u64..4, 0usize..5).prop_map(|(n, which)| Happening::Give(n, which)),
        1 => (1u64..4).prop_map(Happening::Break),
        2 => (1u64..8000).prop_map(Happening::Pass),
    ]
}

pub(super) fn places() -> impl Strategy<Value = Vec<(u64, usize)>> {
    prop::collection::vec((1u64..4, 0..=NONE), 0..4)
}
