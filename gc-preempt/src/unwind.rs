//! Says how to get from a native frame to its caller's, by the unwind tables (CFI) of the module
//! that the frame's PC lies in.
//!
//! The answer is a [`Rule`] or nothing. Nothing means that no table covers this very PC, or that
//! its row says something that cannot be expressed here; the walker then scans conservatively.
//! There is no third case: no guessing by RBP, no disassembly. (framehop, the crate one would take,
//! follows RBP silently where it has no table, and a stale RBP can lead into a plausible chain; it
//! also wants every module announced beforehand, and takes all modules anew when one is loaded.)
//!
//! # In the stopped world
//!
//! A mutator may be stopped inside malloc, inside `dlopen`, with the loader's lock held. So the
//! module is found by glibc's `_dl_find_object` (2.35 and later; also for the vDSO), which takes no
//! lock: it reads one of two copies of a sorted table, and a writer that is stopped in the middle
//! holds up nobody. It is looked up by `dlsym` once ([`setup`]), outside of any stop; where it is
//! missing, no native frame has a rule. Tables are parsed by gimli with storage on the stack.
//! Nothing here allocates, locks or panics.
//!
//! # The cache
//!
//! A look-up takes half a microsecond where the tables are in the processor's caches and 10 to 17
//! us where a collection has just driven them out, and the same frames come back at every stop, so
//! rules are kept by PC. The innermost frame stands somewhere else each time, but in few functions,
//! of which one row speaks of nearly all instructions: so the last rows are kept by the range of
//! PCs that they hold for. What makes a kept rule wrong is that a module is unloaded and another
//! one loaded at its address. While a frame lies on a stopped stack its module stays, so within one
//! stop every rule is good. From one stop to the next only those are kept whose module is never
//! unloaded: the executable, libc, the loader, the vDSO, and the module that Urge is part of. The
//! others carry the number of their stop and are looked up anew at the next.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, EndianSlice, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection,
    UnwindTableRow,
};

use crate::context::{RBP, RSP};
use crate::faults;
use expression::evaluate;
pub(crate) use table::{MAX_CIE, Table};

/// DWARF numbers of the registers that a callee preserves, RSP aside.
pub(crate) const PRESERVED: [usize; 6] = [3, RBP, 12, 13, 14, 15];
const RETURN_ADDRESS: u16 = 16;

/// How to get to the caller of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The canonical frame address: SP in the caller, once this frame has returned.
    pub(crate) cfa: Value,
    pub(crate) back: Back,
    /// Where the caller's values of the [`PRESERVED`] registers are.
    pub(crate) saved: [Saved; PRESERVED.len()],
    /// All registers that the frame has saved for its caller, and the return address, lie in so
    /// many bytes below the CFA.
    pub(crate) saves: u32,
}

/// How a frame returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// To the address in the word below the CFA.
    Address,
    /// It has no caller: the outermost frame of its stack.
    Outermost,
    /// By `rt_sigreturn`: it is the trampoline of a signal handler, and what the signal interrupted
    /// stands in the ucontext at SP. The other fields mean nothing.
    Signal,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    /// In the register.
    Same,
    /// Nowhere.
    Lost,
    /// In memory, so many bytes from the CFA.
    Cfa(i32),
    /// In memory, at this address.
    At(Value),
}

/// A number that is known once registers and stack are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// DWARF number of a general register.
    pub(crate) register: u8,
    /// Added to it.
    pub(crate) offset: i32,
    /// If there, the sum is an address, and this is added to the word that lies there.
    pub(crate) loaded: Option<i32>,
}

impl Rule {
    const SIGNAL: Self = Self {
        cfa: Value {
            register: RSP as u8,
            offset: 0,
            loaded: None,
        },
        back: Back::Signal,
        saved: [Saved::Lost; PRESERVED.len()],
        saves: 0,
    };
}

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

/// Where the function of a context that `makecontext` has made returns to. 0: not known. No unwind
/// table says that its stack ends there, since the address before it, by which tables are searched,
/// belongs to no function.
static CONTEXT_END: AtomicUsize = AtomicUsize::new(0);

/// Is this the return address of the outermost frame of a stack that `makecontext` was given?
pub(crate) fn ends_a_context(pc: usize) -> bool {
    // Relaxed: written before the first stop.
    pc == CONTEXT_END.load(Ordering::Relaxed) && pc != 0
}

