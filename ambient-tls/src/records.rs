//! The records of a connection whose handshake is done (RFC 8446 5), without I/O.

use std::{fmt, ops::Range};

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage, PeerMisbehaved,
    ProtocolVersion, Tls13CipherSuite,
    client::ClientConnectionData,
    crypto::cipher::{AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage},
    kernel::KernelConnection,
    server::ServerConnectionData,
};

/// Seals and opens the records of a TLS 1.3 connection, in place: what rustls does between the handshake and the end, without
/// its buffers and without a copy of what comes.
///
/// Keys come from rustls and ciphers from its provider, which also make the next ones ([RFC 8446 7.2]). What is done
/// here is what the record layer is for: heads, numbers, alerts, key updates, and what a peer may not do.
///
/// ```
/// use std::io::{self, Read, Write};
/// use ambient_tls::{Opened, Records, Sealed};
///
/// /// All that the peer says; `bytes` are what has come behind the handshake.
/// fn hear(io: &mut (impl Read + Write), records: &mut Records, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
///     let (mut heard, mut replies) = (Vec::new(), Sealed::new());
///     loop {
///         let opened = records.open(&mut bytes, &mut replies);
///         if opened.is_ok() {
///             records.answer(&mut replies).map_err(io::Error::other)?;
///         }
///         for record in replies.drain(..) {
///             io.write_all(&record)?; // also if it has failed: the peer is told why
///         }
///         match opened.map_err(io::Error::other)? {
///             Opened::Record { length, data } => {
///                 heard.extend_from_slice(&bytes[data]);
///                 bytes.drain(..length);
///             }
///             Opened::Incomplete => {
///                 let mut piece = [0; 4096];
///                 match io.read(&mut piece)? {
///                     0 => return Err(io::ErrorKind::UnexpectedEof.into()), // cut, and not the end
///                     n => bytes.extend_from_slice(&piece[..n]),
///                 }
///             }
///             Opened::End => return Ok(heard),
///         }
///     }
/// }
/// ```
///
/// [RFC 8446 7.2]: https://www.rfc-editor.org/rfc/rfc8446#section-7.2
pub struct Records {
    suite: &'static Tls13CipherSuite,
    schedule: Box<dyn Schedule>,
    decrypter: Box<dyn MessageDecrypter>,
    /// Of the next record that comes.
    opened: u64,
    encrypter: Box<dyn MessageEncrypter>,
    /// Of the next record that goes, and from where on the keys are not to be used any more.
    sealed: u64,
    worn_out: u64,
    /// A handshake message that has come in part.
    fragments: Vec<u8>,
    manners: Manners,
    /// The peer has asked for new keys, once or more often, and has not been [answered](Self::answer).
    asked: bool,
    /// The peer has said that nothing more comes.
    ended: bool,
    /// The last alert has gone.
    closed: bool,
}

/// What the bytes at the front were.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// No whole record.
    Incomplete,
    /// A record.
    Record {
        /// How many bytes it was.
        length: usize,
        /// Where in it the data is; nothing of a record that concerns TLS alone.
        data: Range<usize>,
    },
    /// The peer's close_notify: nothing after it counts.
    End,
}

/// Records that are ready to be sent, in this order.
pub type Sealed = std::collections::VecDeque<Vec<u8>>;

impl Records {
    pub(crate) fn new(suite: &'static Tls13CipherSuite, secrets: ExtractedSecrets, schedule: Box<dyn Schedule>) -> Result<Self, Error> {
        let (sealed, send) = secrets.tx;
        let (opened, receive) = secrets.rx;
        let ((key, iv), (receive_key, receive_iv)) = (parts(send)?, parts(receive)?);
        Ok(Self {
            suite,
            schedule,
            decrypter: suite.aead_alg.decrypter(receive_key, receive_iv),
            opened,
            encrypter: suite.aead_alg.encrypter(key, iv),
            sealed,
            worn_out: suite.common.confidentiality_limit.min(LAST),
            fragments: Vec::new(),
            manners: Manners::default(),
            asked: false,
            ended: false,
            closed: false,
        })
    }

