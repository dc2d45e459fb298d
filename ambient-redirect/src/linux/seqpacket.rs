//! Unix sockets that keep packets apart, and pass descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketAddrUnix, SocketType, connect, recvmsg, sendmsg, sockopt,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::own_path::{Listening, registered, socket};

/// A connection.
#[derive(Debug)]
pub struct SeqPacket {
    socket: AsyncFd<OwnedFd>,
}

/// A socket that takes connections; its path goes with it.
#[derive(Debug)]
pub struct SeqPacketListener(Listening);

/// Who is at the other end of a connection, at the moment when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user ID.
    pub uid: u32,
    /// Its process ID, where it is known in the own PID namespace.
    pub pid: Option<u32>,
}

/// What was received.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The descriptors that came along, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Why no packet was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// It was longer than there is room for.
    #[error("a packet of more than {0} bytes")]
    Truncated(usize),
    /// Not all of its descriptors could be taken.
    #[error("a packet with more than {MOST_DESCRIPTORS} descriptors, or with one more than this process may open (see `ulimit -n`)")]
    DescriptorsTruncated,
    /// The connection is broken.
    #[error("the connection is broken: {0}")]
    Broken(#[from] io::Error),
}

impl SeqPacket {
    /// Connects to the socket at a path.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has I/O.
    ///
    /// # Errors
    /// `NotFound` where there is no such path, `ConnectionRefused` where nobody listens, `WouldBlock` where too many wait to
    /// be accepted.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket(SocketType::SEQPACKET)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::new(socket)
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = registered(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket })
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn peer(&self) -> io::Result<Peer> {
        let peer = sockopt::socket_peercred(self.socket.get_ref())?;
        let pid = u32::try_from(peer.pid.as_raw_pid()).ok();
        Ok(Peer {
            uid: peer.uid.as_raw(),
            pid: pid.filter(|pid| *pid != 0),
        })
    }

    /// Sends a packet whole, with a descriptor if one is given.
    ///
    /// # Errors
    /// What the kernel says; a packet longer than its buffer is `EMSGSIZE`.
    ///
    /// # Cancel safety
    /// The packet is sent whole or not at all.
    pub async fn send(&self, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let send = |socket: &OwnedFd| {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = descriptor.as_slice();
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags)?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map(|_| ())
    }

    /// Receives a packet of at most `most` bytes; `None` when the other end has closed. A packet without bytes cannot be told
    /// from that.
    ///
    /// # Errors
    /// When a packet or its descriptors are cut off, which are then lost, or when the connection is broken.
    ///
    /// # Cancel safety
    /// A packet is received whole or not at all.
    pub async fn receive(&self, most: usize) -> Result<Option<Packet>, ReceiveError> {
        let mut buffer = vec![0; most];
        let receive = |socket: &OwnedFd| {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
            // Taken before anything else, so that they are closed whatever is wrong with the packet.
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok((received.bytes, received.flags, descriptors))
        };
        let (bytes, flags, descriptors) = self.socket.async_io(Interest::READABLE, receive).await?;
        if flags.contains(ReturnFlags::TRUNC) {
            return Err(ReceiveError::Truncated(most));
        }
        if flags.contains(ReturnFlags::CTRUNC) {
            return Err(ReceiveError::DescriptorsTruncated);
        }
        buffer.truncate(bytes);
        let packet = Packet {
            bytes: buffer,
            descriptors,
        };
        Ok((bytes > 0).then_some(packet))
    }
}

impl SeqPacketListener {
    /// Listens at a path, for the own user alone (mode 0600). A dead socket of the own user's there is replaced; nothing else
    /// is.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has I/O.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there, or where the path is something else than a dead socket of the own user's;
    /// what the kernel says otherwise.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Listening::at(path, SocketType::SEQPACKET).map(Self)
    }

    /// Takes a connection. Where somebody has removed the path a socket is made there again, within a second, as long as this is
    /// waited for.
    ///
    /// # Errors
    /// What the kernel says, for this connection, or once where the path was removed and cannot be made again; the listener goes
    /// on.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        SeqPacket::new(self.0.accept().await?)
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// More than any packet should have, so that those too many are told from none.
const MOST_DESCRIPTORS: usize = 4;
