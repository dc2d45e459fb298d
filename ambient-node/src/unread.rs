//! A connection of which something was read already, and is to be read again.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::acks::Prompt;

/// Reads as if nothing had been read before. All else is the connection's own.
#[derive(Debug)]
pub(crate) struct Unread {
    first: Bytes,
    stream: Prompt,
}

impl Unread {
    /// A connection from which nothing was read.
    pub(crate) fn new(stream: Prompt) -> Self {
        Self {
            first: Bytes::new(),
            stream,
        }
    }

    /// The connection itself, for what is asked of a socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// Takes back what was read last: it comes before whatever else there is.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        self.first = match (self.first.is_empty(), bytes.is_empty()) {
            (true, _) => bytes,
            (_, true) => return,
            _ => [bytes, std::mem::take(&mut self.first)].concat().into(),
        };
    }
}

impl AsyncRead for Unread {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..n]);
        self.first.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Unread {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::acks::Acks;

    #[tokio::test]
    async fn what_was_read_is_read_again_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut client, mut server) = (near.unwrap(), Unread::new(Acks::default().prompt(far.unwrap().0)));
        client.write_all(b"one two three").await.unwrap();
        let mut word = [0; 4];
        server.read_exact(&mut word).await.unwrap();
        let first = Bytes::copy_from_slice(&word);
        server.read_exact(&mut word).await.unwrap();
        server.unread(Bytes::copy_from_slice(&word));
        server.unread(first);
        client.shutdown().await.unwrap();
        let mut all = String::new();
        server.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "one two three");
    }
}
