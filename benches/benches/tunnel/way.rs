//! The ways to the application that are compared.

use std::net::SocketAddr;

use crate::{app, hbone, tls};

/// A way to the application.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// Where a client connects.
    pub(crate) entrance: SocketAddr,
}

/// Which of [`all`] the others are measured by.
pub(crate) const TLS: usize = 1;

/// All of them, each with proxies of its own.
pub(crate) fn all() -> [Way; 3] {
    let app = app::start();
    [
        Way {
            name: "direct",
            entrance: app,
        },
        Way {
            name: "tls",
            entrance: tls::start(app),
        },
        Way {
            name: "hbone",
            entrance: hbone::start(app),
        },
    ]
}
