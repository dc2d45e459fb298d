//! Who calls: a node by its certificate, or by a token.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambient_core::{SpiffeId, TrustDomain};
use ambient_tls::{Accepted, Configs, Moment, Peer, Role, Verifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    crypto::CryptoProvider,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::Instant;
use tonic::{Status, metadata::MetadataMap};

use super::{
    Nodes,
    counts::{Counts, Refusal},
    nodes::{Known, Proof},
    seldom::Seldom,
};
use crate::{ca::Signer, istiod::node_of};

#[cfg(test)]
mod tests;

/// By what callers are told apart.
pub(super) struct Door {
    pub(super) nodes: Arc<Nodes>,
    pub(super) trust_domain: TrustDomain,
    pub(super) ca: Arc<dyn Signer>,
    /// What is read of roots and CRLs.
    pub(super) configs: Configs,
    pub(super) counts: Arc<Counts>,
    /// Of what callers can cause at will.
    pub(super) seldom: Seldom,
}

/// What the other end of a connection has shown in its handshake.
#[derive(Debug)]
pub(super) enum Shown {
    /// No certificate.
    Nothing,
    /// A node's.
    Node(NodePeer),
    /// One that is no node's, and why.
    Other(String),
}

#[derive(Debug)]
pub(super) struct NodePeer {
    node: String,
    proof: Proof,
    peer: Peer,
}

/// A node that calls.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) node: String,
    pub(super) proof: Proof,
    /// Its certificate, if it is known by one.
    shown: Option<Arc<Shown>>,
    expires: u64,
    /// It has shown a token that is good for an exchange alone.
    pub(super) once: bool,
}

