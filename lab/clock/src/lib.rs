//! A wall clock that can be set, for the daemons of a lab: the machine's own is not a lab's to set.
//!
//! Preloaded (`LD_PRELOAD`), it adds to what the machine says the seconds that stand in the file `LAB_CLOCK` names: eight bytes,
//! read anew each time. Clocks that only run, `CLOCK_MONOTONIC` above all, are left alone, as a clock that is set leaves them.

use std::{
    fs::File,
    os::fd::AsRawFd,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use libc::{CLOCK_REALTIME, CLOCK_REALTIME_COARSE, c_int, clockid_t, timespec};

/// Where the offset stands; `None`: there is none.
static OFFSET: OnceLock<Option<&'static AtomicI64>> = OnceLock::new();

/// In the place of the C library's.
///
/// # Safety
/// As the C library's: `time` points to a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: the caller's own arguments, to the system call they are for.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    if result == 0
        && matches!(clock, CLOCK_REALTIME | CLOCK_REALTIME_COARSE)
        && let Some(offset) = OFFSET.get_or_init(map)
    {
        // SAFETY: the kernel has just written there.
        unsafe { (*time).tv_sec += offset.load(Relaxed) };
    }
    result
}

fn map() -> Option<&'static AtomicI64> {
    let file = File::open(std::env::var_os("LAB_CLOCK")?).ok()?;
    let size = size_of::<AtomicI64>();
    // Beyond its end a mapped file must not be read.
    if file.metadata().ok()?.len() < size as u64 {
        return None;
    }
    // SAFETY: a new mapping of a file that is open, which the kernel places.
    let page = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    // SAFETY: a page is aligned, has eight bytes of the file, and is never unmapped.
    (page != libc::MAP_FAILED).then(|| unsafe { &*page.cast::<AtomicI64>() })
}
