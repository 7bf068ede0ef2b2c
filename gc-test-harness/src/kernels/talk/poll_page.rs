//! The page that polls load from, and the handler that makes such a load call the runtime.
//!
//! # Invariants
//! * To stop its threads, the stopper takes the page's access away. A poll load then faults:
//!   SIGSEGV, at a known instruction of compiled code, which holds no lock and has no live word in
//!   the red zone (Cranelift uses none).
//! * A fault is a poll's only if the page's address *and* the load's address are those of a
//!   registered table. Every other fault goes to the handler that was installed before, or ends the
//!   process as it would have without this one.
//! * The handler allocates nothing, takes no lock and reads no thread-local storage. It reads the
//!   tables only, which are never freed: a thread with a real fault may read them at any time.
//! * The handler does not stop the thread, which may be on its alternate stack. It pushes the
//!   load's address as a return address and continues in `poll_stub`, on the thread's own stack.
//!   The stub saves what the interrupted code may have in registers, calls the runtime, and returns
//!   to the load, which faults again as long as the page has no access.
//! * The handler notes where the stub's frame will be, and the runtime's side clears the note
//!   before it returns. So a stopper finds the registers of a thread that stands in the stub. The
//!   page must belong to one thread for this.
//! * The stub's unwind table is exact at its call, so a walk finds the interrupted frame. All
//!   registers of that frame lie in the stub's frame, which a walk scans word by word.

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::kernels::interruption::Interruption;

/// Bytes of the page.
const PAGE: usize = 4096;
/// RSP and RIP in `gregs`.
const RSP: usize = libc::REG_RSP as usize;
const RIP: usize = libc::REG_RIP as usize;

/// A page that poll loads read. Its drop unmaps it.
#[derive(Debug)]
pub struct PollPage {
    address: ptr::NonNull<libc::c_void>,
    table: Option<&'static Table>,
}

// SAFETY: the page belongs to no thread, and nothing is written to it.
unsafe impl Send for PollPage {}
// SAFETY: as above; changes of its access are system calls.
unsafe impl Sync for PollPage {}

/// The loads of a page.
#[derive(Debug)]
struct Table {
    page: usize,
    /// In ascending order.
    loads: Vec<usize>,
    /// The frame pointer of the stub that runs for one of these loads; 0 while none does.
    stub: AtomicUsize,
    /// False once the page is gone.
    used: AtomicBool,
    next: *mut Table,
}

/// All tables, the newest first.
static TABLES: AtomicPtr<Table> = AtomicPtr::new(ptr::null_mut());
/// The action that was installed before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

impl PollPage {
    /// A page with access.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn new() -> io::Result<PollPage> {
        let bytes = std::num::NonZeroUsize::new(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: a new private mapping of the kernel's choice.
        let address = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ, flags) }?;
        Ok(PollPage {
            address,
            table: None,
        })
    }

    /// Its address.
    pub fn address(&self) -> usize {
        self.address.as_ptr() as usize
    }

    /// Makes faults of these loads polls, and installs the handler.
    ///
    /// # Errors
    /// The system refuses the handler.
    ///
    /// # Safety
    /// Each address is that of an instruction of compiled code that only loads a word of this page
    /// into a register, at which RSP has no red zone, and at which the thread may be stopped. Only
    /// mutators execute it.
    pub unsafe fn register(&mut self, mut loads: Vec<usize>) -> io::Result<()> {
        install()?;
        loads.sort_unstable();
        let table = Box::into_raw(Box::new(Table {
            page: self.address(),
            loads,
            stub: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            next: TABLES.load(Ordering::Relaxed),
        }));
        // Release: pairs with the Acquire in `table_of`, which reads the table. On failure the list
        // has changed, and nothing has been published.
        while let Err(newest) = TABLES.compare_exchange_weak(
            // SAFETY: not yet published, so only this thread reads and writes it.
            unsafe { (*table).next },
            table,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            // SAFETY: as above.
            unsafe { (*table).next = newest };
        }
        // SAFETY: the table is never freed, and is not written from here on.
        self.table = Some(unsafe { &*table });
        Ok(())
    }

    /// The interruption of the thread that stands in the stub.
    ///
    /// # Safety
    /// One thread executes the page's loads, and it is stopped while the result is used.
    pub unsafe fn interruption(&self) -> Option<Interruption> {
        // Relaxed: the stop orders it.
        let stub = self.table?.stub.load(Ordering::Relaxed);
        if stub == 0 {
            return None;
        }
        // The stub pushes the flags and fourteen registers below its frame pointer, in this order.
        // In DWARF's order they are RAX, RDX, RCX, RBX, RSI, RDI, then RBP and RSP, then R8 to R15.
        let pushed = [2, 4, 3, 5, 6, 7, 0, 0, 8, 9, 10, 11, 12, 13, 14, 15];
        // SAFETY: the stub's frame, whose thread is stopped. Above the saved RBP lies the load's
        // address, and then the interrupted frame.
        unsafe {
            let load = ((stub + 8) as *const usize).read();
            let words = pushed.map(|number| stub - 8 * number);
            Some(Interruption::of_words(load, stub + 16, words))
        }
    }

    /// Takes the page's access away: poll loads fault from now on.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn protect(&self) -> io::Result<()> {
        self.set(ProtFlags::PROT_NONE)
    }

    /// Gives the page's access back.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn unprotect(&self) -> io::Result<()> {
        self.set(ProtFlags::PROT_READ)
    }

    fn set(&self, access: ProtFlags) -> io::Result<()> {
        // SAFETY: the page is this value's own, and holds no data.
        Ok(unsafe { mprotect(self.address, PAGE, access) }?)
    }
}