/// Makes a context to see which return address it gets.
fn look_at_a_context() {
    extern "C" fn never() {}
    unsafe extern "C" {
        fn getcontext(context: *mut libc::ucontext_t) -> c_int;
        fn makecontext(context: *mut libc::ucontext_t, f: extern "C" fn(), n: c_int, ...);
    }
    let mut stack = [0usize; 128];
    // SAFETY: zero is a valid ucontext_t, which `getcontext` fills. The context is never switched
    // to; `makecontext` writes some words at the end of its stack.
    let sp = unsafe {
        let mut context: libc::ucontext_t = std::mem::zeroed();
        if getcontext(&raw mut context) != 0 {
            return;
        }
        context.uc_stack.ss_sp = stack.as_mut_ptr().cast();
        context.uc_stack.ss_size = size_of_val(&stack);
        makecontext(&raw mut context, never, 0);
        context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    };
    let index = sp.wrapping_sub(stack.as_ptr() as usize) / 8;
    if let Some(back) = std::hint::black_box(&stack).get(index) {
        CONTEXT_END.store(*back, Ordering::Relaxed);
    }
}

/// Looks up what cannot be looked up in a stop. May be called again.
pub(crate) fn setup() {
    touch_kept_rules();
    look_at_a_context();
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
    // Release pairs with the Acquire in `module`. (Whoever stops the world has been through here
    // himself, or has got the world from who has.)
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
struct Module {
    /// All of it; or, where its segments do not touch each other, the one that the address lies in.
    map: Range<usize>,
    /// Where its ELF header is mapped.
    head: usize,
    eh_frame_hdr: usize,
}

fn module(pc: usize) -> Option<Module> {
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
        // Linkers leave a hole between segments where pages of the file and of memory would part
        // (lld does, by luck of a build's sizes), and the loader then knows the segments one by
        // one. What can be loaded anywhere begins at its bias.
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
    /// From `address` to the end of the loaded segment that it lies in: all of it is readable,
    /// which the whole map need not be. `None` in a segment that is not.
    fn segment(&self, address: usize) -> Option<&'static [u8]> {
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
        // The first segment tells by how much the module was moved.
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

    /// Where the entry (FDE) lies that may cover `pc`, and where `.eh_frame` begins: a binary
    /// search through the table that every linker makes.
    fn entry(&self, pc: usize) -> Option<(usize, usize)> {
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

/// gimli's storage on the stack. A function saves at most its sixteen registers, and state is
/// remembered one deep in all code that compilers make.
struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 24];
    type Stack = [UnwindTableRow<usize, Self>; 5];
}

type Section<'a> = EhFrame<EndianSlice<'a, LittleEndian>>;

/// A rule, and the PCs that it holds for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) pcs: Range<usize>,
    rule: Rule,
}

/// The rule at `pc`, from the loader's modules.
fn look_up(pc: usize) -> Option<Row> {
    let module = module(pc)?;
    let (entry, eh_frame) = module.entry(pc)?;
    let offset = entry.checked_sub(eh_frame)?;
    let section = EhFrame::new(module.segment(eh_frame)?, LittleEndian);
    rule_of(&section, eh_frame, offset, pc)
}

