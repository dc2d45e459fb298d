//! Revocations out of a file, beside the roots of whichever issuer: ztunnel's `CRL_PATH`.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ambient_core::{Credential, Identity, PodUid, TrustBundles, TrustDomain};

use crate::{BoxFuture, IssueError, Issuer, LastHeard, Told, plain};

/// An issuer, and the CRLs of a file (PEM, one or many, or one in DER) that count for a trust domain, or for all that the issuer has
/// roots of.
///
/// The file is looked at with each [`Issuer::trust`], and read again when it is another: a mounted ConfigMap will do, or a file
/// that is renamed into its place. What cannot be read, or anybody but its owner may write, changes nothing: the lists of before
/// stay, also where the file goes or is emptied. Who was revoked is no more by a list that does not say so. As long as the file has never been there nobody is
/// revoked by it, for a mesh may have none to tell of yet. Each of these is logged, and is one of the [`Issuer::faults`] until it
/// is mended.
pub struct WithCrls {
    issuer: Arc<dyn Issuer>,
    path: PathBuf,
    /// All that the issuer has roots of, where none is named.
    domain: Option<TrustDomain>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The file that was read last, or could not be.
    stamp: Option<Stamp>,
    /// What is wrong with it now.
    wrong: Option<String>,
    /// Whether that is so of what the file says, which it says until it is another.
    wrong_as_read: bool,
    crls: Vec<Vec<u8>>,
    /// What the issuer said, and that with the lists.
    of: Arc<TrustBundles>,
    whole: Arc<TrustBundles>,
}

/// Inode, length, and when it was changed last.
type Stamp = (u64, u64, i64, i64);

/// Why a file's CRLs cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}: whom it revokes would be let in; put the right one there, or name none", path.display())]
pub struct CrlFileError {
    path: PathBuf,
    why: String,
    /// Whether that is so of what it says, until it is another.
    as_read: bool,
}

impl WithCrls {
    /// Reads the file, which may come later: [`Issuer::faults`] says so. Without a trust domain its lists count for all.
    ///
    /// # Errors
    /// When it cannot be read, but for not being there, or others than its owner may write to it.
    pub fn open(issuer: Arc<dyn Issuer>, path: impl Into<PathBuf>, domain: impl Into<Option<TrustDomain>>) -> Result<Self, CrlFileError> {
        let (path, domain) = (path.into(), domain.into());
        let mut held = Held::default();
        match stamp(&path)? {
            Some(stamp) => {
                held.crls = read(&path)?;
                held.stamp = Some(stamp);
            }
            None => held.is_wrong(never_there(&path)),
        }
        held.join(issuer.trust(), domain.as_ref());
        Ok(Self {
            issuer,
            path,
            domain,
            held: Mutex::new(held),
        })
    }
}

impl Held {
    /// Looks at the file, and reads it where it is another; says whether it has said anything new.
    fn look(&mut self, path: &Path) -> bool {
        let present = match stamp(path) {
            Ok(Some(present)) => present,
            Ok(None) if self.stamp.is_none() => {
                self.is_wrong(never_there(path));
                return false;
            }
            Ok(None) => {
                self.stays(&wrong(path, "it is gone"));
                return false;
            }
            Err(error) => {
                self.stays(&error);
                return false;
            }
        };
        // What was wrong with where it is, and not with what it says, is mended by its being there.
        if self.stamp == Some(present) && self.wrong_as_read == self.wrong.is_some() {
            return false;
        }
        self.stamp = Some(present);
        match read(path) {
            // Who empties a file on the way to writing it anew revokes nobody less.
            Ok(crls) if crls.is_empty() && !self.crls.is_empty() => {
                self.stays(&wrong(path, "it has become empty"));
                self.wrong_as_read = true;
                false
            }
            Ok(crls) => {
                let has_changed = self.crls != crls;
                match self.wrong.take() {
                    _ if has_changed => tracing::info!(path = %path.display(), lists = crls.len(), "revocations have changed"),
                    Some(_) => tracing::info!(path = %path.display(), lists = crls.len(), "revocations are read again, and are the same"),
                    None => (),
                }
                (self.crls, self.wrong_as_read) = (crls, false);
                has_changed
            }
            Err(error) => {
                self.stays(&error);
                self.wrong_as_read = error.as_read;
                false
            }
        }
    }

    fn stays(&mut self, error: &CrlFileError) {
        self.is_wrong(format!("{error}; the revocations of before stay in force"));
    }

    fn is_wrong(&mut self, why: String) {
        self.wrong_as_read = false;
        if self.wrong.as_ref() != Some(&why) {
            tracing::error!("{why}");
            self.wrong = Some(why);
        }
    }

