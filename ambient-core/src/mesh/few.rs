//! What stands under one key of an index: one as a rule, and sometimes a few.

use std::{slice, sync::Arc};

use crate::{NamespacedHostname, Service, Workload, WorkloadUid};

/// What goes by a name of its own.
pub(super) trait Named {
    type Name: Ord;

    fn name(&self) -> &Self::Name;
}

impl Named for Workload {
    type Name = WorkloadUid;

    fn name(&self) -> &WorkloadUid {
        &self.uid
    }
}

impl Named for Service {
    type Name = NamespacedHostname;

    fn name(&self) -> &NamespacedHostname {
        &self.name
    }
}

/// One or more, in the order of their names.
#[derive(Debug)]
pub(super) enum Few<V> {
    One(Arc<V>),
    Many(Box<[Arc<V>]>),
}

impl<V> Clone for Few<V> {
    fn clone(&self) -> Self {
        match self {
            Self::One(one) => Self::One(one.clone()),
            Self::Many(many) => Self::Many(many.clone()),
        }
    }
}

impl<V> From<Arc<V>> for Few<V> {
    fn from(one: Arc<V>) -> Self {
        Self::One(one)
    }
}

impl<V> Few<V> {
    pub(super) fn iter(&self) -> slice::Iter<'_, Arc<V>> {
        match self {
            Self::One(one) => slice::from_ref(one).iter(),
            Self::Many(many) => many.iter(),
        }
    }
}

impl<V: Named> Few<V> {
    /// Puts one in, in the place of any of its name.
    pub(super) fn put(&mut self, value: Arc<V>) {
        match self {
            Self::One(one) if one.name() == value.name() => *one = value,
            Self::One(one) => {
                let mut both = vec![one.clone(), value];
                both.sort_by(|a, b| a.name().cmp(b.name()));
                *self = Self::Many(both.into());
            }
            Self::Many(many) => match many.binary_search_by(|one| one.name().cmp(value.name())) {
                Ok(at) => many[at] = value,
                Err(at) => {
                    let mut more = std::mem::take(many).into_vec();
                    more.insert(at, value);
                    *many = more.into();
                }
            },
        }
    }

    /// Takes one out by its name; says whether that was all there was.
    pub(super) fn take(&mut self, name: &V::Name) -> bool {
        match self {
            Self::One(one) => one.name() == name,
            Self::Many(many) => {
                let mut rest = std::mem::take(many).into_vec();
                rest.retain(|one| one.name() != name);
                *self = match &rest[..] {
                    [one] => Self::One(one.clone()),
                    _ => Self::Many(rest.into()),
                };
                false
            }
        }
    }
}
