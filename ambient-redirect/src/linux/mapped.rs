//! What of the process's own binary is mapped, and need not be.

use std::{fs, io, ops::Range};

/// Unmaps the pages of this process's binary; what is used of it from now on is mapped again as it is used, out of the page
/// cache. Gives the bytes that were mapped.
///
/// Most of what a process has looked at of its binary it looked at once, as it started, and the kernel maps the pages around with
/// it: as long as they are mapped they count as the process's memory, and the system gives them up last. What it costs is a
/// minor fault for each 64 KiB or so of what is in use. It is the whole process that this is about, so that it is for a program
/// to do, and not for a library.
///
/// # Errors
/// When there is no /proc.
pub fn unmap_binary() -> io::Result<usize> {
    let (mut unmapped, binary) = (0, fs::read_link("/proc/self/exe")?);
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    for mapping in unwritten(&smaps, &binary.to_string_lossy()) {
        if drop_pages(mapping.addresses) {
            unmapped += mapping.resident;
        }
    }
    Ok(unmapped)
}

/// A mapping of a file that holds nothing but what is in the file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    addresses: Range<usize>,
    /// Bytes of it that are mapped now.
    resident: usize,
}

/// Those of a file that nobody can write to, nor has: pages that were changed before a mapping became one to be read only, as
/// relocations are, would be lost.
fn unwritten(smaps: &str, file: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let (mut addresses, mut resident) = (None, 0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Rss:"), kib) => resident = bytes(kib),
            (Some("Anonymous:"), Some("0")) => found.extend(addresses.take().map(|addresses| Mapping { addresses, resident })),
            (Some("Anonymous:"), _) => addresses = None,
            (Some(range), Some(permissions)) if !range.ends_with(':') => {
                let of_file = line.find('/').is_some_and(|at| &line[at..] == file);
                let unwritable = permissions.starts_with('r') && !permissions.contains('w') && permissions.ends_with('p');
                addresses = (of_file && unwritable).then(|| range_of(range)).flatten();
            }
            _ => {}
        }
    }
    found
}

fn range_of(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

fn bytes(kib: Option<&str>) -> usize {
    let kib: Option<usize> = kib.and_then(|kib| kib.parse().ok());
    kib.map_or(0, |kib| kib << 10)
}

#[allow(unsafe_code, reason = "madvise over addresses")]
fn drop_pages(addresses: Range<usize>) -> bool {
    let start = std::ptr::with_exposed_provenance_mut(addresses.start);
    // SAFETY: it is a private mapping of the binary itself, which stays where it is as long as the process runs, cannot be written
    // to, and has no page that differs from the file: each is read from there again, as it was.
    unsafe { libc::madvise(start, addresses.len(), libc::MADV_DONTNEED) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_the_binary_may_go() {
        let one = |range: &str, permissions: &str, file: &str, anonymous: &str| {
            format!(
                "{range} {permissions} 00001000 fe:00 7    {file}\nSize:  64 kB\nRss:  8 kB\nPrivate_Dirty: 0 kB\n\
                 Anonymous:   {anonymous} kB\nVmFlags: rd ex mr mw me\n"
            )
        };
        let kept = [
            one("1000-2000", "rw-p", "/usr/bin/a b", "0"),
            one("2000-3000", "r--p", "/usr/bin/a b", "4"),
            one("3000-4000", "r--p", "/usr/bin/a", "0"),
            one("4000-5000", "r--s", "/usr/bin/a b", "0"),
            one("5000-6000", "---p", "/usr/bin/a b", "0"),
            one("6000-7000", "r--p", "", "0"),
        ];
        let gone = [
            one("7f0000001000-7f0000003000", "r-xp", "/usr/bin/a b", "0"),
            one("a000-b000", "r--p", "/usr/bin/a b", "0"),
        ];
        let smaps = [kept.concat(), gone.concat(), kept.concat()].concat();
        let addresses: Vec<_> = unwritten(&smaps, "/usr/bin/a b")
            .into_iter()
            .map(|mapping| (mapping.addresses, mapping.resident))
            .collect();
        assert_eq!(
            addresses,
            [(0x7f00_0000_1000..0x7f00_0000_3000, 8 << 10), (0xa000..0xb000, 8 << 10)]
        );
    }

    #[test]
    fn the_process_goes_on_and_so_it_does_again() {
        // Its text, which runs, is a part of it.
        for _ in 0..100 {
            assert!(unmap_binary().unwrap() > 0);
        }
    }
}
