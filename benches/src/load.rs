//! Work over many connections at once, and who does it.

use std::{
    env,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ambient_testkit::Namespace;
use tokio::{net::TcpStream, runtime::Runtime, task::JoinSet};

use crate::{
    app::Work,
    node::{self, SMALL},
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
    /// Further connections: downloads whose reader has stopped. Where there are some, what counts is the same without.
    pub stalled: usize,
    /// What a sample of a ratio takes, about.
    pub sample: Duration,
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
            sample: Duration::from_millis(200),
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

    /// With longer samples, where the first moments of each count for little otherwise.
    #[must_use]
    pub const fn sampled_for(mut self, sample: Duration) -> Self {
        self.sample = sample;
        self
    }

    /// Whether each side keeps to a core of its own: by `BENCH_PIN`, or else where one piece is on its way at a time.
    ///
    /// Such a piece wakes one thread after another, and takes three times as long when they sleep on different cores, which
    /// the kernel decides by itself now so and now so.
    pub(crate) fn is_pinned(&self) -> bool {
        match env::var("BENCH_PIN") {
            Ok(asked) => asked != "0",
            Err(_) => self.connections == 1 && !self.work.is_bulk(),
        }
    }

    /// The sides as this load wants them: with small buffers where connections stand still, apart where it is
    /// [pinned](Self::is_pinned).
    pub(crate) fn sides(&self, sides: &Sides) -> Sides {
        let sides = match self.stalled {
            0 => sides.clone(),
            _ => sides.buffers(SMALL),
        };
        if self.is_pinned() { sides.apart() } else { sides }
    }

    /// This load over a way between such sides, compared with the contender of that number.
    pub fn contender(&self, sides: &Sides, name: &'static str, way: impl Fn(&Sides) -> Way, against: usize) -> Contender {
        let sides = self.sides(sides);
        let way = way(&sides);
        Contender::new(self, &sides, name, way, against, 0)
    }

    /// Who is compared: direct and tunnel with bare TLS, or tunnel and bare TLS each with itself alone.
    pub fn contenders(&self, sides: &Sides) -> Vec<Contender> {
        let sides = &self.sides(sides);
        let contend = |name, way, against, stalled| Contender::new(self, sides, name, way, against, stalled);
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
    /// Where the client is, if not where the bench is.
    client: Option<Arc<Namespace>>,
    /// None where each piece has a connection of its own.
    connections: Vec<Option<TcpStream>>,
    _stalled: Vec<TcpStream>,
}

impl Contender {
    /// Opens the connections, the stalled ones first. The calling thread, or one that it starts in the near side's namespace,
    /// is the client.
    pub(crate) fn new(load: &Load, sides: &Sides, name: &'static str, way: Way, against: usize, stalled: usize) -> Self {
        sides.near.enter();
        let client = sides.near.elsewhere();
        let runtime = node::runtime();
        let entrance = way.entrance();
        let (stalled, connections) = inside(client.as_deref(), || {
            let stall = |_| runtime.block_on(Work::stall(entrance)).expect("the way is open");
            let stalled: Vec<_> = (0..stalled).map(stall).collect();
            if !stalled.is_empty() {
                settle(&way);
            }
            let connect = |_| {
                let stands = load.work != Work::Touch;
                stands.then(|| runtime.block_on(node::connect(entrance)).expect("the entrance listens"))
            };
            (stalled, (0..load.connections).map(connect).collect())
        });
        Self {
            name,
            against,
            way,
            work: load.work,
            runtime,
            client,
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
        let (runtime, connections) = (&self.runtime, &mut self.connections);
        let carry_out = || {
            runtime.block_on(async {
                let start = now();
                let mut all = JoinSet::new();
                for mut connection in connections.drain(..) {
                    all.spawn(async move {
                        work.carry_out(entrance, &mut connection, pieces).await.expect("the way stays open");
                        connection
                    });
                }
                connections.extend(all.join_all().await);
                start.elapsed()
            })
        };
        inside(self.client.as_deref(), carry_out)
    }

    /// Pieces in all when each connection does so many.
    pub fn pieces(&self, each: u32) -> u64 {
        u64::from(each) * self.connections.len() as u64
    }
}

/// Does something where the client is: on this thread, or on one of its own in a namespace.
fn inside<T: Send>(client: Option<&Namespace>, work: impl FnOnce() -> T + Send) -> T {
    match client {
        Some(client) => client.run(work).expect("the namespace can be entered"),
        None => work(),
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
