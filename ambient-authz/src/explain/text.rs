//! An explanation for a terminal: short lines, the reason first.

use std::{borrow::Cow, fmt};

use ambient_core::PolicyKey;

use super::{
    Closest, Explanation, Failure, Field, Hit, Keys, Mismatch, NotAllowed, PolicyTrace, Refusal, RefusalReason, RuleTrace, Turn, Values,
};
use crate::{Decision, Denial};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        line(f, format_args!("{verdict}: {}", self.headline()))?;
        self.connection(f)?;
        for note in &self.notes {
            line(f, format_args!("  note  {note}"))?;
        }
        for verdict in &self.dry_run {
            line(f, format_args!("  {verdict}"))?;
        }
        more(f, "  ", self.more_dry_run)?;
        self.deciding(f)?;
        self.turn(f)?;
        self.considered(f)
    }
}

impl Explanation {
    /// Why, so that it can be read alone.
    fn headline(&self) -> String {
        let rule = self.deciding_rule();
        match (&self.decision, rule) {
            (Decision::Deny(Denial::ByPolicy(key, number)), None) => format!("by {key}, rule {number}"),
            (Decision::Deny(Denial::ByPolicy(..)) | Decision::Allow(_), Some((policy, rule))) => match &policy.made_from {
                Some(made_from) if self.connection.identity.is_none() => format!("by {made_from}, as the peer speaks plaintext"),
                _ => format!("by {}, rule {}: {}", policy.key, rule.rule, by(rule)),
            },
            (Decision::Deny(Denial::NoneAllowed), _) => match self.turn.closest() {
                Some(closest) => format!(
                    "no ALLOW rule matches; closest: {}, rule {} ({})",
                    closest.policy,
                    closest.rule,
                    fails_by(closest)
                ),
                None => match self.allowing() {
                    Some((first, 0)) => format!("{first} has no rules in force, so it allows nobody"),
                    Some((first, more)) => format!("{first} and {more} more have no rules in force, so they allow nobody"),
                    None => self.reason.clone(),
                },
            },
            (Decision::Deny(Denial::Unreadable(unreadable)), _) => {
                format!("policy {} cannot be read, so it refuses all that it applies to", unreadable.key)
            }
            (Decision::Deny(Denial::NotArrived(_)), _) => self.reason.clone(),
            (Decision::Allow(allowed), None) => match (&allowed.by, self.policies.is_empty()) {
                (Some(key), _) => format!("by {key}"),
                (None, true) => "no policy applies".into(),
                (None, false) => "no ALLOW policy applies, and no DENY policy matches".into(),
            },
        }
    }

    /// The first ALLOW policy that applies and admits nobody, and how many more there are.
    fn allowing(&self) -> Option<(&PolicyKey, usize)> {
        let Turn::Allow {
            not_allowed: Some(not_allowed),
            ..
        } = &self.turn
        else {
            return None;
        };
        Some((not_allowed.policies.keys.first()?, not_allowed.policies.len() - 1))
    }

    /// The rule that decided, and its policy.
    fn deciding_rule(&self) -> Option<(&PolicyTrace, &RuleTrace)> {
        let policy = self.trace_of(self.policy.as_ref()?)?;
        let rule = policy.rules.iter().find(|rule| Some(rule.rule) == self.rule)?;
        Some((policy, rule))
    }

    fn trace_of(&self, key: &PolicyKey) -> Option<&PolicyTrace> {
        self.policies.iter().find(|policy| policy.key == *key)
    }

