//! SPIRE, or another agent of SPIFFE, as where certificates come from: the flags, by the names of the variables in use.

use std::sync::Arc;

use ambient_control::{
    Issuer,
    spiffe::{DelegatedConfig, DelegatedIdentity, MemoryConfig, MemoryError, Socket, WorkloadApi, WorkloadConfig},
};
use ambient_core::TrustDomain;

/// Flags, each of which can come from the environment.
#[derive(Debug, clap::Args)]
pub(super) struct Spiffe {
    /// SPIRE, where the certificates of this node's pods come from: the admin socket of the agent on this machine, such as
    /// unix:///run/spire/agent-sockets/admin.sock. The SPIFFE ID of this process must stand in the agent's
    /// authorized_delegates. In the place of --ca-dir.
    #[arg(long, env = "SPIRE_ADMIN_ENDPOINT_SOCKET", value_name = "SOCKET", value_parser = given)]
    spire_admin_socket: Option<Given>,
    /// An agent of SPIFFE, where the certificates of this very process come from, for a machine or a pod that is one workload:
    /// the socket of its Workload API. In the place of --ca-dir; it has no meaning beside --spire-admin-socket.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "SOCKET", value_parser = given)]
    spiffe_socket: Option<Given>,
    /// The user ID that the agent runs as, if that is neither root nor this process's own. An agent of any other user is not
    /// believed.
    #[arg(long, env = "AMBIENT_SPIFFE_AGENT_UID", value_name = "UID")]
    spiffe_agent_uid: Option<u32>,
}

/// A socket; none where the text is empty, as an empty variable gives it.
#[derive(Clone, Debug)]
struct Given(Option<Socket>);

fn given(text: &str) -> Result<Given, ambient_control::spiffe::SocketError> {
    match text {
        "" => Ok(Given(None)),
        text => Socket::new(text).map(|socket| Given(Some(socket))),
    }
}

impl Spiffe {
    /// Whether certificates come from there.
    pub(super) fn gives_certificates(&self) -> bool {
        self.admin_socket().is_some() || self.socket().is_some()
    }

    /// What says that certificates come from there, and what it names.
    pub(super) fn sources(&self) -> impl Iterator<Item = (&'static str, String)> {
        let sockets = [("spireAdminSocket", self.admin_socket()), ("spiffeSocket", self.socket())];
        sockets.into_iter().filter_map(|(by, socket)| Some((by, socket?.to_string())))
    }

    /// The source of certificates, if it is one, which remembers whom to trust; `not_kept` says what it means where it cannot.
    pub(super) fn certificates(
        &self,
        trust_domain: &TrustDomain,
        memory: Option<MemoryConfig>,
        not_kept: impl Fn(MemoryError) -> anyhow::Error,
    ) -> anyhow::Result<Option<Arc<dyn Issuer>>> {
        let provider = Arc::new(ambient_tls::provider());
        if let Some(socket) = self.admin_socket() {
            if self.socket().is_some() {
                tracing::warn!("--spiffe-socket has no meaning beside --spire-admin-socket, which gives every certificate");
            }
            let mut config = DelegatedConfig::new(socket, trust_domain.clone(), provider);
            config.memory = memory;
            return Ok(Some(Arc::new(DelegatedIdentity::new(config).map_err(not_kept)?)));
        }
        let Some(socket) = self.socket() else { return Ok(None) };
        let mut config = WorkloadConfig::new(socket, provider);
        config.memory = memory;
        Ok(Some(Arc::new(WorkloadApi::new(config).map_err(not_kept)?)))
    }

    fn admin_socket(&self) -> Option<Socket> {
        self.believed(self.spire_admin_socket.as_ref())
    }

    fn socket(&self) -> Option<Socket> {
        self.believed(self.spiffe_socket.as_ref())
    }

    fn believed(&self, given: Option<&Given>) -> Option<Socket> {
        let socket = given?.0.clone()?;
        Some(match self.spiffe_agent_uid {
            Some(uid) => socket.with_owners([uid]),
            None => socket,
        })
    }
}
