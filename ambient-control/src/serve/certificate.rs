//! The control plane's own certificate, and when there is to be another.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use rustls::{
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{ServeError, streams::LONGEST_LOOK};
use crate::{
    ca::{self, DirectoryCa, Request, Signer, Whom},
    istiod::{dates, now},
};

/// The certificate, as it is now.
#[derive(Debug)]
pub(super) struct Certificate {
    present: RwLock<Option<Present>>,
    /// How long the signer may take.
    within: Duration,
}

#[derive(Debug)]
struct Present {
    certified: Arc<CertifiedKey>,
    begins: SystemTime,
    /// When half of its life is over.
    due: SystemTime,
}

impl Certificate {
    pub(super) fn signed_within(within: Duration) -> Self {
        Self {
            present: RwLock::default(),
            within,
        }
    }

    pub(super) async fn renew(&self, ca: &dyn Signer, names: &[String], provider: &CryptoProvider) -> Result<(), ServeError> {
        let whom = Whom::Hosts(names);
        let (key, csr) = ca::request(&whom)?;
        let request = Request {
            whom,
            csr: &csr,
            life: DirectoryCa::DEFAULT_TTL,
            node: None,
        };
        let within = self.within;
        let signed = timeout(within, ca.sign(request)).await;
        let chain = signed.map_err(|_| ServeError::Silent { within })??;
        let leaf = chain.first().ok_or(ServeError::NoCertificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| ServeError::NoCertificate)?;
        let (begins, ends) = dates(&parsed);
        let now = now();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider.key_provider.load_private_key(key)?;
        let present = Present {
            certified: Arc::new(CertifiedKey::new(chain.into_iter().map(CertificateDer::from).collect(), key)),
            begins: begins.min(now),
            due: now + ends.duration_since(now).unwrap_or_default() / 2,
        };
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = Some(present);
        Ok(())
    }

    /// Renews it at half its life, and when roots change: whoever trusts the new one alone is to accept it too.
    pub(super) async fn keep(&self, ca: &dyn Signer, names: &[String], provider: &CryptoProvider, trust_changed: &Notify) {
        loop {
            tokio::select! {
                () = self.is_due(now) => {}
                () = trust_changed.notified() => {}
            }
            while let Err(error) = self.renew(ca, names, provider).await {
                tracing::error!(%error, "the control plane's own certificate was not renewed");
                sleep(AGAIN).await;
            }
        }
    }

    /// Waits until another is to be asked for: by the wall clock, which may be set, and goes on while the machine sleeps.
    async fn is_due(&self, clock: impl Fn() -> SystemTime) {
        loop {
            let left = self.left(clock());
            sleep(left.unwrap_or_default().clamp(BREATH, LONGEST_LOOK)).await;
            if self.left(clock()).is_none() {
                return;
            }
        }
    }

    /// How long until that; `None` where it is now, also of one that is not good yet as the clock was set back.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        let present = present.as_ref().filter(|present| present.begins <= now)?;
        present.due.duration_since(now).ok().filter(|left| !left.is_zero())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        present.as_ref().map(|present| present.certified.clone())
    }
}

/// After what cannot be helped at once.
const BREATH: Duration = Duration::from_millis(100);
/// Until the next attempt to have it renewed.
const AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ambient_core::TrustDomain;
    use tokio::time::Instant;

    use super::*;

    /// A machine that sleeps for a day, or whose clock is set: what its waits are measured by has gone on by a minute at most.
    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_in_time_whatever_the_clock_does() {
        let scratch = tempfile::tempdir().unwrap();
        let ca = DirectoryCa::open(scratch.path(), TrustDomain::default(), DirectoryCa::DEFAULT_TTL).unwrap();
        let certificate = Certificate::signed_within(Duration::from_secs(60));
        let (names, provider) = (["localhost".to_owned()], ambient_tls::provider());
        certificate.renew(&ca, &names, &provider).await.unwrap();
        let (signed, life) = (now(), DirectoryCa::DEFAULT_TTL);
        let half = certificate.left(signed).expect("it is good");
        assert!(half <= life / 2 && half + Duration::from_secs(60) > life / 2, "{half:?}");
        let day = Duration::from_secs(24 * 60 * 60);
        for set in [signed + half, signed + day, signed - day] {
            let at = AtomicU64::new(0);
            let is_set = async {
                sleep(Duration::from_secs(90)).await;
                at.store(1, Ordering::Relaxed);
                Instant::now()
            };
            let clock = || if at.load(Ordering::Relaxed) == 0 { signed } else { set };
            let due = async {
                certificate.is_due(clock).await;
                Instant::now()
            };
            let (set, due) = tokio::join!(is_set, due);
            assert!(set <= due && due - set <= LONGEST_LOOK, "{:?}", due.duration_since(set));
        }
    }
}