impl Drop for PollPage {
    fn drop(&mut self) {
        if let Some(table) = self.table {
            // Relaxed: no thread executes the loads any more, so no handler asks for this table.
            table.used.store(false, Ordering::Relaxed);
        }
        // SAFETY: the page is this value's own. A failure leaves a page mapped that nothing uses.
        let _ = unsafe { munmap(self.address, PAGE) };
    }
}

fn install() -> io::Result<()> {
    static INSTALLED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut installed = INSTALLED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: zero is a valid sigaction, and the handler has the SA_SIGINFO signature. `BEFORE` is
    // set before ours is installed, so that the handler finds it.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGSEGV, ptr::null(), &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        BEFORE.get_or_init(|| before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    *installed = true;
    Ok(())
}

/// The handler of SIGSEGV.
unsafe extern "C" fn on_fault(
    signal: i32,
    info: *mut libc::siginfo_t,
    ucontext: *mut libc::c_void,
) {
    // SAFETY: the kernel passes both, and nothing else refers to them while the handler runs.
    let (info_ref, context) = unsafe { (&*info, &mut *ucontext.cast::<libc::ucontext_t>()) };
    let registers = &mut context.uc_mcontext.gregs;
    let pc = registers[RIP] as usize;
    // A positive code is the kernel's; other signals were sent.
    let is_fault = info_ref.si_code > 0;
    // SAFETY: a field of every siginfo, which is meaningful for faults only.
    let address = unsafe { info_ref.si_addr() } as usize;
    if is_fault && let Some(table) = seam::poll_of(pc, address) {
        registers[RSP] -= 8;
        // SAFETY: the load's code has no red zone, and its stack has room: its function's callees
        // would have used these words. A thread without room for one word faults here, as for any
        // call.
        unsafe { (registers[RSP] as usize as *mut usize).write(pc) };
        registers[RIP] = (poll_stub as *const () as usize).cast_signed() as i64;
        // The stub pushes RBP, and the address of that word becomes RBP. Relaxed: read by a stopper
        // that has stopped this thread.
        let stub = registers[RSP] as usize - 8;
        table.stub.store(stub, Ordering::Relaxed);
        return;
    }
    pass_on(signal, info, ucontext, is_fault);
}

/// The table by which a fault at this PC, for this address, is a poll.
fn poll_of(pc: usize, address: usize) -> Option<&'static Table> {
    table_of(pc).filter(|table| table.has(address))
}

impl Table {
    fn has(&self, address: usize) -> bool {
        (self.page..self.page + PAGE).contains(&address)
    }
}

