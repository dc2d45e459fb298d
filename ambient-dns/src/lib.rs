//! The mesh's DNS: names of services are answered from a snapshot of the mesh, everything else is forwarded as it came.
//!
//! This crate makes no sockets, chooses no nameserver, caches nothing and answers nothing that it cannot answer exactly:
//! sockets to serve on are given, sockets to nameservers come from a value that implements [`Upstream`] (as [`Nameservers`]
//! does for nameservers that are always the same), and whatever is not
//! a plain question for the addresses of a name that is the mesh's goes upstream byte for byte: other types, classes and
//! operations, signed queries, options that are not understood. The one entry is [`answer()`], a pure function from a
//! snapshot and a query to an [`Answer`]; [`Server`] is the loop around it, and says what happens when nameservers fail.
//! [`resolv`] reads a `resolv.conf`, to implement [`Upstream`] by one.
//!
//! [`Server`] needs a runtime of tokio with time and I/O. The crate is for Linux, and needs Rust 1.89 or later.
//!
//! There is no cache. The nameservers that pods have are near, and have one; here it could only add what goes wrong with
//! caches: an answer that outlives its cause, that was another client's, or that differs from what the nameserver would say
//! to this query with these flags and options.
//!
//! ```
//! use std::sync::Arc;
//! use ambient_core::{mesh::Update, Mesh, Network, NetworkAddress, Service};
//! use ambient_dns::{answer, Answer, Client, Transport, Zone};
//!
//! let mut web = Service::new("shop", "web.shop.svc.cluster.local");
//! web.vips.push(NetworkAddress::local("10.96.0.7".parse()?));
//! let mesh = Mesh::default().apply([Update::Service(Arc::new(web))]);
//! let client = Client { namespace: "shop", network: &Network::default(), search: &[] };
//!
//! // ID 7, recursion desired, one question: `web`, type A, class IN.
//! let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
//! let Answer::Reply(reply) = answer(&mesh, &Zone::default(), &client, query, Transport::Udp, 0) else {
//!     panic!("a service of the mesh is answered")
//! };
//! assert!(reply.ends_with(&[10, 96, 0, 7]));
//!
//! // The same for type MX: not ours to answer.
//! let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x0f\0\x01";
//! assert_eq!(answer(&mesh, &Zone::default(), &client, query, Transport::Udp, 0), Answer::Forward);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A server for one client, as long as it is polled:
//!
//! ```
//! use std::{hash::{BuildHasher as _, Hasher as _, RandomState}, sync::{Arc, RwLock}};
//! use ambient_core::{mesh::Update, Mesh, NetworkAddress, Service};
//! use ambient_dns::{Nameservers, Server, View, Views, Zone};
//! use tokio::net::{TcpListener, UdpSocket};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The mesh changes; each query is answered from what it is by then. Nothing is said while there is no view.
//! let mesh = Arc::new(RwLock::new(Mesh::default()));
//! let views: Views = Arc::new({
//!     let mesh = mesh.clone();
//!     move || Some(View::new(mesh.read().ok()?.clone()))
//! });
//! let draw = || RandomState::new().build_hasher().finish();
//! let upstream = Nameservers::new(["10.96.0.10:53".parse()?], draw);
//! let server = Server::builder(Zone::default(), "shop", views, Arc::new(upstream)).build();
//!
//! let udp = UdpSocket::bind("127.0.0.1:0").await?; // one address, at port 53 as a rule
//! let tcp = TcpListener::bind("127.0.0.1:0").await?;
//! let at = udp.local_addr()?;
//! tokio::spawn(async move { tokio::join!(server.serve_udp(udp), server.serve_tcp(tcp)) });
//!
//! let mut web = Service::new("shop", "web.shop.svc.cluster.local");
//! web.vips.push(NetworkAddress::local("10.96.0.7".parse()?));
//! let next = Mesh::default().apply([Update::Service(Arc::new(web))]);
//! *mesh.write().expect("no writer panics") = next;
//!
//! let client = UdpSocket::bind("127.0.0.1:0").await?;
//! client.send_to(b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01", at).await?;
//! let mut reply = [0; 512];
//! let length = client.recv(&mut reply).await?;
//! assert!(reply[..length].ends_with(&[10, 96, 0, 7]));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use tokio::net::{TcpStream, UdpSocket};

pub mod observe;
pub mod resolv;

mod answer;
mod exchange;
mod forward;
mod names;
mod nameservers;
mod server;
mod stream;
mod wire;

pub use answer::{Answer, Client, Zone, answer};
pub use nameservers::Nameservers;
pub use server::{Budget, Builder, Limits, Server, View, Views};

/// What a query came by, and an answer goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// One datagram each way; an answer that is too long is cut, and says so ([RFC 1035 4.2.1]).
    ///
    /// [RFC 1035 4.2.1]: https://www.rfc-editor.org/rfc/rfc1035#section-4.2.1
    Udp,
    /// A stream, each message after its length in two bytes ([RFC 7766]).
    ///
    /// [RFC 7766]: https://www.rfc-editor.org/rfc/rfc7766
    Tcp,
}

/// A future on the heap, as a trait with `dyn` needs it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The way to nameservers: which they are for a client's query, and sockets to them.
pub trait Upstream: Send + Sync {
    /// A random word that nobody outside can foresee: IDs are made of it.
    fn draw(&self) -> u64;

    /// Whether what a name means may become known by [`Upstream::learn`]; no, unless said.
    fn learns(&self) -> bool {
        false
    }

    /// Sees to it that the mesh's services of these names are in the next [`View`], if there are any, before a query that may
    /// mean one of them is sent on. It has a deadline of its own.
    ///
    /// # Cancel safety
    /// Dropping the future must be harmless.
    fn learn(&self, hostnames: Vec<String>) -> BoxFuture<'_, ()> {
        drop(hostnames);
        Box::pin(std::future::ready(()))
    }

    /// The nameservers for a datagram that came from `client` to the server's socket at `at`, the first to be asked first:
    /// only the one that the client sent it to, where that is known.
    ///
    /// # Cancel safety
    /// Dropping the future must be harmless.
    fn for_datagram(&self, client: SocketAddr, at: SocketAddr) -> BoxFuture<'_, Arc<[SocketAddr]>>;

    /// The nameservers for what comes on a client's connection, the first to be asked first: only the one that the client
    /// called, where that is known.
    ///
    /// # Cancel safety
    /// Dropping the future must be harmless.
    fn for_stream<'a>(&'a self, client: &'a TcpStream) -> BoxFuture<'a, Arc<[SocketAddr]>>;

    /// A new socket that is connected to a nameserver, so that nobody else is heard on it and the network's errors are; its
    /// port a random one.
    ///
    /// # Errors
    /// When there is no way to the nameserver, or no socket to be had.
    ///
    /// # Cancel safety
    /// Dropping the future must leave no socket behind.
    fn udp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<UdpSocket>>;

    /// A connection to a nameserver; the [`Server`] puts a deadline to it.
    ///
    /// # Errors
    /// When there is none to be had.
    ///
    /// # Cancel safety
    /// Dropping the future must end the attempt.
    fn tcp(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
}
