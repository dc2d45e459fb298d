//! The socket of a SPIFFE agent: where it is, and that nobody else has put it there.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// A Unix socket that an agent listens on.
///
/// Whoever listens there decides who is who: so only an agent that runs as root or as this process's own user is spoken to,
/// or as one of the [users](Self::with_owners) that are named instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    path: PathBuf,
    owners: Arc<[u32]>,
}

/// A text that names no socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no socket of a SPIFFE agent: {why}")]
pub struct SocketError {
    text: String,
    why: &'static str,
}

impl Socket {
    /// A socket, as `SPIFFE_ENDPOINT_SOCKET` writes it ([Workload Endpoint 4]): `unix:///PATH`; the path alone will do.
    ///
    /// # Errors
    /// When it is of another scheme, such as `tcp`, or when the path is not absolute.
    ///
    /// [Workload Endpoint 4]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_Endpoint.md#4-locating-the-endpoint
    pub fn new(text: &str) -> Result<Self, SocketError> {
        let refuse = |why| SocketError { text: text.into(), why };
        let path = match text.split_once(':') {
            Some(("unix", path)) if path.starts_with("///") => &path[2..],
            Some(("unix", path)) if path.starts_with("//") => {
                return Err(refuse("a URI of a Unix socket has no host: write unix:///PATH"));
            }
            Some(("unix", path)) => path,
            Some((scheme, _)) if !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return Err(refuse("only Unix sockets are spoken to, which tell who listens there"));
            }
            _ => text,
        };
        if path.contains(['?', '#']) && path != text {
            return Err(refuse("a URI of a Unix socket has neither query nor fragment"));
        }
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(refuse("write unix:///PATH, with an absolute path of a file"));
        }
        Ok(Self {
            path: path.into(),
            owners: [0, rustix::process::geteuid().as_raw()].into(),
        })
    }

    /// The same, believed only if the agent runs as one of these user IDs.
    #[must_use]
    pub fn with_owners(mut self, owners: impl IntoIterator<Item = u32>) -> Self {
        self.owners = owners.into_iter().collect();
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A channel that connects with the first call, and again with the next one after it broke.
    pub(super) fn channel(&self) -> Channel {
        let socket = self.clone();
        let dial = move |_: Uri| {
            let socket = socket.clone();
            async move { socket.dial().await.map(TokioIo::new) }
        };
        // The authority is sent along and means nothing.
        Endpoint::from_static("http://localhost")
            .http2_keep_alive_interval(PINGING)
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(service_fn(dial))
    }

    async fn dial(&self) -> io::Result<UnixStream> {
        let stream = match timeout(CONNECTING, UnixStream::connect(&self.path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(io::Error::new(error.kind(), format!("{self}: {error}"))),
            Err(_) => return Err(io::Error::other(format!("{self}: not connected within {CONNECTING:?}"))),
        };
        let agent = stream.peer_cred()?.uid();
        if self.owners.contains(&agent) {
            return Ok(stream);
        }
        let owners: Vec<_> = self.owners.iter().map(u32::to_string).collect();
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{self}: a process of user {agent} listens there, and who listens there decides who is who; an agent of user {} \
                 is believed: if this is the agent, name its user",
                owners.join(" or ")
            ),
        ))
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(2);
/// Between two pings. A Go server takes more than one in five minutes for an attack, and an agent that has died closes its
/// connections: this finds the one that hangs.
const PINGING: Duration = Duration::from_secs(6 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_written_as_the_standard_does() {
        for good in [
            "unix:///run/spire/agent.sock",
            "unix:/run/spire/agent.sock",
            "/run/spire/agent.sock",
        ] {
            assert_eq!(Socket::new(good).unwrap().path(), Path::new("/run/spire/agent.sock"), "{good}");
        }
        assert_eq!(Socket::new("/run/a:b").unwrap().to_string(), "unix:///run/a:b");
        for bad in [
            "",
            "agent.sock",
            "unix:agent.sock",
            "unix://run/agent.sock",
            "unix://",
            "unix:///",
            "unix:///run/agent.sock?x=1",
            "tcp://127.0.0.1:8000",
            "http://localhost/",
            "/run/",
        ] {
            let error = Socket::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
