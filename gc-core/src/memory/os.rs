//! Mappings: memory from the operating system, zeroed, backed when it is first touched, and typed
//! where that helps.
//!
//! The whole heap and all its side tables are such mappings. No function here mallocs after
//! construction, and a system page costs no memory until it is written.
//!
//! # Addresses first, memory later
//!
//! A heap reserves addresses for all that it may ever hold. A private mapping that can be written
//! counts in full against `RLIMIT_DATA`, and where overcommit is strict (`vm.overcommit_memory=2`)
//! against what the whole machine may promise. It counts whether or not a page of it is ever
//! touched, and `MAP_NORESERVE` does not change that. A mapping that cannot be written counts for
//! neither (proc(5), `mm/mmap.c`: `accountable_mapping`, `is_data_mapping`). So a large mapping
//! begins as a reservation ([`Map::reserve`]), and each part is made writable before it is written
//! ([`Map::make_writable`]). If the system refuses that, there is no memory, and the caller reports
//! it.
//!
//! `RLIMIT_AS` counts reservations, too. So their sizes follow the heap's reserve, and a smaller
//! reserve makes all of them smaller.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use nix::sys::resource::{Resource, getrlimit};

const PAGE: usize = 4096;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// The system refused addresses or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapError {
    /// The requested bytes.
    pub bytes: usize,
    /// The system's error number, as in errno(3).
    pub errno: i32,
}

impl MapError {
    fn new(bytes: usize, errno: Errno) -> MapError {
        MapError {
            bytes,
            errno: errno as i32,
        }
    }

    /// The settings that would help, by what limits this process now.
    fn cure(self) -> String {
        let limited = |resource, name: &str, option: &str| match getrlimit(resource) {
            Ok((soft, _)) if soft != libc::RLIM_INFINITY => {
                format!(
                    "raise {name} (ulimit -{option}), which is {} KiB, ",
                    soft >> 10
                )
            }
            _ => String::new(),
        };
        let mut cure = limited(Resource::RLIMIT_AS, "RLIMIT_AS", "v");
        cure += &limited(Resource::RLIMIT_DATA, "RLIMIT_DATA", "d");
        if std::fs::read_to_string("/proc/sys/vm/overcommit_memory")
            .is_ok_and(|mode| mode.trim() == "2")
        {
            cure +=
                "raise vm.overcommit_ratio or vm.overcommit_kbytes (overcommit is strict here), ";
        }
        if cure.is_empty() {
            cure += "raise vm.max_map_count (if the process has many mappings), ";
        }
        cure + "or build the heap with a smaller reserve"
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = std::io::Error::from_raw_os_error(self.errno);
        write!(
            f,
            "the system refused {} bytes of addresses or memory: {why}; {}",
            self.bytes,
            self.cure()
        )
    }
}

impl std::error::Error for MapError {}

/// Bytes of all mappings of the process's heaps. Relaxed: a figure for reports.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of addresses that this process's heaps have, with their tables.
pub(crate) fn mapped_bytes() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// The bytes of addresses that this process may have, if that is limited (`RLIMIT_AS`).
pub(crate) fn addresses() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

/// What an access to a reservation does before that is made writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Each access is a fault.
    Nothing,
    /// A read gives zero, and a write is a fault.
    Read,
}

