//! Unix sockets that listen at a path of their own.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with},
};

/// The path of a socket; it goes with this value, unless somebody else has put something there.
#[derive(Debug)]
pub struct OwnPath {
    path: PathBuf,
    /// Device and inode of what was made.
    made: (u64, u64),
}

impl OwnPath {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.made);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens for streams at a path, for the own user alone (mode 0600); the listener does not block. A dead socket of the own
/// user's there is replaced; nothing else is.
///
/// # Errors
/// `AddrInUse` where somebody listens there, or where the path is something else than a dead socket of the own user's; what the
/// kernel says otherwise.
pub fn listen_for_streams(path: &Path) -> io::Result<(UnixListener, OwnPath)> {
    let (socket, path) = listen_at(path, SocketType::STREAM)?;
    Ok((socket.into(), path))
}

/// The same for any kind.
pub(super) fn listen_at(path: &Path, kind: SocketType) -> io::Result<(OwnedFd, OwnPath)> {
    remove_if_dead(path, kind)?;
    let socket = socket(kind)?;
    // Before it has a path, so that nobody else can connect for a moment.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    let made = std::fs::symlink_metadata(path)?;
    let path = OwnPath {
        path: path.into(),
        made: (made.dev(), made.ino()),
    };
    Ok((socket, path))
}

pub(super) fn socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn remove_if_dead(path: &Path, kind: SocketType) -> io::Result<()> {
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let in_use = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    if !there.file_type().is_socket() {
        return in_use("it is there, and is no socket");
    }
    if there.uid() != rustix::process::geteuid().as_raw() {
        return in_use("it is another user's");
    }
    let dead = connect(&socket(kind)?, &SocketAddrUnix::new(path)?) == Err(rustix::io::Errno::CONNREFUSED);
    match dead {
        true => std::fs::remove_file(path),
        false => in_use("somebody listens there"),
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
