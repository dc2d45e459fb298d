//! Workloads by their UIDs.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::{Shards, Workload, WorkloadUid};

/// Every workload, by its UID.
///
/// A UID is compared with one whose text lies wherever its workload was told of, as a rule on a page of memory that nobody has
/// looked at for long; and that wait is half of a look-up among 100,000. So the text stands beside the workload here, where it
/// is found together with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Workloads(Shards<Key, Arc<Workload>>);

impl Workloads {
    pub(super) fn get(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.0.get(uid.as_str().as_bytes())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Gives the one that had the UID before.
    pub(super) fn insert(&mut self, workload: Arc<Workload>) -> Option<Arc<Workload>> {
        self.0.insert(Key::from(&workload.uid), workload)
    }

    pub(super) fn remove(&mut self, uid: &WorkloadUid) -> Option<Arc<Workload>> {
        self.0.remove(uid.as_str().as_bytes())
    }
}

/// Bytes of a text that stands in its place; few pods' UIDs are longer.
const ROOM: usize = 70;

/// A UID.
#[derive(Clone, Debug)]
enum Key {
    Short { length: u8, bytes: [u8; ROOM] },
    Long(Arc<str>),
}

impl From<&WorkloadUid> for Key {
    fn from(uid: &WorkloadUid) -> Self {
        let text = uid.as_str().as_bytes();
        let mut bytes = [0; ROOM];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(text);
                Self::Short { length, bytes }
            }
            _ => Self::Long(uid.to_shared()),
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length).min(ROOM)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let (one, other): (&[u8], &[u8]) = (self.borrow(), other.borrow());
        one == other
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, to: &mut H) {
        let bytes: &[u8] = self.borrow();
        bytes.hash(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_of_any_length_is_found_and_no_other() {
        let uids: Vec<WorkloadUid> = (0..=300).map(|length| "a".repeat(length).into()).collect();
        let mut workloads = Workloads::default();
        for uid in &uids {
            let mut workload = Workload::new("", "shop", "a");
            workload.uid = uid.clone();
            assert!(workloads.insert(workload.into()).is_none());
        }
        for (at, uid) in uids.iter().enumerate() {
            // Texts of their own, as whoever asks has.
            assert_eq!(workloads.get(&uid.as_str().into()).map(|workload| &workload.uid), Some(uid));
            let other = format!("{}b", &uid.as_str()[..at.saturating_sub(1)]);
            assert!(workloads.get(&other.into()).is_none(), "{at}");
        }
        assert_eq!((workloads.len(), workloads.values().count()), (301, 301));
        for uid in &uids {
            assert_eq!(workloads.remove(uid).map(|workload| workload.uid.clone()), Some(uid.clone()));
            assert!(workloads.get(uid).is_none());
        }
        assert_eq!(workloads.len(), 0);
    }

    /// What stands beside a workload is not to grow unseen: there are as many as workloads.
    #[test]
    fn a_key_is_small() {
        assert_eq!(size_of::<Option<(Key, Arc<Workload>)>>(), 80);
    }
}