    /// Opens the record at the front of `bytes`, in place. What it asks for in return is to be had by [`answer`](Self::answer).
    ///
    /// # Errors
    /// When the peer has broken the rules or off. The connection is over; `replies` then say why, unless it was the peer who did.
    pub fn open(&mut self, bytes: &mut [u8], replies: &mut Sealed) -> Result<Opened, Error> {
        if self.ended {
            return Ok(Opened::End);
        }
        let Some(&[outer, _, _, high, low]) = bytes.first_chunk::<HEAD>() else {
            return Ok(Opened::Incomplete);
        };
        let length = HEAD + usize::from(u16::from_be_bytes([high, low]));
        let opened = self.judge(outer, length).and_then(|()| match bytes.get_mut(..length) {
            Some(record) => self.open_whole(record),
            None => Ok(Opened::Incomplete),
        });
        opened.map_err(|Fault { alert, error }| {
            if let Some(alert) = alert {
                // It is over in any case.
                let _ = self.alert(FATAL, alert, replies);
            }
            error
        })
    }

    /// What can be said of a record by its head.
    fn judge(&self, outer: u8, length: usize) -> Result<(), Fault> {
        if ContentType::from(outer) != ContentType::ApplicationData {
            return Err(Fault::unexpected(ContentType::from(outer)));
        }
        if length > HEAD + MOST_SEALED {
            return Err(Fault::new(AlertDescription::RecordOverflow, Error::PeerSentOversizedRecord));
        }
        Ok(())
    }

