//! Memory for stacks, with a guard page below each.
//!
//! A hundred thousand stacks must not take a hundred thousand mappings: the kernel allows a process
//! 65530 (`vm.max_map_count`). So a pool carves stacks out of large mappings, and marks the guard
//! pages by `MADV_GUARD_INSTALL` (Linux 6.13), which splits no mapping. On older kernels `mprotect`
//! makes the guard pages, and splits the mapping twice for each stack, so the kernel's limit holds.
//!
//! Huge pages are refused: the first word of a stack would have 2 MiB backed.
//!
//! # Fork
//! A thread that forks holds [`POOLS`] over the fork, so in the child each pool is whole and free.
//! It is the last lock that a fork takes: its holder takes no other lock of this crate.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::park;
use crate::quiet::KeepErrno;

const PAGE: usize = 4096;
/// Bytes of one mapping, if a stack is not larger.
const CHUNK: usize = 64 << 20;
/// Held while any pool is read or changed.
static POOLS: park::Mutex<()> = park::Mutex::new(());
/// Not in the libc crate's older versions.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Memory for one stack. Its drop gives the memory back to its pool.
///
/// Below the stack lies a guard page: an overflow ends the process by SIGSEGV.
///
/// ```
/// let memory = gc_preempt::StackMemory::new(64 << 10)?;
/// assert_eq!(memory.range().len(), 64 << 10);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct StackMemory {
    range: Range<usize>,
    pool: StackPool,
}

impl StackMemory {
    /// Maps memory for one stack of at least so many bytes, without the guard page.
    ///
    /// # Errors
    /// The system gives no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        StackPool::with_chunks(bytes, 1).take()
    }

    /// The addresses of the stack. The guard page lies right below.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }
}

impl Drop for StackMemory {
    fn drop(&mut self) {
        self.pool.give(self.range.start);
    }
}

/// Memory for many stacks of one size. A clone is another handle on the same pool.
///
/// ```
/// let pool = gc_preempt::StackPool::new(32 << 10);
/// let stacks: Result<Vec<_>, _> = (0..1000).map(|_| pool.take()).collect();
/// assert_eq!(stacks?.len(), 1000);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct StackPool(Arc<Pool>);

struct Pool {
    /// Bytes of one stack, without its guard page.
    bytes: usize,
    /// Stacks of one mapping.
    each: usize,
    state: Mutex<State>,
}

/// All pools, locked over a fork. `None`, if a planted fault leaves them out.
pub(crate) fn lock_pools() -> Option<park::MutexGuard<'static, ()>> {
    seam::are_locked_over_forks().then(|| POOLS.lock())
}

/// A pool's state. No thread waits for the inner lock, since its holder holds the outer one.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    // Dropped last.
    _pools: park::MutexGuard<'static, ()>,
}

#[derive(Default)]
struct State {
    chunks: Vec<Range<usize>>,
    /// The part of the last chunk that was not carved yet.
    rest: Range<usize>,
    /// The first addresses of stacks that were given back. It has room for all stacks.
    free: Vec<usize>,
    /// Stacks carved so far.
    carved: usize,
}

impl StackPool {
    /// A pool of stacks of at least `bytes` bytes each, rounded up to pages, without the guard
    /// pages. Memory is backed when it is first used.
    pub fn new(bytes: usize) -> Self {
        let slot = Self::rounded(bytes) + PAGE;
        Self::with_chunks(bytes, (CHUNK / slot).max(1))
    }

    fn rounded(bytes: usize) -> usize {
        bytes
            .clamp(PAGE, isize::MAX as usize / 4)
            .next_multiple_of(PAGE)
    }

    fn with_chunks(bytes: usize, each: usize) -> Self {
        Self(Arc::new(Pool {
            bytes: Self::rounded(bytes),
            each,
            state: Mutex::new(State::default()),
        }))
    }

    /// Bytes of each stack.
    pub fn stack_bytes(&self) -> usize {
        self.0.bytes
    }

    /// Takes a stack from the pool: one that was given back, or a new one. Its words are zero.
    ///
    /// # Errors
    /// The system gives no memory, or no guard page.
    pub fn take(&self) -> io::Result<StackMemory> {
        let _kept = KeepErrno::new();
        let mut locked = self.0.lock();
        let state = &mut *locked.state;
        let start = match state.free.pop() {
            Some(start) => start,
            None => self.0.carve(state)?,
        };
        Ok(StackMemory {
            range: start..start + self.0.bytes,
            pool: self.clone(),
        })
    }

    fn give(&self, start: usize) {
        let _kept = KeepErrno::new();
        // SAFETY: the stack's own pages, which are no longer used. If the kernel refuses, they
        // stay backed, and their words are cleared here.
        unsafe {
            if libc::madvise(start as *mut _, self.0.bytes, libc::MADV_DONTNEED) != 0 {
                core::ptr::write_bytes(start as *mut u8, 0, self.0.bytes);
            }
        }
        self.0.lock().state.free.push(start);
    }
}

impl Pool {
    fn lock(&self) -> Locked<'_> {
        let _pools = POOLS.lock();
        seam::locked();
        // No code that holds the lock leaves the state half changed.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, _pools }
    }

    /// A stack that was never used.
    fn carve(&self, state: &mut State) -> io::Result<usize> {
        let slot = self.bytes + PAGE;
        if state.rest.is_empty() {
            let chunk = map(slot * self.each)?;
            state.rest = chunk.clone();
            state.chunks.push(chunk);
        }
        let at = state.rest.start;
        guard(at)?;
        state.rest.start += slot;
        state.carved += 1;
        let more = state.carved - state.free.len();
        state.free.reserve(more);
        Ok(at + PAGE)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for chunk in self.lock().state.chunks.drain(..) {
            // SAFETY: mapped by `map`, and no `StackMemory` of it exists, since each keeps the
            // pool.
            unsafe { libc::munmap(chunk.start as *mut _, chunk.len()) };
        }
    }
}

fn map(bytes: usize) -> io::Result<Range<usize>> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            core::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the new mapping. A kernel without huge pages refuses, which is as well.
    unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(base as usize..base as usize + bytes)
}

/// Makes the page at that address a guard page.
fn guard(page: usize) -> io::Result<()> {
    /// The kernel has no `MADV_GUARD_INSTALL`.
    static OLD_KERNEL: AtomicBool = AtomicBool::new(false);
    if seam::leaves_it_open() {
        return Ok(());
    }
    // Relaxed: a hint.
    if !OLD_KERNEL.load(Ordering::Relaxed) && !seam::is_old() {
        // SAFETY: a page of a mapping of the pool's, which is not in use.
        if unsafe { libc::madvise(page as *mut _, PAGE, MADV_GUARD_INSTALL) } == 0 {
            return Ok(());
        }
        OLD_KERNEL.store(true, Ordering::Relaxed);
    }
    // SAFETY: as above.
    match unsafe { libc::mprotect(page as *mut _, PAGE, libc::PROT_NONE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::{self, Delay, Fault};

    pub(super) fn are_locked_over_forks() -> bool {
        !Fault::PoolsUnlocked.planted()
    }

    pub(super) fn locked() {
        if Delay::HeldPool.planted() {
            faults::hold();
        }
    }

    pub(super) fn leaves_it_open() -> bool {
        Fault::NoGuardPage.planted()
    }

    /// As on a kernel before 6.13.
    pub(super) fn is_old() -> bool {
        Fault::GuardByMapping.planted()
    }
}
