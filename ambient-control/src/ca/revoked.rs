//! What an authority has revoked, and the lists (CRLs) by which peers know.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::{MAX_TTL, OpenError, SKEW, directory, end_of, intermediates, roots::pem, seconds, serial, whole_seconds};

/// What stands in `revoked.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revoked {
    /// The number of the last list: each is higher than the one before (RFC 5280 5.2.3).
    pub(super) lists: u64,
    /// Identities that get no certificate any more.
    pub(super) barred: BTreeSet<String>,
    pub(super) certificates: Vec<RevokedCertificate>,
}

/// A certificate that is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokedCertificate {
    /// Its serial number, in hexadecimal digits.
    pub serial: String,
    /// The serial number of its issuer's certificate.
    pub issuer: String,
    /// Whom it names, as far as that is known.
    pub name: String,
    /// When it was revoked, in seconds since 1970.
    pub since: u64,
    /// Its last moment, or its issuer's, in seconds since 1970.
    pub expires: u64,
    /// Since when it has been seen to have ended, in seconds since 1970, if it has: it is forgotten a while after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
}

impl RevokedCertificate {
    /// Looks at a clock: whether it is time to forget it. A clock that is ahead once forgets nothing that may be valid: from the moment
    /// when it shows the end more time has to go by than was left to that when it was revoked, and a day at least. One that goes ahead
    /// again, by so much more, is not told from time that went by.
    fn has_long_ended(&mut self, now: u64) -> bool {
        if now < self.expires {
            // Whatever clock has shown the end was ahead.
            self.ended = None;
            return false;
        }
        let ended = self.ended.filter(|ended| *ended <= now).unwrap_or(now);
        self.ended = Some(ended);
        now - ended >= self.expires.saturating_sub(self.since).clamp(LEAST_KEPT, MAX_TTL.as_secs())
    }
}

impl Revoked {
    /// What was revoked with this directory. Until something is there is no such file, nor lists; a node's directory may have lists
    /// that were carried there.
    pub(super) fn read(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(REVOKED);
        let there = |name: &str| directory::stamp(&directory.join(name)).is_some();
        // The record is written before the lists. They name no identity that is barred, so that it cannot be made anew of them.
        if !there(REVOKED) && !there(ABOVE) && there(LISTS) && read_lists(directory).is_ok() && !intermediates::is_given(directory)? {
            let why = format!(
                "it is not here, though {LISTS} says that something was revoked: put it back from a copy; without it who was revoked \
                 would be given certificates again. Where there is no copy, keep {LISTS} elsewhere for the serial numbers in it, remove it \
                 here, and revoke anew"
            );
            return Err(OpenError::Unusable { path, why });
        }
        Self::read_from(path)
    }

    /// What was revoked where the root's key is and is to be known here, as it was when an intermediate was given last. It is a
    /// file of its own: each time it is replaced, and what was revoked here stays.
    pub(super) fn above(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(ABOVE);
        if directory::stamp(&path).is_none() && intermediates::is_given(directory)? {
            let why = "it is not here, though it came with the intermediate that is here: issue to this node again where the root's key is \
                       (`ambient ca issue --node`); without it who was revoked there would be given certificates here";
            return Err(OpenError::Unusable { path, why: why.into() });
        }
        Self::read_from(path)
    }

    /// What is in force here: both.
    pub(super) fn in_force(directory: &Path) -> Result<Self, OpenError> {
        let (above, mut all) = (Self::above(directory)?, Self::read(directory)?);
        all.barred.extend(above.barred);
        all.add(above.certificates);
        Ok(all)
    }

