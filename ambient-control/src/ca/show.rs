//! What is in the directory of an authority, as data.

use std::{collections::HashSet, path::PathBuf, time::SystemTime};

use ambient_tls::Moment;
use serde::Serialize;

use super::{
    Authority, OpenError, RevokedCertificate, authority, directory,
    intermediates::Intermediate,
    issued::{self, Unreadable},
    revoked::{self, Revoked},
    roots::{Key, Root},
    seconds,
};

/// What an authority is, has issued and has revoked; what has ended is left out. Moments are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Shown {
    /// The trust domain.
    pub trust_domain: String,
    /// The roots that are trusted.
    pub roots: Vec<ShownRoot>,
    /// Those below them that sign.
    pub intermediates: Vec<ShownIntermediate>,
    /// What they have signed.
    pub issued: Vec<ShownCertificate>,
    /// What cannot be read of it: which certificates it tells of is not known.
    pub unreadable: Vec<Unreadable>,
    /// Identities that get no certificate any more.
    pub barred: Vec<String>,
    /// What is revoked.
    pub revoked: Vec<RevokedCertificate>,
    /// When each list should be signed anew, by its issuer's name.
    pub lists: Vec<(String, u64)>,
    /// What lies there and is none of an authority's.
    pub foreign: Vec<PathBuf>,
}

/// A root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownRoot {
    /// Its serial number.
    pub serial: String,
    /// Its name.
    pub name: String,
    /// What it does: `signs`, `next` (trusted, and will sign), `old` (trusted, and has signed), or `trusted`.
    pub role: &'static str,
    /// Its last moment.
    pub expires: u64,
}

/// An intermediate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownIntermediate {
    /// The node that it is of.
    pub node: String,
    /// Its serial number.
    pub serial: String,
    /// The name of the root that has issued it.
    pub root: String,
    /// Its last moment.
    pub expires: u64,
    /// Whether it is revoked.
    pub revoked: bool,
    /// Whether its root is trusted still: one that was withdrawn takes along what it has issued.
    pub trusted: bool,
    /// How many certificates it has signed that have not ended.
    pub issued: usize,
}

/// A certificate of a workload or a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownCertificate {
    /// Its serial number.
    pub serial: String,
    /// Whom it names.
    pub name: String,
    /// The serial number of its issuer's certificate.
    pub issuer: String,
    /// Its last moment.
    pub expires: u64,
    /// Whether it, or its issuer, is revoked.
    pub revoked: bool,
    /// Whether the root above it is trusted still.
    pub trusted: bool,
}

impl Authority {
    /// What is there now.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn show(&self, now: SystemTime) -> Result<Shown, OpenError> {
        let _lock = directory::lock_to_read(&self.directory)?;
        let roots = self.roots()?;
        let revoked = Revoked::in_force(&self.directory)?;
        let mut roles = Vec::new();
        // Of two roles the first counts: a change that was cut short leaves a key twice.
        for (key, role) in [(Key::Signs, "signs"), (Key::Next, "next"), (Key::Old, "old")] {
            roles.extend(roots.root(key)?.map(|root| (root.root.serial, role)));
        }
        let shown_root = |root: &Root| ShownRoot {
            serial: root.serial.clone(),
            name: root.name.clone(),
            role: roles
                .iter()
                .find(|(serial, _)| *serial == root.serial)
                .map_or("trusted", |(_, role)| role),
            expires: seconds(root.not_after),
        };
        let (known, serials): (_, HashSet<&str>) = (revoked.index(), revoked.certificates.iter().map(|one| &*one.serial).collect());
        let is_revoked = |serial: &str| serials.contains(serial);
        let intermediates = self.intermediates(now)?;
        let is_trusted = |root: &str| roots.trusted.iter().any(|one| one.name == root);
        let stands = |issuer: &str| match intermediates.iter().find(|one| one.serial == issuer) {
            Some(one) => is_trusted(&one.root),
            None => roots.trusted.iter().any(|root| root.serial == issuer),
        };
        let mut all = Vec::new();
        for issuer in issued::issuers(&self.directory)? {
            let of = issued::of(&self.directory, &issuer, now)?;
            all.extend(of.into_iter().map(|one| ShownCertificate {
                revoked: known.contains(&(&*issuer, &*one.serial)) || is_revoked(&issuer),
                trusted: stands(&issuer),
                serial: one.serial,
                name: one.name,
                issuer: issuer.clone(),
                expires: one.expires,
            }));
        }
        let shown_intermediate = |one: &Intermediate| ShownIntermediate {
            issued: all.iter().filter(|leaf| leaf.issuer == one.serial).count(),
            revoked: is_revoked(&one.serial),
            trusted: is_trusted(&one.root),
            expires: seconds(one.not_after),
            node: one.node.clone(),
            serial: one.serial.clone(),
            root: one.root.clone(),
        };
        let lists = revoked::read_lists(&self.directory)?;
        Ok(Shown {
            trust_domain: roots.trust_domain.to_string(),
            roots: roots.trusted.iter().map(shown_root).collect(),
            intermediates: intermediates.iter().map(shown_intermediate).collect(),
            issued: all,
            unreadable: issued::unreadable(&self.directory)?,
            barred: revoked.barred.iter().cloned().collect(),
            revoked: revoked.certificates.clone(),
            lists: lists.into_iter().map(|list| (list.issuer, seconds(list.next_update))).collect(),
            foreign: authority::foreign(&self.directory)?,
        })
    }
}

/// A moment in seconds since 1970 as RFC 3339 writes it, in UTC.
pub fn date(seconds: u64) -> String {
    Moment::of(seconds).to_string()
}
