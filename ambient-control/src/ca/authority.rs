//! Seeing to an authority: making one, giving to nodes elsewhere, changing the root, revoking.

use std::{
    collections::HashSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ambient_core::{Identity, TrustDomain};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    DirectoryCa, OpenError, RequestError, check_not_own,
    directory::{self, LOCK},
    intermediates::{self, INTERMEDIATES, Intermediate},
    is_own,
    issued::{self, ISSUED, Issued, Unreadable},
    revoked::{self, ABOVE, Issuer, LISTS, List, REVOKED, Revoked, RevokedCertificate},
    roots::{CERTIFICATE, Key, Roots, SigningRoot, pem},
    seconds, serial,
};

/// The directory of an authority, seen to by its administrator. Every call reads it anew and holds its lock.
#[derive(Debug)]
pub struct Authority {
    pub(super) directory: PathBuf,
    trust_domain: TrustDomain,
}

/// What was given out, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Given {
    /// The serial number of the certificate.
    pub serial: String,
    /// Its last moment, in seconds since 1970.
    pub expires: u64,
    /// The files written.
    pub files: Vec<PathBuf>,
}

/// How far a change of roots has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Rotation {
    /// A new root was made. All trust it, and the present one still signs.
    Trusted {
        /// The new root's serial number.
        root: String,
        /// From when on it may sign, in seconds since 1970.
        next: u64,
    },
    /// The new root signs, and the old one is still trusted.
    Used {
        /// The new root's serial number.
        root: String,
        /// From when on the old one may be withdrawn, in seconds since 1970.
        next: u64,
    },
    /// Only the new root is trusted.
    Withdrawn {
        /// The serial numbers of those that are no longer.
        roots: Vec<String>,
    },
    /// Nothing was done: nodes still need time, or certificates of before are still valid.
    Waits {
        /// Until when, in seconds since 1970.
        until: u64,
    },
}

/// What is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every certificate of an identity. It gets no new ones until it is [lifted](Authority::lift).
    Identity(Identity),
    /// The certificate with a serial number, of a workload, a server or an intermediate. Where the issuer's is given too
    /// it need not be known here.
    Serial {
        /// In hexadecimal digits, with colons or without.
        serial: String,
        /// The serial number of its issuer's certificate.
        issuer: Option<String>,
    },
    /// Every intermediate of a node, and with them all that they have signed, and what others have signed for the node.
    Node(String),
}

/// What was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revocation {
    /// The certificates that were not revoked before.
    pub certificates: Vec<RevokedCertificate>,
    /// The identity that gets no certificate any more.
    pub barred: Option<String>,
    /// If an identity was revoked where the root's key is: the nodes with intermediates that have not ended. Those that have
    /// a directory of their own sign for it until they are given the next.
    pub nodes: Vec<String>,
    /// The file with the lists, for nodes that do not read this directory.
    pub lists: PathBuf,
    /// What cannot be read of what was issued here: certificates that are meant may be among it, and were not revoked.
    pub unreadable: Vec<Unreadable>,
}

impl Authority {
    /// How long two stages of a change of roots lie apart, unless said otherwise: as long as the longest certificate lives,
    /// 24 hours.
    pub const GRACE: Duration = intermediates::LIFE;

