//! Who was made by what: so that a gateway that changes finds those who use it.

use std::collections::{BTreeSet, HashMap};

use ambient_core::{NamespacedHostname, Network};

use super::{Name, ObjectKey};

/// Something that is made from objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Item {
    /// The workloads that come from an object.
    Workloads(ObjectKey),
    /// A service.
    Service(NamespacedHostname),
}

/// Something that it was asked for while it was made, found or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Need {
    /// A waypoint.
    Waypoint(Name),
    /// The gateway of a network.
    Network(Network),
}

/// What every item has needed.
#[derive(Debug, Default)]
pub(super) struct Uses {
    of: HashMap<Item, Vec<Need>>,
    by: HashMap<Need, BTreeSet<Item>>,
}

impl Uses {
    /// What an item needed when it was made last.
    pub(super) fn set(&mut self, item: &Item, needs: Vec<Need>) {
        if self.of.get(item).map_or(&[][..], Vec::as_slice) == needs {
            return;
        }
        for need in self.of.remove(item).unwrap_or_default() {
            if let Some(items) = self.by.get_mut(&need) {
                items.remove(item);
                if items.is_empty() {
                    self.by.remove(&need);
                }
            }
        }
        for need in &needs {
            self.by.entry(need.clone()).or_default().insert(item.clone());
        }
        if !needs.is_empty() {
            self.of.insert(item.clone(), needs);
        }
    }

    pub(super) fn of(&self, need: &Need) -> impl Iterator<Item = &Item> {
        self.by.get(need).into_iter().flatten()
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty() && self.by.is_empty()
    }
}
