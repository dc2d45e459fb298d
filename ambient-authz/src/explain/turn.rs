//! What would turn an answer.

use ambient_core::PolicyKey;

use super::{Closest, Keys, NotAllowed, Refusal, RefusalReason, Turn, considered::Weighed};
use crate::{Action, Decision};

/// The rule that came closest to turning it: of an ALLOW policy, or of a DENY policy where the answer is to allow.
pub(super) fn closest<'w, 'a>(decision: &Decision, weighed: &'w [Weighed<'a>]) -> Option<(&'w Weighed<'a>, usize)> {
    let wanted = if decision.is_allow() { Action::Deny } else { Action::Allow };
    let found = weighed.iter().filter(|of| of.enforces(wanted));
    // The first of several: they come in the order of their keys.
    let (of, (_, rule)) = found
        .filter_map(|of| Some((of, of.closest?)))
        .min_by_key(|(_, (distance, _))| *distance)?;
    Some((of, rule))
}

pub(super) fn of(decision: &Decision, weighed: &[Weighed<'_>], refusals: &[Refusal], closest: Option<Closest>, most: usize) -> Turn {
    let enforced = |action| {
        weighed
            .iter()
            .filter(move |of| of.enforces(action))
            .map(|of| (&of.entry.key, of.matching.is_some()))
    };
    let matching = |action| keys(enforced(action).filter(|(_, matches)| *matches).map(|(key, _)| key), most);
    let applying = keys(enforced(Action::Allow).map(|(key, _)| key), most);
    let admitting = matching(Action::Allow);
    if decision.is_allow() {
        return Turn::Refuse {
            others_apply: admitting.len() < applying.len(),
            admitting,
            closest,
        };
    }
    let refusing = |wanted: fn(&RefusalReason) -> bool| {
        let refusing = refusals.iter().filter(|r| r.refuses && wanted(&r.why));
        keys(refusing.map(|r| &r.key), most)
    };
    Turn::Allow {
        deny: matching(Action::Deny),
        unreadable: refusing(|why| matches!(why, RefusalReason::Unreadable { .. })),
        missing: refusing(|why| matches!(why, RefusalReason::NotArrived { .. })),
        not_allowed: (admitting.is_empty() && !applying.is_empty()).then_some(NotAllowed {
            policies: applying,
            closest,
        }),
    }
}

fn keys<'a>(all: impl Iterator<Item = &'a PolicyKey>, most: usize) -> Keys {
    let mut told = Keys::default();
    for key in all {
        match told.keys.len() < most {
            true => told.keys.push(key.clone()),
            false => told.more += 1,
        }
    }
    told
}
