//! Revocations out of a file, beside the roots of whichever issuer: ztunnel's `CRL_PATH`.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ambient_core::{Credential, Identity, PodUid, TrustBundles, TrustDomain};

use crate::{BoxFuture, IssueError, Issuer, LastHeard, Told, plain};

/// An issuer, and the CRLs of a file (PEM, one or many, or one in DER) that count for its trust domain.
///
/// The file is looked at with each [`Issuer::trust`], and read again when it is another: a mounted ConfigMap will do, or a file
/// that is renamed into its place. What cannot be read changes nothing; it is logged, and the lists of before stay. So do they
/// where the file goes.
pub struct WithCrls {
    issuer: Arc<dyn Issuer>,
    path: PathBuf,
    domain: TrustDomain,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The file that was read last, or could not be.
    stamp: Option<Stamp>,
    /// Why it could not be, where the revocations are those of before.
    wrong: Option<String>,
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
}

impl WithCrls {
    /// Reads the file, which may come later.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn open(issuer: Arc<dyn Issuer>, path: impl Into<PathBuf>, domain: TrustDomain) -> Result<Self, CrlFileError> {
        let path = path.into();
        let mut held = Held::default();
        match stamp(&path) {
            Some(stamp) => {
                held.crls = read(&path)?;
                held.stamp = Some(stamp);
            }
            None => tracing::warn!(path = %path.display(), "there is no file of revocations yet: nobody is revoked by it"),
        }
        held.join(issuer.trust(), &domain);
        Ok(Self {
            issuer,
            path,
            domain,
            held: Mutex::new(held),
        })
    }
}

impl Held {
    fn join(&mut self, of: Arc<TrustBundles>, domain: &TrustDomain) {
        let mut whole = TrustBundles::clone(&of);
        for crl in &self.crls {
            whole.add_crl(domain.clone(), crl.clone());
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
        let present = stamp(&self.path).filter(|present| held.stamp != Some(*present));
        if let Some(present) = present {
            held.stamp = Some(present);
            match read(&self.path) {
                Ok(crls) => {
                    tracing::info!(path = %self.path.display(), lists = crls.len(), "revocations have changed");
                    (held.crls, held.wrong) = (crls, None);
                }
                Err(error) => {
                    tracing::error!(%error, "the revocations of before stay in force");
                    held.wrong = Some(format!("{error}; the revocations of before stay in force"));
                }
            }
        }
        if present.is_some() || !Arc::ptr_eq(&held.of, &of) {
            held.join(of, &self.domain);
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

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>, CrlFileError> {
    let wrong = |why: String| CrlFileError { path: path.into(), why };
    let (bytes, _) = plain::read(path, MOST).map_err(|e| wrong(e.to_string()))?;
    // A mounted file may be there before there is anything to say.
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let crls = ambient_tls::read_crls(&bytes).map_err(|e| wrong(e.to_string()))?;
    Ok(crls.iter().map(|crl| crl.der().to_vec()).collect())
}

/// Longer than any list of a mesh.
const MOST: u64 = 16 << 20;

#[cfg(all(test, feature = "ca"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::{Authority, DirectoryCa, Target};

    /// An authority whose own lists are read by nobody, and the file of another's.
    #[test]
    fn a_file_is_taken_whenever_it_is_another_and_can_be_read() {
        #[expect(clippy::disallowed_methods, reason = "certificates bear the time of day")]
        let now = std::time::SystemTime::now();
        let scratch = tempfile::tempdir().unwrap();
        let (dir, file) = (scratch.path().join("ca"), scratch.path().join("crl.pem"));
        let domain = TrustDomain::default();
        let ca: Arc<dyn Issuer> = Arc::new(DirectoryCa::open(&dir, domain.clone(), Duration::from_secs(3600)).unwrap());
        fs::write(&file, "no list").unwrap();
        let error = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap_err().to_string();
        assert!(error.contains("crl.pem") && error.contains("would be let in"), "{error}");
        fs::remove_file(&file).unwrap();
        let with = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap();
        assert!(Arc::ptr_eq(&with.trust(), &ca.trust()), "without lists it is the issuer's own");

        // Another authority of that name, so that its lists come by the file alone.
        let other = scratch.path().join("other");
        let authority = Authority::init(&other, domain.clone(), now).unwrap();
        let cart = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        authority
            .issue_to_workload(&cart, Duration::from_secs(60), &scratch.path().join("out"), now)
            .unwrap();
        let lists = authority.revoke(&Target::Identity(cart), now).unwrap().lists;
        fs::copy(&lists, scratch.path().join("new")).unwrap();
        fs::rename(scratch.path().join("new"), &file).unwrap();
        let trust = with.trust();
        assert_eq!((trust.roots(&domain).len(), trust.crls(&domain).len()), (1, 1));
        assert!(Arc::ptr_eq(&trust, &with.trust()), "the same value while nothing changes");
        for broken in ["torn", ""] {
            fs::write(&file, broken).unwrap();
            let lists = with.trust().crls(&domain).len();
            assert_eq!(lists, usize::from(broken == "torn"), "{broken:?}");
            let faults = with.faults();
            assert_eq!(faults.len(), lists, "{faults:?}");
            assert!(
                faults
                    .iter()
                    .all(|fault| fault.contains("crl.pem") && fault.contains("of before stay")),
                "{faults:?}"
            );
        }
        fs::copy(&lists, &file).unwrap();
        assert_eq!(with.trust().crls(&domain).len(), 1);
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(with.trust().crls(&domain).len(), 1, "a pipe is not waited for, and lifts nothing");
        let error = WithCrls::open(ca.clone(), &file, domain.clone()).unwrap_err().to_string();
        assert!(error.contains("crl.pem") && error.contains("a pipe"), "{error}");
        fs::remove_file(&file).unwrap();
        assert_eq!(with.trust().crls(&domain).len(), 1, "a file that goes lifts nothing");
    }
}
