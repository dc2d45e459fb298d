//! A peer over real TLS that says whatever a test likes.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{io, net::SocketAddr, sync::Arc};

use ambient_core::{Credentials, Identity};
use ambient_hbone::{BoxFuture, BoxedIo, Destination, Dial, Speaker};
use ambient_tls::{Accepted, client_config, server_config};
use rustls::crypto::CryptoProvider;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{
    support::{self, Held},
    wire::{ACK, END_HEADERS, Frame, HEADERS, PREFACE, SETTINGS},
};

/// Who calls, who is called, and what both hold.
pub(crate) struct World {
    pub(crate) cart: Identity,
    pub(crate) stock: Identity,
    pub(crate) held: Arc<Held>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl World {
    pub(crate) fn new() -> Self {
        let (cart, stock, held, provider) = support::pair();
        Self {
            cart,
            stock,
            held,
            provider,
        }
    }

    pub(crate) fn speaker(&self) -> Speaker {
        Speaker::new("cart-0", self.cart.clone())
    }

    pub(crate) fn destination(&self) -> Destination {
        let (peer, authority) = ("10.0.2.2:15008".parse().unwrap(), "10.0.2.2:8080".parse().unwrap());
        Destination::new(peer, authority, [self.stock.clone()])
    }

    /// A client that has done TLS and has said nothing.
    pub(crate) async fn client(&self, io: DuplexStream) -> Raw {
        let credential = self.held.credential(&self.cart).unwrap();
        let accepted = Accepted::any_of([self.stock.clone()]);
        let config = client_config(&self.provider, &credential, &self.held.trust(), accepted).unwrap();
        let tls = TlsConnector::from(config)
            .connect("10.0.2.2".try_into().unwrap(), io)
            .await
            .unwrap();
        Raw::new(tls.into())
    }

    /// What reaches servers that have done TLS and greeted, and where each is had.
    pub(crate) fn servers(&self) -> (Servers, mpsc::UnboundedReceiver<Raw>) {
        let credential = self.held.credential(&self.stock).unwrap();
        let config = server_config(&self.provider, &credential, &self.held.trust(), Accepted::AnyTrusted).unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        (Servers(config.into(), tell), told)
    }
}

/// Reaches a new [`Raw`] server each time.
pub(crate) struct Servers(TlsAcceptor, mpsc::UnboundedSender<Raw>);

impl Dial for Servers {
    fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
        let (near, far) = duplex(256 << 10);
        let (accepting, tell) = (self.0.accept(far), self.1.clone());
        tokio::spawn(async move {
            let mut raw = Raw::new(accepting.await.unwrap().into());
            raw.send(&frame(SETTINGS, 0, 0, &[])).await;
            let _ = tell.send(raw);
        });
        Box::pin(async move { Ok(Box::new(near) as BoxedIo) })
    }
}

/// The peer's end of a connection.
pub(crate) struct Raw {
    pub(crate) heard: Heard,
    pub(crate) to: WriteHalf<TlsStream<DuplexStream>>,
}

/// What comes to the peer.
pub(crate) struct Heard {
    io: ReadHalf<TlsStream<DuplexStream>>,
    bytes: Vec<u8>,
}

impl Raw {
    fn new(tls: TlsStream<DuplexStream>) -> Self {
        let (io, to) = split(tls);
        let heard = Heard { io, bytes: Vec::new() };
        Self { heard, to }
    }

    /// Says what every client says first.
    pub(crate) async fn greet(&mut self) {
        self.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).await.unwrap();
        self.to.flush().await.unwrap();
    }

    /// Says the same again and again until nobody listens, or a bound is reached; gives how often.
    pub(crate) async fn flood(to: &mut WriteHalf<TlsStream<DuplexStream>>, mut one: impl FnMut(u32) -> Vec<u8>, most: u32) -> u32 {
        for n in 0..most {
            if to.write_all(&one(n)).await.is_err() || to.flush().await.is_err() {
                return n;
            }
        }
        most
    }
}

impl Heard {
    /// The next frame; none when the connection has ended, however it has.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let read = if self.bytes.starts_with(b"PRI") {
                self.bytes.drain(..PREFACE.len().min(self.bytes.len()));
                None
            } else {
                Frame::read(&self.bytes)
            };
            if let Some((frame, length)) = read {
                self.bytes.drain(..length);
                return Some(frame);
            }
            let got = self.io.read_buf(&mut self.bytes).await.unwrap_or(0);
            if got == 0 {
                return None;
            }
        }
    }

    /// The next frame of this kind that is no acknowledgement; none when there is none to come.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        while let Some(frame) = self.next().await {
            if frame.kind == kind && (kind == HEADERS || !frame.has(ACK)) {
                return Some(frame);
            }
        }
        None
    }
}

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header list, field by field as it is.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Longer ones say their length in more than the prefix.
            match text.len() {
                short @ ..127 => block.push(short as u8),
                long => {
                    let rest = long - 127;
                    assert!(rest < 1 << 14);
                    block.extend([127, 0x80 | (rest & 0x7f) as u8, (rest >> 7) as u8]);
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What asks for a connection.
pub(crate) fn request(stream: u32, flags: u8) -> Vec<u8> {
    let fields = block(&[(":method", "CONNECT"), (":authority", "10.0.2.2:8080")]);
    frame(HEADERS, END_HEADERS | flags, stream, &fields)
}

/// What answers it.
pub(crate) fn answer(stream: u32, status: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(&[(":status", status)]))
}
