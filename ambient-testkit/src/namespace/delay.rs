//! Two namespaces joined by a link on which everything takes a while.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{
    End, NamespaceError,
    wire::{open, plain},
};
use crate::sys;

/// A link whose packets arrive after a delay, in order, and are not lost. Dropping it takes both its interfaces away.
///
/// Each end is a TUN device of the largest MTU, and a thread for each direction carries its packets over in user space:
/// for rates of a few Gbit/s, at the price of a part of a core.
#[derive(Debug)]
pub struct DelayedLink {
    /// Readable once the link is to end.
    stop: Arc<OwnedFd>,
    carriers: Vec<JoinHandle<()>>,
}

/// Joins two namespaces by a link on which a packet takes `delay` in each direction; both ends are up.
///
/// Not more than 64 MiB or 16,384 packets are on their way in a direction: further ones wait in the kernel, which drops them
/// when 500 do. The delay is kept to within the kernel's punctuality, some tenths of a millisecond on a busy machine.
///
/// # Errors
/// When a name is taken, an address is refused, or the machine lets nobody make TUN devices.
pub fn link_delayed(a: &End<'_>, b: &End<'_>, delay: Duration) -> Result<DelayedLink, NamespaceError> {
    let [tun_a, tun_b] = [a, b].map(|end| end.namespace.inside("making a TUN device", || tun(end)));
    let (tun_a, tun_b) = (Arc::new(tun_a?), Arc::new(tun_b?));
    let mut link = a.namespace.inside("making a delayed link", || {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(DelayedLink {
            stop: Arc::new(stop),
            carriers: Vec::new(),
        })
    })?;
    for (end, from, to) in [(a, &tun_a, &tun_b), (b, &tun_b, &tun_a)] {
        let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&link.stop));
        let carrier = end.namespace.inside("starting to carry packets", || {
            thread::Builder::new().name("delayed-link".into()).spawn(move || {
                // With the interface, or the other one, gone there is nothing left to carry.
                let _ = carry(&from, &to, &stop, delay);
            })
        })?;
        link.carriers.push(carrier);
    }
    Ok(link)
}

impl Drop for DelayedLink {
    fn drop(&mut self) {
        // Room for 2^64 - 2 of them.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// A TUN device in the calling thread's namespace, up, with the addresses of the end.
fn tun(end: &End<'_>) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let device = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(TUN);
    let device = device.map_err(|e| io::Error::new(e.kind(), format!("{TUN}: {e}")))?;
    sys::attach_tun(device.as_fd(), end.interface)?;
    let mut routing = open()?;
    let index = routing.link(end.interface).map_err(plain)?.index;
    routing.set_mtu(index, LARGEST as u32).map_err(plain)?;
    end.set_up()?;
    sys::settle_carrier(end.interface)?;
    Ok(device)
}

/// Carries packets in one direction until told to stop.
fn carry(mut from: &File, mut to: &File, stop: &OwnedFd, delay: Duration) -> io::Result<()> {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut bytes = 0;
    let mut packet = vec![0; LARGEST];
    loop {
        let now = now();
        while waiting.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, packet)) = waiting.pop_front()
        {
            bytes -= packet.len();
            match to.write(&packet) {
                // What the kernel takes for no packet of a network it would have dropped on a wire, too.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                written => drop(written?),
            }
        }
        let has_room = bytes < MOST_BYTES && waiting.len() < MOST_PACKETS;
        if has_room && let Some(n) = read(&mut from, &mut packet)? {
            bytes += n;
            waiting.push_back((now + delay, packet[..n].to_vec()));
            continue;
        }
        let due = waiting.front().map(|(due, _)| due.saturating_duration_since(now));
        let timeout = due.map(|due| Timespec {
            tv_sec: due.as_secs() as i64,
            tv_nsec: due.subsec_nanos().into(),
        });
        let readable = if has_room { PollFlags::IN } else { PollFlags::empty() };
        let mut polled = [PollFd::new(stop, PollFlags::IN), PollFd::new(from, readable)];
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if !polled[0].revents().is_empty() {
            return Ok(());
        }
    }
}

/// The next packet's length; none when there is none for now.
fn read(from: &mut &File, packet: &mut [u8]) -> io::Result<Option<usize>> {
    match from.read(packet) {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

#[expect(clippy::disallowed_methods, reason = "a link that takes time")]
fn now() -> Instant {
    Instant::now()
}

const TUN: &str = "/dev/net/tun";

/// Of an IP packet.
const LARGEST: usize = 65_535;

const MOST_BYTES: usize = 64 << 20;
const MOST_PACKETS: usize = 16_384;
