//! A private world for tests and for the lab, never for production: this crate is not published, promises nothing to
//! others, and refuses to touch anything of the machine outside of the namespaces that it makes.
//!
//! The one entry is [`world::enter`]: called first thing in `main`, with or without root, it puts the process into
//! fresh mount and network namespaces and gives the [`World`]. In it: [`World::namespace`] makes network namespaces,
//! [`link`] joins them by wires ([`link_delayed`] by slow ones), [`Namespace::spawn`] starts programs in them that never outlive the world,
//! [`Capture`] sees what really passed over a wire. [`harness::main`] runs tests in such worlds, [`kept`] finds the
//! world of a lab again, [`ca`] issues the certificates that tests need, [`allocations`] counts what is allocated, [`log`] hears what a test logs, [`rights`] takes capabilities from a process that runs, [`corpus`] replays what fuzzers found.
//!
//! ```no_run
//! use ambient_testkit::{Capture, End, Program, link, world};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let world = world::enter()?; // or one line that says why this machine refuses
//! let (client, server) = (world.namespace("client")?, world.namespace("server")?);
//! link(
//!     &End::new(&client, "eth0").address("10.0.0.1/24".parse::<ipnet::IpNet>()?),
//!     &End::new(&server, "eth0").address("10.0.0.2/24".parse::<ipnet::IpNet>()?),
//! )?;
//! let capture = Capture::start(&server, "eth0")?;
//! let listener = server.run(|| std::net::TcpListener::bind("10.0.0.2:80"))??;
//! let mut caller = client.spawn(&Program::new("curl").arg("http://10.0.0.2/"))?;
//! let (_stream, from) = listener.accept()?;
//! assert_eq!(from.ip().to_string(), "10.0.0.1");
//! caller.kill()?;
//! assert!(capture.seen()?.contains(b"GET / HTTP/1.1"));
//! # Ok(())
//! # }
//! ```

pub mod allocations;
pub mod ca;
pub mod capture;
pub mod cluster;
pub mod corpus;
pub mod harness;
pub mod heap;
pub mod kept;
pub mod log;
pub mod rights;
#[cfg(feature = "spire")]
pub mod spire;
pub mod world;

mod namespace;
mod process;
mod skip;
mod sys;
mod view;

pub use capture::Capture;
pub use namespace::{DelayedLink, End, Namespace, NamespaceError, NamespaceId, link, link_delayed};
pub use process::{Output, Process, Program, SpawnError, exit_code};
pub use rustix::process::Signal;
pub use skip::skipped;
pub use view::{Resolution, View};
pub use world::{NoWorld, Refused, World};
