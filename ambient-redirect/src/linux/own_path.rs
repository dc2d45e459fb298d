//! Unix sockets that listen at a path of their own.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};

/// A socket that takes streams at a path of its own, which goes with it.
#[derive(Debug)]
pub struct StreamListener(Listening);

impl StreamListener {
    /// Listens for streams at a path, for the own user alone (mode 0600). A dead socket of the own user's there is replaced;
    /// nothing else is.
    ///
    /// # Panics
    /// Outside of a runtime of tokio that has I/O.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there, or where the path is something else than a dead socket of the own user's; what
    /// the kernel says otherwise.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Listening::at(path, SocketType::STREAM).map(Self)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes a connection, which does not block. Where somebody has removed the path a socket is made there again, within a
    /// second, as long as this is waited for.
    ///
    /// # Errors
    /// What the kernel says, for this connection, or once where the path was removed and cannot be made again; the listener goes
    /// on.
    ///
    /// # Cancel safety
    /// No connection is lost.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.0.accept().await.map(UnixStream::from)
    }
}

/// What listens at a path, and is made again there where somebody has removed that: nobody could come to it any more.
#[derive(Debug)]
pub(super) struct Listening {
    path: PathBuf,
    kind: SocketType,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    standing: Arc<Standing>,
    look: Instant,
    /// Why it could not be made again: said once.
    failed: Option<io::ErrorKind>,
}

#[derive(Debug)]
struct Standing {
    // Closed before the path goes.
    socket: AsyncFd<OwnedFd>,
    _path: OwnPath,
}

impl Standing {
    fn at(path: &Path, kind: SocketType) -> io::Result<Arc<Self>> {
        let (socket, path) = listen_at(path, kind)?;
        let socket = registered(socket, Interest::READABLE)?;
        Ok(Arc::new(Self { socket, _path: path }))
    }
}

impl Listening {
    /// Must be called within a runtime.
    pub(super) fn at(path: &Path, kind: SocketType) -> io::Result<Self> {
        let state = State {
            standing: Standing::at(path, kind)?,
            look: Instant::now() + LOOKS,
            failed: None,
        };
        Ok(Self {
            path: path.into(),
            kind,
            state: Mutex::new(state),
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }

    /// Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |socket: &OwnedFd| Ok(accept_with(socket, flags)?);
        loop {
            let (standing, look) = {
                let state = self.lock();
                (state.standing.clone(), state.look)
            };
            tokio::select! {
                accepted = standing.socket.async_io(Interest::READABLE, accept) => return accepted,
                () = sleep_until(look) => self.look()?,
            }
        }
    }

    /// Makes it again where nothing is at its path. What somebody else has put there stays.
    fn look(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.look = Instant::now() + LOOKS;
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok() || there.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            return Ok(());
        }
        match Standing::at(&self.path, self.kind) {
            Ok(standing) => state.standing = standing,
            Err(error) if state.failed == Some(error.kind()) => return Ok(()),
            Err(error) => {
                state.failed = Some(error.kind());
                let path = self.path.display();
                let text = format!(
                    "somebody has removed {path}, so that nobody can come to it, and it cannot be made again: {error}; it is tried each second"
                );
                return Err(io::Error::new(error.kind(), text));
            }
        }
        state.failed = None;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From one look whether the path is there to the next.
const LOOKS: Duration = Duration::from_secs(1);

/// The path of a socket; it goes with this value, unless somebody else has put something there.
#[derive(Debug)]
struct OwnPath {
    path: PathBuf,
    /// Device and inode of what was made.
    made: (u64, u64),
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.made);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn listen_at(path: &Path, kind: SocketType) -> io::Result<(OwnedFd, OwnPath)> {
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

#[allow(unsafe_code, reason = "tokio trusts that the descriptor stays what it is")]
pub(super) fn registered(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the value is the descriptor and owns it: it closes it only when it is dropped and never exchanges it; and those who
    // ask for this only borrow it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_somebody_has_removed_is_there_again_and_what_he_put_there_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, path) = (scratch.path().join("a"), scratch.path().join("a/socket"));
        fs::create_dir(&dir).unwrap();
        let listener = StreamListener::bind(&path).unwrap();
        let comes = async || {
            let came = tokio::select! {
                came = listener.accept() => came,
                () = async {
                    while UnixStream::connect(&path).is_err() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    std::future::pending().await
                } => unreachable!(),
            };
            came.unwrap()
        };
        comes().await;
        fs::remove_file(&path).unwrap();
        comes().await;
        // With its directory: it is tried until that is there.
        fs::remove_dir_all(&dir).unwrap();
        let error = listener.accept().await.unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        tokio::time::timeout(10 * LOOKS, listener.accept()).await.unwrap_err();
        fs::create_dir(&dir).unwrap();
        comes().await;
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        tokio::time::timeout(10 * LOOKS, listener.accept()).await.unwrap_err();
        UnixStream::connect(&path).unwrap();
        other.accept().unwrap();
        drop(listener);
        assert!(path.exists(), "it is another's");
    }
}
