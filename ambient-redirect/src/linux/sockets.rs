//! Sockets in a pod's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    time::timeout,
};

use super::{Netns, NetnsError, option, stock::Total};
use crate::{netlink::Transport, plan::PROXY_MARK};

/// Makes sockets in namespaces, on threads of its own. Clones share the threads, which end with the last of them.
///
/// Every socket bears [`PROXY_MARK`] before it is bound or connected, so that it is not redirected to itself. A socket stays
/// in the namespace that it was made in, whichever thread uses it.
#[derive(Clone, Debug)]
pub struct Sockets {
    jobs: mpsc::Sender<Job>,
    share: bool,
}

impl Sockets {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be made or the present namespace cannot be opened.
    pub fn new() -> Result<Self, NetnsError> {
        let home = Netns::current()?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let shop = Arc::new(Workshop {
            queue: Mutex::new(queue),
            home,
            stocked: Mutex::default(),
            total: Total::default(),
        });
        for _ in 0..THREADS {
            let shop = shop.clone();
            thread::Builder::new()
                .name("netns-sockets".into())
                .spawn(move || shop.work())
                .map_err(NetnsError::Thread)?;
        }
        Ok(Self { jobs, share: false })
    }

    /// The same, whose listeners share their ports with those of another process of the same user that shares them too
    /// (`SO_REUSEPORT`): so a successor listens before its predecessor has ended.
    #[must_use]
    pub fn sharing_ports(self, share: bool) -> Self {
        Self { share, ..self }
    }

    /// Listens for TCP in a namespace, on a port or an address of it; the listener does not block.
    ///
    /// The address `[::]` takes IPv4 as well, and becomes `0.0.0.0` where there is no IPv6. Another socket on the port is an
    /// error, unless both [share](Self::sharing_ports) it. Accepted sockets inherit the mark.
    ///
    /// # Errors
    /// `AddrInUse` where the port is taken; what setns and the socket calls say otherwise.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no socket behind.
    pub async fn tcp_listener(&self, namespace: &Arc<Netns>, address: SocketAddr, backlog: i32) -> io::Result<std::net::TcpListener> {
        let (socket, address) = self.wildcard(namespace, address, Type::STREAM).await?;
        // A connection that a former listener left in TIME_WAIT must not keep the port.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(self.share)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        namespace.own().listens(&socket, Transport::Tcp, self.share)?;
        Ok(socket.into())
    }

    /// Makes a UDP socket in a namespace, bound to an address; the socket does not block.
    ///
    /// Redirected DNS queries come to the loopback address, and answers must leave from it: bind to `127.0.0.1` and `[::1]`,
    /// a socket each. From a wildcard socket they would leave with the pod's address, and be lost.
    ///
    /// # Errors
    /// `AddrInUse` where the port is taken; what setns and the socket calls say otherwise.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no socket behind.
    pub async fn udp(&self, namespace: &Arc<Netns>, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let (socket, address) = self.wildcard(namespace, address, Type::DGRAM).await?;
        // One that is only asked from has no port that could be another's.
        socket.set_reuse_port(self.share && address.port() != 0)?;
        socket.bind(&address.into())?;
        if address.port() != 0 {
            namespace.own().listens(&socket, Transport::Udp, self.share)?;
        }
        Ok(socket.into())
    }

