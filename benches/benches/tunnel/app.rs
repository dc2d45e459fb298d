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

impl Work {
    /// Bytes of one piece: a chunk of 4 MiB, or a message of 1 KiB.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Upload | Self::Download => 4 << 20,
            Self::Echo => 1 << 10,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            b'u' => Self::Upload,
            b'd' => Self::Download,
            _ => Self::Echo,
        }
    }
}

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
    let work = Work::from_byte(stream.read_u8().await?);
    let mut buffer = vec![7; work.bytes()];
    loop {
        match work {
            Work::Upload => {
                stream.read_exact(&mut buffer).await?;
                stream.write_all(&[0]).await?;
            }
            Work::Download => {
                stream.read_exact(&mut buffer[..1]).await?;
                stream.write_all(&buffer).await?;
            }
            Work::Echo => {
                stream.read_exact(&mut buffer).await?;
                stream.write_all(&buffer).await?;
            }
        }
    }
}
