//! HBONE: byte streams to workloads, as HTTP/2 CONNECT in mutual TLS between SPIFFE identities.
//!
//! This crate opens no socket, routes nothing, decides no policy, counts no metric and reads no environment: what dials,
//! the credentials, the cryptography, the clock of certificates, the limits and the observer are values passed in. The
//! one entry type is [`Pool`], which gives streams to peers; [`Server`] is its other end, and [`relay()`] moves the bytes
//! between a stream and anything else. A tunnel within a tunnel needs nothing more: a [`Stream`] is what
//! [`Server::accept`] and [`Dial`] take.
//!
//! The HTTP/2 in it knows CONNECT and nothing else, and was made for this: no stream slows another, windows grow for streams
//! that are read as fast as they come and never for others, an idle stream costs a few hundred bytes, and its bytes change
//! hands without a copy where they can. What is on the wire, and why, is in `SPEC.md` beside this crate, with test vectors.
//! What is bounded, and by how much, is in [`Limits`].
//!
//! The feature `aws-lc-rs`, on by default, is that of `ambient-tls`: it adds `ambient_tls::provider()`, and nothing here. Without it no
//! cryptography library is among the dependencies, and any provider of rustls can be given. A runtime of tokio with time is needed. The
//! crate is for Linux, and needs Rust 1.89 or later.
//!
//! If the peer is in the same process, [`pipe()`] makes a pair of ends in the place of the stream.
//!
//! [`Pool::connect_with`] saves a round trip for a client that has bytes to send already: they go along with the request. If it is refused
//! they come back, and the refusal says whether another peer [may have them](ConnectError::may_retry_elsewhere).
//!
//! Credentials and trust may change at any time. New handshakes use the new ones; a tunnel goes on until the first of its
//! two certificates ends, or until its peer is found revoked: after a change of trust call [`Pool::recheck`] and
//! [`Server::recheck`]. Why it ended is a [`TunnelLost`], and all its streams end as reset. [`Pool::drain`] and [`Server::drain`] end all
//! of them in good order.
//!
//! An echo over a tunnel in memory:
//!
//! ```
//! # #[path = "../tests/support/mod.rs"] mod support;
//! # use std::{io, net::SocketAddr, sync::Arc, time::Duration};
//! # use ambient_hbone::*;
//! # use http::HeaderMap;
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! /// Reaches whoever stands beside; a real one makes TCP connections.
//! struct Beside(Server, ambient_core::Identity);
//!
//! impl Dial for Beside {
//!     fn dial<'a>(&'a self, _: &'a Speaker, _: SocketAddr) -> BoxFuture<'a, io::Result<BoxedIo>> {
//!         Box::pin(async move {
//!             let (near, far) = tokio::io::duplex(64 * 1024);
//!             let (server, identity) = (self.0.clone(), self.1.clone());
//!             tokio::spawn(async move {
//!                 let mut session = server.accept(far, &identity).await?;
//!                 while let Some(request) = session.next().await {
//!                     tokio::spawn(async move {
//!                         let (mut from, mut to) = request.accept(HeaderMap::new())?.into_split();
//!                         tokio::io::copy(&mut from, &mut to).await?;
//!                         to.shutdown().await
//!                     });
//!                 }
//!                 Ok::<_, AcceptError>(())
//!             });
//!             Ok(Box::new(near) as BoxedIo)
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (cart, stock, credentials, provider) = support::pair();
//! // `cart` and `stock` are identities. `credentials` is an `Arc<dyn ambient_core::Credentials>` that has a certificate for each,
//! // and the roots to trust; `provider` is `Arc::new(ambient_tls::provider())`.
//! let server = Server::builder(credentials.clone(), provider.clone()).build();
//! let pool = Pool::builder(Arc::new(Beside(server.clone(), stock.clone())), credentials, provider).build();
//!
//! let speaker = Speaker::new("pod cart-0", cart);
//! let destination = Destination::new("10.0.2.2:15008".parse()?, "10.0.2.2:8080".parse()?, [stock]);
//! let mut stream = pool.connect(&speaker, &destination).await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?; // END_STREAM; the other direction goes on
//! let mut echo = String::new();
//! stream.read_to_string(&mut echo).await?;
//! assert_eq!(echo, "hello");
//!
//! // What is under way has ten seconds to end, and nothing new begins.
//! drop(stream);
//! tokio::join!(pool.drain(Duration::from_secs(10)), server.drain(Duration::from_secs(10)));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod dial;
mod driver;
mod keepalive;
mod limits;
mod pipe;
mod pool;
mod proto;
mod server;
mod stream;
mod term;
mod tunnel;
mod turns;
mod wire;

pub mod relay;

// Part of the API: headers and statuses; providers and clocks.
pub use {http, rustls};

pub use dial::{BoxFuture, BoxedIo, Destination, Dial, Duplex, Speaker, SpeakerKey};
pub use limits::{Limits, WindowGrowth};
pub use pipe::{Pipe, PipeCutter, PipeLost, pipe};
pub use pool::{ConnectError, NotConnected, Phase, Pool, PoolBuilder};
pub use proto::connect::MalformedRequest;
pub use relay::{RelayLimits, Tally, refuse_quietly, relay};
pub use server::{AcceptError, Request, Server, ServerBuilder, Session};
pub use stream::{ReadHalf, Stream, StreamError, WriteHalf};
pub use tunnel::{Rechecked, TunnelLost};
pub use turns::{InTurn, Share, Turns, Work};
