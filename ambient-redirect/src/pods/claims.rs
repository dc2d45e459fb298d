//! Whose an address is that a namespace has: what whoever may give himself any address cannot claim.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ambient_core::PodUid;

use super::{Pods, Seen, Unpaired, pairing, state::Entry};
use crate::{PodSpec, linux::NetnsId};

/// What is read of addresses for a pod: which it has they say only if they were read when it was known already that it has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// The addresses that it was told to have.
    told: Vec<IpAddr>,
    state: Read,
}

/// The namespaces that were there when one went that was a pod's own, or may have been. While it is told to have the addresses that it
/// had in there, whoever has them in one of these may be somebody else.
#[derive(Debug)]
pub(super) struct Beside {
    addresses: Vec<IpAddr>,
    namespaces: Arc<BTreeSet<NetnsId>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// Not yet.
    Wanted,
    /// They are being read.
    Begun,
    /// Not all could be: they are read again in their time.
    Failed,
    Done,
}

impl Pods {
    /// A look at the namespaces begins; gives whether the addresses of those without a pod are to be read again in it. A pod gets
    /// none but by addresses that were read after it was told of: what was read before that of another namespace may be the claim
    /// of somebody who knew which address comes next, and of its own that it had none yet.
    pub fn look_begins(&mut self) -> bool {
        for reading in self.readings.values_mut().filter(|reading| reading.state != Read::Done) {
            reading.state = Read::Begun;
        }
        self.wants_addresses()
    }

    /// Of the look that has begun last [`Pods::handle_namespaces`] does not tell all, or is not called for it at all: descriptors or
    /// memory were short, or what shows namespaces could not be read, so that a pod's own namespace may be missing, or an address of
    /// it. No pod gets one by that look, nor by what was read for it before: two may have had its address then, and one of them be
    /// missing now. Why pods wait is what [`Pods::handle_unseen`] was told.
    pub fn handle_shortage(&mut self, now: Instant) {
        let mut awaited = false;
        for reading in self.readings.values_mut().filter(|reading| reading.state != Read::Wanted) {
            awaited |= reading.state == Read::Begun;
            reading.state = Read::Failed;
        }
        if awaited {
            self.reconsider(now);
        }
    }

    /// Whether a look is to begin at once, for pods that were told of since the last one was begun.
    pub fn wants_look(&self) -> bool {
        self.readings.values().any(|reading| reading.state == Read::Wanted)
    }

    /// Whether addresses are read for a pod at once, or in this moment.
    pub(super) fn is_being_read(&self, uid: &PodUid) -> bool {
        let reading = self.readings.get(uid);
        reading.is_some_and(|reading| matches!(reading.state, Read::Wanted | Read::Begun))
    }

    /// The look that was begun last has ended, and all of it is told; gives whether a pod waits for that.
    pub(super) fn look_ends(&mut self) -> bool {
        let mut awaited = false;
        for reading in self.readings.values_mut().filter(|reading| reading.state == Read::Begun) {
            reading.state = Read::Done;
            awaited = true;
        }
        awaited
    }

    /// A namespace is not told of that is there: no pod gets one before all are looked at again.
    pub(super) fn read_anew(&mut self) {
        for reading in self.readings.values_mut() {
            reading.state = Read::Wanted;
        }
    }

    /// Which namespaces are whose, of pods and namespaces that have none.
    pub(super) fn pair(&self, now: Instant, desired: &[PodSpec]) -> pairing::Found {
        let placed: HashSet<&PodUid> = self.entries.values().map(|e| &e.pod.uid).collect();
        let is_read = |uid: &PodUid| self.readings.get(uid).is_some_and(|reading| reading.state == Read::Done);
        let was_beside = |id, uid: &PodUid| self.beside.get(uid).is_some_and(|beside| beside.namespaces.contains(&id));
        let whose = |id| self.seen.get(&id).and_then(|seen| seen.whose.as_ref());
        let is_by_processes = |id, uid: &PodUid| whose(id).is_some_and(|whose| whose.pod == *uid);
        let mut found = pairing::pair(
            desired,
            &self.seen,
            |id| self.entries.get(&id).map(|entry| (&*entry.pod, entry.leaves())),
            |uid| placed.contains(uid),
            |id, uid| self.former.get(&id).is_some_and(|(former, until)| former != uid && *until > now),
            |id, uid| was_beside(id, uid) && !is_by_processes(id, uid),
        );
        let (read, unread): (Vec<_>, Vec<_>) = found.pairs.into_iter().partition(|(_, spec)| is_read(&spec.uid));
        found.pairs = read;
        let not_looked = |(_, spec): (NetnsId, PodSpec)| (spec.uid, Unpaired::NotLooked);
        found.unpaired.extend(unread.into_iter().map(not_looked));
        found
    }

