//! TLS as a tunnel has it: sealed bytes, to and from whatever carries them.

use std::{
    future::Future,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use ambient_tls::{Established, Handshake, Opened, Records, Sealed};
use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use rustls::{crypto::cipher::OutboundChunks, pki_types::CertificateDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::{
    BoxedIo,
    proto::engine::{Buffers, Frames},
    turns,
};

/// One end of a TLS connection, after its handshake.
///
/// What has come is opened where it was read to, many records of one read, and handed on without a copy. While little comes the
/// buffer is small, and there is none while nothing does.
pub(crate) struct Wire {
    io: BoxedIo,
    records: Records,
    /// What has come and was not opened yet.
    incoming: BytesMut,
    /// It has a large buffer, be it that all of it was given away: it can be had again then.
    held: bool,
    buffers: Buffers,
    /// Of the next buffer.
    size: usize,
    /// Reads in a row that the smallest buffer would have held.
    small: u32,
    /// What has not gone yet, and how much of its first record has.
    sealed: Sealed,
    gone: usize,
    unflushed: bool,
}

/// What a handshake has brought beside the [`Wire`].
pub(crate) struct Introduction {
    pub(crate) peer_certificates: Vec<CertificateDer<'static>>,
    pub(crate) alpn: Option<Vec<u8>>,
}

/// What [`Wire::open`] has found.
pub(crate) enum Next {
    Data(Bytes),
    /// More must come first.
    Nothing,
    /// The peer has said that it was all.
    End,
}

impl Wire {
    /// Does a handshake. Where it fails the peer has been told why, as far as it took that.
    pub(crate) async fn shake_hands(mut io: BoxedIo, mut handshake: Handshake) -> io::Result<(Self, Introduction)> {
        let (mut incoming, mut outgoing) = (Vec::new(), Vec::new());
        loop {
            let advanced = handshake.advance(&mut incoming, &mut outgoing);
            let sent = send(&mut io, &outgoing).await;
            outgoing.clear();
            // What was wrong says more than that the peer did not hear it.
            let done = advanced.map_err(invalid)?;
            sent?;
            if done {
                break;
            }
            incoming.reserve(HANDSHAKE);
            if io.read_buf(&mut incoming).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer has left in the handshake"));
            }
        }
        let Established {
            records,
            peer_certificates,
            alpn,
            ..
        } = handshake.finish().map_err(invalid)?;
        let wire = Self {
            io,
            records,
            incoming: BytesMut::from(&*incoming),
            held: false,
            buffers: Buffers::default(),
            size: SMALLEST,
            small: 0,
            sealed: Sealed::new(),
            gone: 0,
            unflushed: false,
        };
        Ok((wire, Introduction { peer_certificates, alpn }))
    }

    /// Takes buffers from here, and gives them back.
    pub(crate) fn share(&mut self, buffers: Buffers) {
        self.buffers = buffers;
    }

    /// Opens the next record that has data.
    pub(crate) fn open(&mut self) -> io::Result<Next> {
        loop {
            match self.records.open(&mut self.incoming, &mut self.sealed).map_err(invalid)? {
                Opened::Incomplete => return Ok(Next::Nothing),
                Opened::End => return Ok(Next::End),
                Opened::Record { length, data } => {
                    let mut record = self.incoming.split_to(length);
                    if !data.is_empty() {
                        record.truncate(data.end);
                        record.advance(data.start);
                        return Ok(Next::Data(record.freeze()));
                    }
                }
            }
        }
    }

    /// Reads on, in one piece; none says that nothing more comes.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let room = self.incoming.capacity() - self.incoming.len();
        let most = if turns::is_shared() { SHARED } else { usize::MAX };
        let mut limited = (&mut self.incoming).limit(most);
        let Poll::Ready(read) = pin!(self.io.read_buf(&mut limited)).poll(cx) else {
            self.rest();
            return Poll::Pending;
        };
        let n = read?;
        if n == room {
            self.size = (self.size * GROWTH).min(LARGEST);
        }
        self.small = if n <= SMALLEST { self.small + 1 } else { 0 };
        if self.small == SMALL_READS {
            (self.size, self.small) = (SMALLEST, 0);
        }
        Poll::Ready(Ok(n))
    }

    /// Room for at least half of what is to be read at once.
    fn make_room(&mut self) {
        let have = self.incoming.len();
        if self.incoming.capacity() - have >= self.size / 2 {
            return;
        }
        let size = self.size.max(have + SMALLEST);
        // Of a record at most: what is whole is opened before more is read.
        if !self.incoming.try_reclaim(size - have) {
            let mut next = self.buffers.take(size);
            next.extend_from_slice(&self.incoming);
            self.go_on_with(next);
            self.held = size >= SMALLEST * GROWTH;
        }
    }

    /// Nothing comes for now, or ever: an idle tunnel keeps no buffer.
    fn rest(&mut self) {
        if self.incoming.is_empty() {
            self.go_on_with(BytesMut::new());
        }
    }

    fn go_on_with(&mut self, next: BytesMut) {
        let before = std::mem::replace(&mut self.incoming, next);
        if std::mem::take(&mut self.held) {
            self.buffers.keep(before);
        }
    }

    /// Seals a part of the front of `frames`, which has some, as much as is worth a system call.
    pub(crate) fn seal(&mut self, frames: &mut Frames) -> io::Result<()> {
        let mut chunks = [&[][..]; SLICES];
        let count = frames.chunks(&mut chunks);
        let all = OutboundChunks::new(&chunks[..count]);
        let most = all.len().min(BATCH);
        let mut n = 0;
        while n < most {
            n += self.records.seal(&all.split_at(n).1, &mut self.sealed).map_err(invalid)?;
        }
        frames.advance(n);
        Ok(())
    }

    /// Sends what is sealed.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.sealed.is_empty() {
                self.records.answer(&mut self.sealed).map_err(invalid)?;
            }
            let Some(first) = self.sealed.front() else { break };
            let mut slices = [IoSlice::new(&[]); SLICES];
            let all = std::iter::once(&first[self.gone..]).chain(self.sealed.iter().skip(1).map(Vec::as_slice));
            let mut count = 0;
            for (place, record) in slices.iter_mut().zip(all) {
                *place = IoSlice::new(record);
                count += 1;
            }
            let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.gone += n;
            while let Some(first) = self.sealed.front()
                && self.gone >= first.len()
            {
                self.gone -= first.len();
                self.sealed.pop_front();
            }
        }
        if self.sealed.capacity() > IDLE {
            self.sealed = Sealed::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Brings what was sent on its way.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more comes, and ends the connection's own direction.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.close(&mut self.sealed);
        ready!(self.poll_send(cx))?;
        ready!(self.poll_flush(cx))?;
        match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Reads away what still comes once all was [said](Self::poll_close); ready when nothing more does.
    pub(crate) fn poll_read_away(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut place = [MaybeUninit::uninit(); HANDSHAKE];
        for _ in 0..READS {
            let mut read = ReadBuf::uninit(&mut place);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut read)) {
                Ok(()) if !read.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
        // Others on this thread want a turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

async fn send(io: &mut BoxedIo, bytes: &[u8]) -> io::Result<()> {
    if !bytes.is_empty() {
        io.write_all(bytes).await?;
        io.flush().await?;
    }
    Ok(())
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What a handshake reads at once, and what is read away, in bytes.
const HANDSHAKE: usize = 4 << 10;

/// Reads of what nobody wants, before others get a turn.
const READS: u32 = 16;

/// The smallest buffer: a record has room in it.
const SMALLEST: usize = 17 << 10;

/// The largest: what is read at once, opened, and handed on while it is still in a cache.
const LARGEST: usize = 256 << 10;

/// What is read at once where others wait for the thread.
const SHARED: usize = 64 << 10;

/// By how much buffers grow.
const GROWTH: usize = 4;

/// So many small reads in a row say that a tunnel has little to carry for now.
const SMALL_READS: u32 = 64;

/// What is sealed before it is sent, in bytes: six records. Each is allocated; were they more together, an allocator with the
/// usual bounds would give their memory back to the system after each write, and ask for it again page by page.
const BATCH: usize = 96 << 10;

/// Slices in one write.
const SLICES: usize = 64;

/// Places for records that a tunnel with nothing to send keeps.
const IDLE: usize = 4;