    fn read_from(path: PathBuf) -> Result<Self, OpenError> {
        let Some(text) = directory::read_if_there(&path)? else {
            return Ok(Self::default());
        };
        let unusable = |why: String| OpenError::Unusable {
            path,
            why: format!("cannot be read ({why}): put the right one back; without it who was revoked would be forgotten"),
        };
        let read: Self = match serde_json::from_slice(&text) {
            Ok(read) => read,
            Err(error) => return Err(unusable(error.to_string())),
        };
        // A list that names something else would be signed again and again.
        match read
            .certificates
            .iter()
            .find(|one| serial::read(&one.serial).as_ref() != Some(&one.serial))
        {
            Some(one) => Err(unusable(format!("{:?} is no serial number", one.serial))),
            None => Ok(read),
        }
    }

    pub(super) fn write(&self, directory: &Path) -> Result<(), OpenError> {
        self.write_to(&directory.join(REVOKED))
    }

    pub(super) fn write_to(&self, path: &Path) -> Result<(), OpenError> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| directory::io_error("write", path)(e.into()))?;
        directory::write(path, 0o600, &text)
    }

    pub(super) fn has(&self, issuer: &str, serial: &str) -> bool {
        self.certificates.iter().any(|one| one.serial == serial && one.issuer == issuer)
    }

    pub(super) fn has_serial(&self, serial: &str) -> bool {
        self.certificates.iter().any(|one| one.serial == serial)
    }

    /// What is revoked, by issuer and serial number: for whoever looks for many.
    pub(super) fn index(&self) -> HashSet<(&str, &str)> {
        self.certificates.iter().map(|one| (&*one.issuer, &*one.serial)).collect()
    }

    /// Adds those that are not there yet, and gives them.
    pub(super) fn add(&mut self, mut certificates: Vec<RevokedCertificate>) -> Vec<RevokedCertificate> {
        let mut known = self.index();
        let new: Vec<bool> = certificates.iter().map(|one| known.insert((&one.issuer, &one.serial))).collect();
        let mut new = new.into_iter();
        certificates.retain(|_| new.next().unwrap_or_default());
        self.certificates.extend(certificates.iter().cloned());
        certificates
    }

    /// Forgets those that have long ended: a list should name them once after their end, and clocks differ. It is to be written after
    /// this: of those that stay it is known since when they have been seen to have ended.
    pub(super) fn tidy(&mut self, now: SystemTime) {
        let now = seconds(now);
        self.certificates.retain_mut(|one| !one.has_long_ended(now));
    }

    /// The lists of all issuers of whom something is revoked, signed anew where their keys are here. A list whose issuer's
    /// key is elsewhere stays as it is. `above` is what was revoked where the root's key is.
    pub(super) fn lists(
        &mut self,
        above: &Self,
        issuers: &[Issuer<'_>],
        mut present: BTreeMap<String, Vec<u8>>,
        now: SystemTime,
    ) -> Result<String, OpenError> {
        // Both may have signed the list of one intermediate.
        self.lists = self.lists.max(above.lists).saturating_add(1);
        let known = self.index();
        let new = |one: &&RevokedCertificate| !known.contains(&(&*one.issuer, &*one.serial));
        let all: Vec<_> = self.certificates.iter().chain(above.certificates.iter().filter(new)).collect();
        for issuer in issuers {
            let of: Vec<_> = all.iter().copied().filter(|one| one.issuer == issuer.serial).collect();
            if !of.is_empty() || present.contains_key(&issuer.name) {
                let der = sign(issuer, &of, self.lists, now)?;
                present.insert(issuer.name.clone(), der);
            }
        }
        Ok(text(&present))
    }
}

/// One list of each issuer, the last, by its name. `roots` are the names of those that are trusted, `revoked` are records of what is not
/// forgotten.
pub(super) fn joined(
    lists: impl Iterator<Item = List>,
    roots: &[String],
    revoked: &[&Revoked],
    now: SystemTime,
) -> BTreeMap<String, Vec<u8>> {
    let serials: HashSet<_> = revoked
        .iter()
        .flat_map(|of| &of.certificates)
        .map(|one| number(&one.serial))
        .collect();
    // Nobody below a root lives as long as a list is good for: with that its issuer has ended, unless the clock is ahead.
    let stays = |list: &List| list.next_update > now || roots.contains(&list.issuer) || !list.named().is_disjoint(&serials);
    lists.filter(stays).map(|list| (list.issuer, list.der)).collect()
}

