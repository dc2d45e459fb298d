//! Applications: servers that answer, and connections that stay.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ambient_redirect::{
    linux::Netns,
    netlink::{BaseChain, Batch, ChainKind, Cmp, Expr, Family, Hook, Nftables, PayloadBase, Verdict},
};

use crate::node::Node;

const PATIENCE: Duration = Duration::from_secs(30);

/// Gives back all that it hears, on port 8081.
pub(crate) fn echo(at: &Arc<Netns>) {
    let listener = at.run(|| TcpListener::bind("[::]:8081").unwrap()).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = (&stream).read(&mut buffer) {
                    if (&stream).write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Says `plain` and closes, on port 8082.
pub(crate) fn telling(at: &Arc<Netns>) {
    let listener = at.run(|| TcpListener::bind("[::]:8082").unwrap()).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"plain");
        }
    });
}

/// As [`hear_all`]; an error says from which port, and when it came.
#[expect(clippy::disallowed_methods, reason = "how long a failure took says by what it was caused")]
pub(crate) fn hear_all_or_say(to: SocketAddr) -> Result<String, (u16, String)> {
    let begun = std::time::Instant::now();
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
    let result = socket.connect_timeout(&to.into(), PATIENCE);
    let port = socket.local_addr().ok().and_then(|a| a.as_socket()).map_or(0, |a| a.port());
    let say = |what: &str, e: io::Error| (port, format!("{what} {to} from port {port}, after {:?}: {e}", begun.elapsed()));
    result.map_err(|e| say("connecting to", e))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| say("reading from", e))?;
    Ok(text)
}

/// Has a namespace lose what comes by TCP to a port or from it, or no more.
pub(crate) fn lose(at: &Arc<Netns>, port: u16, on: bool) {
    let rule = |offset| {
        vec![
            Expr::Payload {
                base: PayloadBase::Transport,
                offset,
                len: 2,
                reg: 1,
            },
            Expr::Cmp {
                op: Cmp::Equal,
                reg: 1,
                data: port.to_be_bytes().to_vec(),
            },
            Expr::Verdict(Verdict::Drop),
        ]
    };
    at.run(|| {
        let mut batch = Batch::default();
        if on {
            batch.add_table(Family::Inet, "lossy", b"");
            let input = BaseChain {
                kind: ChainKind::Filter,
                hook: Hook::Input,
                priority: 0,
            };
            batch.add_base_chain(Family::Inet, "lossy", "input", &input);
            for offset in [0, 2] {
                batch.add_rule(Family::Inet, "lossy", "input", &rule(offset));
            }
        } else {
            batch.delete_table(Family::Inet, "lossy");
        }
        Nftables::open().unwrap().commit(batch, None).unwrap();
    })
    .unwrap();
}

/// Connects and hears all that there is to hear.
pub(crate) fn hear_all(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The same, from a namespace.
pub(crate) async fn ask(from: &Arc<Netns>, to: &str) -> io::Result<String> {
    let (from, to) = (from.clone(), to.parse().unwrap());
    let asked = tokio::task::spawn_blocking(move || from.run(|| hear_all(to)));
    asked.await.unwrap().unwrap()
}

/// Opens a connection from a namespace to where all is given back, and uses it.
pub(crate) fn converse_with(from: &Arc<Netns>, to: &str) -> io::Result<()> {
    let to = to.parse().unwrap();
    from.run(|| Pair::open(to, false)?.converse()).unwrap()
}

pub(crate) async fn until(what: &str, mut ask: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if ask() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited for {what} in vain");
}

/// A connection to where all is given back.
#[derive(Debug)]
pub(crate) struct Pair {
    stream: TcpStream,
    /// The pod's end, and the other.
    pub(crate) pods: SocketAddr,
    pub(crate) others: SocketAddr,
    pub(crate) inbound: bool,
}

impl Pair {
    pub(crate) fn open(to: SocketAddr, inbound: bool) -> io::Result<Self> {
        Self::of(TcpStream::connect_timeout(&to, PATIENCE)?, inbound)
    }

    pub(crate) fn of(stream: TcpStream, inbound: bool) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let (pods, others) = if inbound { (peer, own) } else { (own, peer) };
        Ok(Self {
            stream,
            pods,
            others,
            inbound,
        })
    }

    pub(crate) fn converse(&mut self) -> io::Result<()> {
        self.stream.write_all(b"hello")?;
        let mut heard = [0; 5];
        self.stream.read_exact(&mut heard)?;
        assert_eq!(&heard, b"hello");
        Ok(())
    }

    /// Waits for it to be cut, without having said anything: where it was closed its process hears of an abortion, and the
    /// other end of a reset.
    pub(crate) fn is_cut(&mut self) -> bool {
        let cut = [io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionAborted];
        matches!(self.stream.read(&mut [0; 8]), Err(e) if cut.contains(&e.kind()))
    }
}

