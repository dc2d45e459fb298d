//! A packet socket with a ring of blocks shared with the kernel (`Documentation/networking/packet_mmap.rst`).
//!
//! A ring, because a socket's receive buffer cannot be made large without root of the host: ten super-packets of
//! 64 KiB would fill it.
#![allow(unsafe_code, reason = "a mapping shared with the kernel")]

use std::{
    ffi::CString,
    io,
    mem::{offset_of, size_of},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, Ordering},
};

/// All frames of one interface, both ways, from when it was opened.
#[derive(Debug)]
pub(super) struct Ring {
    socket: OwnedFd,
    base: NonNull<u8>,
    /// The block that the kernel fills next, or has filled.
    next: usize,
}

// SAFETY: the mapping belongs to this value alone, and is valid in every thread of the process.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens it in the calling thread's network namespace, where it stays.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        // SAFETY: the name is NUL-terminated and outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Protocol 0: nothing is received before it is bound to the one interface.
        // SAFETY: no memory is passed.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        set(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V3 as libc::c_int))?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: (BLOCK / FRAME * BLOCKS) as u32,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(&socket, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping of a descriptor, at an address of the kernel's choice, of the ring's exact size.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                BLOCK * BLOCKS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("a ring at address 0"))?;
        let ring = Self { socket, base, next: 0 };
        ring.bind(index)?;
        Ok(ring)
    }

    fn bind(&self, index: libc::c_uint) -> io::Result<()> {
        let (family, protocol) = (libc::AF_PACKET as u16, (libc::ETH_P_ALL as u16).to_be());
        let address = libc::sockaddr_ll {
            sll_family: family,
            sll_protocol: protocol,
            sll_ifindex: index as libc::c_int,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let mut bound = address;
        // SAFETY: both structures are of the length passed with them and outlive the calls.
        let rc = unsafe {
            match libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) {
                0 => libc::getsockname(self.socket.as_raw_fd(), (&raw mut bound).cast(), &raw mut length),
                rc => rc,
            }
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        if ![libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK].contains(&bound.sll_hatype) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only interfaces with Ethernet frames can be captured",
            ));
        }
        Ok(())
    }

    /// Hands over every frame that is there, with whether it was cut, and gives the blocks back.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&[u8], bool)) {
        // At most once round: under load it could go on for ever.
        for _ in 0..BLOCKS {
            // SAFETY: `next` is below BLOCKS, so the block lies in the mapping, which begins at a page.
            let block = unsafe { self.base.as_ptr().add(self.next * BLOCK) };
            // SAFETY: within the block, aligned (a block begins at a page), and shared with the kernel only as this word.
            let status = unsafe { AtomicU32::from_ptr(block.add(STATUS).cast()) };
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return;
            }
            // SAFETY: the kernel has handed the block over, and does not write to it until the status says so; the
            // slice ends before that. The status word in it is read by nobody but the kernel.
            let bytes = unsafe { slice::from_raw_parts(block, BLOCK) };
            if frames(bytes, &mut take).is_none() {
                // Not understood is missed.
                take(&[], true);
            }
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
            self.next = (self.next + 1) % BLOCKS;
        }
    }

    /// Frames that the kernel had no room for since it was last asked.
    pub(super) fn dropped(&self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats_v3 {
            tp_packets: 0,
            tp_drops: 0,
            tp_freeze_q_cnt: 0,
        };
        let mut length = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: the structure is of the length passed with it and outlives the call.
        let rc = unsafe {
            let value = (&raw mut statistics).cast();
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                value,
                &raw mut length,
            )
        };
        if rc == 0 {
            Ok(statistics.tp_drops.into())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and size, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), BLOCK * BLOCKS) };
    }
}

/// The frames of a block. Every offset is checked: a wrong one ends the block.
fn frames(block: &[u8], take: &mut impl FnMut(&[u8], bool)) -> Option<()> {
    let count = ne32(block, HEADER + offset_of!(libc::tpacket_hdr_v1, num_pkts))?;
    let mut at = ne32(block, HEADER + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt))? as usize;
    for _ in 0..count {
        let field = |offset: usize| ne32(block, at.checked_add(offset)?);
        let captured = field(offset_of!(libc::tpacket3_hdr, tp_snaplen))? as usize;
        let length = field(offset_of!(libc::tpacket3_hdr, tp_len))? as usize;
        let mac = at + usize::from(ne16(block, at + offset_of!(libc::tpacket3_hdr, tp_mac))?);
        let link = at + size_of::<libc::tpacket3_hdr>().next_multiple_of(16);
        let hardware = ne16(block, link + offset_of!(libc::sockaddr_ll, sll_hatype))?;
        let direction = *block.get(link + offset_of!(libc::sockaddr_ll, sll_pkttype))?;
        let frame = block.get(mac..mac + captured)?;
        // On the loopback device each frame passes twice.
        if hardware != libc::ARPHRD_LOOPBACK || direction != libc::PACKET_OUTGOING {
            take(frame, captured < length);
        }
        at += field(offset_of!(libc::tpacket3_hdr, tp_next_offset))? as usize;
    }
    Some(())
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is of the length passed with it and outlives the call.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn ne32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn ne16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

const HEADER: usize = offset_of!(libc::tpacket_block_desc, hdr);
const STATUS: usize = HEADER + offset_of!(libc::tpacket_hdr_v1, block_status);
/// A block holds several super-packets, the largest frames there are.
const BLOCK: usize = 512 << 10;
const BLOCKS: usize = 32;
/// Only the kernel's arithmetic wants it: in this version of the ring frames are as long as they are.
const FRAME: usize = 2048;
/// After so many milliseconds a block that is not full is handed over; it may take twice as long.
pub(super) const RETIRE_MS: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// A block with one frame of these lengths, and as many frames as it says.
    fn block(count: u32, captured: u32, length: u32) -> Vec<u8> {
        let mut block = vec![0; 256];
        let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        put(HEADER + offset_of!(libc::tpacket_hdr_v1, num_pkts), count);
        put(HEADER + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt), 64);
        put(64 + offset_of!(libc::tpacket3_hdr, tp_snaplen), captured);
        put(64 + offset_of!(libc::tpacket3_hdr, tp_len), length);
        put(64 + offset_of!(libc::tpacket3_hdr, tp_next_offset), 160);
        block[64 + offset_of!(libc::tpacket3_hdr, tp_mac)] = 96;
        block
    }

    #[test]
    fn what_a_block_claims_is_checked() {
        let read = |block: &[u8]| {
            let mut seen = Vec::new();
            let whole = frames(block, &mut |frame, cut| seen.push((frame.len(), cut))).is_some();
            (seen, whole)
        };
        assert_eq!(read(&block(0, 0, 0)), (vec![], true));
        assert_eq!(read(&block(1, 60, 60)), (vec![(60, false)], true));
        assert_eq!(read(&block(1, 60, 900)), (vec![(60, true)], true));
        // A frame, and a count, beyond the end.
        assert_eq!(read(&block(1, 200, 200)), (vec![], false));
        assert_eq!(read(&block(2, 60, 60)), (vec![(60, false)], false));
        assert_eq!(read(&[0; 4]), (vec![], false));
    }
}