    /// Makes an authority in a directory that is empty or not there.
    ///
    /// # Errors
    /// When there is one already, something else is there, others can write there, or the file system refuses.
    pub fn init(directory: impl AsRef<Path>, trust_domain: TrustDomain, now: SystemTime) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        directory::make(directory)?;
        let _lock = directory::lock(directory)?;
        if let Some(roots) = Roots::read(directory)? {
            return Err(OpenError::Exists {
                path: directory.into(),
                of: roots.trust_domain,
            });
        }
        begin(directory, &trust_domain, now)?;
        Ok(Self {
            directory: directory.into(),
            trust_domain,
        })
    }

    /// The authority that is in a directory.
    ///
    /// # Errors
    /// When there is none, others can write there, or what is there cannot be used.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, OpenError> {
        let directory = directory.as_ref();
        let missing = || OpenError::Missing { path: directory.into() };
        let none = || lost(directory).unwrap_or_else(missing);
        let looked = fs::symlink_metadata(directory);
        if looked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Err(missing());
        }
        // What cannot be looked at may be one.
        looked.map_err(directory::io_error("look at", directory))?;
        directory::check(directory)?;
        let roots = Roots::read(directory)?.ok_or_else(none)?;
        Ok(Self {
            directory: directory.into(),
            trust_domain: roots.trust_domain,
        })
    }

    /// The trust domain that it is of.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Gives a node an intermediate, in a directory that [`DirectoryCa::open_for`] opens: the roots, the lists, who gets no
    /// certificate any more, and the intermediate with its key; what is there of this authority is replaced, and what was
    /// revoked there stays so. `life` is at most 24 hours: whoever carries it there must do so again before that.
    ///
    /// # Errors
    /// When the root's key is not here, the name is no node's, or the directory is another authority's or cannot be written.
    pub fn issue_to_node(&self, node: &str, life: Duration, to: &Path, now: SystemTime) -> Result<Given, OpenError> {
        check_not_own(node)?;
        intermediates::check_node(node)?;
        let _lock = directory::lock(&self.directory)?;
        let roots = self.roots()?;
        let root = self.signing(&roots, now, "intermediate")?;
        let record = (Revoked::read(&self.directory)?, revoked::read_lists(&self.directory)?);
        // What is refused leaves nothing behind.
        self.check_apart(to)?;
        if directory::stamp(to).is_some() {
            directory::check(to)?;
            // What is another's would be mixed with ours.
            if let Some(present) = Roots::read(to)?
                && !present
                    .trusted
                    .iter()
                    .any(|one| roots.trusted.iter().any(|other| one.der == other.der))
            {
                return Err(OpenError::Exists {
                    path: to.into(),
                    of: present.trust_domain,
                });
            }
            if Key::Signs.path(to).exists() {
                return Err(OpenError::Unsafe {
                    path: Key::Signs.path(to),
                    why: "a root's key is here: a node is given a directory without one".into(),
                });
            }
        }
        directory::make(to)?;
        let _there = directory::lock(to)?;
        // What was revoked comes before what may sign.
        let mut files = vec![to.join(CERTIFICATE)];
        directory::write(&files[0], 0o644, roots.pem().as_bytes())?;
        files.extend(self.carry_revoked(record, node, to, now)?);
        let made = intermediates::make(&self.directory, &root, &self.trust_domain, node, life, now)?;
        let place = intermediates::place(to, node);
        directory::make(&to.join(INTERMEDIATES))?;
        directory::make(&place)?;
        let key = intermediates::given(&directory::read_secret(&made.path)?);
        files.push(place.join(format!("{}.pem", made.serial)));
        directory::write(&files[files.len() - 1], 0o600, &key)?;
        Ok(Given {
            serial: made.serial,
            expires: seconds(made.not_after),
            files,
        })
    }

    /// Writes to the directory of a node what it is to know of what was revoked here, in a file of its own; the lock of that
    /// directory is held by the caller. Lists that are signed there are made anew out of both, never left out.
    fn carry_revoked(
        &self,
        (all, carried): (Revoked, Vec<List>),
        node: &str,
        to: &Path,
        now: SystemTime,
    ) -> Result<Vec<PathBuf>, OpenError> {
        let mut above = all.clone();
        // All intermediates of the node, and not those that are there: this may be carried on to where the others are.
        let of_node = intermediates::of(&self.directory, node, now)?;
        let serials: HashSet<_> = of_node.iter().map(|one| &*one.serial).collect();
        above
            .certificates
            .retain(|one| serials.contains(&*one.issuer) || serials.contains(&*one.serial));
        let mut files = vec![to.join(ABOVE)];
        above.write_to(&files[0])?;
        let there = Self {
            directory: to.into(),
            trust_domain: self.trust_domain.clone(),
        };
        let (roots, mut own) = (there.roots()?, Revoked::read(to)?);
        if !own.certificates.is_empty() {
            let (intermediates, _) = there.usable_intermediates(now)?;
            let issuers = Issuers::of(&roots, &intermediates)?;
            there.write_lists(&mut own, (&all, carried), &roots, &issuers, now)?;
            files.extend([to.join(REVOKED), to.join(LISTS)]);
        } else if !carried.is_empty() {
            let lists = revoked::joined(revoked::read_lists(to)?.into_iter().chain(carried), &roots.names(), &[&all], now);
            directory::write(&to.join(LISTS), 0o644, revoked::text(&lists).as_bytes())?;
            files.push(to.join(LISTS));
        }
        Ok(files)
    }

    /// That what is given out lies outside of this directory: within it, it would be kept and carried with the root's key, and what
    /// has the name of one of its files would take its place.
    fn check_apart(&self, to: &Path) -> Result<(), OpenError> {
        match directory::is_within(to, &self.directory) {
            true => Err(OpenError::Unsafe {
                path: to.into(),
                why: "it is in the authority's own directory: name one outside of that".into(),
            }),
            false => Ok(()),
        }
    }

    /// Gives a workload a certificate, in files by the names that Istio mounts them with: `cert-chain.pem`, `key.pem` and
    /// `root-cert.pem`. What is there of the same identity is replaced.
    ///
    /// # Errors
    /// When the identity is of another trust domain or was revoked, the directory holds a key of another identity, or of nobody knows
    /// whom, or is this authority's own, or files cannot be read or written.
    pub fn issue_to_workload(&self, identity: &Identity, life: Duration, to: &Path, now: SystemTime) -> Result<Given, OpenError> {
        self.check_apart(to)?;
        let files = ["key.pem", "cert-chain.pem", "root-cert.pem"].map(|name| to.join(name));
        if directory::stamp(to).is_some() {
            directory::check(to)?;
        }
        check_whose(identity, &files)?;
        let refused = |error: &dyn fmt::Display| OpenError::Unusable {
            path: self.directory.clone(),
            why: error.to_string(),
        };
        if *identity.trust_domain() != self.trust_domain {
            return Err(refused(&RequestError::Foreign {
                of: self.trust_domain.clone(),
            }));
        }
        let ca = DirectoryCa::open_at(&self.directory, self.trust_domain.clone(), life, super::LOCAL, now)?;
        let issued = ca.sign(identity, now).map_err(|e| refused(&e))?;
        directory::make(to)?;
        let chain: String = issued.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let key = zeroize::Zeroizing::new(pem("PRIVATE KEY", issued.key.der()));
        // The certificate first: it says whose the key is.
        directory::write(&files[1], 0o644, chain.as_bytes())?;
        directory::write(&files[0], 0o600, key.as_bytes())?;
        directory::write(&files[2], 0o644, self.roots()?.pem().as_bytes())?;
        let of_leaf = x509_parser::parse_x509_certificate(&issued.chain[0]);
        let (_, leaf) = of_leaf.map_err(|e| OpenError::Crypto { why: e.to_string() })?;
        Ok(Given {
            serial: serial::hex(leaf.raw_serial()),
            expires: seconds(issued.not_after),
            files: files.into(),
        })
    }

    /// Goes on by one stage with a change of roots, if at least `grace` has gone by since the last: begins by making a root
    /// that all are to trust; then has it sign; then withdraws the old one. A shorter grace than [`Authority::GRACE`] is for
    /// those who know that every node has heard, and that nothing of before is in use.
    ///
    /// What was cut short, at whatever moment, is taken up by the next call.
    ///
    /// # Errors
    /// When the root's key is not here, or files cannot be read or written.
    pub fn rotate(&self, grace: Duration, now: SystemTime) -> Result<Rotation, OpenError> {
        let _lock = directory::lock(&self.directory)?;
        let roots = self.roots()?;
        let present = self.signing(&roots, now, "change of roots")?;
        let written = |key: Key| directory::written(&key.path(&self.directory));
        // A grace may be without end.
        let after = |time: SystemTime| seconds(time).saturating_add(grace.as_secs());
        let waits = |since: SystemTime| since.checked_add(grace).is_none_or(|due| now < due);
        if let Some(next) = roots.root(Key::Next)?
            && next.root.serial != present.root.serial
        {
            let since = written(Key::Next)?;
            if waits(since) {
                return Ok(Rotation::Waits { until: after(since) });
            }
            roots.use_next(now)?;
            return Ok(Rotation::Used {
                root: next.root.serial,
                next: after(now),
            });
        }
        if let Some(old) = roots.root(Key::Old)?
            && old.root.serial != present.root.serial
        {
            let since = written(Key::Old)?;
            if waits(since) {
                return Ok(Rotation::Waits { until: after(since) });
            }
            let withdrawn = roots.withdraw_old()?;
            return Ok(Rotation::Withdrawn {
                roots: withdrawn.into_iter().map(|root| root.serial).collect(),
            });
        }
        let new = roots.add(now)?;
        Ok(Rotation::Trusted {
            root: new.serial,
            next: after(now),
        })
    }

    /// Revokes, and writes the lists anew. That an identity gets no certificate any more is in force before anything else, and
    /// what can be revoked is, also where this fails for the rest.
    ///
    /// # Errors
    /// When nothing that is meant is known, the key of an issuer is not here, or files cannot be read or written; with
    /// [`OpenError::Barred`] and [`OpenError::Left`] a part was done: where an intermediate of a node that is meant cannot be read,
    /// all else of it is revoked.
    pub fn revoke(&self, target: &Target, now: SystemTime) -> Result<Revocation, OpenError> {
        let _lock = directory::lock(&self.directory)?;
        let Target::Identity(identity) = target else {
            return self.revoke_issued(target, None, Revoked::read(&self.directory)?, now);
        };
        let name = identity.as_str();
        if *identity.trust_domain() != self.trust_domain {
            return Err(OpenError::Unknown {
                what: name.into(),
                hint: "it is of another trust domain than this authority, which gives it nothing",
            });
        }
        let mut revoked = Revoked::read(&self.directory)?;
        if revoked.barred.insert(name.into()) {
            revoked.write(&self.directory)?;
        }
        self.revoke_issued(target, Some(name.into()), revoked, now)
            .map_err(|source| OpenError::Barred {
                name: name.into(),
                source: Box::new(source),
            })
    }

    fn revoke_issued(
        &self,
        target: &Target,
        barred: Option<String>,
        mut revoked: Revoked,
        now: SystemTime,
    ) -> Result<Revocation, OpenError> {
        let roots = self.roots()?;
        let (intermediates, broken) = self.usable_intermediates(now)?;
        let of_node = |(of, _): &(String, OpenError)| matches!(target, Target::Node(node) if of == node);
        let (of_node, others): (Broken, Broken) = broken.into_iter().partition(of_node);
        let unreadable = issued::unreadable(&self.directory)?;
        let meant = match self.meant(target, &roots, &intermediates, now) {
            // What cannot be read may be all that is meant.
            Err(_) if !of_node.is_empty() => Vec::new(),
            Err(OpenError::Unknown { what, .. }) if !unreadable.is_empty() => return Err(not_known(&what, &unreadable[0])),
            meant => meant?,
        };
        let issuers = Issuers::of(&roots, &intermediates)?;
        let (meant, far): (Vec<_>, Vec<_>) = meant.into_iter().partition(|one| issuers.has(&one.issuer));
        let mut nodes: Vec<String> = Vec::new();
        if barred.is_some() && !issuers.roots.is_empty() {
            let accepted = |one: &&Intermediate| roots.trusted.iter().any(|root| root.name == one.root) && !revoked.has_serial(&one.serial);
            let good = intermediates.iter().filter(accepted);
            nodes.extend(good.map(|one| one.node.clone()).filter(|node| !is_own(node)));
            nodes.dedup();
        }
        let added = revoked.add(meant);
        self.write_lists(&mut revoked, (&Revoked::default(), Vec::new()), &roots, &issuers, now)?;
        // What others signed with may be what has signed the rest.
        let others = others.into_iter().filter(|_| !far.is_empty());
        let unusable = of_node.into_iter().chain(others).next();
        if !far.is_empty() || unusable.is_some() {
            return Err(OpenError::Left {
                done: added.len(),
                left: far.into_iter().map(|one| (one.serial, one.issuer)).collect(),
                source: unusable.map(|(_, error)| Box::new(error)),
            });
        }
        Ok(Revocation {
            certificates: added,
            barred,
            nodes,
            lists: self.directory.join(LISTS),
            unreadable,
        })
    }

    /// Lets an identity have certificates again; those that were revoked stay so.
    ///
    /// # Errors
    /// When it is not barred, or files cannot be read or written.
    pub fn lift(&self, identity: &Identity) -> Result<(), OpenError> {
        let _lock = directory::lock(&self.directory)?;
        let mut revoked = Revoked::read(&self.directory)?;
        if !revoked.barred.remove(identity.as_str()) {
            let above = Revoked::above(&self.directory)?.barred.contains(identity.as_str());
            return Err(OpenError::Unknown {
                what: identity.as_str().into(),
                hint: match above {
                    true => "it was revoked where the root's key is: lift it there, and issue to this node again",
                    false => "it is not barred: `ambient ca show` lists those that are",
                },
            });
        }
        revoked.write(&self.directory)
    }

    fn meant(
        &self,
        target: &Target,
        roots: &Roots,
        intermediates: &[Intermediate],
        now: SystemTime,
    ) -> Result<Vec<RevokedCertificate>, OpenError> {
        // One whose root was withdrawn is trusted by nobody, and there is nobody who could list it.
        let intermediate = |one: &Intermediate| {
            let root = roots.trusted.iter().find(|root| root.name == one.root)?;
            Some(RevokedCertificate {
                serial: one.serial.clone(),
                issuer: root.serial.clone(),
                name: format!("intermediate of {}", one.node),
                since: seconds(now),
                expires: seconds(one.not_after),
                ended: None,
            })
        };
        let unknown = |what: &str, hint| OpenError::Unknown { what: what.into(), hint };
        match target {
            // Even if it has none it gets none.
            Target::Identity(identity) => self.leaves(now, |one| one.name == identity.as_str()),
            Target::Node(node) => {
                let of_it = intermediates.iter().filter(|one| one.node == *node);
                let mut meant: Vec<_> = of_it.filter_map(intermediate).collect();
                meant.extend(self.leaves(now, |one| one.node.as_ref() == Some(node))?);
                match meant.is_empty() {
                    true => Err(unknown(
                        node,
                        "no intermediate of it is known here, and nothing that was signed for it, that has not ended or gone with \
                         its root: `ambient ca show` lists what there is",
                    )),
                    false => Ok(meant),
                }
            }
            Target::Serial { serial: text, issuer } => {
                let hint = "nothing that was issued here and has not ended has this serial number: `ambient ca show` lists them; of what \
                            is not listed name the issuer's too";
                let no_number = "it is no serial number: hexadecimal digits make one";
                let read = |text: &String| serial::read(text).ok_or_else(|| unknown(&format!("{text:?}"), no_number));
                let (number, issuer) = (read(text)?, issuer.as_ref().map(read).transpose()?);
                if roots.trusted.iter().any(|root| root.serial == number) {
                    return Err(unknown(text, "it is a root: `ambient ca rotate` puts another in its place"));
                }
                let mut of_it = intermediates.iter().filter(|one| one.serial == number).peekable();
                if of_it.peek().is_some_and(|one| intermediate(one).is_none()) {
                    return Err(unknown(text, "its root was withdrawn, and with that nobody accepts it"));
                }
                let known = self.leaves(now, |one| one.serial == number)?.into_iter();
                let fits = |one: &RevokedCertificate| issuer.as_ref().is_none_or(|issuer| *issuer == one.issuer);
                let mut meant: Vec<_> = known.chain(of_it.filter_map(intermediate)).filter(fits).collect();
                if meant.is_empty() {
                    let issuer = issuer.ok_or_else(|| unknown(text, hint))?;
                    meant.push(RevokedCertificate {
                        serial: number,
                        expires: self.end_of(&issuer, roots, intermediates, text)?,
                        issuer,
                        name: "unknown".into(),
                        since: seconds(now),
                        ended: None,
                    });
                }
                Ok(meant)
            }
        }
    }

    /// Those that were issued and have not ended, as far as they fit.
    fn leaves(&self, now: SystemTime, fits: impl Fn(&Issued) -> bool) -> Result<Vec<RevokedCertificate>, OpenError> {
        let mut leaves = Vec::new();
        for issuer in issued::issuers(&self.directory)? {
            let of = issued::of(&self.directory, &issuer, now)?;
            leaves.extend(of.into_iter().filter(&fits).map(|one| RevokedCertificate {
                serial: one.serial,
                issuer: issuer.clone(),
                name: one.name,
                since: seconds(now),
                expires: one.expires,
                ended: None,
            }));
        }
        Ok(leaves)
    }

    /// When an issuer ends, and with it whatever it has signed.
    fn end_of(&self, issuer: &str, roots: &Roots, intermediates: &[Intermediate], what: &str) -> Result<u64, OpenError> {
        let root = roots.trusted.iter().find(|root| root.serial == issuer).map(|root| root.not_after);
        let intermediate = intermediates.iter().find(|one| one.serial == issuer).map(|one| one.not_after);
        root.or(intermediate).map(seconds).ok_or_else(|| OpenError::Unknown {
            what: what.into(),
            hint: "the issuer named is not known here: `ambient ca show` lists roots and intermediates",
        })
    }

    /// Signs the lists anew, if there are any. The lock is held by the caller.
    pub(super) fn renew_lists(directory: &Path, roots: &Roots, now: SystemTime) -> Result<(), OpenError> {
        let authority = Self {
            directory: directory.into(),
            trust_domain: roots.trust_domain.clone(),
        };
        let mut revoked = Revoked::read(directory)?;
        if revoked.certificates.is_empty() && directory::stamp(&directory.join(LISTS)).is_none() {
            return Ok(());
        }
        let (intermediates, _) = authority.usable_intermediates(now)?;
        authority.write_lists(
            &mut revoked,
            (&Revoked::default(), Vec::new()),
            roots,
            &Issuers::of(roots, &intermediates)?,
            now,
        )
    }

    /// Signs the lists anew if one lacks what was revoked and its issuer's key is here: others were carried into their place, or
    /// a revocation was cut short. The lock is held by the caller.
    pub(super) fn complete_lists(directory: &Path, roots: &Roots, revoked: &Revoked, now: SystemTime) -> Result<(), OpenError> {
        if revoked.certificates.is_empty() {
            return Ok(());
        }
        let authority = Self {
            directory: directory.into(),
            trust_domain: roots.trust_domain.clone(),
        };
        let present = revoked::read_lists(directory)?;
        let (intermediates, _) = authority.usable_intermediates(now)?;
        let issuers = Issuers::of(roots, &intermediates)?;
        let lacks = |issuer: &Issuer<'_>| {
            let of = revoked.certificates.iter().filter(|one| one.issuer == issuer.serial);
            let serials: Vec<_> = of.filter(|one| one.expires > seconds(now)).map(|one| &*one.serial).collect();
            let mut of_it = present.iter().filter(|list| list.issuer == issuer.name);
            !serials.is_empty() && !of_it.any(|list| list.names_all(&serials))
        };
        match issuers.all().iter().any(lacks) {
            true => authority.write_lists(
                &mut Revoked::read(directory)?,
                (&Revoked::default(), Vec::new()),
                roots,
                &issuers,
                now,
            ),
            false => Ok(()),
        }
    }

    /// `carried` are lists that take the place of those that are here, and what is revoked where they come from.
    fn write_lists(
        &self,
        revoked: &mut Revoked,
        (there, carried): (&Revoked, Vec<List>),
        roots: &Roots,
        issuers: &Issuers<'_>,
        now: SystemTime,
    ) -> Result<(), OpenError> {
        revoked.tidy(now);
        let present = revoked::read_lists(&self.directory)?.into_iter().chain(carried);
        let above = Revoked::above(&self.directory)?;
        let present = revoked::joined(present, &roots.names(), &[revoked, &above, there], now);
        let lists = revoked.lists(&above, &issuers.all(), present, now)?;
        // The record first: if this is cut short whoever reads it next completes it.
        revoked.write(&self.directory)?;
        directory::write(&self.directory.join(LISTS), 0o644, lists.as_bytes())
    }

    pub(super) fn roots(&self) -> Result<Roots, OpenError> {
        Roots::read(&self.directory)?.ok_or_else(|| OpenError::Missing {
            path: self.directory.clone(),
        })
    }

    fn signing(&self, roots: &Roots, now: SystemTime, what: &'static str) -> Result<SigningRoot, OpenError> {
        roots.signing(now)?.ok_or_else(|| OpenError::NoRootKey {
            path: Key::Signs.path(&self.directory),
            what,
        })
    }

    pub(super) fn intermediates(&self, now: SystemTime) -> Result<Vec<Intermediate>, OpenError> {
        let mut found = Vec::new();
        for node in intermediates::nodes(&self.directory)? {
            found.extend(intermediates::of(&self.directory, &node, now)?);
        }
        Ok(found)
    }

    /// Those that can be used, and of each node why others cannot be: a broken file of one keeps nobody from revoking others.
    fn usable_intermediates(&self, now: SystemTime) -> Result<(Vec<Intermediate>, Broken), OpenError> {
        let (mut found, mut broken) = (Vec::new(), Vec::new());
        for node in intermediates::nodes(&self.directory)? {
            for one in intermediates::each(&self.directory, &node, now)? {
                match one {
                    Ok(one) => found.push(one),
                    Err(error) => {
                        tracing::warn!(%error, "an intermediate cannot be used: no list of what it has signed is made anew");
                        broken.push((node.clone(), error));
                    }
                }
            }
        }
        Ok((found, broken))
    }
}

