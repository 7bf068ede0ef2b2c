//! The loader's modules: where their unwind tables are, and which are never unloaded.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use gimli::{EhFrame, LittleEndian};

use super::cfi::rule_of;
use super::rule::Row;

/// glibc's `struct dl_find_object` for x86-64, of `<dlfcn.h>`.
#[repr(C)]
struct DlFindObject {
    flags: u64,
    map_start: usize,
    map_end: usize,
    link_map: *const c_void,
    /// The section `.eh_frame_hdr`, or null.
    eh_frame_hdr: usize,
    reserved: [u64; 7],
}

type FindObject = unsafe extern "C" fn(*const c_void, *mut DlFindObject) -> c_int;

/// `_dl_find_object`, or null.
static FIND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Start and end of the modules that are never unloaded.
static STAYING: [[AtomicUsize; 2]; 5] = [const { [const { AtomicUsize::new(0) }; 2] }; 5];

/// Asks the loader for what a stop needs. May be called again.
pub(super) fn setup() {
    // SAFETY: `dlsym` with a C string.
    let find = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) };
    if find.is_null() {
        return;
    }
    // SAFETY: as above; the name is one that only libc defines.
    let libc = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"gnu_get_libc_version".as_ptr()) };
    // SAFETY: `getauxval` only reads.
    let [executable, vdso] =
        [libc::AT_PHDR, libc::AT_SYSINFO_EHDR].map(|at| unsafe { libc::getauxval(at) } as usize);
    // Release pairs with the Acquire in `module`.
    FIND.store(find, Ordering::Release);
    let anchors = [
        setup as fn() as usize,
        libc as usize,
        find as usize,
        executable,
        vdso,
    ];
    for (place, anchor) in STAYING.iter().zip(anchors) {
        if let Some(module) = module(anchor) {
            place[0].store(module.map.start, Ordering::Relaxed);
            place[1].store(module.map.end, Ordering::Relaxed);
        }
    }
}

/// The module at an address.
pub(super) struct Module {
    /// The whole module. If its segments do not touch each other: the segment of the address.
    map: Range<usize>,
    /// Where its ELF header is mapped.
    head: usize,
    pub(super) eh_frame_hdr: usize,
}

pub(super) fn module(pc: usize) -> Option<Module> {
    // Acquire pairs with the Release in `setup`.
    let find = FIND.load(Ordering::Acquire);
    if find.is_null() {
        return None;
    }
    // SAFETY: `dlsym` gave it under the name of a function of this type.
    let find: FindObject = unsafe { std::mem::transmute::<*mut c_void, FindObject>(find) };
    let mut found = DlFindObject {
        flags: 0,
        map_start: 0,
        map_end: 0,
        link_map: std::ptr::null(),
        eh_frame_hdr: 0,
        reserved: [0; 7],
    };
    // SAFETY: it takes any address and fills the struct in.
    if unsafe { find(pc as *const c_void, &mut found) } != 0 {
        return None;
    }
    let map = found.map_start..found.map_end;
    if !map.contains(&pc) {
        return None;
    }
    let head = if map.contains(&found.eh_frame_hdr) {
        map.start
    } else if found.link_map.is_null() {
        return None;
    } else {
        // Some linkers (lld) leave a hole between segments, and the loader then knows the segments
        // one by one. A module that can be loaded anywhere begins at its bias.
        // SAFETY: a `struct link_map` of `<link.h>`, whose first word (`l_addr`) is the bias. It
        // stays as long as the module does.
        unsafe { found.link_map.cast::<usize>().read() }
    };
    // An executable at a fixed address has no bias, and no header there.
    (head != 0 && head % 4096 == 0 && found.eh_frame_hdr > head).then_some(Module {
        map,
        head,
        eh_frame_hdr: found.eh_frame_hdr,
    })
}

impl Module {
    /// The bytes from `address` to the end of its loaded segment. `None`: the segment is not
    /// readable.
    pub(super) fn segment(&self, address: usize) -> Option<&'static [u8]> {
        const PT_LOAD: u32 = 1;
        let head = self.head as *const libc::Elf64_Ehdr;
        // SAFETY: there the module's first loaded segment is mapped, which holds at least a page;
        // that it holds the ELF header is checked next.
        let head = unsafe { head.read_unaligned() };
        if head.e_ident[..4] != *b"\x7fELF"
            || usize::from(head.e_phentsize) != size_of::<libc::Elf64_Phdr>()
        {
            return None;
        }
        let table = self.head.checked_add(head.e_phoff as usize)?;
        // The linker puts the table behind the header, on the same page.
        if head.e_phoff as usize + usize::from(head.e_phnum) * size_of::<libc::Elf64_Phdr>() > 4096
        {
            return None;
        }
        let mut loaded = (0..head.e_phnum.into()).filter_map(|i| {
            let at = (table + i * size_of::<libc::Elf64_Phdr>()) as *const libc::Elf64_Phdr;
            // SAFETY: on the first page of the map, by the test above.
            let segment = unsafe { at.read_unaligned() };
            (segment.p_type == PT_LOAD).then_some(segment)
        });
        // The first segment gives the distance by which the module was moved.
        let mut next = loaded.next();
        let bias = self.head.wrapping_sub(next?.p_vaddr as usize & !4095);
        while let Some(segment) = next {
            let start = bias.wrapping_add(segment.p_vaddr as usize);
            let end = start.checked_add(segment.p_filesz as usize)?;
            if segment.p_flags & libc::PF_R != 0 && (start..end).contains(&address) {
                // SAFETY: a loaded segment's bytes of the file, mapped and read-only (tables lie in
                // no writable segment), for as long as the module stays; it stays while a PC on a
                // stopped stack lies in it.
                return Some(unsafe { slice::from_raw_parts(address as *const u8, end - address) });
            }
            next = loaded.next();
        }
        None
    }

    /// The addresses of the entry (FDE) that may cover `pc`, and of `.eh_frame`: by a binary search
    /// in `.eh_frame_hdr`, which every linker makes.
    pub(super) fn entry(&self, pc: usize) -> Option<(usize, usize)> {
        /// Version 1; `.eh_frame`'s place relative to the field; a 32-bit count; pairs of 32-bit
        /// offsets from the table's section.
        const HEAD: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
        let section = self.segment(self.eh_frame_hdr)?;
        let (head, rest) = section.split_first_chunk::<4>()?;
        if *head != HEAD {
            return None;
        }
        let (frame, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let from_hdr = |bytes: &[u8; 4]| {
            self.eh_frame_hdr
                .wrapping_add_signed(i32::from_le_bytes(*bytes) as isize)
        };
        let eh_frame = from_hdr(frame).wrapping_add(4);
        let pairs = rest.as_chunks::<4>().0.as_chunks::<2>().0;
        let pairs = pairs.get(..u32::from_le_bytes(*count) as usize)?;
        let after = pairs.partition_point(|[start, _]| from_hdr(start) <= pc);
        let [_, entry] = pairs.get(after.checked_sub(1)?)?;
        Some((from_hdr(entry), eh_frame))
    }
}

/// The rule at `pc`, from the loader's modules.
pub(super) fn look_up(pc: usize) -> Option<Row> {
    let module = module(pc)?;
    let (entry, eh_frame) = module.entry(pc)?;
    let offset = entry.checked_sub(eh_frame)?;
    let section = EhFrame::new(module.segment(eh_frame)?, LittleEndian);
    rule_of(&section, eh_frame, offset, pc)
}

/// Whether `pc` lies in a module that is never unloaded.
pub(super) fn stays(pc: usize) -> bool {
    STAYING.iter().any(|[start, end]| {
        (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&pc)
    })
}
