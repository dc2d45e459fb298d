//! A thread with a runtime of its own, as a node would be, and where it stands.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

/// Where something runs.
#[derive(Clone, Debug)]
pub struct Place {
    address: IpAddr,
}

impl Place {
    /// This machine's loopback.
    pub fn loopback() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST.into(),
        }
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
        let (stop, mut stopped) = oneshot::channel::<()>();
        let (ready, started) = mpsc::channel();
        let address = place.address;
        let work = move || {
            let runtime = runtime();
            runtime.block_on(async {
                let listener = listener(address).expect("a port to listen at");
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
        let thread = std::thread::spawn(work);
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
        let (tell, told) = mpsc::channel();
        self.runtime.spawn(async move {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            // Never negative.
            let time = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
            let _ = tell.send(time);
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

/// With a queue for as many connections as any load makes at once.
fn listener(address: IpAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    socket.bind(SocketAddr::new(address, 0))?;
    socket.listen(4096)
}