    fn open_whole(&mut self, record: &mut [u8]) -> Result<Opened, Fault> {
        let (length, start) = (record.len(), record.as_ptr() as usize);
        if self.opened >= LAST {
            return Err(Fault::new(AlertDescription::BadRecordMac, Error::DecryptError));
        }
        let message = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, &mut record[HEAD..]);
        let plain = self.decrypter.decrypt(message, self.opened).map_err(Fault::of_decryption)?;
        self.opened += 1;
        let (kind, payload) = (plain.typ, plain.payload);
        self.manners.record(payload.len())?;
        if kind != ContentType::Handshake && !self.fragments.is_empty() {
            let error = PeerMisbehaved::MessageInterleavedWithHandshakeMessage;
            return Err(Fault::new(AlertDescription::UnexpectedMessage, error.into()));
        }
        match kind {
            ContentType::ApplicationData => {
                self.manners.data(payload.len());
                // It was opened where it lay.
                let from = payload.as_ptr() as usize - start;
                let data = from..from + payload.len();
                return Ok(Opened::Record { length, data });
            }
            ContentType::Alert => self.alerted(payload)?,
            ContentType::Handshake => {
                self.fragments.extend_from_slice(payload);
                self.messages()?;
            }
            other => return Err(Fault::unexpected(other)),
        }
        if self.ended {
            return Ok(Opened::End);
        }
        Ok(Opened::Record { length, data: 0..0 })
    }

    fn alerted(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let &[_, alert] = payload else {
            let error = InvalidMessage::MissingData("AlertMessagePayload");
            return Err(Fault::new(AlertDescription::DecodeError, error.into()));
        };
        match AlertDescription::from(alert) {
            AlertDescription::CloseNotify => {
                self.ended = true;
                Ok(())
            }
            // It says that a close_notify follows (RFC 8446 6.1).
            AlertDescription::UserCanceled => self.manners.warning(),
            alert => Err(Fault {
                alert: None,
                error: Error::AlertReceived(alert),
            }),
        }
    }

    /// What whole handshake messages mean.
    fn messages(&mut self) -> Result<(), Fault> {
        while let Some((&[kind, a, b, c], rest)) = self.fragments.split_first_chunk() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MOST_MESSAGE {
                return Err(Fault::new(
                    AlertDescription::DecodeError,
                    InvalidMessage::HandshakePayloadTooLarge.into(),
                ));
            }
            let Some(payload) = rest.get(..length) else { return Ok(()) };
            match (HandshakeType::from(kind), payload) {
                (HandshakeType::KeyUpdate, &[request @ (0 | 1)]) => {
                    if rest.len() > length {
                        // What stands behind it in the record was sealed with the keys that it ends.
                        let error = PeerMisbehaved::KeyEpochWithPendingFragment;
                        return Err(Fault::new(AlertDescription::UnexpectedMessage, error.into()));
                    }
                    self.fragments = Vec::new();
                    return self.key_update(request == 1);
                }
                (HandshakeType::KeyUpdate, _) => {
                    return Err(Fault::new(AlertDescription::DecodeError, InvalidMessage::InvalidKeyUpdate.into()));
                }
                (HandshakeType::NewSessionTicket, ticket) if self.schedule.is_client() => {
                    self.manners.ticket()?;
                    let taken = self.schedule.take_ticket(ticket);
                    taken.map_err(|error| Fault::new(AlertDescription::DecodeError, error))?;
                }
                (other, _) => {
                    let error = Error::InappropriateHandshakeMessage {
                        expect_types: vec![HandshakeType::KeyUpdate],
                        got_type: other,
                    };
                    return Err(Fault::new(AlertDescription::UnexpectedMessage, error));
                }
            }
            self.fragments.drain(..4 + length);
        }
        if self.fragments.is_empty() {
            // An idle connection keeps no memory.
            self.fragments = Vec::new();
        }
        Ok(())
    }

    fn key_update(&mut self, requested: bool) -> Result<(), Fault> {
        self.manners.update()?;
        let next = self
            .schedule
            .next_receiving()
            .and_then(|(opened, secrets)| Ok((opened, parts(secrets)?)));
        let (opened, (key, iv)) = next.map_err(|error| Fault::new(AlertDescription::InternalError, error))?;
        (self.decrypter, self.opened) = (self.suite.aead_alg.decrypter(key, iv), opened);
        self.asked |= requested;
        Ok(())
    }

    /// Seals what the peer is owed, if anything: to be asked whenever nothing waits to be sent. However often it has asked for new
    /// keys meanwhile, one answer is enough (RFC 8446 4.6.3): a peer that asks and does not read has us keep one.
    ///
    /// # Errors
    /// When the provider fails.
    pub fn answer(&mut self, sealed: &mut Sealed) -> Result<(), Error> {
        if self.asked && !self.closed {
            self.update_keys(sealed)?;
        }
        Ok(())
    }

    /// Tells the peer that the keys of this direction change, and changes them (RFC 8446 4.6.3).
    ///
    /// # Errors
    /// When this direction was [closed](Self::close), or the provider fails.
    pub fn update_keys(&mut self, sealed: &mut Sealed) -> Result<(), Error> {
        const NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
        if self.closed {
            return Err(Error::EncryptError);
        }
        self.seal_one(ContentType::Handshake, OutboundChunks::Single(&NOT_REQUESTED), sealed)?;
        let (next, secrets) = self.schedule.next_sending()?;
        let (key, iv) = parts(secrets)?;
        (self.encrypter, self.sealed) = (self.suite.aead_alg.encrypter(key, iv), next);
        self.asked = false;
        Ok(())
    }

    /// Seals as much of the front of `data` as goes into one record, and says how much that was: 16 KiB at most. Keys that are
    /// worn out, or that the peer wants changed, are changed before.
    ///
    /// # Errors
    /// When this direction was [closed](Self::close), or the provider fails.
    pub fn seal(&mut self, data: &OutboundChunks<'_>, sealed: &mut Sealed) -> Result<usize, Error> {
        if self.closed {
            return Err(Error::EncryptError);
        }
        // The message that changes them is the last that they seal.
        if self.asked || self.sealed + 1 >= self.worn_out && self.sealed > 0 {
            self.update_keys(sealed)?;
        }
        let (record, _) = data.split_at(MOST_PLAIN);
        let n = record.len();
        self.seal_one(ContentType::ApplicationData, record, sealed)?;
        Ok(n)
    }

    /// Says close_notify, once: nothing more goes.
    pub fn close(&mut self, sealed: &mut Sealed) {
        // Nobody is told where that fails, and the peer sees a connection that was cut.
        let _ = self.alert(WARNING, AlertDescription::CloseNotify, sealed);
    }

    fn alert(&mut self, level: u8, alert: AlertDescription, sealed: &mut Sealed) -> Result<(), Error> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.seal_one(ContentType::Alert, OutboundChunks::Single(&[level, alert.into()]), sealed)
    }

    fn seal_one(&mut self, typ: ContentType, payload: OutboundChunks<'_>, sealed: &mut Sealed) -> Result<(), Error> {
        if self.sealed >= LAST {
            return Err(Error::EncryptError);
        }
        let version = ProtocolVersion::TLSv1_2; // on the wire, of every record (RFC 8446 5.2)
        let message = OutboundPlainMessage { typ, version, payload };
        let record = self.encrypter.encrypt(message, self.sealed)?;
        self.sealed += 1;
        sealed.push_back(record.encode());
        Ok(())
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("suite", &self.suite.common.suite)
            .field("opened", &self.opened)
            .field("sealed", &self.sealed)
            .finish_non_exhaustive()
    }
}