    /// Connects by TCP from a namespace. With `from` the connection has that source address, which need not be the
    /// namespace's own, and a port that who has the address is not likely to use as well: the kernel would take two
    /// connections with the same addresses and ports for one, though one of them is redirected.
    ///
    /// # Errors
    /// `TimedOut` when there is no answer within `patience`; `AddrNotAvailable` when no port is left; what setns and the socket
    /// calls say otherwise.
    ///
    /// # Cancel safety
    /// Dropping the future ends the attempt.
    pub async fn tcp_connect(
        &self,
        namespace: &Arc<Netns>,
        from: Option<IpAddr>,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<TcpStream> {
        let from = from.map(|ip| ip.to_canonical());
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        if from.is_some_and(|from| from.is_ipv4() != to.is_ipv4()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "source and destination are of different families",
            ));
        }
        let Some(from) = from else {
            let socket = self.outgoing(namespace, Domain::for_address(to)).await?;
            return connected(socket, to, patience).await;
        };
        let mut ports = namespace.ports().choose();
        while let Some(port) = ports.next() {
            let socket = self.foreign(namespace, from).await?;
            // Others of ours may have it too, to other destinations.
            socket.set_reuse_address(true)?;
            match socket.bind(&SocketAddr::new(from, port).into()) {
                // Somebody listens there, or does not share it.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                bound => bound?,
            }
            match connected(socket, to, patience).await {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => ports.taken(),
                other => return other,
            }
        }
        // The kernel knows which are left. It chooses at connect, when the destination is known: more connections than ports are
        // then possible.
        let socket = self.foreign(namespace, from).await?;
        option::set_int(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        connected(socket, to, patience).await
    }

    /// A socket that may have an address which is not the namespace's.
    async fn foreign(&self, namespace: &Arc<Netns>, from: IpAddr) -> io::Result<Socket> {
        let socket = self.outgoing(namespace, Domain::for_address(SocketAddr::new(from, 0))).await?;
        match from {
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        Ok(socket)
    }

    /// A marked socket for a connection.
    async fn outgoing(&self, namespace: &Arc<Netns>, domain: Domain) -> io::Result<Socket> {
        let socket = match namespace.stock().take(domain) {
            Some(socket) => socket,
            None => self.made(namespace, domain, Type::STREAM, true).await?,
        };
        socket.set_mark(PROXY_MARK)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }

    /// A marked socket that does not block.
    async fn socket(&self, namespace: &Arc<Netns>, domain: Domain, kind: Type) -> io::Result<Socket> {
        let socket = self.unmarked(namespace, domain, kind).await?;
        socket.set_mark(PROXY_MARK)?;
        Ok(socket)
    }

    /// A socket such as the pod's own processes have; it does not block.
    pub(super) async fn unmarked(&self, namespace: &Arc<Netns>, domain: Domain, kind: Type) -> io::Result<Socket> {
        self.made(namespace, domain, kind, false).await
    }

    /// One from a thread, which makes some more for the namespace's stock where that is wanted; it does not block.
    async fn made(&self, namespace: &Arc<Netns>, domain: Domain, kind: Type, stock: bool) -> io::Result<Socket> {
        let (answer, answered) = oneshot::channel();
        let job = Job {
            namespace: namespace.clone(),
            domain,
            kind,
            stock,
            answer,
        };
        self.jobs.send(job).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// A socket for an address, and the address; both for IPv4 where `[::]` was asked and there is no IPv6.
    async fn wildcard(&self, namespace: &Arc<Netns>, address: SocketAddr, kind: Type) -> io::Result<(Socket, SocketAddr)> {
        let first = self.socket(namespace, Domain::for_address(address), kind).await;
        match first {
            Ok(socket) => {
                if address.is_ipv6() {
                    socket.set_only_v6(!address.ip().is_unspecified())?;
                }
                Ok((socket, address))
            }
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.is_ipv6() && address.ip().is_unspecified() => {
                let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                Ok((self.socket(namespace, Domain::IPV4, kind).await?, address))
            }
            Err(e) => Err(e),
        }
    }
}

async fn connected(socket: Socket, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    timeout(patience, socket.connect(to)).await.map_err(|_| {
        let seconds = patience.as_secs_f32();
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {to} within {seconds} s"))
    })?
}

/// Of two that [share](Sockets::sharing_ports) a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharer {
    /// Who listened first.
    Elder,
    /// Who has joined.
    Younger,
}

/// Has what comes to a shared port go to one of its two listeners from now on, whichever of them says so. Where there is one alone,
/// it goes on as it did. The kernel does not tell a listener which it is: who leaves sees it by what still comes.
///
/// What was on its way to the other comes within a round trip: a listener that is closed before resets it.
///
/// # Errors
/// When the port is not shared, or the kernel is older than Linux 4.5.
pub fn leave_port(listener: &impl AsFd, to: Sharer) -> io::Result<()> {
    let number = match to {
        Sharer::Elder => 0,
        Sharer::Younger => 1,
    };
    option::prefer(listener.as_fd(), number)
}

impl Sharer {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Elder => Self::Younger,
            Self::Younger => Self::Elder,
        }
    }
}

