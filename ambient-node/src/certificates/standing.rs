//! Whether peers accept the certificates that are here, by the roots and revocations in force: those of this node are those of its
//! peers.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::SystemTime,
};

use ambient_core::{Credential, Credentials as _, Identity, TrustBundles};
use ambient_tls::{Accepted, PeerError, Role, Trust, Verifier};
use rustls_pki_types::CertificateDer;

use super::{Certificates, locked};
use crate::clock;

#[cfg(test)]
mod tests;

/// What was found of each certificate, and by what.
#[derive(Debug, Default)]
pub(super) struct Judged {
    by: Arc<TrustBundles>,
    /// The certificate, and why it is refused if it is. While a weak one lives its address is nobody else's, and no key outlives its
    /// pod for it.
    of: HashMap<Identity, (Weak<Credential>, Option<String>)>,
}

/// What is wrong with the certificate of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// There is none that holds; why not, as far as it is known.
    Missing(Option<String>),
    /// Peers refuse it for this reason; and why there is no other yet.
    Refused(String, Option<String>),
}

impl Certificates {
    /// Looks whether peers accept each certificate that is here, of which that is not known yet, or by other roots or revocations:
    /// another is asked for in the place of one that they refuse, which stays in use while there is none.
    pub(crate) fn judge(&self) {
        let (bundles, present) = (self.trust(), self.present());
        let mut judged = locked(&self.judged);
        if !Arc::ptr_eq(&bundles, &judged.by) && *bundles != *judged.by {
            judged.of.clear();
        }
        judged.by = bundles;
        let mut before = std::mem::take(&mut judged.of);
        for credential in present {
            let known = before.remove(&credential.identity);
            let known = known.filter(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(&credential)));
            let (of, refusal) = known.unwrap_or_else(|| {
                let refusal = self.refusal(&credential, &judged.by);
                if let Some(why) = &refusal {
                    tracing::warn!(identity = %credential.identity, why, "peers refuse a certificate of this node: another is asked for");
                    self.renew(&credential.identity);
                }
                (Arc::downgrade(&credential), refusal)
            });
            judged.of.insert(credential.identity.clone(), (of, refusal));
        }
    }

    /// Identities whose certificate holds, and which peers refuse; in the order of their names, with the reason.
    pub(crate) fn refused(&self) -> Vec<(Identity, String)> {
        let judged = locked(&self.judged);
        let refused = judged.of.iter().filter_map(|(identity, (of, refusal))| {
            // What has come since, or is gone, was not judged yet.
            let holds = of.upgrade().is_some_and(|of| of.is_valid_at(clock::wall()));
            Some((identity.clone(), refusal.clone().filter(|_| holds)?))
        });
        let mut refused: Vec<_> = refused.collect();
        refused.sort_unstable();
        refused
    }

    /// What is wrong with the certificate of an identity that is needed here; nothing where it holds and peers accept it, as was last
    /// found.
    pub(crate) fn flaw(&self, identity: &Identity) -> Option<Flaw> {
        let Some(present) = self.credential(identity) else {
            return Some(Flaw::Missing(self.failure(identity)));
        };
        let refusal = {
            let judged = locked(&self.judged);
            let (of, refusal) = judged.of.get(identity)?;
            refusal.clone().filter(|_| std::ptr::eq(of.as_ptr(), Arc::as_ptr(&present)))?
        };
        Some(Flaw::Refused(refusal, self.failure(identity)))
    }

    /// Why peers refuse the certificate of an identity that is here, where they do.
    pub(crate) fn why_refused(&self, identity: &Identity) -> Option<String> {
        let present = self.credential(identity)?;
        self.refusal(&present, &self.trust())
    }

    /// Why peers refuse a certificate by these; where no root of its trust domain is known, they are not known either.
    ///
    /// One that begins later they accept then: this machine's clock is behind, as before it is set.
    pub(super) fn refusal(&self, credential: &Credential, bundles: &Arc<TrustBundles>) -> Option<String> {
        if bundles.roots(credential.identity.trust_domain()).is_empty() {
            return None;
        }
        let trust = self.configs.trust(bundles);
        accepted(credential, &trust, Role::Server, clock::wall().max(credential.not_before))
            .err()
            .map(|error| error.to_string())
    }
}

/// Whether peers accept a chain at some time, of whoever has this role: its names, its dates, its issuers.
pub(crate) fn accepted(credential: &Credential, trust: &Arc<Trust>, role: Role, at: SystemTime) -> Result<(), PeerError> {
    let chain: Vec<_> = credential.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let verifier = Verifier::new(trust, Accepted::any_of([credential.identity.clone()])).at(at);
    verifier.verify(&chain, role).map(drop)
}