    /// Takes note of desired pods that have no namespace from here on, or other addresses.
    pub(super) fn want_readings(&mut self, desired: &HashMap<&PodUid, &PodSpec>) {
        let placed: HashSet<PodUid> = self.entries.values().map(|e| e.pod.uid.clone()).collect();
        self.readings.retain(|uid, _| desired.contains_key(uid) && !placed.contains(uid));
        let has_still = |uid: &PodUid, addresses: &[IpAddr]| desired.get(uid).is_some_and(|spec| spec.addresses == addresses);
        self.beside.retain(|uid, beside| has_still(uid, &beside.addresses));
        for beside in self.beside.values_mut() {
            // The number of one that is gone may be the next one's.
            if beside.namespaces.iter().any(|id| !self.seen.contains_key(id)) {
                let there = beside.namespaces.iter().copied().filter(|id| self.seen.contains_key(id));
                beside.namespaces = Arc::new(there.collect());
            }
        }
        let unplaced = desired
            .values()
            .filter(|spec| !spec.addresses.is_empty() && !placed.contains(&spec.uid));
        for spec in unplaced {
            let reading = self.readings.get(&spec.uid);
            if reading.is_none_or(|reading| reading.told != spec.addresses) {
                let reading = Reading {
                    told: spec.addresses.clone(),
                    state: Read::Wanted,
                };
                self.readings.insert(spec.uid.clone(), reading);
            }
        }
    }

    /// A namespace is not known any more; gives whether it was.
    pub(super) fn forget(&mut self, id: NetnsId) -> bool {
        if !self.seen.contains_key(&id) {
            return false;
        }
        let mut seen = self.seen.clone();
        seen.remove(&id);
        self.note_beside(|id| seen.get(&id));
        self.seen = seen;
        true
    }

    /// Takes note of who is there as namespaces go; `then` gives what is in one from now on. Of a pod that has one of them this was its
    /// own. Of a pod that has none it may have been, if it had one of the pod's addresses: whoever else has claimed it would be
    /// the only one from now on. That its network was taken down, as is done before its name goes, is the same; that it gave one
    /// address up is not.
    pub(super) fn note_beside<'a>(&mut self, then: impl Fn(NetnsId) -> Option<&'a Seen>) {
        let goes = |(id, seen): &(&NetnsId, &Seen)| then(**id).is_none_or(|then| is_down(then) && !is_down(seen));
        let going: Vec<(&NetnsId, &Seen)> = self.seen.iter().filter(goes).collect();
        if going.is_empty() {
            return;
        }
        let desired = self.desired.as_deref().unwrap_or_default();
        let may_be = |spec: &PodSpec| {
            let is_one = |ip: &IpAddr| spec.addresses.iter().any(|own| own.to_canonical() == ip.to_canonical());
            let mut claims = going.iter().filter(|(_, seen)| seen.addresses.iter().any(is_one));
            claims.any(|(id, _)| pairing::anothers(**id, &spec.uid, desired, &self.seen).is_none())
        };
        let placed: HashMap<&PodUid, (NetnsId, &Entry)> = self.entries.iter().map(|(id, entry)| (&entry.pod.uid, (*id, entry))).collect();
        let loses = |spec: &&PodSpec| match placed.get(&spec.uid) {
            Some((id, entry)) if then(*id).is_some() => entry.leaves() && may_be(spec),
            Some((id, entry)) if self.seen.contains_key(id) && entry.pod.addresses == spec.addresses => true,
            _ => may_be(spec),
        };
        let of: Vec<(PodUid, Vec<IpAddr>)> = desired
            .iter()
            .filter(loses)
            .map(|spec| (spec.uid.clone(), spec.addresses.clone()))
            .collect();
        if of.is_empty() {
            return;
        }
        let namespaces: Arc<BTreeSet<NetnsId>> = Arc::new(self.seen.keys().copied().filter(|id| then(*id).is_some()).collect());
        for (uid, addresses) in of {
            let namespaces = namespaces.clone();
            self.beside.insert(uid, Beside { addresses, namespaces });
        }
    }
}

/// Whether no network reaches a namespace: it has no address but those that each device has by itself.
fn is_down(seen: &Seen) -> bool {
    let by_itself = |ip: &IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    seen.addresses.iter().all(by_itself)
}
