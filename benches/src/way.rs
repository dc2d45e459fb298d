//! The ways to the application that are compared.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ambient_core::ports;

use crate::{
    app, hbone,
    mesh::Mesh,
    node::{Node, Place},
    relay, tls,
};

/// Whether a way keeps anything of one connection for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warmth {
    /// Bare TLS resumes sessions, as rustls does by default; streams share tunnels.
    Warm,
    /// A full handshake for each connection: bare TLS without resumption, a pool for each stream.
    Cold,
}

/// Where the two ends are: client and near proxy at one, far proxy and application at the other.
#[derive(Clone, Debug)]
pub struct Sides {
    /// The client's.
    pub near: Place,
    /// The application's.
    pub far: Place,
    /// Whether the rules of a pod take the client's connections to the near proxy, as a node's do.
    pub redirected: bool,
}

impl Sides {
    /// Both on this machine's loopback.
    pub fn loopback() -> Self {
        Self {
            near: Place::loopback(),
            far: Place::loopback(),
            redirected: false,
        }
    }

    /// The same with small buffers.
    pub(crate) fn buffers(&self, bytes: u32) -> Self {
        Self {
            near: self.near.clone().buffers(bytes),
            far: self.far.clone().buffers(bytes),
            redirected: self.redirected,
        }
    }

    /// The same with the near side on one core and the far side on another, as two nodes have each their own.
    pub(crate) fn apart(&self) -> Self {
        Self {
            near: self.near.clone().on(0),
            far: self.far.clone().on(1),
            redirected: self.redirected,
        }
    }

    /// Where the proxies are, the near one first.
    pub(crate) fn proxies(&self) -> [Place; 2] {
        let (near, far) = (self.near.clone(), self.far.clone());
        match self.redirected {
            // A redirected connection goes to the loopback device's address.
            true => [near.anywhere().proxy(ports::OUTBOUND), far.proxy(ports::HBONE)],
            false => [near, far],
        }
    }
}

/// A way to the application, with an application and proxies of its own; dropping it ends them.
#[derive(Debug)]
pub struct Way {
    /// `direct`, `bytes alone`, `tls` or `hbone`.
    pub name: &'static str,
    /// What bare TLS did.
    pub handshakes: Option<Arc<Handshakes>>,
    /// Near and far; none on the direct way.
    proxies: Vec<Node>,
    /// Or whole nodes in processes of their own, which take what is sent to the application.
    mesh: Option<Arc<Mesh>>,
    app: Node,
    /// The client speaks to the application, and is led to the near proxy.
    redirected: bool,
}

/// How the handshakes of bare TLS ended.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// With certificates and signatures.
    pub full: AtomicU64,
    /// On the ground of an earlier one.
    pub resumed: AtomicU64,
}

impl Way {
    /// No proxy at all.
    pub fn direct(sides: &Sides) -> Self {
        Self {
            name: "direct",
            handshakes: None,
            proxies: Vec::new(),
            mesh: None,
            app: app::start(&sides.far),
            redirected: false,
        }
    }

    /// Proxies that do nothing but pass bytes on: the bound of what any can reach.
    pub fn bytes_alone(sides: &Sides) -> Self {
        let app = app::start(&sides.far);
        Self {
            name: "bytes alone",
            handshakes: None,
            proxies: relay::start(sides, app.address).into(),
            mesh: None,
            app,
            redirected: sides.redirected,
        }
    }

    /// A TLS connection for each TCP connection.
    pub fn tls(sides: &Sides, warmth: Warmth) -> Self {
        let app = app::start(&sides.far);
        let handshakes = Arc::new(Handshakes::default());
        Self {
            name: "tls",
            proxies: tls::start(sides, app.address, warmth, &handshakes).into(),
            handshakes: Some(handshakes),
            mesh: None,
            app,
            redirected: false,
        }
    }

    /// A tunnel.
    pub fn hbone(sides: &Sides, warmth: Warmth) -> Self {
        let app = app::start(&sides.far);
        Self {
            name: "hbone",
            handshakes: None,
            proxies: hbone::start(sides, app.address, warmth).into(),
            mesh: None,
            app,
            redirected: sides.redirected,
        }
    }

    /// Tunnels whose streams lead nowhere: a client writes how many it wants as a `u32`, reads a byte when they all stand,
    /// and they are held until it closes its connection.
    pub fn held_streams(sides: &Sides) -> Self {
        let app = app::start(&sides.far);
        Self {
            name: "hbone, stream alone",
            handshakes: None,
            proxies: hbone::hold(sides).into(),
            mesh: None,
            app,
            redirected: false,
        }
    }

    /// From a pod of a mesh to another.
    pub fn over(mesh: &Arc<Mesh>, sides: &Sides) -> Self {
        Self {
            name: mesh.name,
            handshakes: None,
            proxies: Vec::new(),
            mesh: Some(Arc::clone(mesh)),
            app: app::start(&sides.far),
            redirected: false,
        }
    }

    /// Where a client connects.
    pub fn entrance(&self) -> SocketAddr {
        match self.proxies.first() {
            Some(near) if !self.redirected => near.address,
            _ => self.app.address,
        }
    }

    /// What the proxies hold on the heap, the near one first: see [`Node::held`].
    pub fn held(&self) -> Vec<i64> {
        self.proxies.iter().map(Node::held).collect()
    }

    /// The CPU time that the proxies have taken.
    pub fn cpu(&self) -> Duration {
        let of_mesh = self.mesh.iter().map(|mesh| mesh.cpu());
        self.proxies.iter().map(Node::cpu).chain(of_mesh).sum()
    }
}

impl Handshakes {
    pub(crate) fn count(&self, kind: Option<rustls::HandshakeKind>) {
        let counter = match kind {
            Some(rustls::HandshakeKind::Resumed) => &self.resumed,
            _ => &self.full,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Full ones, and resumed ones.
    pub fn counts(&self) -> (u64, u64) {
        (self.full.load(Ordering::Relaxed), self.resumed.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{app::Work, node};

    fn touch(way: &Way, times: u32) {
        node::runtime()
            .block_on(Work::Touch.carry_out(way.entrance(), &mut None, times))
            .unwrap();
    }

    #[test]
    fn bare_tls_resumes_with_client_certificates_when_it_is_warm() {
        let way = Way::tls(&Sides::loopback(), Warmth::Warm);
        touch(&way, 20);
        assert_eq!(way.handshakes.as_ref().unwrap().counts(), (4, 16));
    }

    #[test]
    fn bare_tls_never_resumes_when_it_is_cold() {
        let way = Way::tls(&Sides::loopback(), Warmth::Cold);
        touch(&way, 5);
        assert_eq!(way.handshakes.as_ref().unwrap().counts(), (5, 0));
    }

    #[test]
    fn proxies_tell_their_cpu_time() {
        for way in [
            Way::bytes_alone(&Sides::loopback()),
            Way::tls(&Sides::loopback(), Warmth::Cold),
            Way::hbone(&Sides::loopback(), Warmth::Cold),
        ] {
            let before = way.cpu();
            touch(&way, 5);
            assert!(way.cpu() > before, "{}", way.name);
        }
    }
}