    fn join(&mut self, of: Arc<TrustBundles>, domain: Option<&TrustDomain>) {
        let mut whole = TrustBundles::clone(&of);
        let domains: Vec<_> = domain.map_or_else(|| of.domains().collect(), |one| vec![one]);
        for domain in domains {
            for crl in &self.crls {
                whole.add_crl(domain.clone(), crl.clone());
            }
        }
        self.whole = match self.crls.is_empty() {
            true => of.clone(),
            false => whole.into(),
        };
        self.of = of;
    }
}

impl Issuer for WithCrls {
    fn issue<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
        self.issuer.issue(identity)
    }

    fn trust(&self) -> Arc<TrustBundles> {
        let of = self.issuer.trust();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.look(&self.path) || !Arc::ptr_eq(&held.of, &of) {
            held.join(of, self.domain.as_ref());
        }
        held.whole.clone()
    }

    fn last_heard(&self) -> Option<LastHeard> {
        self.issuer.last_heard()
    }

    fn arrives(&self, identity: &Identity, pod: &PodUid) {
        self.issuer.arrives(identity, pod);
    }

    fn leaves(&self, identity: &Identity, pod: &PodUid) {
        self.issuer.leaves(identity, pod);
    }

    fn faults(&self) -> Vec<String> {
        let wrong = self.held.lock().unwrap_or_else(PoisonError::into_inner).wrong.clone();
        self.issuer.faults().into_iter().chain(wrong).collect()
    }

    fn takes_back(&self) -> bool {
        self.issuer.takes_back()
    }

    fn told(&self) -> BoxFuture<'_, Told> {
        self.issuer.told()
    }
}

impl std::fmt::Debug for WithCrls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WithCrls").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What a file looks like; `None` where there is none.
fn stamp(path: &Path) -> Result<Option<Stamp>, CrlFileError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(path, error)),
    }
}

fn never_there(path: &Path) -> String {
    let path = path.display();
    format!("{path}: there is no file of revocations yet, and nobody is revoked by it: put one there, an empty one will do, or name none")
}

fn wrong(path: &Path, why: impl ToString) -> CrlFileError {
    CrlFileError {
        path: path.into(),
        why: why.to_string(),
        as_read: false,
    }
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>, CrlFileError> {
    let (bytes, meta) = plain::read(path, MOST).map_err(|error| wrong(path, error))?;
    plain::is_its_owners(path, &meta).map_err(|error| wrong(path, error))?;
    // A mounted file may be there before there is anything to say.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let crls = ambient_tls::read_crls(&bytes).map_err(|error| CrlFileError {
        as_read: true,
        ..wrong(path, error)
    })?;
    Ok(crls.iter().map(|crl| crl.der().to_vec()).collect())
}