/// The table that has the load at this PC.
fn table_of(pc: usize) -> Option<&'static Table> {
    table_with(|table| table.loads.binary_search(&pc).is_ok())
}

/// The newest table in use of which that holds.
fn table_with(is_it: impl Fn(&Table) -> bool) -> Option<&'static Table> {
    // Acquire: pairs with the Release in `register`.
    let mut next = TABLES.load(Ordering::Acquire).cast_const();
    // SAFETY: tables are never freed, and not written after they were published.
    while let Some(table) = unsafe { next.as_ref() } {
        if table.used.load(Ordering::Relaxed) && is_it(table) {
            return Some(table);
        }
        next = table.next;
    }
    None
}

/// A fault that is no poll's: does what would have happened without this handler.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, ucontext: *mut libc::c_void, is_fault: bool) {
    let before = BEFORE.get().map_or((libc::SIG_DFL, 0), |before| {
        (before.sa_sigaction, before.sa_flags)
    });
    match before {
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            // SAFETY: restores the default, by which the instruction that faulted ends the process
            // when it runs again. A sent signal does not come again by itself.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a three-argument handler.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, ucontext);
        }
        (handler, _) => {
            // SAFETY: it was installed as a one-argument handler.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// The runtime's side: the end of a `no_preempt` section is a poll.
unsafe extern "C" fn poll(stub: *const usize) {
    gc_preempt::no_preempt_here(|| ());
    // SAFETY: the stub's frame pointer. The word above its saved RBP says where the stub returns
    // to: to a load that has faulted, or behind a call, which no table has.
    let load = unsafe { stub.add(1).read() };
    if let Some(table) = table_of(load) {
        // Relaxed: as in the handler.
        table.stub.store(0, Ordering::Relaxed);
    }
}

/// The address of the polls' callee: a function without arguments that calls the runtime and
/// preserves all registers that Cranelift's code uses.
pub fn stub_address() -> *const u8 {
    poll_stub as *const u8
}

/// The callee of polls. A poll load that has faulted continues here, as if the load had called it.
/// Saves all registers that compiled code uses, calls the runtime, and returns.
///
/// The upper halves of vector registers are not saved: Cranelift's code has no value there.
#[unsafe(naked)]
unsafe extern "C" fn poll_stub() {
    core::arch::naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "pushfq",
        "push rax",
        "push rcx",
        "push rdx",
        "push rbx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 256",
        "and rsp, -16",
        "movaps [rsp], xmm0",
        "movaps [rsp + 16], xmm1",
        "movaps [rsp + 32], xmm2",
        "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4",
        "movaps [rsp + 80], xmm5",
        "movaps [rsp + 96], xmm6",
        "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8",
        "movaps [rsp + 144], xmm9",
        "movaps [rsp + 160], xmm10",
        "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12",
        "movaps [rsp + 208], xmm13",
        "movaps [rsp + 224], xmm14",
        "movaps [rsp + 240], xmm15",
        "cld",
        "mov rdi, rbp",
        "call {poll}",
        "movaps xmm0, [rsp]",
        "movaps xmm1, [rsp + 16]",
        "movaps xmm2, [rsp + 32]",
        "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]",
        "movaps xmm5, [rsp + 80]",
        "movaps xmm6, [rsp + 96]",
        "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]",
        "movaps xmm9, [rsp + 144]",
        "movaps xmm10, [rsp + 160]",
        "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]",
        "movaps xmm13, [rsp + 208]",
        "movaps xmm14, [rsp + 224]",
        "movaps xmm15, [rsp + 240]",
        "lea rsp, [rbp - 120]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rbx",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "popfq",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        poll = sym poll,
    )
}

/// What tests may break here.
mod seam {
    use super::Table;
    use crate::fault::Fault;

    /// As [`poll_of`](super::poll_of), which looks at both the load and its address.
    pub(super) fn poll_of(pc: usize, address: usize) -> Option<&'static Table> {
        if Fault::PollsByPage.planted() {
            return super::table_with(|table| table.has(address));
        }
        if Fault::PollsByLoad.planted() {
            return super::table_of(pc);
        }
        super::poll_of(pc, address)
    }
}
