//! What a process holds in memory that only its start has needed.

use std::{fs, io};

use self::calls::{forget, trim};

/// Gives back to the kernel what starting has left: memory that the allocator keeps free, and the program's own instructions, most
/// of which run once or never. Those that are needed again come back by themselves, from the cache of the file.
///
/// For a program's own `main`, once: what else is in the process does not notice, but for a moment at its next step.
///
/// # Errors
/// When the kernel does not say where the program lies.
pub fn give_back_what_starting_took() -> io::Result<()> {
    trim();
    for range in instructions(&fs::read_to_string("/proc/self/maps")?) {
        forget(range)?;
    }
    Ok(())
}

/// Where files are mapped to be executed, by a listing of `/proc/PID/maps`: nobody can have written there.
fn instructions(maps: &str) -> impl Iterator<Item = std::ops::Range<usize>> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next()?, fields.next()?);
        let file = fields.nth(3)?;
        let (from, to) = range.split_once('-')?;
        let at = |text| usize::from_str_radix(text, 16).ok();
        (access == "r-xp" && file.starts_with('/')).then_some(at(from)?..at(to)?)
    })
}

#[allow(unsafe_code, reason = "malloc_trim is a call of C, and madvise one with an address")]
mod calls {
    use std::{io, ops::Range};

    #[cfg(target_env = "gnu")]
    pub(super) fn trim() {
        // SAFETY: it takes the allocator's own locks, and moves nothing that is in use.
        unsafe { libc::malloc_trim(0) };
    }

    #[cfg(not(target_env = "gnu"))]
    pub(super) fn trim() {}

    pub(super) fn forget(range: Range<usize>) -> io::Result<()> {
        // SAFETY: a private mapping of a file that was never writable has no pages of its own: each is read from the file anew
        // when it is next looked at. Where there is no such mapping any more the kernel refuses or has nothing to do.
        let result = unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instructions_of_files_are_given_back() {
        let maps = "55d0-55d1 r--p 00000000 fe:00 12 /usr/bin/ambient\n\
                    55d1-55d9 r-xp 00001000 fe:00 12 /usr/bin/ambient\n\
                    55d9-55da rw-p 00009000 fe:00 12 /usr/bin/ambient\n\
                    7f00-7f01 r-xp 00000000 00:00 0 \n\
                    7f10-7f11 r-xp 00000000 00:00 0 [vdso]\n\
                    7f20-7f21 rwxp 00000000 fe:00 13 /tmp/made at run time\n";
        let ranges: Vec<_> = instructions(maps).collect();
        assert_eq!((ranges.len(), ranges.first()), (1, Some(&(0x55d1..0x55d9))));
    }

    #[test]
    fn a_process_goes_on() {
        let resident = || -> u64 {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        give_back_what_starting_took().unwrap();
        let after = resident();
        assert!(after < before, "{after} KiB of {before} are left");
        give_back_what_starting_took().unwrap();
        assert!(instructions(&fs::read_to_string("/proc/self/maps").unwrap()).count() > 0);
    }
}
