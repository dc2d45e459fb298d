//! What is other than what was told before.

use std::{collections::BTreeMap, sync::Arc};

use ambient_authz::policy;
use ambient_core::{NamespacedHostname, Workload, mesh::Update};

use super::{Item, Kind, ObjectKey, Objects, Problem, uses::Need};
use crate::Change;

/// What came out of objects.
#[derive(Debug, Default)]
pub(super) struct Made<T> {
    pub(super) now: T,
    /// What was asked for meanwhile.
    pub(super) needs: Vec<Need>,
    pub(super) problems: Vec<Problem>,
}

impl Objects {
    /// What is other than what was told before, in the order in which it is to be applied. Looks only at what may have
    /// changed.
    pub fn changes(&mut self) -> Vec<Change> {
        let (mut changes, removals) = self.policy_changes();
        // One that another object tells of from now on is there still: whoever tells of it comes after whoever does no more.
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for source in std::mem::take(&mut self.stale.sources) {
            self.looked_at += 1;
            let made = self.workloads_of(&source);
            self.note(Item::Workloads(source.clone()), made.needs, made.problems);
            self.tell_workloads(source, made.now, &mut gone, &mut come);
        }
        changes.append(&mut gone);
        changes.append(&mut come);
        for name in std::mem::take(&mut self.stale.services) {
            self.looked_at += 1;
            let made = self.service_of(&name);
            self.note(Item::Service(name.clone()), made.needs, made.problems);
            self.tell_service(name, made.now, &mut changes);
        }
        changes.extend(removals.into_iter().map(|key| Change::Policy(policy::Update::Remove(key))));
        changes
    }

    fn workloads_of(&self, source: &ObjectKey) -> Made<Vec<Workload>> {
        match source.kind {
            Kind::Pod => self.of_pod(source),
            Kind::WorkloadEntry => self.of_workload_entry(source),
            Kind::ServiceEntry => self.endpoints_of_entry(source),
            Kind::EndpointSlice => self.endpoints_of_slice(source),
            Kind::Gateway => self.of_gateway(source),
            _ => Made::default(),
        }
    }

    fn note(&mut self, item: Item, needs: Vec<Need>, problems: Vec<Problem>) {
        self.uses.set(&item, needs);
        if problems.is_empty() {
            self.problems.remove(&item);
        } else {
            self.problems.insert(item, problems);
        }
    }

    fn tell_workloads(&mut self, source: ObjectKey, now: Vec<Workload>, gone: &mut Vec<Change>, come: &mut Vec<Change>) {
        let before = self.told_workloads.remove(&source).unwrap_or_default();
        let mut before: BTreeMap<_, _> = before.into_iter().map(|w| (w.uid.clone(), w)).collect();
        let mut told = Vec::with_capacity(now.len());
        for workload in now {
            let same = before.remove(&workload.uid).filter(|before| **before == workload);
            let now = same.unwrap_or_else(|| {
                let now = Arc::new(workload);
                come.push(Change::Mesh(Update::Workload(now.clone())));
                now
            });
            told.push(now);
        }
        gone.extend(before.into_keys().map(|uid| Change::Mesh(Update::RemoveWorkload(uid))));
        if !told.is_empty() {
            self.told_workloads.insert(source, told);
        }
    }

    fn tell_service(&mut self, name: NamespacedHostname, now: Option<ambient_core::Service>, changes: &mut Vec<Change>) {
        match now {
            Some(now) if self.told_services.get(&name).is_some_and(|before| **before == now) => {}
            Some(now) => {
                let now = Arc::new(now);
                changes.push(Change::Mesh(Update::Service(now.clone())));
                self.told_services.insert(name, now);
            }
            None => {
                if self.told_services.remove(&name).is_some() {
                    changes.push(Change::Mesh(Update::RemoveService(name)));
                }
            }
        }
    }
}