/// That files which a workload is given replace none but its own: its key, as the certificate beside it says.
fn check_whose(identity: &Identity, [key, chain, _]: &[PathBuf; 3]) -> Result<(), OpenError> {
    if directory::stamp(key).is_none() && directory::stamp(chain).is_none() {
        return Ok(());
    }
    let is_of = |der: &[u8]| {
        let (_, leaf) = X509Certificate::from_der(der).ok()?;
        let names = leaf.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
    };
    let present = directory::read_if_there(chain)?;
    let present = present.and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
    match present.and_then(|der| is_of(&der)) {
        Some(of) if of == identity.as_str() => Ok(()),
        of => Err(OpenError::Taken {
            path: key.clone(),
            of: of.unwrap_or_else(|| "somebody whom no certificate beside it tells".into()),
        }),
    }
}

/// That something is not found, where it may be what cannot be read.
fn not_known(what: &str, unreadable: &Unreadable) -> OpenError {
    OpenError::Unusable {
        path: unreadable.path.clone(),
        why: format!(
            "{unreadable}, so that whether {what} was issued is not known: put the right one back, or revoke its issuer with --serial"
        ),
    }
}

/// The nodes of intermediates that cannot be used, and why.
type Broken = Vec<(String, OpenError)>;

/// Whoever can sign a list here.
struct Issuers<'a> {
    roots: Vec<SigningRoot>,
    intermediates: &'a [Intermediate],
}

