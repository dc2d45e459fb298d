//! gRPC to a control plane: TLS by our own means, credentials read anew for each connection and each call.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambient_tls::ChainError;
use http::{HeaderValue, Method, Version, header};
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    body::Body,
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::{Channel, Endpoint as Grpc, Uri},
};
use tower::{ServiceExt as _, service_fn};

use super::{
    dial::dial,
    files::Files,
    join::{Membership, NodeCredential},
};

/// How a control plane is reached.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address, such as `https://istiod.istio-system.svc:15012`. Without a scheme `https` is meant; no other is spoken.
    pub address: String,
    /// Who vouches for its certificate; read anew for each connection.
    pub roots: Roots,
    /// A name that its certificate may bear instead of the address's: istiod's `ALT_XDS_HOSTNAME`, `ALT_CA_HOSTNAME`.
    pub other_name: Option<String>,
    /// What is shown for each call.
    pub token: Option<Token>,
    /// What is shown in the place of a token, once for each connection; of `ambient control` alone.
    pub membership: Option<Arc<Membership>>,
    /// The cluster that the token belongs to, such as `Kubernetes`.
    pub cluster: String,
    /// Added to each call: name and value.
    pub headers: Vec<(String, String)>,
    /// How TLS is done.
    pub provider: Arc<CryptoProvider>,
    /// What was read last of the files of roots and token: it counts where they cannot be used.
    pub files: Files,
}

/// Who vouches for a control plane.
#[derive(Clone, Debug)]
pub enum Roots {
    /// The certificates of a PEM file. Where there are none to be read, those before count.
    File(PathBuf),
    /// These, in PEM.
    Pem(String),
    /// Those of the operating system.
    System,
}