/// Lists as they stand in a file.
pub(super) fn text(lists: &BTreeMap<String, Vec<u8>>) -> String {
    lists.values().map(|der| pem("X509 CRL", der)).collect()
}

/// Who can sign a list.
pub(super) struct Issuer<'a> {
    /// As a list bears it.
    pub(super) name: String,
    pub(super) serial: &'a str,
    pub(super) issuer: &'a rcgen::Issuer<'static, KeyPair>,
}

/// A list that is there.
pub(super) struct List {
    pub(super) issuer: String,
    pub(super) der: Vec<u8>,
    pub(super) next_update: SystemTime,
}

impl List {
    /// Whether it names all of these serial numbers.
    pub(super) fn names_all(&self, serials: &[&str]) -> bool {
        let named = self.named();
        serials.iter().all(|serial| named.contains(&number(serial)))
    }

    /// The serial numbers in it.
    fn named(&self) -> HashSet<String> {
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else {
            return HashSet::new();
        };
        let all = list.iter_revoked_certificates();
        all.map(|one| number(&serial::hex(one.raw_serial()))).collect()
    }
}

/// A serial number, to be told from others: DER puts a zero before what would be negative.
fn number(hex: &str) -> String {
    hex.trim_start_matches('0').to_owned()
}

/// The lists of a directory.
pub(super) fn read_lists(directory: &Path) -> Result<Vec<List>, OpenError> {
    let path = directory.join(LISTS);
    let text = directory::read_if_there(&path)?;
    text.map_or_else(|| Ok(Vec::new()), |text| lists_of(&text, path))
}

fn lists_of(text: &[u8], path: PathBuf) -> Result<Vec<List>, OpenError> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let lists = ambient_tls::read_crls(text).map_err(|e| OpenError::Unusable {
        path,
        why: format!("cannot be read ({e}): put the right one back, or remove it and revoke something to write it anew"),
    })?;
    let list = |crl: ambient_tls::Crl| List {
        issuer: crl.issuer().into(),
        der: crl.der().to_vec(),
        next_update: crl.next_update(),
    };
    Ok(lists.into_iter().map(list).collect())
}

/// See [`crate::fuzz`].
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(data: &[u8]) {
    let read = |text: &[u8]| lists_of(text, LISTS.into());
    let Ok(lists) = read(data) else { return };
    for list in &lists {
        let _ = list.names_all(&["01"]);
    }
    let first = joined(lists.into_iter(), &[], &[], UNIX_EPOCH);
    let again = read(text(&first).as_bytes()).expect("what is written of it is read");
    assert_eq!(joined(again.into_iter(), &[], &[], UNIX_EPOCH), first);
}

fn sign(issuer: &Issuer<'_>, of: &[&RevokedCertificate], number: u64, now: SystemTime) -> Result<Vec<u8>, OpenError> {
    let revoked = |one: &&RevokedCertificate| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial::octets(&one.serial)),
        revocation_time: (UNIX_EPOCH + Duration::from_secs(one.since)).into(),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: whole_seconds(now - SKEW).into(),
        next_update: end_of(NEXT_LIST, now).into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: of.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params
        .signed_by(issuer.issuer)
        .map_err(|e| OpenError::Crypto { why: e.to_string() })?;
    let der: &CertificateRevocationListDer<'_> = list.der();
    Ok(der.to_vec())
}

pub(super) const REVOKED: &str = "revoked.json";
pub(super) const ABOVE: &str = "revoked-above.json";
pub(super) const LISTS: &str = "crl.pem";
/// What is revoked is kept for so long after its end, in seconds.
const LEAST_KEPT: u64 = 24 * 60 * 60;
/// A list is signed anew at least twice a day wherever the root's key is in use.
const NEXT_LIST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
