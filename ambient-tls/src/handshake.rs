//! The handshake of a tunnel, without I/O.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, CommonState, Error, InvalidMessage, ServerConfig,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::{
    Records,
    records::{HEAD, Schedule},
};

/// A TLS 1.3 handshake as rustls does it, without I/O. Behind it [`Records`] carry the data.
///
/// Call [`advance`](Self::advance) whenever something has come, and at the beginning; send what it has to say, also when it
/// has failed. Once it says that it is done, [`finish`](Self::finish) it.
///
/// ```
/// use std::io::{self, Read, Write};
/// use ambient_tls::{Established, Handshake};
///
/// /// What the handshake has brought, and what has come behind it.
/// fn shake_hands(io: &mut (impl Read + Write), mut handshake: Handshake) -> io::Result<(Established, Vec<u8>)> {
///     let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
///     loop {
///         let done = handshake.advance(&mut incoming, &mut outgoing);
///         io.write_all(&outgoing)?; // also if it has failed: the peer is told why
///         outgoing.clear();
///         if done.map_err(io::Error::other)? {
///             return Ok((handshake.finish().map_err(io::Error::other)?, incoming));
///         }
///         let mut piece = [0; 4096];
///         match io.read(&mut piece)? {
///             0 => return Err(io::ErrorKind::UnexpectedEof.into()),
///             n => incoming.extend_from_slice(&piece[..n]),
///         }
///     }
/// }
/// ```
pub struct Handshake {
    connection: Connection,
    /// How much of what has come rustls was shown, and how much of that are whole records.
    shown: usize,
    whole: usize,
    /// rustls is asked nothing more once it has.
    failed: Option<Error>,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a handshake has brought.
#[derive(Debug)]
#[non_exhaustive]
pub struct Established {
    /// What carries the data.
    pub records: Records,
    /// The certificates that the peer has presented, its own first.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// The protocol that both ends have agreed on.
    pub alpn: Option<Vec<u8>>,
}

/// What rustls wants next.
enum Step {
    Again,
    Blocked,
}

impl Handshake {
    /// A client's. The name is not sent where the configuration says so.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        UnbufferedClientConnection::new(config, name).map(|client| Self::new(Connection::Client(client)))
    }

    /// A server's.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(|server| Self::new(Connection::Server(server)))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            shown: 0,
            whole: 0,
            failed: None,
        }
    }

    /// Goes on with what has come, takes what it has used away from the front of it, and puts what is to be sent behind
    /// `outgoing`. Gives whether it is done: what is left in `incoming` then is for [`Records`].
    ///
    /// Give the same `incoming` each time, with what has come since behind what was left in it.
    ///
    /// # Errors
    /// When the handshake has failed; what is in `outgoing` then tells the peer. Each further call gives the same error, and says
    /// nothing. A shorter `incoming` than was left fails it as well.
    pub fn advance(&mut self, incoming: &mut Vec<u8>, outgoing: &mut Vec<u8>) -> Result<bool, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.go_on(incoming, outgoing)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn go_on(&mut self, incoming: &mut Vec<u8>, outgoing: &mut Vec<u8>) -> Result<bool, Error> {
        loop {
            // What follows on the last message of the handshake is none of rustls' business any more.
            let done = !self.common().is_handshaking();
            let shown = if done { 0 } else { self.shown };
            let Some(front) = incoming.get_mut(..shown) else {
                return Err(Error::General(
                    "what has come of the handshake was taken away before it was used".into(),
                ));
            };
            let (used, step) = self.connection.step(front, outgoing);
            incoming.drain(..used);
            self.shown -= used;
            self.whole = self.whole.saturating_sub(used);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) if done => return Ok(true),
                Ok(Step::Blocked) => {
                    if !self.show_more(incoming)? {
                        return Ok(false);
                    }
                }
                Err(error) => {
                    // The alert that goes with it, and nothing else: what has come is not looked at again.
                    while self.common().wants_write() {
                        self.connection.step(&mut [], outgoing).1?;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Lets rustls see one record more, or what there is of it; whether there was anything.
    fn show_more(&mut self, incoming: &[u8]) -> Result<bool, Error> {
        if self.whole > LARGEST {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        let end = match incoming[self.whole..].first_chunk::<HEAD>() {
            Some(&[_, _, _, high, low]) => self.whole + HEAD + usize::from(u16::from_be_bytes([high, low])),
            None => usize::MAX,
        };
        if end <= incoming.len() {
            (self.shown, self.whole) = (end, end);
            return Ok(true);
        }
        // A head that nothing can follow is refused at once.
        Ok(std::mem::replace(&mut self.shown, incoming.len()) < incoming.len())
    }

    fn common(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(client) => client,
            Connection::Server(server) => server,
        }
    }

    /// What it has brought, once it is done.
    ///
    /// # Errors
    /// When it has failed or is not done, or its keys cannot be had: the configuration must allow it (those of this crate do), and so must
    /// the provider's cipher suite.
    pub fn finish(self) -> Result<Established, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let common = self.common();
        let suite = common.negotiated_cipher_suite().and_then(|suite| suite.tls13());
        let suite = suite.ok_or(Error::HandshakeNotComplete)?;
        let peer_certificates = common.peer_certificates().unwrap_or_default().to_vec();
        let alpn = common.alpn_protocol().map(<[u8]>::to_vec);
        let (secrets, schedule): (_, Box<dyn Schedule>) = match self.connection {
            Connection::Client(client) => {
                let (secrets, kernel) = client.dangerous_into_kernel_connection()?;
                (secrets, Box::new(kernel))
            }
            Connection::Server(server) => {
                let (secrets, kernel) = server.dangerous_into_kernel_connection()?;
                (secrets, Box::new(kernel))
            }
        };
        Ok(Established {
            records: Records::new(suite, secrets, schedule)?,
            peer_certificates,
            alpn,
        })
    }
}

impl Connection {
    /// How much of what has come is used, and what is next.
    fn step(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
        match self {
            Self::Client(client) => obey(client.process_tls_records(incoming), outgoing),
            Self::Server(server) => obey(server.process_tls_records(incoming), outgoing),
        }
    }
}

fn obey<Data>(status: UnbufferedStatus<'_, '_, Data>, outgoing: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = outgoing.len();
            if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) {
                outgoing.resize(at + required_size, 0);
            }
            let encoded = data.encode(&mut outgoing[at..]);
            encoded.map(|_| Step::Again).map_err(|e| Error::General(e.to_string()))
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        // A server may write before it has heard the last of the client.
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Step::Blocked),
        // No data is read before the handshake is done, and none is offered early.
        Ok(_) => Err(Error::HandshakeNotComplete),
        Err(error) => Err(error),
    };
    (discard, step)
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("shown", &self.shown).finish_non_exhaustive()
    }
}

/// What is kept of handshake messages that are not whole.
const LARGEST: usize = 64 << 10;

#[cfg(test)]
pub(crate) mod tests;