/// What is shown to a control plane.
#[derive(Clone)]
pub enum Token {
    /// The contents of a file, read anew for each call: projected service account tokens are replaced before they end. Where
    /// there is none to be read, the one before is shown.
    File(PathBuf),
    /// This one.
    Literal(String),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

/// Why a control plane is not reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address is none.
    #[error("{address:?} is no address of a control plane: https://HOST:PORT is wanted")]
    Address {
        /// What was given.
        address: String,
    },
    /// No certificate can bear the other name.
    #[error("{name:?} is no name that a certificate may bear: a DNS name or an IP address is wanted")]
    Name {
        /// What was given.
        name: String,
    },
    /// A header's name or value cannot be sent.
    #[error("the header {name:?} cannot be sent: lower-case names and visible ASCII values can")]
    Header {
        /// Its name.
        name: String,
    },
    /// The roots cannot be read.
    #[error("cannot read the roots of the control plane from {from}: {source}: {ROOTS_REMEDY}")]
    Roots {
        /// Where they were to be.
        from: String,
        /// What failed.
        source: io::Error,
    },
    /// The roots are none.
    #[error("{from} holds no root certificate for the control plane: {ROOTS_REMEDY}")]
    NoRoots {
        /// Where they were to be.
        from: String,
    },
    /// The token cannot be read.
    #[error("cannot read the token from {}: {source}: {TOKEN_REMEDY}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The token is empty or holds what cannot be sent.
    #[error("the token from {from} is empty or no token")]
    NoToken {
        /// Where it is from.
        from: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// The node has no certificate that it could show.
    #[error("the control plane has given the node {node} no certificate: {why}")]
    NotJoined {
        /// Which node.
        node: String,
        /// Why the last attempt failed.
        why: String,
    },
    /// The node's certificate cannot be used.
    #[error("the node's certificate cannot be used: {0}")]
    Certificate(#[source] rustls::Error),
    /// No connection was made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// To where.
        address: String,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a call is not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// It cannot be made.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] Status),
    /// Whoever answers speaks no gRPC.
    #[error("HTTP status {0}, and nothing of gRPC")]
    Http(http::StatusCode),
}

impl Endpoint {
    /// An address with the token and the roots where Istio mounts them.
    pub fn new(address: &str, provider: Arc<CryptoProvider>) -> Self {
        Self {
            address: address.into(),
            roots: Roots::File("./var/run/secrets/istio/root-cert.pem".into()),
            other_name: None,
            token: Some(Token::File("./var/run/secrets/tokens/istio-token".into())),
            membership: None,
            cluster: "Kubernetes".into(),
            headers: Vec::new(),
            provider,
            files: Files::default(),
        }
    }

    /// Whether it can be understood: the address and the headers.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<(), EndpointError> {
        place(&self.address)?;
        self.header_values()?;
        Ok(())
    }

    /// Whether an address is one of a control plane: `https://HOST:PORT`, of which the scheme and the port may be left out.
    ///
    /// # Errors
    /// When it is none.
    pub fn check_address(address: &str) -> Result<(), EndpointError> {
        place(address).map(drop)
    }

    /// Whether a certificate may bear a name: see [`Self::other_name`].
    ///
    /// # Errors
    /// When none can.
    pub fn check_name(name: &str) -> Result<(), EndpointError> {
        other_name(name).map(drop)
    }

    /// Connects, within [`CONNECTING`]; gives the node's certificate that was shown, too.
    pub(super) async fn connect(&self) -> Result<(Channel, Option<Arc<NodeCredential>>), EndpointError> {
        let Some(membership) = &self.membership else {
            return Ok((self.connect_as(None, &[]).await?, None));
        };
        let credential = membership.credential().await?;
        let channel = self.connect_as(Some(&credential), &membership.roots()).await?;
        Ok((channel, Some(credential)))
    }

    /// Connects, within [`CONNECTING`], showing a certificate, or none; these roots count besides the endpoint's own.
    pub(super) async fn connect_as(&self, shown: Option<&NodeCredential>, roots: &[Vec<u8>]) -> Result<Channel, EndpointError> {
        let place = place(&self.address)?;
        let tls = self.tls(shown, roots).await?;
        let (host, port, name) = (place.host, place.port, place.name);
        let grpc = Grpc::from(place.uri)
            .connect_timeout(CONNECTING)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            // A whole mesh comes in one message: a window of the usual size would take a round trip for each 64 KiB of it.
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let dial = move |_: Uri| {
            let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
            async move {
                let tcp = dial(&host, port).await?;
                tcp.set_nodelay(true)?;
                keep_alive(&tcp)?;
                Ok::<_, io::Error>(TokioIo::new(tls.connect(name, tcp).await.map_err(of_dates)?))
            }
        };
        // The connector's own deadline ends at TCP.
        let connected = timeout(CONNECTING, grpc.connect_with_connector(service_fn(dial))).await;
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| EndpointError::Connect {
            address: self.address.clone(),
            source,
        };
        let told = |error: &dyn std::error::Error| match whole(error) {
            why if why.contains("UnknownIssuer") => {
                format!(
                    "{why}: its certificate is of an authority that is not among those from {}",
                    self.roots
                )
            }
            why => why,
        };
        match connected {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(failed(told(&error).into())),
            Err(_) => Err(failed(format!("no answer within {CONNECTING:?}").into())),
        }
    }

    /// A call with the token of this moment, where no certificate is shown, and the headers.
    pub(super) async fn request<T>(&self, message: T) -> Result<tonic::Request<T>, EndpointError> {
        let mut request = self.bare_request(message)?;
        if let (Some(token), None) = (&self.token, &self.membership) {
            request.metadata_mut().insert("authorization", token.read(&self.files).await?);
        }
        Ok(request)
    }

    /// A call with the headers alone.
    pub(super) fn bare_request<T>(&self, message: T) -> Result<tonic::Request<T>, EndpointError> {
        let mut request = tonic::Request::new(message);
        if let Ok(cluster) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        for (name, value) in self.header_values()? {
            request.metadata_mut().insert(name, value);
        }
        Ok(request)
    }

    /// Whether a connection that has shown this is as one that would be made now.
    fn shows(&self, shown: Option<&Arc<NodeCredential>>) -> bool {
        match (&self.membership, shown) {
            (Some(membership), Some(shown)) => membership.is_present(shown),
            (None, None) => true,
            _ => false,
        }
    }

    /// Who is at it, for what is remembered of that.
    pub(super) fn origin(&self) -> String {
        let Self { address, cluster, .. } = self;
        // Without one, that is what is meant.
        let scheme = if address.contains("://") { "" } else { "https://" };
        format!("{scheme}{address}, cluster {cluster:?}")
    }

    /// What was shown with a call, for who is told that it is no good; nothing where that was a certificate.
    pub(super) fn token_shown(&self) -> Option<String> {
        let token = self.token.as_ref().filter(|_| self.membership.is_none())?;
        Some(format!(
            "shown was the token from {token}: put one there that is good now; if it should be, check the clocks of both machines"
        ))
    }

    /// Looks at its files, so that [`Files::faults`] says what is wrong with them before they are needed, and no longer than it is.
    pub(super) async fn look(&self) {
        if let Roots::File(path) = &self.roots {
            self.files.look(path, MOST_ROOTS, ROOTS_REMEDY, read_roots).await;
        }
        if let Some(Token::File(path)) = &self.token {
            self.files.look(path, LONGEST_TOKEN, TOKEN_REMEDY, bearer).await;
        }
    }

    /// What the control plane has answered: where it does not know this node's certificate, another is asked for.
    pub(super) fn heard(&self, status: &Status) {
        if let Some(membership) = self.membership.as_ref().filter(|_| status.code() == tonic::Code::Unauthenticated) {
            membership.doubt();
        }
    }

    /// Opens a call of which whoever asks frames and reads the messages: they need not be in memory as a whole, nor room be
    /// kept for the longest of them as long as the call is open.
    pub(super) async fn open(&self, channel: Channel, path: &'static str, messages: Body) -> Result<Body, OpenError> {
        let (metadata, _, messages) = self.request(messages).await?.into_parts();
        let mut request = http::Request::new(messages);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_static(path);
        *request.headers_mut() = metadata.into_headers();
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        let grpc = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert(header::CONTENT_TYPE, grpc);
        let response = channel.oneshot(request).await.map_err(|error| Status::from_error(error.into()))?;
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != tonic::Code::Ok => Err(status.into()),
            None if response.status() != http::StatusCode::OK => Err(OpenError::Http(response.status())),
            _ => Ok(response.into_body()),
        }
    }