impl<'a> Issuers<'a> {
    fn of(roots: &Roots, intermediates: &'a [Intermediate]) -> Result<Self, OpenError> {
        let mut found = Vec::new();
        for key in [Key::Signs, Key::Old] {
            found.extend(roots.root(key)?);
        }
        Ok(Self {
            roots: found,
            intermediates,
        })
    }

    fn has(&self, serial: &str) -> bool {
        self.roots.iter().any(|root| root.root.serial == serial) || self.intermediates.iter().any(|one| one.serial == serial)
    }

    fn all(&self) -> Vec<Issuer<'_>> {
        let roots = self.roots.iter().map(|root| Issuer {
            name: root.root.name.clone(),
            serial: &root.root.serial,
            issuer: &root.issuer,
        });
        let intermediates = self.intermediates.iter().map(|one| Issuer {
            name: one.name(),
            serial: &one.serial,
            issuer: &one.issuer,
        });
        roots.chain(intermediates).collect()
    }
}

/// Makes the first root of an authority, where nothing else is: a directory that was named by mistake gets no keys.
pub(super) fn begin(directory: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), OpenError> {
    if let Some(path) = foreign(directory)?.into_iter().next() {
        return Err(OpenError::Foreign { path });
    }
    // Its key may still be the only one that all trust.
    match lost(directory) {
        Some(error) => Err(error),
        None => Roots::begin(directory, trust_domain, now),
    }
}

