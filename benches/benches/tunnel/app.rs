//! The application at the end of each way, and the threads that everything runs on.

use std::{future::Future, io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

/// What a client says it will do, as the first byte of its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A chunk to the application, which answers with a byte.
    Upload = b'u' as isize,
    /// A byte to the application, which answers with a chunk.
    Download = b'd' as isize,
    /// A message to the application, which sends it back.
    Echo = b'e' as isize,
}

/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 4 << 20;
/// Bytes of a message.
pub(crate) const MESSAGE: usize = 1 << 10;

/// A runtime on the thread that uses it.
pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Listens on loopback, and serves in a thread of its own.
pub(crate) fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("a client");
                stream.set_nodelay(true).expect("a TCP option");
                tokio::spawn(serve(stream));
            }
        });
    });
    address
}

/// The application's address.
pub(crate) fn start() -> SocketAddr {
    listen(|mut stream| async move {
        // Ends with the client.
        let _ = serve(&mut stream).await;
    })
}

async fn serve(stream: &mut TcpStream) -> io::Result<()> {
    let work = stream.read_u8().await?;
    let mut buffer = vec![7; CHUNK];
    loop {
        if work == Work::Upload as u8 {
            stream.read_exact(&mut buffer).await?;
            stream.write_all(&[0]).await?;
        } else if work == Work::Download as u8 {
            stream.read_exact(&mut buffer[..1]).await?;
            stream.write_all(&buffer).await?;
        } else {
            stream.read_exact(&mut buffer[..MESSAGE]).await?;
            stream.write_all(&buffer[..MESSAGE]).await?;
        }
    }
}
