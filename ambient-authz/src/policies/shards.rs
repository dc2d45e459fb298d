//! A map in pieces, each shared with other snapshots until it changes.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Of 100,000 keys one change copies some 400.
const PIECES: usize = 256;

/// Keys come from the control plane, never from a peer, so a fixed hash is safe.
type Piece<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

#[derive(Clone)]
pub(super) struct Shards<K, V>(Arc<[Arc<Piece<K, V>>]>);

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(Piece::default());
        Self((0..PIECES).map(|_| empty.clone()).collect())
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0[place(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.piece(&key).insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) {
        // A miss must not copy the piece.
        if self.get(key).is_some() {
            self.piece(key).remove(key);
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().flat_map(|piece| piece.values())
    }

    fn piece(&mut self, key: &K) -> &mut Piece<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.0)[place(key)])
    }
}

fn place<Q: Hash + ?Sized>(key: &Q) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    // The map inside uses other bits of the same hash.
    (hasher.finish() >> 48) as usize % PIECES
}
