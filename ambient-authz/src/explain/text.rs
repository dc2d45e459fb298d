//! An explanation for a terminal: short lines, what decided first.

use std::fmt;

use super::{
    Closest, Explanation, Failure, Field, Hit, Mismatch, NotAllowed, PolicyTrace, Refusal, RefusalReason, RuleTrace, Turn, Values,
};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        writeln!(f, "{verdict}: {}", self.reason)?;
        self.deciding(f)?;
        self.connection(f)?;
        turn(f, &self.turn, self)?;
        if !self.dry_run.is_empty() {
            writeln!(f)?;
            self.dry_run.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        }
        self.considered(f)
    }
}

impl Explanation {
    /// The rule that decided, and by what it matched.
    fn deciding(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.policies.iter().find(|p| Some(&p.key) == self.policy.as_ref());
        let rule = policy.and_then(|p| p.rules.iter().find(|rule| Some(rule.rule) == self.rule));
        let (Some(policy), Some(rule)) = (policy, rule) else {
            return Ok(());
        };
        if let Some(made_from) = &policy.made_from {
            writeln!(f, "  it comes from {made_from}")?;
        }
        if rule.hits.is_empty() {
            return writeln!(f, "  its rule {} matches every connection", rule.rule);
        }
        writeln!(f, "  its rule {} matches:", rule.rule)?;
        rule.hits.iter().try_for_each(|hit| self::hit(f, hit))
    }

    fn connection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conn = &self.connection;
        match &conn.identity {
            Some(identity) => write!(f, "  from  {identity}")?,
            None => write!(f, "  from  plaintext (no identity)")?,
        }
        // Nobody comes from or lives at an unspecified address: it stands for one that was not told.
        match conn.source {
            ip if ip.is_unspecified() => writeln!(f, ", address unknown")?,
            ip => writeln!(f, ", {ip}")?,
        }
        write!(f, "  to    {}/{}, ", conn.namespace, conn.name)?;
        match conn.destination {
            to if to.ip().is_unspecified() => writeln!(f, "port {}, address unknown", to.port()),
            to => writeln!(f, "{to}"),
        }
    }

    fn considered(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.refusals.len() + self.policies.len();
        writeln!(f)?;
        match all {
            0 => return writeln!(f, "no policy applies"),
            1 => writeln!(f, "1 policy applies:")?,
            _ => writeln!(f, "{all} policies apply:")?,
        }
        let shown = if f.alternate() { all } else { MAX_POLICIES };
        let refusals = self.refusals.len().min(shown);
        self.refusals[..refusals].iter().try_for_each(|r| refusal(f, r))?;
        // What decided, and what came closest, is shown in any case.
        let closest = self.turn.closest().map(|c| &c.policy);
        let counts = |p: &PolicyTrace| Some(&p.key) == self.policy.as_ref() || Some(&p.key) == closest;
        let mut left = shown - refusals;
        for policy in &self.policies {
            if left > 0 || counts(policy) {
                left = left.saturating_sub(1);
                self::policy(f, policy)?;
            }
        }
        let hidden = all.saturating_sub(shown);
        if hidden > 0 {
            writeln!(f, "  … and {hidden} more")?;
        }
        Ok(())
    }
}

fn hit(f: &mut fmt::Formatter<'_>, hit: &Hit) -> fmt::Result {
    write!(f, "    {} is {}", hit.field, value(hit.field, hit.compared.as_deref()))?;
    match (&hit.by, &hit.none_of) {
        (Some(by), _) if hit.compared.as_ref() == Some(by) => writeln!(f),
        (Some(by), _) => writeln!(f, ", which is in {by}"),
        (None, Some(none_of)) => writeln!(f, ", which is not in {}", one_of(none_of)),
        (None, None) => writeln!(f),
    }
}

/// The first of some values, and how many others there are.
fn one_of(values: &Values) -> String {
    let first = values.values.first().map_or("", String::as_str);
    match values.values.len().saturating_sub(1) + values.more {
        0 => first.to_owned(),
        more => format!("{first} or {more} more"),
    }
}

fn value(field: Field, compared: Option<&str>) -> &str {
    match (compared, field) {
        (Some(value), _) => value,
        (None, Field::Namespaces) => "none (plaintext has no namespace)",
        (None, _) => "none (plaintext)",
    }
}

fn failure(f: &mut fmt::Formatter<'_>, failure: &Failure) -> fmt::Result {
    match &failure.mismatch {
        Mismatch::NoneHits { field, compared, wanted } => {
            writeln!(f, "    {field} is {}", value(*field, compared.as_deref()))?;
            let shown = &wanted.values[..wanted.values.len().min(MAX_VALUES)];
            for (at, wanted) in shown.iter().enumerate() {
                writeln!(f, "      {} {wanted}", if at == 0 { "wanted:" } else { "    or:" })?;
            }
            match wanted.values.len() - shown.len() + wanted.more {
                0 => {}
                more => writeln!(f, "          or: … {more} more")?,
            }
        }
        Mismatch::Excluded { field, compared, by } => {
            writeln!(f, "    {field} is {}", value(*field, compared.as_deref()))?;
            writeln!(f, "      excluded: {by}")?;
        }
        Mismatch::Empty => writeln!(f, "    nothing is left to compare, so it never matches")?,
    }
    match failure.others {
        0 => Ok(()),
        1 => writeln!(f, "      (or what its other alternative asks for)"),
        others => writeln!(f, "      (or what one of its {others} other alternatives asks for)"),
    }
}