    fn connection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conn = &self.connection;
        let from = match &conn.identity {
            Some(identity) => identity.to_string(),
            None => "plaintext (no identity)".into(),
        };
        // Nobody comes from or lives at an unspecified address: it stands for one that was not told.
        match conn.source {
            ip if ip.is_unspecified() => line(f, format_args!("  from  {from}"))?,
            ip => line(f, format_args!("  from  {from}, {ip}"))?,
        }
        let to = conn.destination;
        let (namespace, name) = (&conn.namespace, &conn.name);
        match to.ip().is_unspecified() {
            true => line(f, format_args!("  to    {namespace}/{name}, port {}", to.port()))?,
            false => line(f, format_args!("  to    {namespace}/{name}, {to}"))?,
        }
        match &self.decision {
            Decision::Deny(Denial::ByPolicy(..) | Denial::NoneAllowed | Denial::Unreadable { .. }) => {
                line(f, format_args!("  log   {}", self.reason))
            }
            Decision::Deny(Denial::NotArrived(_)) | Decision::Allow(_) => Ok(()),
        }
    }

    /// The rule that decided, and by what it matched.
    fn deciding(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((policy, rule)) = self.deciding_rule() else {
            return Ok(());
        };
        let place = in_brackets(self.place.as_deref());
        writeln!(f)?;
        if rule.hits.is_empty() {
            return line(
                f,
                format_args!("{}, rule {}{place} matches every connection", policy.key, rule.rule),
            );
        }
        line(f, format_args!("{}, rule {}{place} matches:", policy.key, rule.rule))?;
        rule.hits.iter().try_for_each(|hit| line(f, format_args!("    {}", self::hit(hit))))
    }

    fn turn(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        match &self.turn {
            Turn::Allow {
                deny,
                unreadable,
                missing,
                not_allowed,
            } => {
                self.list(f, "to be allowed, no longer denied by:", deny)?;
                let of_peers = |key| self.trace_of(key).is_some_and(|policy| policy.made_from.is_some());
                if deny.keys.iter().any(of_peers) {
                    line(
                        f,
                        format_args!("  (a peer of the mesh passes that; PERMISSIVE would let plaintext in)"),
                    )?;
                }
                self.list(f, "to be allowed, these must be mended or withdrawn:", unreadable)?;
                self.list(f, "to be allowed, these must arrive, or be listed no more:", missing)?;
                not_allowed.as_ref().map_or(Ok(()), |n| self::not_allowed(f, n))
            }
            Turn::Refuse {
                admitting,
                others_apply,
                closest,
            } => {
                match (admitting.is_empty(), others_apply) {
                    (true, _) => line(
                        f,
                        format_args!("to be denied: a DENY policy that matches, or any ALLOW policy that does not"),
                    )?,
                    (false, true) => self.list(f, "to be denied, no longer allowed by:", admitting)?,
                    (false, false) => {
                        self.list(f, "to be denied, no longer matched by:", admitting)?;
                        line(
                            f,
                            format_args!("  (to delete what is listed would leave no ALLOW policy, and all be allowed)"),
                        )?;
                    }
                }
                match closest {
                    Some(closest) => {
                        line(f, format_args!("the DENY rule that came closest:"))?;
                        self::closest(f, closest)
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn list(&self, f: &mut fmt::Formatter<'_>, title: &str, all: &Keys) -> fmt::Result {
        if all.is_empty() {
            return Ok(());
        }
        line(f, format_args!("{title}"))?;
        for key in &all.keys {
            let trace = self.trace_of(key);
            let of_refusal = || self.refusals.iter().find(|refusal| refusal.key == *key)?.place.as_deref();
            let place = trace.and_then(|policy| policy.place.as_deref()).or_else(of_refusal);
            let made_from = trace.and_then(|policy| policy.made_from.as_deref());
            let made_from = made_from.map_or(String::new(), |made_from| format!(", made of {made_from}"));
            line(f, format_args!("  {key}{made_from}{}", in_brackets(place)))?;
        }
        more(f, "  ", all.more)
    }

    fn considered(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.more_refusals + self.more_policies;
        writeln!(f)?;
        match self.refusals.len() + self.policies.len() + hidden {
            0 => return line(f, format_args!("no policy applies")),
            1 => line(f, format_args!("1 policy applies:"))?,
            all => line(f, format_args!("{all} policies apply:"))?,
        }
        self.refusals.iter().try_for_each(|r| refusal(f, r))?;
        self.policies.iter().try_for_each(|p| policy(f, p))?;
        more(f, "  ", hidden)
    }
}

/// A text in one line that sends a terminal nothing but text: controls, and what makes text run the other way, are written
/// as escapes. What stands in a policy was written by others.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_no_text) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_no_text(c) {
            true => line.extend(c.escape_unicode()),
            false => line.push(c),
        }
    }
    line.into()
}

fn is_no_text(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn line(f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
    writeln!(f, "{}", one_line(&text.to_string()))
}

fn more(f: &mut fmt::Formatter<'_>, indent: &str, more: usize) -> fmt::Result {
    match more {
        0 => Ok(()),
        more => line(f, format_args!("{indent}… and {more} more")),
    }
}

fn in_brackets(place: Option<&str>) -> String {
    place.map_or(String::new(), |place| format!(" ({place})"))
}

/// What a rule matched by, in short.
fn by(rule: &RuleTrace) -> String {
    // Who it is tells more than where to.
    let first = rule.hits.iter().min_by_key(|hit| hit.field);
    match (first, rule.hits.len()) {
        (None, _) => "it matches every connection".into(),
        (Some(first), 1) => hit(first),
        (Some(first), all) => format!("{}, and {} more", hit(first), all - 1),
    }
}

/// What a rule failed by, in short.
fn fails_by(closest: &Closest) -> String {
    let name = |failure: &Failure| match &failure.mismatch {
        Mismatch::NoneHits { field, .. } | Mismatch::Excluded { field, .. } => field.to_string(),
        Mismatch::Empty => "never matches".into(),
    };
    match &closest.failures[..] {
        [] => String::new(),
        [one] => name(one),
        [one, rest @ ..] => format!("{} and {} more", name(one), rest.len()),
    }
}

fn hit(hit: &Hit) -> String {
    let is = format!("{} is {}", hit.field, value(hit.field, hit.compared.as_deref()));
    match (&hit.by, &hit.none_of) {
        (Some(by), _) if hit.compared.as_ref() == Some(by) => is,
        (Some(by), _) => format!("{is}, which is in {}", any(by)),
        // Whoever has no value has none of any: it is all that is asked.
        (None, Some(none_of)) if hit.compared.is_none() && none_of.values == ["*"] => is,
        (None, Some(none_of)) => format!("{is}, which is not in {}", one_of(none_of)),
        (None, None) => is,
    }
}

/// The first of some values, and how many others there are.
fn one_of(values: &Values) -> String {
    let first = values.values.first().map_or("", String::as_str);
    match values.values.len().saturating_sub(1) + values.more {
        0 => any(first),
        more => format!("{} or {more} more", any(first)),
    }
}

fn any(value: &str) -> String {
    match value {
        "*" => "* (any)".into(),
        value => value.into(),
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
            line(f, format_args!("    {field} is {}", value(*field, compared.as_deref())))?;
            let shown = &wanted.values[..wanted.values.len().min(MAX_VALUES)];
            for (at, wanted) in shown.iter().enumerate() {
                let or = if at == 0 { "wanted:" } else { "    or:" };
                line(f, format_args!("      {or} {}", any(wanted)))?;
            }
            match wanted.values.len() - shown.len() + wanted.more {
                0 => {}
                more => line(f, format_args!("          or: … {more} more"))?,
            }
        }
        Mismatch::Excluded { field, compared, by } => {
            line(f, format_args!("    {field} is {}", value(*field, compared.as_deref())))?;
            line(f, format_args!("      excluded: {}", any(by)))?;
        }
        Mismatch::Empty => line(f, format_args!("    nothing is left to compare, so it never matches"))?,
    }
    match failure.others {
        0 => Ok(()),
        1 => line(f, format_args!("      (or what its other alternative asks for)")),
        others => line(f, format_args!("      (or what one of its {others} other alternatives asks for)")),
    }
}

fn closest(f: &mut fmt::Formatter<'_>, closest: &Closest) -> fmt::Result {
    let fields = match closest.failures.len() {
        1 => "1 field fails".to_owned(),
        n => format!("{n} fields fail"),
    };
    let place = in_brackets(closest.place.as_deref());
    line(f, format_args!("  {}, rule {}{place}: {fields}", closest.policy, closest.rule))?;
    // Alternatives are told once a clause.
    for (at, one) in closest.failures.iter().enumerate() {
        let last = closest.failures.get(at + 1).is_none_or(|next| next.clause != one.clause);
        let others = if last { one.others } else { 0 };
        failure(f, &Failure { others, ..one.clone() })?;
    }
    Ok(())
}

fn not_allowed(f: &mut fmt::Formatter<'_>, not_allowed: &NotAllowed) -> fmt::Result {
    match &not_allowed.closest {
        Some(closest) => {
            line(
                f,
                format_args!("to be allowed, the ALLOW rule that came closest has to match, or another:"),
            )?;
            self::closest(f, closest)?;
        }
        None => line(f, format_args!("to be allowed, an ALLOW policy needs a rule that matches"))?,
    }
    match not_allowed.policies.len() {
        1 => line(f, format_args!("or the one ALLOW policy that applies has to go")),
        2 => line(f, format_args!("or both ALLOW policies that apply have to go")),
        all => line(f, format_args!("or all {all} ALLOW policies that apply have to go")),
    }
}

fn refusal(f: &mut fmt::Formatter<'_>, refusal: &Refusal) -> fmt::Result {
    let effect = if refusal.refuses { "refuses" } else { "passed over" };
    let place = refusal.place.as_deref().map_or(String::new(), |place| format!("; {place}"));
    line(f, format_args!("  {}  ({}; {effect}{place})", refusal.key, refusal.applies))?;
    match &refusal.why {
        RefusalReason::Unreadable { error } => line(f, format_args!("    cannot be read: {error}")),
        RefusalReason::NotArrived { plaintext_only: false } => line(f, format_args!("    has not arrived")),
        RefusalReason::NotArrived { plaintext_only: true } => line(
            f,
            format_args!("    has not arrived, and is not waited for: it refuses plaintext only"),
        ),
    }
}

fn policy(f: &mut fmt::Formatter<'_>, policy: &PolicyTrace) -> fmt::Result {
    let dry_run = if policy.dry_run { "; dry run" } else { "" };
    let place = policy.place.as_deref().map_or(String::new(), |place| format!("; {place}"));
    line(
        f,
        format_args!("  {} {}  ({}{dry_run}{place})", policy.action, policy.key, policy.applies),
    )?;
    if let Some(made_from) = &policy.made_from {
        line(f, format_args!("    made of {made_from}"))?;
    }
    if let Some(error) = &policy.unreadable {
        line(
            f,
            format_args!("    its last good version; the present one cannot be read: {error}"),
        )?;
    }
    if policy.rules.is_empty() {
        return line(f, format_args!("    no rules in force: it never matches"));
    }
    policy.rules.iter().try_for_each(|rule| self::rule(f, rule))?;
    match policy.more_rules {
        0 => Ok(()),
        more => line(f, format_args!("    … and {more} more rules")),
    }
}

/// A rule with the first field that failed.
fn rule(f: &mut fmt::Formatter<'_>, rule: &RuleTrace) -> fmt::Result {
    let number = rule.rule;
    let Some(first) = rule.failures.first() else {
        return line(f, format_args!("    rule {number}: matches"));
    };
    match &first.mismatch {
        Mismatch::NoneHits { field, wanted, .. } => line(f, format_args!("    rule {number}: no, {field} is not {}", one_of(wanted))),
        Mismatch::Excluded { field, by, .. } if by == "*" => line(f, format_args!("    rule {number}: no, there is a {field}")),
        Mismatch::Excluded { field, by, .. } => line(f, format_args!("    rule {number}: no, {field} is in {by}")),
        Mismatch::Empty => line(f, format_args!("    rule {number}: no, it never matches")),
    }
}

const MAX_VALUES: usize = 4;