/// That a directory without roots is what is left of an authority. A key alone is what a start that was cut short leaves.
fn lost(directory: &Path) -> Option<OpenError> {
    let traces = [INTERMEDIATES, ISSUED, REVOKED, LISTS, TOKENS, NODES].map(|name| directory.join(name));
    let keys = [Key::Next, Key::Old].map(|key| key.path(directory));
    let trace = traces.into_iter().chain(keys).find(|path| directory::stamp(path).is_some())?;
    let path = directory.join(CERTIFICATE);
    Some(OpenError::Lost { path, trace })
}

/// What lies in a directory and is none of an authority's; a lock, and what a start that was cut short has left, are.
pub(super) fn foreign(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let ours = [LOCK, CERTIFICATE, REVOKED, ABOVE, LISTS, INTERMEDIATES, ISSUED, TOKENS, NODES];
    let keys = [Key::Signs, Key::Next, Key::Old].map(|key| key.path(directory));
    let entries = fs::read_dir(directory).map_err(directory::io_error("list", directory))?;
    let mut foreign = Vec::new();
    for entry in entries {
        let path = entry.map_err(directory::io_error("list", directory))?.path();
        let known = keys.contains(&path) || path.file_name().is_some_and(|name| ours.iter().any(|one| name == *one));
        let draft = path.extension().is_some_and(|extension| extension == "new");
        if !known && !draft {
            foreign.push(path);
        }
    }
    foreign.sort();
    Ok(foreign)
}

/// Those of `ambient control`, which stand beside the root.
const TOKENS: &str = "tokens.json";
const NODES: &str = "nodes.json";
