//! The names of the mesh's own trust domain, and what they make of values that stand under one of them.

use std::sync::Arc;

use ambient_core::TrustDomain;

use crate::StringMatch;

/// Under which names the mesh's own trust domain goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    pub(crate) own: &'a TrustDomain,
    pub(crate) aliases: &'a [TrustDomain],
    /// Whether `cluster.local` means it, whatever it is called.
    pub(crate) cluster_local: bool,
}

impl<'a> Names<'a> {
    fn all(self) -> impl Iterator<Item = &'a TrustDomain> {
        std::iter::once(self.own).chain(self.aliases)
    }

    /// All names, if `name` is one of them.
    fn of(self, name: &str) -> Option<impl Iterator<Item = &'a TrustDomain>> {
        self.hit(|own| own == name).then(|| self.all())
    }

    /// Whether part of a name hits one of them.
    fn hit(self, hits: impl Fn(&str) -> bool) -> bool {
        let pointer = self.cluster_local && hits(CLUSTER_LOCAL);
        pointer || self.all().any(|td| hits(td.as_str()))
    }

    /// Whether there is but one name.
    fn is_one(self) -> bool {
        self.aliases.is_empty() && (!self.cluster_local || self.own.as_str() == CLUSTER_LOCAL)
    }

    /// A principal under every name, if it stands under one of them; else alone.
    pub(crate) fn principals(self, value: StringMatch) -> Vec<StringMatch> {
        if self.is_one() {
            return vec![value];
        }
        let under_each = |text: &str, make: fn(Arc<str>) -> StringMatch| {
            let (domain, rest) = text.split_once('/')?;
            Some(self.of(domain)?.map(|td| make(format!("{td}/{rest}").into())).collect())
        };
        let all = match &value {
            StringMatch::Exact(text) => under_each(text, StringMatch::Exact),
            StringMatch::Prefix(text) if !text.contains('/') => return self.prefixes(text),
            StringMatch::Prefix(text) => under_each(text, StringMatch::Prefix),
            StringMatch::Suffix(text) => return self.suffixes(text),
            StringMatch::Presence => None,
        };
        all.unwrap_or_else(|| vec![value])
    }

    /// A prefix that ends within a trust domain; one that hits one of the names goes with all of them.
    fn prefixes(self, start: &str) -> Vec<StringMatch> {
        let written = StringMatch::Prefix(start.into());
        if !self.hit(|name| name.starts_with(start)) {
            return vec![written];
        }
        let names = self.all().map(|td| StringMatch::Prefix(format!("{td}/").into()));
        std::iter::once(written).chain(names).collect()
    }

    /// A suffix; one that begins within a trust domain, and hits one of the names, goes with all of them.
    fn suffixes(self, suffix: &str) -> Vec<StringMatch> {
        let written = StringMatch::Suffix(suffix.into());
        let Some((end, rest)) = suffix
            .split_once('/')
            .filter(|(end, rest)| !end.is_empty() && rest.starts_with("ns/"))
        else {
            return vec![written];
        };
        if !self.hit(|name| name.ends_with(end)) {
            return vec![written];
        }
        let names = self.all().map(|td| StringMatch::Exact(format!("{td}/{rest}").into()));
        std::iter::once(written).chain(names).collect()
    }

    /// The same for a trust domain alone.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn trust_domains(self, value: StringMatch) -> Vec<StringMatch> {
        let named = match &value {
            StringMatch::Presence => false,
            other => self.hit(|name| other.matches(name)),
        };
        if !named || self.is_one() {
            return vec![value];
        }
        let names = self.all().map(|td| StringMatch::Exact(td.as_str().into()));
        match &value {
            StringMatch::Exact(_) => names.collect(),
            // It may hit others too.
            _ => std::iter::once(value.clone()).chain(names).collect(),
        }
    }
}

const CLUSTER_LOCAL: &str = "cluster.local";