/// Where a redirected connection was going, as the kernel's conntrack remembers; never an IPv4 address in IPv6 clothes.
///
/// # Errors
/// When the kernel knows nothing of the connection: it was not redirected, or its entry was deleted.
pub fn original_destination(stream: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let local = socket.local_addr()?.as_socket();
    // An IPv4 connection to a dual-stack listener is remembered as what it is: IPv4.
    let v4 = local.is_none_or(|a| a.ip().to_canonical().is_ipv4());
    let destination = if v4 { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    let destination = destination
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the original destination is not an IP address"))?;
    Ok(SocketAddr::new(destination.ip().to_canonical(), destination.port()))
}

/// Makes a TCP connection end with a reset when it is dropped, as it is when a process is killed, until `false` is given at
/// its orderly end.
///
/// # Errors
/// What the socket call says.
pub fn cut_when_dropped(stream: &impl AsFd, cut: bool) -> io::Result<()> {
    SockRef::from(stream).set_linger(cut.then_some(Duration::ZERO))
}

#[derive(Debug)]
struct Job {
    namespace: Arc<Netns>,
    domain: Domain,
    kind: Type,
    /// Whether the namespace's stock is to be filled as well.
    stock: bool,
    answer: oneshot::Sender<io::Result<Socket>>,
}

/// What the threads share.
#[derive(Debug)]
struct Workshop {
    queue: Mutex<mpsc::Receiver<Job>>,
    home: Netns,
    /// Namespaces that may have something in stock.
    stocked: Mutex<Stocked>,
    total: Total,
}

#[derive(Debug, Default)]
struct Stocked {
    namespaces: Vec<Weak<Netns>>,
    swept: Option<Instant>,
}

impl Workshop {
    /// What a thread does until nobody can ask for sockets any more.
    fn work(&self) {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(SWEEPING);
            match next {
                Ok(job) => self.serve(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.sweep();
        }
    }

    fn serve(&self, job: Job) {
        let Job {
            namespace,
            domain,
            kind,
            stock,
            answer,
        } = job;
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let make = || Socket::new(domain, kind.nonblocking(), Some(protocol));
        let made = match namespace.enter() {
            Ok(()) => make(),
            Err(e) => Err(e.into()),
        };
        let fill = stock && made.is_ok();
        let _ = answer.send(made);
        if fill {
            namespace.stock().fill(domain, &self.total, || make().ok());
            self.remember(&namespace);
        }
        // Else the thread would keep the namespace alive. Should it fail nothing is lost: every job enters its own.
        let _ = self.home.enter();
    }

    fn remember(&self, namespace: &Arc<Netns>) {
        let mut stocked = self.stocked.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::downgrade(namespace);
        if !stocked.namespaces.iter().any(|known| known.ptr_eq(&new)) {
            stocked.namespaces.push(new);
        }
    }

    /// Now and then, closes what is in stock and was not asked for.
    #[expect(
        clippy::disallowed_methods,
        reason = "how long something was not asked for decides nothing but whether it is kept"
    )]
    fn sweep(&self) {
        let now = Instant::now();
        let mut stocked = self.stocked.lock().unwrap_or_else(PoisonError::into_inner);
        if stocked.swept.is_some_and(|swept| now.duration_since(swept) < SWEEPING) {
            return;
        }
        stocked.swept = Some(now);
        stocked
            .namespaces
            .retain(|namespace| namespace.upgrade().is_some_and(|namespace| namespace.stock().sweep()));
    }
}

fn gone() -> io::Error {
    io::Error::other("the threads that make sockets have ended")
}

/// A socket takes some microseconds; a second thread keeps a slow setns from holding up all.
const THREADS: usize = 2;
/// What nobody has asked for in so long is closed, after twice as long at most.
const SWEEPING: Duration = Duration::from_secs(10);