/// The rule at `pc` by the entry (FDE) at that offset of a section that stands (or stood, when its
/// addresses were filled in) at `address`.
fn rule_of(section: &Section<'_>, address: usize, offset: usize, pc: usize) -> Option<Row> {
    let bases = BaseAddresses::default().set_eh_frame(address as u64);
    let fde = section
        .fde_from_offset(&bases, EhFrameOffset(offset), EhFrame::cie_from_offset)
        .ok()?;
    if !fde.contains(pc as u64) {
        return None;
    }
    if fde.is_signal_trampoline() {
        return Some(Row {
            pcs: pc..pc + 1,
            rule: Rule::SIGNAL,
        });
    }
    // The return address is looked for in one column. A CIE may name another one as its own.
    if fde.cie().return_address_register() != Register(RETURN_ADDRESS) {
        return None;
    }
    let mut context = UnwindContext::<usize, Storage>::new_in();
    let row = fde
        .unwind_info_for_address(section, &bases, &mut context, pc as u64)
        .ok()?;
    // An expression may ask for the PC, and then holds for this one alone.
    let anywhere = Cell::new(true);
    let evaluate = |e: &UnwindExpression<usize>, pushed| {
        anywhere.set(false);
        evaluate(e.get(section).ok()?.0.slice(), pc, pushed)
    };
    let cfa = match row.cfa() {
        // What gimli begins with: the tables do not say where the frame ends. (No frame ends at
        // RAX.)
        CfaRule::RegisterAndOffset {
            register: Register(0),
            offset: 0,
        } => return None,
        CfaRule::RegisterAndOffset { register, offset } => Value {
            register: u8::try_from(register.0).ok().filter(|r| *r < 16)?,
            offset: i32::try_from(*offset).ok()?,
            loaded: None,
        },
        CfaRule::Expression(e) => evaluate(e, None)?,
    };
    let back = match row.register(Register(RETURN_ADDRESS)) {
        Some(RegisterRule::Offset(-8)) => Back::Address,
        // Only this says that there is no caller. A row that is silent about the return address
        // (assembly under `.cfi_startproc simple`) says nothing of callers.
        Some(RegisterRule::Undefined) => Back::Outermost,
        None if faults::planted("silence-ends-walks") => Back::Outermost,
        _ => return None,
    };
    // The caller's SP is the CFA, unless the row says otherwise (a function that changes stacks
    // does).
    match row.register(Register(RSP as u16)) {
        None | Some(RegisterRule::ValOffset(0)) => {}
        Some(_) => return None,
    }
    let saved = PRESERVED.map(|register| match row.register(Register(register as u16)) {
        // What a row does not name is as it was: the ABI's rule for these registers.
        None | Some(RegisterRule::SameValue) => Saved::Same,
        Some(RegisterRule::Offset(offset)) => i32::try_from(offset).map_or(Saved::Lost, Saved::Cfa),
        Some(RegisterRule::Expression(e)) => {
            let pushed = cfa.loaded.is_none().then_some(cfa);
            evaluate(&e, pushed).map_or(Saved::Lost, Saved::At)
        }
        Some(_) => Saved::Lost,
    });
    let lowest = row
        .registers()
        .try_fold(-8, |lowest: i64, (_, rule)| match rule {
            RegisterRule::Offset(offset) => Some(lowest.min(*offset)),
            RegisterRule::Undefined | RegisterRule::SameValue => Some(lowest),
            // Saved anywhere: perhaps at the frame's other end.
            _ => None,
        });
    let saves = lowest
        .and_then(|l| u32::try_from(l.checked_neg()?).ok())
        .unwrap_or(u32::MAX);
    // A row may reach past its entry's end, where another one speaks.
    let row = row.start_address() as usize..row.end_address().min(fde.end_address()) as usize;
    Some(Row {
        pcs: if anywhere.get() && row.contains(&pc) {
            row
        } else {
            pc..pc + 1
        },
        rule: Rule {
            cfa,
            back,
            saved,
            saves,
        },
    })
}

mod expression;
mod table;

// ---- the cache ----------------------------------------------------------------------------------

/// Rows that a cache keeps besides.
const ROWS: usize = 16;
/// Entries of one cache; a program's stopped stacks show a few hundred distinct PCs.
const ENTRIES: usize = 512;
/// Caches: as many walks at the same time find one. A further one goes without.
const CACHES: usize = 4;
/// In the place of a stop's number: good in every stop.
const ALWAYS: u64 = u64::MAX;
/// And: good in none. For a walk outside of any stop, whose frames may be gone, and their module
/// with them, before the next stop, or the next such walk.
pub(crate) const NEVER: u64 = 0;

#[derive(Clone, Copy)]
struct Entry {
    pc: usize,
    /// The stop that it was looked up in, or [`ALWAYS`].
    stop: u64,
    rule: Option<Rule>,
}

/// The last rows that were looked up in modules that are never unloaded.
struct Rows {
    /// Apart from the rules, so that a search reads a few lines.
    pcs: [[usize; 2]; ROWS],
    rules: [Option<Rule>; ROWS],
    /// The one to be replaced next.
    next: usize,
}

impl Rows {
    const fn new() -> Self {
        Self {
            pcs: [[0; 2]; ROWS],
            rules: [None; ROWS],
            next: 0,
        }
    }

    fn find(&self, pc: usize) -> Option<Rule> {
        let at = self
            .pcs
            .iter()
            .position(|[from, to]| (*from..*to).contains(&pc))?;
        self.rules[at]
    }

    fn keep(&mut self, row: &Row) {
        let at = self.next % ROWS;
        self.pcs[at] = [row.pcs.start, row.pcs.end];
        self.rules[at] = Some(row.rule);
        self.next = at + 1;
    }
}