    fn header_values(&self) -> Result<Vec<Header>, EndpointError> {
        let header = |(name, value): &(String, String)| {
            let unsendable = || EndpointError::Header { name: name.clone() };
            let key = name.to_ascii_lowercase().parse().map_err(|_| unsendable())?;
            Ok((key, value.parse().map_err(|_| unsendable())?))
        };
        self.headers.iter().map(header).collect()
    }

    async fn tls(&self, shown: Option<&NodeCredential>, roots: &[Vec<u8>]) -> Result<TlsConnector, EndpointError> {
        let from = self.roots.to_string();
        let mut store = RootCertStore::empty();
        match self.roots.read(&self.files).await {
            Ok(certificates) => drop(store.add_parsable_certificates(certificates)),
            // What the control plane itself has told of will do.
            Err(_) if !roots.is_empty() => {}
            Err(source) => return Err(EndpointError::Roots { from, source }),
        }
        store.add_parsable_certificates(roots.iter().map(|der| CertificateDer::from(der.as_slice())));
        if store.is_empty() {
            return Err(EndpointError::NoRoots { from });
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), self.provider.clone())
            .build()
            .map_err(|e| EndpointError::Tls(rustls::Error::General(e.to_string())))?;
        let other = match &self.other_name {
            Some(other) => Some(other_name(other)?),
            None => None,
        };
        let config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(EndpointError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(EitherName { verifier, other }));
        let mut config = match shown {
            None => config.with_no_client_auth(),
            Some(shown) => {
                let chain = shown.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                let key = PrivatePkcs8KeyDer::from(shown.key.der().to_vec());
                config
                    .with_client_auth_cert(chain, key.into())
                    .map_err(EndpointError::Certificate)?
            }
        };
        // What is shown is looked at with each connection.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// A connection that is made when it is needed, and kept for the next call. Whoever needs one while it is being made waits for that
/// and shares what comes of it.
#[derive(Debug)]
pub(super) struct Line {
    endpoint: Endpoint,
    /// Attempts that have ended.
    tried: AtomicU64,
    present: Mutex<Present>,
}

#[derive(Debug, Default)]
struct Present {
    channel: Option<(Channel, Option<Arc<NodeCredential>>)>,
    /// Which attempt has made it, or has failed.
    attempt: u64,
    /// Why the last attempt has failed, if it has.
    why: String,
}

impl Line {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            tried: AtomicU64::new(0),
            present: Mutex::default(),
        }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The connection that is there, with its number, or a new one: where that number is the one that turned out to be dead, or the
    /// node has another certificate now.
    pub(super) async fn channel(&self, dead: Option<u64>) -> Result<(Channel, u64), EndpointError> {
        let tried = self.tried.load(Ordering::Relaxed);
        let mut present = self.present.lock().await;
        let good = |shown: &Option<Arc<NodeCredential>>| dead != Some(present.attempt) && self.endpoint.shows(shown.as_ref());
        if let Some((channel, _)) = present.channel.as_ref().filter(|(_, shown)| good(shown)) {
            return Ok((channel.clone(), present.attempt));
        }
        if present.channel.is_none() && present.attempt > tried {
            return Err(EndpointError::Connect {
                address: self.endpoint.address.clone(),
                source: present.why.clone().into(),
            });
        }
        let connected = self.endpoint.connect().await;
        present.attempt = self.tried.fetch_add(1, Ordering::Relaxed) + 1;
        match connected {
            Ok(connected) => {
                let channel = connected.0.clone();
                present.channel = Some(connected);
                Ok((channel, present.attempt))
            }
            Err(error) => {
                present.channel = None;
                present.why = match &error {
                    EndpointError::Connect { source, .. } => source.to_string(),
                    other => other.to_string(),
                };
                Err(error)
            }
        }
    }

