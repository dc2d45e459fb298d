//! What the benches of the tunnel share: how to run them, and what they have shown, stands in `README.md`.
//!
//! A [`Way`] leads from a client to the [application](app) and back: straight, through bare TLS, or through a tunnel. A
//! [`Load`] is work done over such ways; [`report::run`] lets the ways do it in turn and prints how they compare.
#![forbid(unsafe_code)]

pub mod app;
mod certs;
pub mod enrolment;
mod hbone;
mod load;
pub mod mesh;
pub mod node;
mod relay;
pub mod report;
pub mod state;
pub mod storm;
mod tls;
mod way;

pub use certs::Certs;
pub use load::{Contender, Load};
pub use way::{Handshakes, Sides, Warmth, Way};