/// Where keys come from: rustls' part of a connection whose records are sealed elsewhere.
pub(crate) trait Schedule: Send + Sync {
    fn next_sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    fn next_receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    fn is_client(&self) -> bool;
    fn take_ticket(&mut self, ticket: &[u8]) -> Result<(), Error>;
}

impl Schedule for KernelConnection<ClientConnectionData> {
    fn next_sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_tx_secret()
    }

    fn next_receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_rx_secret()
    }

    fn is_client(&self) -> bool {
        true
    }

    fn take_ticket(&mut self, ticket: &[u8]) -> Result<(), Error> {
        self.handle_new_session_ticket(ticket)
    }
}

impl Schedule for KernelConnection<ServerConnectionData> {
    fn next_sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_tx_secret()
    }

    fn next_receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_rx_secret()
    }

    fn is_client(&self) -> bool {
        false
    }

    fn take_ticket(&mut self, _: &[u8]) -> Result<(), Error> {
        Err(InvalidMessage::UnexpectedMessage("NewSessionTicket").into())
    }
}

/// What a peer may do in a row that brings nothing, as BoringSSL and rustls bound it. Tickets are of no use here, where nothing is
/// resumed, and each costs a key.
#[derive(Debug)]
struct Manners {
    empty: u8,
    updates: u8,
    tickets: u8,
    warnings: u8,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            empty: 32,
            updates: 32,
            tickets: 32,
            warnings: 4,
        }
    }
}

impl Manners {
    fn record(&mut self, length: usize) -> Result<(), Fault> {
        if length > 0 {
            self.empty = Self::default().empty;
            return Ok(());
        }
        spend(&mut self.empty, PeerMisbehaved::TooManyEmptyFragments)
    }

    fn data(&mut self, length: usize) {
        if length > 0 {
            let Self { updates, tickets, .. } = Self::default();
            (self.updates, self.tickets) = (updates, tickets);
        }
    }

    fn update(&mut self) -> Result<(), Fault> {
        spend(&mut self.updates, PeerMisbehaved::TooManyKeyUpdateRequests)
    }

    fn ticket(&mut self) -> Result<(), Fault> {
        spend(
            &mut self.tickets,
            Error::General("the peer sends session tickets and nothing else".into()),
        )
    }

    fn warning(&mut self) -> Result<(), Fault> {
        spend(&mut self.warnings, PeerMisbehaved::TooManyWarningAlertsReceived)
    }
}

fn spend(left: &mut u8, fault: impl Into<Error>) -> Result<(), Fault> {
    match left.checked_sub(1) {
        Some(less) => {
            *left = less;
            Ok(())
        }
        None => Err(Fault::new(AlertDescription::UnexpectedMessage, fault.into())),
    }
}

/// Why a connection is over, and what the peer is told.
struct Fault {
    alert: Option<AlertDescription>,
    error: Error,
}

impl Fault {
    fn new(alert: AlertDescription, error: Error) -> Self {
        Self { alert: Some(alert), error }
    }

    fn unexpected(got_type: ContentType) -> Self {
        let error = Error::InappropriateMessage {
            expect_types: vec![ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert],
            got_type,
        };
        Self::new(AlertDescription::UnexpectedMessage, error)
    }

    fn of_decryption(error: Error) -> Self {
        let alert = match &error {
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
            _ => AlertDescription::BadRecordMac,
        };
        Self::new(alert, error)
    }
}

fn parts(secrets: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General(
            "the cipher suite's keys are of a kind that is not known here".into(),
        )),
    }
}

/// Bytes of a record before its payload.
pub(crate) const HEAD: usize = 5;

/// Bytes of data in a record, and of a sealed payload, at most (RFC 8446 5.1 and 5.2).
const MOST_PLAIN: usize = 1 << 14;
const MOST_SEALED: usize = MOST_PLAIN + 256;

/// Bytes of a handshake message that are waited for, as rustls bounds it.
const MOST_MESSAGE: usize = 0xffff;

/// Numbers are never used twice: the last of them ends the connection (RFC 8446 5.3).
const LAST: u64 = u64::MAX - 1;

const WARNING: u8 = 1;
const FATAL: u8 = 2;

#[cfg(test)]
mod tests;
