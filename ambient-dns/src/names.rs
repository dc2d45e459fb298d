//! Which names a name may stand for: what resolvers make of the names that people write, undone. Pure.
//!
//! A resolver with the search list that Kubernetes gives to pods asks for `web` as `web.NAMESPACE.svc.DOMAIN`, and for
//! `api.example.com` first as `api.example.com.NAMESPACE.svc.DOMAIN`, then with `svc.DOMAIN`, then with `DOMAIN`, and only
//! then as it was written. Where the mesh knows a name that this list would come to later, it can be answered at the first
//! question. Nothing is tried that the resolver would not have asked for itself later on: a name that was passed over on the
//! way is not gone back to.

use crate::{Client, Zone};

#[cfg(test)]
mod tests;

/// How a candidate came from the name that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is that name.
    Asked,
    /// It is that name with a search domain behind it.
    Completed,
    /// It is that name without the search domain that stood behind it, or with another one in its place.
    Stripped,
}

/// Shows every name that a name may stand for, in the order of preference, until one is taken.
///
/// The name is in lower case and has no dot at its end. The candidates: the name itself; if it ends with one of the domains
/// that the cluster gives to the client, what stands before that with each of the domains after it, and alone; if it ends
/// with another search domain of the client's, what stands before that alone, where it has a dot; and the short forms of
/// Kubernetes' names, completed.
pub(crate) fn candidates<T>(zone: &Zone, client: &Client<'_>, name: &str, mut take: impl FnMut(&str, Origin) -> Option<T>) -> Option<T> {
    if name.is_empty() {
        return None;
    }
    if let Some(found) = take(name, Origin::Asked) {
        return Some(found);
    }
    let own = [
        format!("{}{}", client.namespace, zone.services()),
        zone.services().trim_start_matches('.').to_owned(),
        zone.cluster_domain().to_owned(),
    ];
    for (at, domain) in own.iter().enumerate() {
        let Some(written) = before(name, domain) else { continue };
        for (_, next) in forms(written, &own).filter(|(next, _)| *next > at) {
            if let Some(found) = take(&next, Origin::Stripped) {
                return Some(found);
            }
        }
        if let Some(found) = take(written, Origin::Stripped) {
            return Some(found);
        }
    }
    let is_own = |domain: &&String| own.iter().any(|own| own.eq_ignore_ascii_case(domain.trim_end_matches('.')));
    for domain in client.search.iter().filter(|domain| !is_own(domain)) {
        // Without a dot it would be anybody's: `web.example.com` is not the `web` of this cluster.
        let written = before(name, domain).filter(|written| written.contains('.'));
        if let Some(found) = written.and_then(|written| take(written, Origin::Stripped)) {
            return Some(found);
        }
    }
    forms(name, &own).find_map(|(_, whole)| take(&whole, Origin::Completed))
}

/// Shows the wildcards that cover a name, the most specific one first: for `a.b.c` these are `*.b.c` and `*.c`, which cover
/// any number of labels. Of a long name only the last labels are looked at: as many as [`WILDCARD_LABELS`].
pub(crate) fn wildcards<T>(name: &str, mut take: impl FnMut(&str) -> Option<T>) -> Option<T> {
    let dots: Vec<usize> = name.rmatch_indices('.').map(|(at, _)| at).take(WILDCARD_LABELS).collect();
    let mut wildcard = String::with_capacity(name.len() + 1);
    dots.into_iter().rev().find_map(|dot| {
        wildcard.clear();
        wildcard.push('*');
        wildcard.push_str(&name[dot..]);
        take(&wildcard)
    })
}

/// What stands before a domain and its dot, if a name ends with these; the domain in any case, with a dot at its end or without.
fn before<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let domain = domain.trim_end_matches('.');
    let (before, end) = name.split_at_checked(name.len().checked_sub(domain.len())?)?;
    let written = before.strip_suffix('.')?;
    (end.eq_ignore_ascii_case(domain) && !written.is_empty() && !domain.is_empty()).then_some(written)
}

/// The whole names of which a name may be a short form as Kubernetes has them, each with the place of the domain that
/// completes it: `SERVICE`, `SERVICE.NAMESPACE`, `SERVICE.NAMESPACE.svc`, and the same with `POD.` before it.
fn forms<'a>(name: &'a str, own: &'a [String; 3]) -> impl Iterator<Item = (usize, String)> + 'a {
    let svc = name.ends_with(".svc");
    let places: &[usize] = match name.bytes().filter(|byte| *byte == b'.').count() {
        0 => &[0],
        1 => &[1, 0],
        2 if svc => &[2, 1],
        2 => &[1],
        3 if svc => &[2],
        _ => &[],
    };
    places.iter().map(move |place| (*place, format!("{name}.{}", own[*place])))
}

/// Real names have fewer labels; those that have more are not worth a look for each.
const WILDCARD_LABELS: usize = 16;