fn closest(f: &mut fmt::Formatter<'_>, closest: &Closest) -> fmt::Result {
    let fields = match closest.failures.len() {
        1 => "1 field fails".to_owned(),
        n => format!("{n} fields fail"),
    };
    writeln!(f, "  {}, rule {}: {fields}", closest.policy, closest.rule)?;
    // Alternatives are told once a clause.
    for (at, one) in closest.failures.iter().enumerate() {
        let last = closest.failures.get(at + 1).is_none_or(|next| next.clause != one.clause);
        let others = if last { one.others } else { 0 };
        failure(f, &Failure { others, ..one.clone() })?;
    }
    Ok(())
}

fn turn(f: &mut fmt::Formatter<'_>, turn: &Turn, explanation: &Explanation) -> fmt::Result {
    writeln!(f)?;
    match turn {
        Turn::Allow {
            deny,
            unreadable,
            missing,
            not_allowed,
        } => {
            list(f, "to be allowed, no longer denied by:", deny.iter())?;
            if deny
                .iter()
                .any(|key| explanation.policies.iter().any(|p| p.key == *key && p.made_from.is_some()))
            {
                writeln!(
                    f,
                    "  (a PeerAuthentication wants peers of the mesh here; PERMISSIVE lets others in)"
                )?;
            }
            list(f, "to be allowed, these must be mended or withdrawn:", unreadable.iter())?;
            list(f, "to be allowed, these must arrive, or be listed no more:", missing.iter())?;
            not_allowed.as_ref().map_or(Ok(()), |n| self::not_allowed(f, n))
        }
        Turn::Refuse {
            admitting,
            others_apply,
            closest,
        } => {
            match (admitting.is_empty(), others_apply) {
                (true, _) => writeln!(f, "to be denied: a DENY policy that matches, or any ALLOW policy that does not")?,
                (false, true) => list(f, "to be denied, no longer allowed by:", admitting.iter())?,
                (false, false) => {
                    list(f, "to be denied, no longer matched by:", admitting.iter())?;
                    writeln!(f, "  (to delete what is listed would leave no ALLOW policy, and all be allowed)")?;
                }
            }
            match closest {
                Some(closest) if !explanation.policies.is_empty() => {
                    writeln!(f, "the DENY rule that came closest:")?;
                    self::closest(f, closest)
                }
                _ => Ok(()),
            }
        }
    }
}

fn not_allowed(f: &mut fmt::Formatter<'_>, not_allowed: &NotAllowed) -> fmt::Result {
    match &not_allowed.closest {
        Some(closest) => {
            writeln!(f, "to be allowed, the ALLOW rule that came closest:")?;
            self::closest(f, closest)
        }
        None => writeln!(f, "to be allowed, an ALLOW policy needs a rule: those that apply have none"),
    }
}

fn list<'a>(f: &mut fmt::Formatter<'_>, title: &str, keys: impl ExactSizeIterator<Item = &'a ambient_core::PolicyKey>) -> fmt::Result {
    let all = keys.len();
    if all == 0 {
        return Ok(());
    }
    writeln!(f, "{title}")?;
    let shown = if f.alternate() { all } else { MAX_POLICIES };
    keys.take(shown).try_for_each(|key| writeln!(f, "  {key}"))?;
    match all.saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(f, "  … and {more} more"),
    }
}

fn refusal(f: &mut fmt::Formatter<'_>, refusal: &Refusal) -> fmt::Result {
    let effect = if refusal.refuses { "refuses" } else { "passed over" };
    writeln!(f, "  {}  ({}; {effect})", refusal.key, refusal.applies)?;
    match &refusal.why {
        RefusalReason::Unreadable { error } => writeln!(f, "    cannot be read: {error}"),
        RefusalReason::NotArrived { plaintext_only: false } => writeln!(f, "    has not arrived"),
        RefusalReason::NotArrived { plaintext_only: true } => {
            writeln!(f, "    has not arrived, and is not waited for: it refuses plaintext only")
        }
    }
}

fn policy(f: &mut fmt::Formatter<'_>, policy: &PolicyTrace) -> fmt::Result {
    let dry_run = if policy.dry_run { "; dry run" } else { "" };
    writeln!(f, "  {} {}  ({}{dry_run})", policy.action, policy.key, policy.applies)?;
    if let Some(made_from) = &policy.made_from {
        writeln!(f, "    from {made_from}")?;
    }
    if let Some(error) = &policy.unreadable {
        writeln!(f, "    its last good version; the present one cannot be read: {error}")?;
    }
    if policy.rules.is_empty() {
        return writeln!(f, "    no rules: it never matches");
    }
    let shown = if f.alternate() { policy.rules.len() } else { MAX_RULES };
    policy.rules.iter().take(shown).try_for_each(|rule| self::rule(f, rule))?;
    match policy.rules.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(f, "    … and {more} more rules"),
    }
}

/// A rule with the first field that failed.
fn rule(f: &mut fmt::Formatter<'_>, rule: &RuleTrace) -> fmt::Result {
    let number = rule.rule;
    let Some(first) = rule.failures.first() else {
        return writeln!(f, "    rule {number}: matches");
    };
    match &first.mismatch {
        Mismatch::NoneHits { field, wanted, .. } => writeln!(f, "    rule {number}: no, {field} is not {}", one_of(wanted)),
        Mismatch::Excluded { field, by, .. } if by == "*" => writeln!(f, "    rule {number}: no, there is a {field}"),
        Mismatch::Excluded { field, by, .. } => writeln!(f, "    rule {number}: no, {field} is in {by}"),
        Mismatch::Empty => writeln!(f, "    rule {number}: no, it never matches"),
    }
}

const MAX_POLICIES: usize = 10;
const MAX_RULES: usize = 10;
const MAX_VALUES: usize = 4;
