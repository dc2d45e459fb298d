//! What each node has open, and how much of it there may be.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// How many of something each node has open. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct PerNode {
    most: usize,
    open: Arc<Mutex<HashMap<String, usize>>>,
}

/// One of a node's; it is given back at its end.
#[derive(Debug)]
pub(super) struct OneOf {
    all: PerNode,
    node: String,
}

impl PerNode {
    /// So many for each node.
    pub(super) fn few(most: usize) -> Self {
        Self {
            most,
            open: Arc::default(),
        }
    }

    /// How many that is.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// One more of a node's; `None` where it has all.
    pub(super) fn one_more(&self, node: &str) -> Option<OneOf> {
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(node.into()).or_default();
        // It has some, or would have got one.
        if *open >= self.most {
            return None;
        }
        *open += 1;
        Some(OneOf {
            all: self.clone(),
            node: node.into(),
        })
    }
}

impl Drop for OneOf {
    fn drop(&mut self) {
        let mut all = self.all.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get_mut(&self.node) {
            *open -= 1;
            if *open == 0 {
                all.remove(&self.node);
            }
        }
    }
}
