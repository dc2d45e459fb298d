//! A thread with a runtime of its own, as a node would be, and where it stands.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, LazyLock, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use ambient_redirect::plan::PROXY_MARK;
use ambient_testkit::{Namespace, heap};
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

/// Where something runs.
#[derive(Clone, Debug)]
pub struct Place {
    namespace: Option<Arc<Namespace>>,
    address: IpAddr,
    /// Sizes of the buffers of the sockets that are accepted there.
    buffers: Option<u32>,
    core: Option<usize>,
    /// The port at which the rules of the namespace want a proxy. The sockets of one bear its mark there.
    proxy: Option<u16>,
}

impl Place {
    /// This machine's loopback.
    pub fn loopback() -> Self {
        Self {
            namespace: None,
            address: Ipv4Addr::LOCALHOST.into(),
            buffers: None,
            core: None,
            proxy: None,
        }
    }

    /// A namespace, with the address that others reach it by.
    pub fn namespace(namespace: &Arc<Namespace>, address: IpAddr) -> Self {
        Self {
            namespace: Some(Arc::clone(namespace)),
            address,
            ..Self::loopback()
        }
    }

    /// With buffers of so many bytes in the kernel for each connection that is accepted there, instead of what it finds
    /// best.
    #[must_use]
    pub(crate) fn buffers(self, bytes: u32) -> Self {
        Self {
            buffers: Some(bytes),
            ..self
        }
    }

    /// Only on one core of those that the process has, counted round where there are fewer.
    #[must_use]
    pub(crate) fn on(self, core: usize) -> Self {
        let cores = cores(&ALLOWED);
        Self {
            core: cores.get(core % cores.len().max(1)).copied(),
            ..self
        }
    }

    /// The same, at whatever address of the namespace.
    #[must_use]
    pub(crate) fn anywhere(self) -> Self {
        Self {
            address: Ipv4Addr::UNSPECIFIED.into(),
            ..self
        }
    }

    /// The same for a proxy to which rules redirect: it listens there at that port, and what it sends is left alone.
    #[must_use]
    pub(crate) fn proxy(self, port: u16) -> Self {
        Self { proxy: Some(port), ..self }
    }

    /// Connects from there without delaying small segments.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = socket(to.ip(), None)?;
        if self.proxy.is_some() {
            SockRef::from(&socket).set_mark(PROXY_MARK)?;
        }
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Its namespace, if it is not that of the process.
    pub(crate) fn elsewhere(&self) -> Option<Arc<Namespace>> {
        self.namespace.clone()
    }

    fn listener(&self) -> io::Result<TcpListener> {
        let socket = socket(self.address, self.buffers)?;
        match self.proxy {
            Some(port) => {
                SockRef::from(&socket).set_mark(PROXY_MARK)?;
                // The way of one load ends as that of the next begins.
                socket.set_reuseaddr(true)?;
                socket.bind(SocketAddr::new(self.address, port))?;
            }
            None => socket.bind(SocketAddr::new(self.address, 0))?,
        }
        // As many as any load connects at once.
        socket.listen(4096)
    }

    /// Brings the calling thread to where this is: to its core, or to any.
    pub(crate) fn enter(&self) {
        sched_setaffinity(None, &self.cores()).expect("the cores are the process's own");
    }

    /// The cores that what runs there may have.
    pub(crate) fn cores(&self) -> CpuSet {
        let Some(core) = self.core else { return *ALLOWED };
        let mut only = CpuSet::new();
        only.set(core);
        only
    }
}

/// A listener in a thread of its own, and all that it serves; dropping it ends them.
#[derive(Debug)]
pub struct Node {
    /// Where it listens.
    pub address: SocketAddr,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Listens at a port of the place, and serves.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn listen<F>(place: &Place, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::channel();
        let place = place.clone();
        let namespace = place.namespace.clone();
        let work = move || {
            let mut stopped = stopped;
            place.enter();
            let runtime = runtime();
            runtime.block_on(async {
                let listener = place.listener().expect("a port to listen at");
                let address = listener.local_addr().expect("it is bound");
                ready.send((address, Handle::current())).expect("who started it waits");
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.expect("a client");
                            stream.set_nodelay(true).expect("a TCP option");
                            tokio::spawn(serve(stream));
                        }
                        _ = &mut stopped => break,
                    }
                }
            });
        };
        let thread = thread::spawn(move || match namespace {
            Some(namespace) => namespace.run(work).expect("the namespace can be entered"),
            None => work(),
        });
        let (address, runtime) = started.recv().expect("it listens");
        Self {
            address,
            runtime,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The CPU time its thread has taken, in the kernel and outside.
    ///
    /// # Panics
    /// When the thread has panicked.
    pub fn cpu(&self) -> Duration {
        self.ask(|| {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            // Never negative.
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        })
    }

    /// What its thread holds on the heap, where [`heap::CountingHeap`] counts.
    ///
    /// # Panics
    /// When the thread has panicked.
    pub fn held(&self) -> i64 {
        self.ask(heap::held)
    }

    /// From now on its thread has what processor time others leave; not to be taken back.
    ///
    /// # Panics
    /// When the thread has panicked.
    pub(crate) fn step_back(&self) {
        self.ask(step_back);
    }

    /// What its thread answers, between other things that it does.
    fn ask<T: Send + 'static>(&self, question: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.runtime.spawn(async move {
            let _ = tell.send(question());
        });
        told.recv().expect("the node runs")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.take().map(|stop| stop.send(()));
        // A panic has been printed where it happened.
        self.thread.take().map(JoinHandle::join);
    }
}

/// From now on the calling thread has what processor time others leave.
pub(crate) fn step_back() {
    rustix::process::nice(19).expect("anybody may step back");
}

/// A runtime on the thread that uses it.
///
/// # Panics
/// When the process has no descriptor left.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Connects without delaying small segments.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket with buffers of so many bytes, or of what the kernel finds best.
pub(crate) fn socket(family: IpAddr, buffers: Option<u32>) -> io::Result<TcpSocket> {
    let socket = match family {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(bytes) = buffers {
        socket.set_recv_buffer_size(bytes)?;
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(socket)
}

/// Bytes of a buffer in the kernel where many connections stand still: what they fill is the way then, and not the memory
/// that all sockets of a machine share.
pub(crate) const SMALL: u32 = 64 << 10;

/// The cores of the process, as they were before any thread chose one.
static ALLOWED: LazyLock<CpuSet> = LazyLock::new(|| sched_getaffinity(None).expect("a process has cores"));

fn cores(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}