/// Opens a connection from a namespace, and from a port unless that is 0, to a listener of a pod's, which is given as well. Who took
/// it keeps it, and says nothing.
pub(crate) fn come(from: &Arc<Netns>, pod: &Arc<Netns>, to: &str, port: u16) -> (TcpListener, Pair) {
    let to: SocketAddr = to.parse().unwrap();
    let listener = pod.run(|| TcpListener::bind(to).unwrap()).unwrap();
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).unwrap();
        let unspecified: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
        if to.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&SocketAddr::new(unspecified, port).into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        Pair::of(socket.into(), true).unwrap()
    };
    let pair = from.run(connect).unwrap();
    let (taken, _) = listener.accept().unwrap();
    thread::spawn(move || {
        let mut taken = taken;
        // Until it is cut.
        let _ = taken.read(&mut [0]);
    });
    (listener, pair)
}

/// A pod hears from a server elsewhere without end until it is enough, and says nothing itself; counts what it hears.
pub(crate) fn download(server: &Arc<Netns>, pod: &Arc<Netns>, at: &str, enough: &Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let listener = server.run(|| TcpListener::bind((at, 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let mut stream = pod.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap()).unwrap();
    let (mut taken, _) = listener.accept().unwrap();
    let (ends, heard) = (enough.clone(), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || while !ends.load(Ordering::Relaxed) && taken.write_all(&[0; 16_000]).is_ok() {});
    let count = heard.clone();
    thread::spawn(move || {
        while let Ok(n @ 1..) = stream.read(&mut [0; 16_000]) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    });
    heard
}

/// IPv4 and IPv6, from a pod and to it, two of each.
pub(crate) fn open_all(node: &Node, pod: &Arc<Netns>) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for _ in 0..2 {
        for (from, to, inbound) in [
            (pod, "10.0.0.1:8081", false),
            (pod, "[fd00::1]:8081", false),
            (&node.netns, "10.0.0.2:8081", true),
            (&node.netns, "[fd00::2]:8081", true),
        ] {
            let mut pair = from.run(|| Pair::open(to.parse().unwrap(), inbound).unwrap()).unwrap();
            pair.converse().unwrap();
            pairs.push(pair);
        }
    }
    pairs
}

/// Connections that are always in use, until they are dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Traffic {
    pub(crate) fn over(pairs: Vec<Pair>) -> Self {
        let mut traffic = Self {
            stop: Arc::default(),
            count: Arc::default(),
            failures: Arc::default(),
            threads: Vec::new(),
        };
        for (at, mut pair) in pairs.into_iter().enumerate() {
            let (stop, count, failures) = (traffic.stop.clone(), traffic.count.clone(), traffic.failures.clone());
            traffic.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = pair.converse() {
                        failures.lock().unwrap().push(format!("{pair:?}: {e}"));
                        return;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    // Some say something all the time, some now and then.
                    thread::sleep(Duration::from_millis(if at % 2 == 0 { 1 } else { 50 }));
                }
            }));
        }
        traffic
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