/// Longer than any list of a mesh.
const MOST: u64 = 16 << 20;

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;
    use crate::ca::{Authority, DirectoryCa, Target};

    /// The lists of another authority of that name, so that they come by the file alone.
    fn lists(scratch: &Path) -> PathBuf {
        #[expect(clippy::disallowed_methods, reason = "certificates bear the time of day")]
        let now = std::time::SystemTime::now();
        let authority = Authority::init(scratch.join("other"), TrustDomain::default(), now).unwrap();
        let cart = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        authority
            .issue_to_workload(&cart, Duration::from_secs(60), &scratch.join("out"), now)
            .unwrap();
        authority.revoke(&Target::Identity(cart), now).unwrap().lists
    }

    /// An authority whose own lists are read by nobody, and the file of another's.
    #[test]
    fn a_file_is_taken_whenever_it_is_another_and_can_be_read() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, file) = (scratch.path().join("ca"), scratch.path().join("crl.pem"));
        let domain = TrustDomain::default();
        let ca: Arc<dyn Issuer> = Arc::new(DirectoryCa::open(&dir, domain.clone(), Duration::from_secs(3600)).unwrap());
        fs::write(&file, "no list").unwrap();
        let error = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap_err().to_string();
        assert!(error.contains("crl.pem") && error.contains("would be let in"), "{error}");
        fs::remove_file(&file).unwrap();
        let with = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap();
        told(&with, &["no file of revocations yet", "nobody is revoked by it"]);
        assert!(Arc::ptr_eq(&with.trust(), &ca.trust()), "without lists it is the issuer's own");

        let lists = lists(scratch.path());
        fs::copy(&lists, scratch.path().join("new")).unwrap();
        fs::rename(scratch.path().join("new"), &file).unwrap();
        let trust = with.trust();
        assert_eq!((trust.roots(&domain).len(), trust.crls(&domain).len()), (1, 1));
        told(&with, &[]);
        // Of nobody knows which trust domain: of each that there are roots of.
        let of_all = WithCrls::open(ca.clone(), &file, None).unwrap().trust();
        assert_eq!((of_all.domains().count(), of_all.crls(&domain).len()), (1, 1));
        assert!(Arc::ptr_eq(&trust, &with.trust()), "the same value while nothing changes");
        for (broken, why) in [
            ("torn", "would be let in"),
            ("", "it has become empty"),
            (" \n", "it has become empty"),
        ] {
            fs::write(&file, broken).unwrap();
            for look in 0..3 {
                assert_eq!(with.trust().crls(&domain).len(), 1, "{broken:?} {look}");
                told(&with, &[why, "of before stay"]);
            }
        }
        fs::copy(&lists, &file).unwrap();
        let trust = with.trust();
        assert_eq!(trust.crls(&domain).len(), 1);
        told(&with, &[]);
        // The same by another file is no change.
        fs::remove_file(&file).unwrap();
        fs::copy(&lists, &file).unwrap();
        assert!(Arc::ptr_eq(&trust, &with.trust()));
        // Whoever may write to it could revoke, and lift.
        let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        fs::write(&file, "").unwrap();
        mode(0o666);
        assert_eq!(with.trust().crls(&domain).len(), 1);
        told(&with, &["mode 0666", "of before stay"]);
        let error = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap_err().to_string();
        assert!(error.contains("crl.pem") && error.contains("mode 0666"), "{error}");
        mode(0o644);
        fs::copy(&lists, &file).unwrap();
        with.trust();
        told(&with, &[]);
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(with.trust().crls(&domain).len(), 1, "a pipe is not waited for, and lifts nothing");
        let error = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap_err().to_string();
        assert!(error.contains("crl.pem") && error.contains("a pipe"), "{error}");
        fs::remove_file(&file).unwrap();
        assert_eq!(with.trust().crls(&domain).len(), 1, "a file that goes lifts nothing");
        told(&with, &["it is gone", "of before stay"]);
        // The very file that was there, as a mount that comes back has it.
        let kept = scratch.path().join("kept");
        fs::copy(&lists, &file).unwrap();
        with.trust();
        told(&with, &[]);
        fs::rename(&file, &kept).unwrap();
        with.trust();
        told(&with, &["it is gone"]);
        fs::rename(&kept, &file).unwrap();
        with.trust();
        told(&with, &[]);
        // A file among others is no directory.
        let beneath = file.join("crl.pem");
        let error = WithCrls::open(ca.clone(), &beneath, domain.clone()).unwrap_err().to_string();
        assert!(error.contains("Not a directory"), "{error}");
    }

    /// As a kubelet exchanges what it mounts: a link to a directory is renamed over another.
    #[test]
    fn a_mount_that_is_exchanged_is_read_anew() {
        let scratch = tempfile::tempdir().unwrap();
        let domain = TrustDomain::default();
        let ca = DirectoryCa::open(scratch.path().join("ca"), domain.clone(), Duration::from_secs(3600)).unwrap();
        let lists = lists(scratch.path());
        let mount = scratch.path().join("mount");
        for version in ["1", "2", "3"] {
            fs::create_dir_all(mount.join(version)).unwrap();
        }
        fs::write(mount.join("1/crl.pem"), "").unwrap();
        fs::copy(&lists, mount.join("2/crl.pem")).unwrap();
        let exchange = |version: &str| {
            std::os::unix::fs::symlink(version, mount.join("..tmp")).unwrap();
            fs::rename(mount.join("..tmp"), mount.join("..data")).unwrap();
        };
        exchange("1");
        std::os::unix::fs::symlink("..data/crl.pem", mount.join("crl.pem")).unwrap();
        let bare = Arc::new(Bare(ca.trust().roots(&domain).to_vec()));
        let with = WithCrls::open(bare, mount.join("crl.pem"), domain.clone()).unwrap();
        assert_eq!(with.trust().crls(&domain).len(), 0);
        told(&with, &[]);
        exchange("2");
        let there = with.trust().crls(&domain).len();
        assert!(there > 0);
        told(&with, &[]);
        // Without the file in it, and without where it leads.
        exchange("3");
        assert_eq!(with.trust().crls(&domain).len(), there);
        told(&with, &["it is gone"]);
        exchange("4");
        assert_eq!(with.trust().crls(&domain).len(), there);
        told(&with, &["it is gone"]);
        exchange("2");
        assert_eq!(with.trust().crls(&domain).len(), there);
        told(&with, &[]);
    }

    /// Roots, and nobody who is revoked.
    struct Bare(Vec<Vec<u8>>);

    impl Issuer for Bare {
        fn issue<'a>(&'a self, _: &'a Identity) -> BoxFuture<'a, Result<Arc<Credential>, IssueError>> {
            Box::pin(std::future::pending())
        }

        fn trust(&self) -> Arc<TrustBundles> {
            let mut bundles = TrustBundles::default();
            self.0.iter().for_each(|root| bundles.add(TrustDomain::default(), root.clone()));
            bundles.into()
        }
    }

    /// What is wrong says all of these; nothing is, where there are none.
    fn told(with: &WithCrls, parts: &[&str]) {
        let faults = with.faults();
        assert_eq!(faults.len(), usize::from(!parts.is_empty()), "{faults:?}");
        for part in parts {
            assert!(faults[0].contains("crl.pem") && faults[0].contains(part), "{faults:?}");
        }
    }
}
