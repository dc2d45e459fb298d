//! Work over many connections at once, and who does it.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, runtime::Runtime, task::JoinSet};

use crate::{
    app::Work,
    node,
    way::{Sides, Warmth, Way},
};

/// What is done over how many connections.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Its name, by which it is asked for.
    pub name: &'static str,
    /// The work on each connection.
    pub work: Work,
    /// Connections at once.
    pub connections: usize,
    /// Whether the ways may keep anything.
    pub warmth: Warmth,
    /// Further connections, downloads whose reader has stopped. Where there are some, what counts is the same without.
    pub stalled: usize,
}

impl Load {
    /// Work over connections that stand, or each time over new ones of a warm way.
    pub const fn new(name: &'static str, work: Work, connections: usize) -> Self {
        Self {
            name,
            work,
            connections,
            warmth: Warmth::Warm,
            stalled: 0,
        }
    }

    /// With nothing kept from one connection to the next.
    #[must_use]
    pub const fn cold(mut self) -> Self {
        self.warmth = Warmth::Cold;
        self
    }

    /// Beside so many connections whose reader has stopped.
    #[must_use]
    pub const fn beside_stalled(mut self, stalled: usize) -> Self {
        self.stalled = stalled;
        self
    }

    /// Who is compared: direct and tunnel with bare TLS, or tunnel and bare TLS each with itself alone.
    pub fn contenders(&self, sides: &Sides) -> Vec<Contender> {
        let contend = |name, way, against, stalled| Contender::new(self, name, way, against, stalled);
        let (tls, hbone) = (|| Way::tls(sides, self.warmth), || Way::hbone(sides, self.warmth));
        if self.stalled == 0 {
            vec![
                contend("tls", tls(), 0, 0),
                contend("hbone", hbone(), 0, 0),
                contend("direct", Way::direct(sides), 0, 0),
            ]
        } else {
            vec![
                contend("tls alone", tls(), 0, 0),
                contend("tls beside", tls(), 0, self.stalled),
                contend("hbone alone", hbone(), 2, 0),
                contend("hbone beside", hbone(), 2, self.stalled),
            ]
        }
    }
}

/// A way, and the connections over which it carries a load.
#[derive(Debug)]
pub struct Contender {
    /// Its name in reports.
    pub name: &'static str,
    /// Which of the load's contenders it is compared with.
    pub against: usize,
    /// The way.
    pub way: Way,
    /// The work.
    pub work: Work,
    runtime: Runtime,
    /// None where each piece has a connection of its own.
    connections: Vec<Option<TcpStream>>,
    _stalled: Vec<TcpStream>,
}

impl Contender {
    fn new(load: &Load, name: &'static str, way: Way, against: usize, stalled: usize) -> Self {
        let runtime = node::runtime();
        let entrance = way.entrance();
        let connect = || async { node::connect(entrance).await.expect("the entrance listens") };
        let stalled = (0..stalled).map(|_| {
            runtime.block_on(async {
                let mut connection = connect().await;
                Work::Download.order(&mut connection, u32::MAX).await.expect("the way is open");
                connection
            })
        });
        let stalled: Vec<_> = stalled.collect();
        if !stalled.is_empty() {
            settle(&way);
        }
        let connect = |_| (load.work != Work::Touch).then(|| runtime.block_on(connect()));
        let connections = (0..load.connections).map(connect).collect();
        Self {
            name,
            against,
            way,
            work: load.work,
            runtime,
            connections,
            _stalled: stalled,
        }
    }

    /// So many pieces of work on each connection, on all connections at once; how long that took.
    ///
    /// # Panics
    /// When the way does not stay open.
    pub fn run(&mut self, pieces: u32) -> Duration {
        let (work, entrance) = (self.work, self.way.entrance());
        self.runtime.block_on(async {
            let start = now();
            let mut all = JoinSet::new();
            for mut connection in self.connections.drain(..) {
                all.spawn(async move {
                    work.carry_out(entrance, &mut connection, pieces).await.expect("the way stays open");
                    connection
                });
            }
            self.connections.extend(all.join_all().await);
            start.elapsed()
        })
    }

    /// Pieces in all when each connection does so many.
    pub fn pieces(&self, each: u32) -> u64 {
        u64::from(each) * self.connections.len() as u64
    }
}

/// Waits until the proxies do nothing any more: whatever fits on the way has filled it.
fn settle(way: &Way) {
    for _ in 0..50 {
        let before = way.cpu();
        thread::sleep(Duration::from_millis(100));
        if way.cpu() - before < Duration::from_millis(2) {
            return;
        }
    }
    panic!("{}: stalled connections do not stand still", way.name);
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}