    /// Whatever waits on the connection that is there may wait for ever: the next call makes another.
    pub(super) async fn hang_up(&self) {
        self.present.lock().await.channel.take();
    }
}

type Header = (MetadataKey<Ascii>, MetadataValue<Ascii>);

struct Place {
    uri: Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
}

fn place(address: &str) -> Result<Place, EndpointError> {
    let wrong = || EndpointError::Address { address: address.into() };
    let text = match address.contains("://") {
        true => address.to_owned(),
        false => format!("https://{address}"),
    };
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong());
    }
    let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
    let port = uri.port_u16().unwrap_or(443);
    Ok(Place { uri, host, port, name })
}

fn other_name(name: &str) -> Result<ServerName<'static>, EndpointError> {
    ServerName::try_from(name.to_owned()).map_err(|_| EndpointError::Name { name: name.into() })
}

impl Roots {
    async fn read(&self, files: &Files) -> io::Result<Vec<CertificateDer<'static>>> {
        let unusable = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        match self {
            Self::File(path) => files.read(path, MOST_ROOTS, ROOTS_REMEDY, read_roots).await,
            Self::Pem(pem) => read_roots(pem.as_bytes()).map_err(unusable),
            Self::System => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for path in SYSTEM_ROOTS {
                    match files.bytes(Path::new(path), MOST_ROOTS).await {
                        // Whatever of them can be used: not all that a system has is written by one hand.
                        Ok(pem) => return Ok(CertificateDer::pem_slice_iter(&pem).flatten().collect()),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// The certificates in PEM, of which at least one can vouch for somebody. Half of a file is none: who is missing could be the
/// one that counts.
fn read_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|e| format!("it is no PEM: {}", ambient_tls::pem_in_words(&e)))?;
    match RootCertStore::empty().add_parsable_certificates(certificates.iter().cloned()) {
        (0, _) => Err("it holds no root certificate".into()),
        _ => Ok(certificates),
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Pem(_) => f.write_str("the configuration"),
            Self::System => f.write_str("the system's certificates"),
        }
    }
}

impl Token {
    async fn read(&self, files: &Files) -> Result<MetadataValue<Ascii>, EndpointError> {
        match self {
            Self::File(path) => {
                let read = files.read(path, LONGEST_TOKEN, TOKEN_REMEDY, bearer).await;
                read.map_err(|source| EndpointError::Token {
                    path: path.clone(),
                    source,
                })
            }
            Self::Literal(text) => bearer(text.as_bytes()).map_err(|_| EndpointError::NoToken { from: self.to_string() }),
        }
    }
}

/// A token as it is sent.
fn bearer(text: &[u8]) -> Result<MetadataValue<Ascii>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text")?.trim();
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let value = format!("Bearer {text}").parse::<MetadataValue<Ascii>>();
    let mut value = value.map_err(|_| "it holds what cannot be sent, and so no token")?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Literal(_) => f.write_str("the configuration"),
        }
    }
}

/// Accepts a certificate for the name that was dialled or for the other one.
#[derive(Debug)]
struct EitherName {
    verifier: Arc<WebPkiServerVerifier>,
    other: Option<ServerName<'static>>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| self.verifier.verify_server_cert(leaf, intermediates, name, ocsp, now);
        match (verify(name), &self.other) {
            (Err(rustls::Error::InvalidCertificate(e)), Some(other)) if is_name(&e) => verify(other),
            (verified, _) => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn is_name(error: &CertificateError) -> bool {
    matches!(
        error,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
    )
}

/// A handshake's error: where the control plane's certificate is refused for its dates, these in words.
fn of_dates(error: io::Error) -> io::Error {
    let held = error.get_ref().and_then(|held| held.downcast_ref());
    match held.and_then(ChainError::of_dates) {
        Some(why) => io::Error::new(error.kind(), format!("the control plane's certificate: {why}")),
        None => error,
    }
}

/// An error with all that it comes from: tonic's own say only "transport error".
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    let idle = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(300))
        .with_interval(Duration::from_secs(75))
        .with_retries(9);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&idle)
}

/// The longest file of roots, and the longest token: longer than any.
const MOST_ROOTS: u64 = 16 << 20;
const LONGEST_TOKEN: u64 = 256 << 10;
const ROOTS_REMEDY: &str = "put the PEM certificates there of who vouches for it";
const TOKEN_REMEDY: &str = "put a token there";
/// How often its files are looked at.
pub(super) const LOOKING: Duration = Duration::from_secs(2);
/// How long a connection may take, TLS included.
const CONNECTING: Duration = Duration::from_secs(5);
/// What may be under way of a message.
const WINDOW: u32 = 8 * 1024 * 1024;
/// Where systems keep their roots: Debian, Fedora, Alpine and openSUSE.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
