//! The calls that no safe crate in use offers, and what a socket is listed by.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

#[allow(unsafe_code, reason = "setsockopt with a pointer to an integer")]
pub(crate) fn set_int(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the borrow, and the pointer is to an integer of the length given that
    // outlives the call, which only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel give what comes to a shared port to one of its sockets, whoever's that is, by its number from 0 on: of two, in
/// the order in which they were bound. Where there is none of that number, the kernel chooses as it did.
#[allow(unsafe_code, reason = "setsockopt with a pointer to a program")]
pub(crate) fn prefer(fd: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    // One instruction of classic BPF: "return" of the number of a socket of the port's group.
    let mut instruction = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: number,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut instruction,
    };
    // SAFETY: the descriptor is open for the length of the borrow; the pointer is to a program of the length given, and that to
    // an instruction, both of which outlive the call, which only reads them and keeps a copy.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// By which the kernel lists a socket.
pub(crate) fn inode(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // Socket diagnostics have 32 bits for it, as the kernel's counter has.
    Ok(rustix::fs::fstat(socket)?.st_ino as u32)
}

/// The number that a socket has for as long as the system runs, and no other ever gets.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    cookie_of(socket.as_raw_fd()).ok_or_else(io::Error::last_os_error)
}

/// Whether a number is still the descriptor of the socket with this cookie, and whether that listens where it is to be one of
/// TCP. It may be nobody's by now, or another file's: that is a no.
#[allow(unsafe_code, reason = "a number of a descriptor that somebody else may have closed")]
pub(crate) fn is_still(number: RawFd, cookie: u64, listens: bool) -> bool {
    if cookie_of(number) != Some(cookie) {
        return false;
    }
    let (mut answer, mut length): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    let into = std::ptr::from_mut(&mut answer).cast();
    // SAFETY: the kernel takes any number, and writes at most the length that is given, which is that of the integer.
    !listens || (unsafe { libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, into, &raw mut length) } == 0 && answer != 0)
}

/// `None` where the number is no socket's.
#[allow(unsafe_code, reason = "a number of a descriptor that somebody else may have closed")]
fn cookie_of(number: RawFd) -> Option<u64> {
    let (mut cookie, mut length) = (0u64, size_of::<u64>() as libc::socklen_t);
    let into = std::ptr::from_mut(&mut cookie).cast();
    // SAFETY: the kernel takes any number, and writes at most the length that is given, which is that of the integer.
    let told = unsafe { libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_COOKIE, into, &raw mut length) } == 0;
    told.then_some(cookie)
}

/// Whether a descriptor is one of a network namespace's.
#[allow(unsafe_code, reason = "an ioctl without an argument")]
pub(crate) fn is_network_namespace(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the descriptor is open for the length of the borrow, and the request, which has no argument, changes nothing;
    // files that are no namespaces answer it with an error.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE as libc::Ioctl) };
    kind == libc::CLONE_NEWNET
}
