//! Random words for choices and trace IDs: unpredictable enough for both, and not for keys.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A random word: a counter under a keyed hash whose key is the process's own.
pub(crate) fn word() -> u64 {
    let mut hasher = SEED.build_hasher();
    hasher.write_u64(NEXT.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}
