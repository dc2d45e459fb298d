//! What is known of one identity: its certificate, what has come of it, and why there is none. Pure: time is an argument.

use std::{cmp::Reverse, sync::Arc, time::SystemTime};

use ambient_core::{Credential, Identity};
use ambient_tls::{Accepted, Role, Trust, Verifier};
use rustls_pki_types::CertificateDer;

use super::svid::{Svid, SvidError};

#[cfg(test)]
mod tests;

/// One identity's.
///
/// ```text
///            update with it          roots that vouch for it
///   nothing ───────────────▶ waiting ───────────────────────▶ present ◀─┐ update with it
///      ▲                        │                                │  └───┘
///      └────────────────────────┴────────────────────────────────┘
///                  update without it: it is withdrawn, also where nothing was
/// ```
///
/// A failure moves nothing: what is present stays until its own end.
pub(super) struct Account {
    identity: Identity,
    present: Option<Arc<Credential>>,
    /// Came, but the known roots do not vouch for any of it yet: new roots may come after what they sign. The newest first.
    waiting: Vec<Svid>,
    why: Why,
    /// The authority has said that it gives nothing, and this was told.
    told: bool,
}

/// Why there is no certificate, or no newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) text: String,
    /// Whether the authority has said so, rather than failed to say anything.
    pub(super) refused: bool,
}

/// What became of a credential.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing new.
    Same,
    /// There is a newer one.
    Renewed,
    /// There is none any more: nobody vouches for this identity.
    Withdrawn,
}

/// What one update holds, read.
pub(super) type Given = [Result<Svid, SvidError>];

impl Account {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            present: None,
            waiting: Vec::new(),
            why: Why {
                text: "the agent has not answered yet".into(),
                refused: false,
            },
            told: false,
        }
    }

    /// The certificate that counts at a moment.
    ///
    /// # Errors
    /// With the reason, where there is none.
    pub(super) fn credential(&self, now: SystemTime) -> Result<&Arc<Credential>, &Why> {
        self.present.as_ref().filter(|present| present.is_valid_at(now)).ok_or(&self.why)
    }

    /// Why there is none, or no newer one.
    pub(super) fn why(&self) -> &Why {
        &self.why
    }

    /// An update, which is whole.
    pub(super) fn update(&mut self, given: &Given, trust: &Arc<Trust>, now: SystemTime) -> Turn {
        let mine = |svid: &&Svid| svid.id == *self.identity.spiffe_id();
        let mut mine: Vec<_> = given.iter().flatten().filter(mine).cloned().collect();
        if mine.is_empty() {
            return self.without(given);
        }
        mine.sort_by_key(|svid| Reverse(svid.not_after));
        self.waiting = mine;
        self.try_waiting(trust, now)
    }

    /// The roots are others now.
    pub(super) fn roots(&mut self, trust: &Arc<Trust>, now: SystemTime) -> Turn {
        self.try_waiting(trust, now)
    }

    /// Nothing came, and this is why.
    pub(super) fn failed(&mut self, text: String) {
        self.why = Why { text, refused: false };
    }

    /// The agent refuses to speak of it; what was given before stays until its end.
    pub(super) fn denied(&mut self, text: String) {
        self.why = Why { text, refused: true };
    }

    /// The authority takes back what it gave. That is news where it has given nothing yet, too: it may have given something to a
    /// process before this one.
    pub(super) fn withdrawn(&mut self, text: String) -> Turn {
        self.why = Why { text, refused: true };
        self.waiting.clear();
        self.present = None;
        match std::mem::replace(&mut self.told, true) {
            true => Turn::Same,
            false => Turn::Withdrawn,
        }
    }

    /// An update that holds nothing of this identity.
    fn without(&mut self, given: &Given) -> Turn {
        let own = self.identity.as_str();
        let unreadable = given.iter().filter_map(|given| given.as_ref().err());
        if let Some(error) = unreadable.into_iter().find(|error| error.may_be_of(own)) {
            self.failed(error.to_string());
            return Turn::Same;
        }
        let others = given.iter().map(|given| match given {
            Ok(svid) => svid.id.as_str(),
            Err(error) => error.named.as_str(),
        });
        let others: Vec<_> = others.take(NAMED).collect();
        self.withdrawn(match others.is_empty() {
            true => format!("SPIRE has no registration entry that matches what is asked for {own}, or has not heard of it yet"),
            false => format!(
                "SPIRE vouches for {} instead: the registration entry must name {own}",
                others.join(", ")
            ),
        })
    }

    fn try_waiting(&mut self, trust: &Arc<Trust>, now: SystemTime) -> Turn {
        let mut refused = None;
        for svid in &self.waiting {
            let credential = svid.credential(&self.identity);
            match svid.out_of_date(now).map_or_else(|| verify(&credential, trust, now), Err) {
                Ok(()) => return self.take(credential),
                // Of several the newest one's is told.
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        if let Some(why) = refused {
            self.failed(format!("SPIRE gives an SVID of {} that is refused: {why}", self.identity));
        }
        Turn::Same
    }

    fn take(&mut self, credential: Credential) -> Turn {
        self.waiting.clear();
        self.failed("SPIRE has given no newer one".into());
        let same = |present: &Arc<Credential>| present.chain == credential.chain && present.key.der() == credential.key.der();
        if self.present.as_ref().is_some_and(same) {
            return Turn::Same;
        }
        self.present = Some(Arc::new(credential));
        self.told = false;
        Turn::Renewed
    }
}

/// Whether peers that trust what is trusted here would believe it, and whether the key is its own.
fn verify(credential: &Credential, trust: &Arc<Trust>, now: SystemTime) -> Result<(), String> {
    let verifier = Verifier::new(trust, Accepted::any_of([credential.identity.clone()])).at(now);
    let chain: Vec<_> = credential.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    for role in [Role::Server, Role::Client] {
        verifier.verify(&chain, role).map_err(|e| e.to_string())?;
    }
    verifier.client_config(credential).map_err(|e| e.to_string())?;
    Ok(())
}

/// Other identities that a message names.
const NAMED: usize = 5;