/// A private anonymous mapping that reserves no swap.
pub(crate) struct Map {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. It is memory reached through raw
// pointers, and the code that dereferences them is responsible for the sharing.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no reference to it is left. If the system
        // refuses, the addresses are lost.
        if unsafe { munmap(self.base.cast(), self.bytes) }.is_ok() {
            MAPPED.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Map {
    fn with(bytes: usize, access: ProtFlags) -> Result<Map, MapError> {
        let bytes = bytes.max(1);
        let length = bytes
            .checked_next_multiple_of(PAGE)
            .and_then(NonZeroUsize::new)
            .ok_or(MapError::new(bytes, Errno::ENOMEM))?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        match unsafe { mmap_anonymous(None, length, access, flags) } {
            Ok(base) => {
                MAPPED.fetch_add(length.get(), Ordering::Relaxed);
                Ok(Map {
                    base: base.cast(),
                    bytes: length.get(),
                })
            }
            Err(errno) => Err(MapError::new(bytes, errno)),
        }
    }

    /// A mapping that can be written at once.
    pub(crate) fn new(bytes: usize) -> Result<Map, MapError> {
        Map::with(bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Addresses without memory. See the module's head.
    pub(crate) fn reserve(bytes: usize, before: Before) -> Result<Map, MapError> {
        if !seam::only_reserves() {
            return Map::new(bytes);
        }
        let access = match before {
            Before::Nothing => ProtFlags::PROT_NONE,
            Before::Read => ProtFlags::PROT_READ,
        };
        Map::with(bytes, access)
    }

    /// Addresses without memory, whole system pages, which begin at a multiple of `align`, a power
    /// of two.
    pub(crate) fn reserve_aligned(bytes: usize, align: usize) -> Result<Map, MapError> {
        debug_assert!(bytes.is_multiple_of(PAGE) && align.is_power_of_two());
        let wide = bytes.checked_add(align);
        let mut map = Map::reserve(wide.unwrap_or(usize::MAX), Before::Nothing)?;
        let before = map.base.as_ptr().align_offset(align);
        let after = map.bytes - before - bytes;
        for (offset, spare) in [(before + bytes, after), (0, before)] {
            // SAFETY: within the mapping, which no other code knows yet. If the system refuses,
            // these addresses are lost.
            unsafe {
                let first = NonNull::new_unchecked(map.base.as_ptr().add(offset));
                if spare != 0 && munmap(first.cast(), spare).is_ok() {
                    MAPPED.fetch_sub(spare, Ordering::Relaxed);
                }
            }
        }
        // SAFETY: within the mapping, so not null.
        map.base = unsafe { NonNull::new_unchecked(map.base.as_ptr().add(before)) };
        map.bytes = bytes;
        Ok(map)
    }

    /// Makes `[offset, offset + bytes)` writable. Takes no lock of this process, so it may be
    /// called in a stop and under `no_preempt`.
    pub(crate) fn make_writable(&self, offset: usize, bytes: usize) -> Result<(), MapError> {
        debug_assert!(offset.is_multiple_of(PAGE) && offset + bytes <= self.bytes);
        seam::before_access(bytes)?;
        // SAFETY: within the mapping, whose contents this does not change.
        unsafe {
            let first = NonNull::new_unchecked(self.base.as_ptr().add(offset));
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mprotect(first.cast(), bytes, access).map_err(|errno| MapError::new(bytes, errno))
        }
    }

    /// The first byte. All accesses go through pointers from here; no reference to the whole
    /// mapping is ever made.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Asks for huge pages from byte `offset` on, if the mapping reaches so far. A kernel without
    /// huge pages refuses, which is no error.
    pub(crate) fn prefer_huge_pages_from(&self, offset: usize) {
        if let Some(rest @ 1..) = self.bytes.checked_sub(offset) {
            self.advise(offset, rest, libc::MADV_HUGEPAGE);
        }
    }

    /// Says whether the system may back these bytes by huge pages. Its thread that makes huge pages
    /// (`khugepaged`) would otherwise back a whole huge page of which only some system pages are in
    /// use. Splits the mapping; a process may have 65,530 mappings.
    pub(crate) fn allow_huge_pages(&self, offset: usize, bytes: usize, may: bool) -> bool {
        let advice = if may {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        self.advise(offset, bytes, advice)
    }

    /// Has the system back `[offset, offset + bytes)`, as if each system page were written, and
    /// changes no contents. `false`: the kernel has no memory, or is older than 5.14, or the range
    /// is not writable.
    pub(crate) fn back(&self, offset: usize, bytes: usize) -> bool {
        self.advise(offset, bytes, libc::MADV_POPULATE_WRITE)
    }

    /// Splits the huge page that byte `offset` lies in, if one does, into system pages. Memory that
    /// goes back out of a huge page is free for other programs only once the huge page is split.
    /// Before that the process has less memory (`VmRSS`), but the machine has no more until it runs
    /// short. The kernel splits a huge page at once when a system page of it is advised to be cold
    /// (Linux 5.4 and later), unless another process has the huge page, too.
    pub(crate) fn split_huge_page(&self, offset: usize) {
        if seam::splits_huge_pages() {
            self.advise(offset / PAGE * PAGE, PAGE, libc::MADV_COLD);
        }
    }

    /// Gives the memory of `[offset, offset + bytes)` back; it reads as zero afterwards. `false`:
    /// the kernel refused, and the contents stay.
    ///
    /// # Safety
    /// The range is page-aligned and inside the mapping, and no thread uses its contents.
    pub(crate) unsafe fn discard(&self, offset: usize, bytes: usize) -> bool {
        self.advise(offset, bytes, libc::MADV_DONTNEED)
    }

    fn advise(&self, offset: usize, bytes: usize, advice: i32) -> bool {
        debug_assert!(offset + bytes <= self.bytes);
        // SAFETY: within the mapping. Only `MADV_DONTNEED` changes contents, and the caller of
        // `discard` has said that no thread uses them.
        unsafe { libc::madvise(self.base.as_ptr().add(offset).cast(), bytes, advice) == 0 }
    }
}

/// A mapped array whose elements start as zero bytes.
pub(crate) struct Table<T> {
    map: Map,
    len: usize,
    /// Bytes from the first one on that can be written. Only grows.
    writable: AtomicUsize,
    /// For each huge page of a reservation: the system backs it by system pages alone, since a part
    /// of it went back.
    small_pages: Box<[AtomicBool]>,
    element: PhantomData<*mut T>,
}

// SAFETY: a table is memory reached through raw pointers, and the code that dereferences them is
// responsible for the sharing.
unsafe impl<T> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Table<T> {}

impl<T> Table<T> {
    fn bytes(len: usize) -> Result<usize, MapError> {
        const { assert!(align_of::<T>() <= PAGE && size_of::<T>() > 0) };
        len.checked_mul(size_of::<T>())
            .ok_or(MapError::new(usize::MAX, Errno::ENOMEM))
    }

    /// A table that can be written at once.
    pub(crate) fn new(len: usize) -> Result<Table<T>, MapError> {
        let map = Map::new(Self::bytes(len)?)?;
        Ok(Table {
            writable: AtomicUsize::new(map.bytes),
            map,
            len,
            small_pages: Box::default(),
            element: PhantomData,
        })
    }

    /// A table that reads as zeros. [`Table::make_writable`] comes before the first write.
    pub(crate) fn reserve(len: usize) -> Result<Table<T>, MapError> {
        let map = Map::reserve(Self::bytes(len)?, Before::Read)?;
        // The table may have only a part of the first and of the last huge page.
        let huge_pages = map.bytes.div_ceil(HUGE_PAGE) + 1;
        Ok(Table {
            map,
            len,
            writable: AtomicUsize::new(0),
            small_pages: (0..huge_pages).map(|_| AtomicBool::new(false)).collect(),
            element: PhantomData,
        })
    }

    /// The number of elements from the first one on that can be written.
    #[inline]
    pub(crate) fn writable(&self) -> usize {
        // Acquire pairs with the Release in `make_writable`, for threads that write without a
        // common lock.
        (self.writable.load(Ordering::Acquire) / size_of::<T>()).min(self.len)
    }

    /// Makes at least the first `count` elements writable, and some more, so that it is not called
    /// for each element. Takes no lock of this process, so it may be called in a stop and under
    /// `no_preempt`. Several threads may call it at once: an element that one of them makes
    /// writable is writable for all.
    #[cold]
    pub(crate) fn make_writable(&self, count: usize) -> Result<(), MapError> {
        /// The step in which a table grows. A large table grows by whole huge pages.
        const STEP: usize = 64 << 10;
        let now = self.writable.load(Ordering::Relaxed);
        let wanted = Self::bytes(count)?;
        if wanted <= now {
            return Ok(());
        }
        let step = if wanted < 2 * HUGE_PAGE {
            STEP
        } else {
            HUGE_PAGE
        };
        let to = wanted.next_multiple_of(step).min(self.map.bytes);
        self.map.make_writable(now, to - now)?;
        self.writable.fetch_max(to, Ordering::Release);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A pointer to element `index`. The bound is checked in debug builds only, since markers call
    /// this for each edge.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> *mut T {
        debug_assert!(index < self.len, "table index {index} of {}", self.len);
        self.map.base().cast::<T>().wrapping_add(index)
    }

    /// Asks for huge pages from element `first` on, which is the first of a system page.
    pub(crate) fn prefer_huge_pages_from(&self, first: usize) {
        self.map.prefer_huge_pages_from(first * size_of::<T>());
    }

    /// Has the memory of `count` elements from `first` on backed, as far as the table reaches. See
    /// [`Map::back`].
    pub(crate) fn back(&self, first: usize, count: usize) -> bool {
        let from = first * size_of::<T>() / PAGE * PAGE;
        let to = ((first + count) * size_of::<T>()).next_multiple_of(PAGE);
        let to = to.min(self.map.bytes);
        from >= to || self.map.back(from, to - from)
    }

    /// The addresses of the elements.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.map.base() as usize;
        start..start + self.len * size_of::<T>()
    }

    /// Gives the memory of the first `bytes` bytes back, whole system pages. See [`Map::discard`].
    ///
    /// # Safety
    /// Inside the table, and no thread uses the contents.
    pub(crate) unsafe fn discard_first(&self, bytes: usize) -> bool {
        // SAFETY: forwarded.
        unsafe { self.map.discard(0, bytes) }
    }

    /// Gives back the whole system pages inside `[first, first + count)` elements of a reservation
    /// whose other pages stay. A huge page of which only a part goes is split, and the system may
    /// not make it a huge page again: its thread for that would back all of it.
    ///
    /// # Safety
    /// Inside the table; the elements are not written meanwhile, and their values are not needed.
    pub(crate) unsafe fn discard_part(&self, first: usize, count: usize) {
        let from = (first * size_of::<T>()).next_multiple_of(PAGE);
        let to = (first + count) * size_of::<T>() / PAGE * PAGE;
        if from >= to {
            return;
        }
        for offset in [from, to - PAGE] {
            self.use_small_pages(offset);
        }
        // SAFETY: forwarded.
        unsafe { self.map.discard(from, to - from) };
    }

    /// The number of the huge page that this byte lies in, and which bytes of the table it has.
    fn huge_page(&self, offset: usize) -> (usize, Range<usize>) {
        let before = self.map.base() as usize % HUGE_PAGE;
        let number = (before + offset) / HUGE_PAGE;
        let first = (number * HUGE_PAGE).saturating_sub(before);
        let end = ((number + 1) * HUGE_PAGE - before).min(self.map.bytes);
        (number, first..end)
    }

    fn use_small_pages(&self, offset: usize) {
        let (number, bytes) = self.huge_page(offset);
        // Relaxed: the scavenger alone changes it.
        if !self.small_pages[number].swap(true, Ordering::Relaxed) {
            self.map.allow_huge_pages(bytes.start, bytes.len(), false);
            self.map.split_huge_page(offset);
        }
    }

    /// Asks for huge pages again from element `first` on, which is the first of a system page,
    /// wherever [`Table::discard_part`] has given them up.
    pub(crate) fn use_huge_pages_again(&self, first: usize) {
        let least = first * size_of::<T>();
        for (number, small) in self.small_pages.iter().enumerate() {
            // Relaxed, as above.
            if small.swap(false, Ordering::Relaxed) {
                let before = self.map.base() as usize % HUGE_PAGE;
                let (_, bytes) = self.huge_page((number * HUGE_PAGE).saturating_sub(before));
                let start = bytes.start.max(least);
                if start < bytes.end {
                    self.map.allow_huge_pages(start, bytes.end - start, true);
                }
            }
        }
    }

    /// Gives back the memory of the elements `[first, first + count)`. See [`Map::discard`].
    ///
    /// # Safety
    /// The range is page-aligned in bytes and inside the table, and no thread uses its contents.
    pub(crate) unsafe fn discard(&self, first: usize, count: usize) -> bool {
        // SAFETY: forwarded.
        unsafe {
            self.map
                .discard(first * size_of::<T>(), count * size_of::<T>())
        }
    }
}

mod seam {
    use nix::errno::Errno;

    use super::MapError;
    use crate::fault::Fault;

    /// Reserves addresses that cannot be written.
    pub(super) fn only_reserves() -> bool {
        !Fault::AllWritable.planted()
    }

    /// Refuses nothing itself: only the system may.
    pub(super) fn before_access(bytes: usize) -> Result<(), MapError> {
        if Fault::MemoryRefused.planted() {
            return Err(MapError::new(bytes, Errno::ENOMEM));
        }
        Ok(())
    }

    pub(super) fn splits_huge_pages() -> bool {
        !Fault::HugePagesUnsplit.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length that no system has is an error value.
    #[test]
    fn an_absurd_length_is_an_error_value() {
        assert!(Table::<u64>::new(usize::MAX / 4).is_err());
        assert!(Table::<u64>::new(usize::MAX / 8).is_err());
        assert!(Map::new(1 << 60).is_err());
        assert!(Map::reserve(usize::MAX, Before::Nothing).is_err());
    }

    /// An aligned reservation has the requested length and alignment, and all of it can be written.
    #[test]
    fn aligned_addresses_are_as_many_as_were_asked_for() {
        const ALIGN: usize = 2 << 20;
        for bytes in [PAGE, ALIGN, 3 * ALIGN + PAGE] {
            let map = Map::reserve_aligned(bytes, ALIGN).unwrap();
            assert!((map.base() as usize).is_multiple_of(ALIGN) && map.bytes == bytes);
            map.make_writable(0, bytes).unwrap();
            // SAFETY: this test's own mapping, from its first byte to its last.
            unsafe {
                map.base().write(1);
                map.base().add(bytes - 1).write(2);
            }
        }
        assert!(Map::reserve_aligned(usize::MAX / PAGE * PAGE, ALIGN).is_err());
    }

    /// Discarded memory reads as zero.
    #[test]
    fn discarded_memory_reads_as_zero() {
        let map = Map::new(1 << 16).unwrap();
        // SAFETY: this test's own new mapping.
        unsafe {
            map.base().add(4096).write(7);
            assert!(map.discard(4096, 4096));
            assert_eq!(map.base().add(4096).read(), 0);
        }
    }

    /// A reserved table reads as zero, and can be written as far as it was made writable.
    #[test]
    fn a_reserved_table_reads_as_zero_and_is_written_as_far_as_it_was_made_writable() {
        let table = Table::<u64>::reserve(1 << 20).unwrap();
        assert_eq!(table.writable(), 0);
        // SAFETY: this test's own table. All of it can be read, and the written part was made
        // writable.
        unsafe {
            assert_eq!(table.at((1 << 20) - 1).read(), 0);
            table.make_writable(1).unwrap();
            let some = table.writable();
            assert!(some > 0 && some < 1 << 20);
            table.at(some - 1).write(7);
            table.make_writable(1 << 20).unwrap();
            assert_eq!(table.writable(), 1 << 20);
            table.at((1 << 20) - 1).write(8);
            assert_eq!((table.at(some - 1).read(), table.at(some).read()), (7, 0));
        }
    }

    /// The error of a refused mapping names the bytes and the remedy.
    #[test]
    fn a_refusal_names_what_to_change() {
        let text = MapError::new(1 << 40, Errno::ENOMEM).to_string();
        assert!(text.contains("1099511627776 bytes"), "{text}");
        assert!(text.contains("smaller reserve"), "{text}");
    }
}