struct Kept {
    entries: [Entry; ENTRIES],
    rows: Rows,
}

struct Cache {
    taken: AtomicBool,
    kept: UnsafeCell<Kept>,
}

// SAFETY: what is kept is touched only by the session that has set `taken`.
unsafe impl Sync for Cache {}

static CACHE: [Cache; CACHES] = [const {
    Cache {
        taken: AtomicBool::new(false),
        kept: UnsafeCell::new(Kept {
            entries: [Entry {
                pc: 0,
                stop: 0,
                rule: None,
            }; ENTRIES],
            rows: Rows::new(),
        }),
    }
}; CACHES];

/// Where the rules lie that are kept for a walk which is alone.
pub(crate) fn kept_rules() -> Range<usize> {
    let cache = (&raw const CACHE[0]).addr();
    cache..cache + size_of::<Cache>()
}

/// The first store to each page of them is a fault of 5 us, for which no stop should wait.
fn touch_kept_rules() {
    if let Some(cache) = Session::new(NEVER).cache {
        let kept = cache.kept.get().cast::<u8>();
        for at in (0..size_of::<Kept>()).step_by(4096) {
            // SAFETY: a byte of what the session has taken, stored as it was.
            unsafe { kept.add(at).write_volatile(kept.add(at).read_volatile()) };
        }
    }
}

/// One walk's access to the rules.
pub(crate) struct Session {
    stop: u64,
    cache: Option<&'static Cache>,
    /// The rule looked up last, for a walk without a cache.
    last: Option<Rule>,
}

impl Session {
    /// For a walk in the stop (or handshake) of that number, which none before or after it has, or
    /// in [none](NEVER).
    pub(crate) fn new(stop: u64) -> Self {
        if faults::planted("ask-the-loader") {
            ask_the_loader();
        }
        // Acquire pairs with the Release in `drop`: the entries of the walk before are seen.
        let cache = CACHE
            .iter()
            .find(|c| !c.taken.swap(true, Ordering::Acquire));
        Self {
            stop,
            cache,
            last: None,
        }
    }

    /// The rule at a PC. For a frame that stands at a call, that is the return address less one:
    /// the call may be the last instruction of its row.
    ///
    /// `table` is the one that was registered with the code at that PC, if any; the loader's
    /// modules are not asked then.
    pub(crate) fn rule(&mut self, pc: usize, table: Option<&Table>) -> Option<&Rule> {
        if faults::planted("no-unwind-tables") {
            return None;
        }
        let look_up = |pc| table.map_or_else(|| look_up(pc), |t| t.look_up(pc));
        let Some(cache) = self.cache else {
            self.last = look_up(pc).map(|row| row.rule);
            return self.last.as_ref();
        };
        // SAFETY: this session has taken the cache, and `&mut self` lends the entry once.
        let Kept { entries, rows } = unsafe { &mut *cache.kept.get() };
        // Fibonacci hashing: call sites are close together and far from random in their low bits.
        let hash = (pc as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let entry = &mut entries[hash as usize % ENTRIES];
        // What was found without a table before code came with one holds no more.
        let is_good = entry.stop == ALWAYS && table.is_none()
            || entry.stop == self.stop && self.stop != NEVER;
        if entry.pc != pc || !is_good {
            let always = table.is_none() && stays(pc);
            let stop = if always { ALWAYS } else { self.stop };
            let known = if always { rows.find(pc) } else { None };
            let rule = known.or_else(|| {
                let row = look_up(pc)?;
                if always {
                    rows.keep(&row);
                }
                Some(row.rule)
            });
            *entry = Entry { pc, stop, rule };
        }
        entry.rule.as_ref()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(cache) = self.cache {
            // Release pairs with the Acquire in `new`.
            cache.taken.store(false, Ordering::Release);
        }
    }
}

/// What must not be done in a stop: walk the list of modules, which takes the loader's lock. A test
/// plants it.
fn ask_the_loader() {
    extern "C" fn each(_: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
        0
    }
    // SAFETY: the callback touches nothing.
    unsafe { libc::dl_iterate_phdr(Some(each), std::ptr::null_mut()) };
}

/// Whether `pc` lies in a module that is never unloaded.
fn stays(pc: usize) -> bool {
    STAYING.iter().any(|[start, end]| {
        (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&pc)
    })
}

#[cfg(test)]
mod tests;
