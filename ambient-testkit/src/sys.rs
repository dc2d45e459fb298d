//! The few system calls that neither std nor rustix (with the features in use) wraps.
#![allow(unsafe_code, reason = "the system calls that nobody wraps")]

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
    time::Duration,
};

/// Mounts; `source`, `kind` and `data` as mount(2) takes them, an absent one is NULL.
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let text = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is NULL or a NUL-terminated string that outlives the call.
    done(unsafe { libc::mount(text(source), target.as_ptr(), text(kind), flags, text(data).cast()) })
}

/// Puts one file or directory over another, mounts below it included.
pub(crate) fn bind(source: &CStr, target: &CStr) -> io::Result<()> {
    mount(Some(source), target, None, libc::MS_BIND | libc::MS_REC, None)
}

/// Makes every mount below `/` a slave: what its owner mounts arrives here, what is mounted here stays here.
pub(crate) fn enslave_mounts() -> io::Result<()> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)
}

/// Makes every mount below `/` read-only.
pub(crate) fn make_read_only() -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is NUL-terminated, the structure is of the size that goes with it, and both outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves the capabilities whose bits are set as the only ones that a program which is executed from now on can have.
pub(crate) fn bound_capabilities(capabilities: u64) -> io::Result<()> {
    for number in (0..u64::BITS).filter(|number| capabilities & (1 << number) == 0) {
        // SAFETY: prctl with integer arguments touches no memory.
        let rc = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match done(rc) {
            // Beyond the last that this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Takes a mount off its place at once; it ends with its last user.
pub(crate) fn detach(target: &CStr) -> io::Result<()> {
    // SAFETY: the pointer is a NUL-terminated string that outlives the call.
    done(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
}

/// Leaves the namespaces (or shared structures) that `flags` names for fresh ones.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the callers pass CLONE_NEW* flags only, never CLONE_FILES, so no descriptor changes its meaning.
    done(unsafe { libc::unshare(flags) })
}

/// Joins the namespace behind a descriptor.
pub(crate) fn join(namespace: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed; the kernel checks that the descriptor is a namespace of this kind.
    done(unsafe { libc::setns(namespace.as_raw_fd(), kind) })
}

/// Asks for SIGKILL when the parent thread ends. `parent` is the process that must still be there: one that died
/// before the request would never be noticed.
pub(crate) fn die_with(parent: libc::pid_t) -> io::Result<()> {
    // SAFETY: prctl with an integer argument, and getppid, touch no memory.
    unsafe {
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong))?;
        if libc::getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

/// Which of some descriptors are readable (or hung up), after at most `timeout` (`None`: for ever).
///
/// A signal ends the wait early with nothing readable.
pub(crate) fn readable<const N: usize>(descriptors: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up, so that a wait never ends before its time and turns into a busy loop.
    let timeout = timeout.map_or(-1, |t| t.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX));
    // SAFETY: the array lives through the call and N is its length.
    let rc = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, timeout) };
    match done(rc) {
        Ok(()) => Ok(polled.map(|p| p.revents != 0)),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(e) => Err(e),
    }
}

/// Makes the kernel act on a change of an interface's carrier now. By itself it may wait for a second, in which
/// neither a queue nor IPv6 works; asking for the state of the link (`ETHTOOL_GLINK`) does not let it.
pub(crate) fn settle_carrier(interface: &str) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const GET_LINK: u32 = 10;
    let mut value = Value {
        command: GET_LINK,
        data: 0,
    };
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: the request points to a structure of the form that its command says, and both outlive the call.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })
}

/// Makes the device behind a descriptor of `/dev/net/tun`, of packets without any header, under this name in the
/// namespace in which it was opened. The device goes with the descriptor.
pub(crate) fn attach_tun(device: BorrowedFd<'_>, interface: &str) -> io::Result<()> {
    let mut request = interface_request(interface);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL) as libc::c_short;
    // SAFETY: the request is of the form that the command says, and outlives the call.
    done(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) })
}

/// A request about an interface; a name that is too long is cut.
fn interface_request(interface: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq: integers, bytes and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// A path as C takes it.
///
/// # Errors
/// `InvalidInput` when it holds a NUL byte.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// When a process began, in clock ticks since boot: with its number it names the process for good.
///
/// # Errors
/// `NotFound` when there is no such process (or only its zombie).
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no process {pid} lives")))
}

/// Field 22 of proc_pid_stat(5), unless the process is dead. The name in field 2 may hold blanks and brackets.
fn parse_start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether some bytes stand somewhere in others. An unoptimised loop takes seconds for a capture.
pub(crate) fn contains(bytes: &[u8], sought: &[u8]) -> bool {
    // SAFETY: both pointers are valid for the lengths passed with them.
    let found = unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), sought.as_ptr().cast(), sought.len()) };
    !found.is_null()
}

fn done(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_field_22() {
        let after = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_start_time(&format!("12 (a) b) {after}")), Some(4711));
        assert_eq!(parse_start_time(&format!("12 (a) {}", after.replacen('S', "Z", 1))), None);
        assert_eq!(parse_start_time("12 (a) S 1"), None);
        assert!(start_time(std::process::id()).unwrap() > 0);
    }
}
