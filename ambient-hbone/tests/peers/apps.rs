//! What stands behind the servers: small TCP applications on ports of their own.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Sends everything back, and ends when the other side does.
pub(crate) async fn echo() -> SocketAddr {
    listen(|mut socket| async move {
        let (mut from, mut to) = socket.split();
        if tokio::io::copy(&mut from, &mut to).await.is_ok() {
            let _ = to.shutdown().await;
        }
    })
    .await
}

/// Says how many bytes came, once the other side has ended: without a half-close it says nothing.
pub(crate) async fn count() -> SocketAddr {
    listen(|mut socket| async move {
        if let Ok(n) = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await {
            let _ = socket.write_all(n.to_string().as_bytes()).await;
        }
    })
    .await
}

/// Says half of what it has to say, waits for a byte, and resets the connection.
pub(crate) async fn breaks_off() -> SocketAddr {
    listen(|mut socket| async move {
        let _ = socket.write_all(b"half of it").await;
        let _ = socket.read(&mut [0; 1]).await;
        let _ = socket.set_zero_linger();
    })
    .await
}

/// HTTP/1.1, one request for each connection: the body comes back.
pub(crate) async fn http() -> SocketAddr {
    listen(|mut socket| async move {
        let Some(head) = head(&mut socket).await else { return };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        if head.to_ascii_lowercase().contains("100-continue") {
            let _ = socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        if socket.read_exact(&mut body).await.is_err() {
            return;
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let _ = socket.write_all(answer.as_bytes()).await;
        let _ = socket.write_all(&body).await;
        let _ = socket.shutdown().await;
    })
    .await
}

/// A forward proxy that knows CONNECT alone, in HTTP/1.1.
pub(crate) async fn connect_proxy() -> SocketAddr {
    listen(|mut socket| async move {
        let Some(head) = head(&mut socket).await else { return };
        let target = head.split_whitespace().nth(1).unwrap_or_default();
        let Ok(mut upstream) = TcpStream::connect(target).await else {
            let _ = socket
                .write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
                .await;
            return;
        };
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let _ = tokio::io::copy_bidirectional(&mut socket, &mut upstream).await;
    })
    .await
}

/// The head of an HTTP/1.1 message, read byte by byte, so that what follows stays.
pub(crate) async fn head(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8 << 10 {
        head.push(socket.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}