impl Door {
    /// Reads a chain that a client has shown, and whose key it has.
    pub(super) fn look_at(&self, chain: Option<&[CertificateDer<'_>]>) -> Shown {
        let Some(chain) = chain.filter(|chain| !chain.is_empty()) else {
            return Shown::Nothing;
        };
        match self.node_peer(chain) {
            Ok(peer) => Shown::Node(peer),
            Err(why) => Shown::Other(why),
        }
    }

    fn node_peer(&self, chain: &[CertificateDer<'_>]) -> Result<NodePeer, String> {
        let trust = self.configs.trust(&self.ca.bundles());
        let verifier = Verifier::new(&trust, Accepted::AnyTrusted);
        let id: SpiffeId = verifier.verify(chain, Role::Client).map_err(|e| e.to_string())?;
        let node = node_of(&id, &self.trust_domain).ok_or_else(|| format!("{id} is no node of {}", self.trust_domain))?;
        Ok(NodePeer {
            node: node.into(),
            proof: self.nodes.proof_of_certificate(&chain[0]).map_err(|e| e.to_string())?,
            peer: trust.peer(chain).map_err(|e| e.to_string())?,
        })
    }

    /// The node that calls: by its certificate; where it has shown none, by the token of the call.
    pub(super) fn admit(&self, shown: &Arc<Shown>, metadata: &MetadataMap, now: SystemTime) -> Result<Caller, Status> {
        let admitted = self.who(shown, metadata, now);
        if let Err(status) = &admitted
            && status.code() == tonic::Code::Unauthenticated
        {
            self.counts.refuse(Refusal::Credential);
            let what = match &**shown {
                Shown::Node(_) => "node certificates",
                Shown::Other(_) => "other certificates",
                Shown::Nothing if metadata.contains_key("authorization") => "tokens",
                Shown::Nothing => "nothing",
            };
            if let Some(left_out) = self.seldom.say(what, Instant::now()) {
                tracing::warn!(why = status.message(), left_out, "a caller was refused");
            }
        }
        admitted
    }

    fn who(&self, shown: &Arc<Shown>, metadata: &MetadataMap, now: SystemTime) -> Result<Caller, Status> {
        let (proof, certified) = match &**shown {
            Shown::Node(peer) => (peer.proof.clone(), Some(shown.clone())),
            Shown::Other(why) => return Err(Status::unauthenticated(format!("the certificate of this connection: {why}"))),
            Shown::Nothing => {
                let text = metadata.get("authorization").and_then(|value| value.to_str().ok());
                let token = text.and_then(|text| text.strip_prefix("Bearer "));
                let token =
                    token.ok_or_else(|| Status::unauthenticated("a node's certificate is wanted, or `authorization: Bearer TOKEN`"))?;
                (self.nodes.proof_of_token(token.trim()).map_err(|e| self.unreadable(&e))?, None)
            }
        };
        let known = self.nodes.known(&proof, now).map_err(|e| self.unreadable(&e))?;
        let known = known.ok_or_else(|| self.ended(&proof, now))?;
        let caller = Caller {
            node: known.node,
            proof,
            shown: certified,
            expires: known.expires,
            once: known.once,
        };
        self.certificate_is_good(&caller)?;
        Ok(caller)
    }

    /// Whether what a caller was admitted by is still good. Where that cannot be read now, it is.
    pub(super) fn still(&self, caller: &Caller, now: SystemTime) -> Result<(), Status> {
        match self.nodes.known(&caller.proof, now) {
            Ok(known) => self.is_good(caller, known.as_ref(), now),
            Err(error) => {
                if let Some(left_out) = self.seldom.say("still", Instant::now()) {
                    tracing::error!(%error, left_out, "nodes cannot be told from others: what is open stays");
                }
                Ok(())
            }
        }
    }

    /// The same of a caller who is about to be given something: where it cannot be read now, it is not.
    pub(super) fn once_more(&self, caller: &Caller, now: SystemTime) -> Result<(), Status> {
        let known = self.nodes.known(&caller.proof, now).map_err(|e| self.unreadable(&e))?;
        self.is_good(caller, known.as_ref(), now)
    }

    fn is_good(&self, caller: &Caller, known: Option<&Known>, now: SystemTime) -> Result<(), Status> {
        match known {
            Some(known) if known.node == caller.node => self.certificate_is_good(caller),
            _ => Err(self.ended(&caller.proof, now)),
        }
    }

    /// That nobody is known by a proof. What has ended is told from what never was one, as a clock may be wrong.
    fn ended(&self, proof: &Proof, now: SystemTime) -> Status {
        let (what, remedy) = match proof {
            Proof::Token(_) => ("token", "`ambient control token NODE` makes another"),
            Proof::Certificate(_) => ("node's certificate", "it joins anew by a token"),
        };
        Status::unauthenticated(match (self.nodes.end_of(proof).filter(|end| *end <= now.into()), proof) {
            (Some(end), _) => format!(
                "this {what} was good until {end}, and here it is {}: {remedy}, or a clock is wrong: check those of both machines",
                Moment::from(now)
            ),
            (None, Proof::Token(_)) => format!("this {what} is none, has ended, or was revoked: {remedy}"),
            (None, Proof::Certificate(_)) => format!("this {what} is not known here, has ended, or was revoked"),
        })
    }

    fn unreadable(&self, error: &super::NodesError) -> Status {
        if let Some(left_out) = self.seldom.say("unreadable", Instant::now()) {
            tracing::error!(%error, left_out, "callers cannot be told from others");
        }
        // Not `Unavailable`, by which a node would hold this control plane for away.
        Status::internal("who is a node cannot be read now")
    }

    fn certificate_is_good(&self, caller: &Caller) -> Result<(), Status> {
        let Some(Shown::Node(shown)) = caller.shown.as_deref() else {
            return Ok(());
        };
        if shown.node != caller.node {
            return Err(Status::unauthenticated(
                "the certificate of this connection names another node than it was given to",
            ));
        }
        let trust = self.configs.trust(&self.ca.bundles());
        trust
            .check_revocation(&shown.peer)
            .map_err(|e| Status::unauthenticated(e.to_string()))
    }
}

impl Caller {
    /// How long what it was admitted by is good, at most.
    pub(super) fn good_for(&self, now: SystemTime) -> Duration {
        let age = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Duration::from_secs(self.expires).saturating_sub(age)
    }
}

/// Asks clients for a certificate, and takes whichever they have the key of, or none: who that is, is judged with each call,
/// which can say why it is refused.
#[derive(Debug)]
pub(super) struct AnyKey(pub(super) Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        // It is not spoken.
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
