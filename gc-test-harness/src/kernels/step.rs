//! The talk's second false start: a signal, and then single steps to the next point that has a map.
//!
//! # Who does what
//!
//! 1. The stopper asks the thread (its state changes from `RUNNING` to `ASKED`) and sends SIGUSR2,
//!    again and again until there is an answer.
//! 2. The handler of SIGUSR2 sets the trap flag, if the interrupted instruction is managed.
//! 3. The handler of SIGTRAP looks at the PC after each instruction. At a point it stops the
//!    thread: it says where the thread stands, changes the state from `ASKED` to `STANDS`, and
//!    waits in [`blocking_here`](gc_preempt::blocking_here) until the state is `RUNNING` again.
//! 4. The stopper sees `STANDS` and stops the world, which does not wait for a blocked thread. If
//!    the thread has not come to the blocking region yet, SIGURG stops it in the handler, which
//!    makes no difference to a scan.
//!
//! A stopper that gives up changes `ASKED` to `RUNNING`. All changes are compare-and-swaps, so
//! either the thread stands or the stopper has given up.
//!
//! # Native code
//!
//! Only managed code is stepped. Native code can be stopped anywhere, as by any stop: its frames
//! are scanned word by word, and its managed callers have maps at their calls. So a request that
//! finds native code, or that steps out of managed code, says so (`NATIVE`), and the stopper stops
//! the world without a point. By then the thread may be in managed code again, which the stopper
//! sees, and asks again.
//!
//! A step that calls native code stands at the callee's first instruction.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use gc_preempt::sys::{futex_wait, futex_wake};
use gc_preempt::{RootSink, StoppedMutator, WalkStats};

use super::codegen::Code;
use super::exact::ExactFrame;
use super::interruption::Interruption;
use super::places::Places;
use super::single_step::{self, OnTrap};

/// The thread is not asked to step.
const RUNNING: u32 = 0;
/// The thread is to step to a point.
const ASKED: u32 = 1;
/// The thread stands, and waits for [`RUNNING`].
const STANDS: u32 = 2;
/// The request has found native code, or no code.
const NATIVE: u32 = 3;

/// The signal of a request.
const REQUEST: c_int = libc::SIGUSR2;

/// The longest time between two signals of a request. A thread may be in native code by chance.
const LONGEST_WAIT: Duration = Duration::from_micros(400);

/// The longest call instruction that Cranelift makes, in bytes.
const LONGEST_CALL: usize = 8;

/// A managed function that can be stepped.
#[derive(Clone, Debug)]
struct Function {
    range: Range<usize>,
    frame: Arc<ExactFrame>,
}

/// Where a thread stands.
#[derive(Clone, Debug)]
pub enum Stand {
    /// At a point of managed code, with these places of references.
    Point {
        /// The registers.
        at: Interruption,
        /// The function's first instruction.
        entry: usize,
        /// The function's facts.
        frame: Arc<ExactFrame>,
        /// The references.
        places: Places,
    },
    /// In native code, where an ordinary walk finds everything.
    Native,
}

/// One thread that is stopped by single steps.
#[derive(Debug)]
pub struct Stepped {
    functions: Vec<Function>,
    state: AtomicU32,
    /// The thread's id while it is [`Entered`], otherwise 0.
    thread: AtomicI32,
    /// Whether the thread steps now.
    steps: AtomicBool,
    /// Instructions that were stepped.
    pub instructions: AtomicU64,
    /// The last managed instruction that was stepped. Only the thread uses it.
    last: Cell<usize>,
    /// Written by the thread before it stands, and read by the stopper while it stands.
    stand: UnsafeCell<Stand>,
}

// SAFETY: `last` belongs to the thread that has entered, and `enter` admits one. `stand` changes
// hands by the state: the Release of `STANDS` in `stand_still` and the Acquire in `stop`.
unsafe impl Sync for Stepped {}

thread_local! {
    static CURRENT: Cell<*const Stepped> = const { Cell::new(std::ptr::null()) };
}

/// The answer to a request.
#[derive(Debug)]
pub enum Answer<'a> {
    /// The thread stands.
    Stands(Standing<'a>),
    /// The thread runs native code, or did so a moment ago.
    Native,
}

/// Standing of a thread, which goes on when this is dropped.
#[derive(Debug)]
pub struct Standing<'a>(&'a Stepped);

/// The time for which a thread answers requests. Stays on its thread.
#[derive(Debug)]
pub struct Entered<'a>(&'a Stepped, PhantomData<*const ()>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(std::ptr::null());
        // Release pairs with the swap in `enter`, for `last` and `stand`.
        self.0.thread.store(0, Ordering::Release);
    }
}

impl Stepped {
    /// A thread that runs these functions, compiled with
    /// [`Arena::keep_places`](super::codegen::Arena::keep_places); others are native code.
    pub fn new(code: &[Code]) -> Stepped {
        install();
        let function = |code: &Code| {
            Some(Function {
                range: code.range(),
                frame: code.exact.clone()?,
            })
        };
        Stepped {
            functions: code.iter().filter_map(function).collect(),
            state: AtomicU32::new(RUNNING),
            thread: AtomicI32::new(0),
            steps: AtomicBool::new(false),
            instructions: AtomicU64::new(0),
            last: Cell::new(0),
            stand: UnsafeCell::new(Stand::Native),
        }
    }

    /// From now on the calling thread answers requests. `None`: another thread does so.
    ///
    /// # Panics
    /// The thread answers those of another value already.
    pub fn enter(&self) -> Option<Entered<'_>> {
        assert!(CURRENT.get().is_null(), "the thread answers already");
        // SAFETY: a system call without arguments.
        let thread = unsafe { libc::gettid() };
        // Acquire pairs with the Release of the thread before: `last` and `stand` are handed on.
        self.thread
            .compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        CURRENT.set(self);
        Some(Entered(self, PhantomData))
    }

    /// Asks the thread to stand. `None`: it has not answered in time.
    ///
    /// # Panics
    /// Another stopper asks, or the thread stands already.
    pub fn stop(&self, bound: Duration) -> Option<Answer<'_>> {
        let begun = Instant::now();
        // Relaxed: a request publishes nothing.
        let asked =
            self.state
                .compare_exchange(RUNNING, ASKED, Ordering::Relaxed, Ordering::Relaxed);
        assert!(asked.is_ok(), "one stopper at a time");
        let mut wait = Duration::from_micros(50);
        loop {
            // Relaxed, both: a signal that finds another state has no effect.
            let thread = self.thread.load(Ordering::Relaxed);
            if thread != 0 && !self.steps.load(Ordering::Relaxed) {
                // SAFETY: a system call. A thread that has ended gets no signal.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, REQUEST) };
            }
            if thread != 0 {
                futex_wait(&self.state, ASKED, Some(wait));
            }
            let late = begun.elapsed() > bound;
            if thread == 0 || late {
                // Acquire, here and below, pairs with the Release in `stand_still`: `stand` is
                // readable.
                let given_up = self.state.compare_exchange(
                    ASKED,
                    RUNNING,
                    Ordering::Acquire,
                    Ordering::Acquire,
                );
                if given_up.is_ok() {
                    return (!late).then_some(Answer::Native);
                }
            }
            match self.state.load(Ordering::Acquire) {
                STANDS => return Some(Answer::Stands(Standing(self))),
                NATIVE => {
                    // Relaxed: the thread changes the state from `ASKED` only.
                    self.state.store(RUNNING, Ordering::Relaxed);
                    return Some(Answer::Native);
                }
                _ => wait = (wait * 2).min(LONGEST_WAIT),
            }
        }
    }

    /// Answers that the thread runs native code.
    fn is_native(&self) {
        // Relaxed: the answer publishes nothing.
        let answered =
            self.state
                .compare_exchange(ASKED, NATIVE, Ordering::Relaxed, Ordering::Relaxed);
        if answered.is_ok() {
            futex_wake(&self.state, 1);
        }
    }

    /// Stands until the stopper lets the thread go on, unless the stopper has given up.
    fn stand_still(&self, stand: Stand) {
        // The stopper reads `stand` only in `STANDS`, which this thread has not entered.
        // SAFETY: as above. What is overwritten has no memory that must be freed here: a clone of
        // an `Arc` that `functions` keeps.
        unsafe { *self.stand.get() = stand };
        // Release pairs with the Acquire in `stop`.
        let stands =
            self.state
                .compare_exchange(ASKED, STANDS, Ordering::Release, Ordering::Relaxed);
        if stands.is_err() {
            return;
        }
        futex_wake(&self.state, 1);
        gc_preempt::blocking_here(|| {
            // Acquire pairs with the Release in `Standing`'s end.
            while self.state.load(Ordering::Acquire) == STANDS {
                futex_wait(&self.state, STANDS, None);
            }
        });
    }

    /// Where the thread stands, if it does.
    ///
    /// # Safety
    /// The caller keeps the [`Standing`] while it uses the result.
    pub unsafe fn stand(&self) -> Option<&Stand> {
        // Acquire pairs with the Release in `stand_still`.
        let stands = self.state.load(Ordering::Acquire) == STANDS;
        // SAFETY: the thread has written it, and the caller keeps the thread from going on.
        stands.then(|| unsafe { &*self.stand.get() })
    }

    fn function(&self, pc: usize) -> Option<&Function> {
        self.functions.iter().find(|f| f.range.contains(&pc))
    }

    /// Whether the thread, at the first instruction of native code, was called by the managed
    /// instruction that it stepped last.
    fn was_called(&self, at: &Interruption) -> bool {
        // SAFETY: the thread's own stack, whose lowest word is at SP.
        let back = unsafe { (at.sp as *const usize).read() };
        let Some(function) = self.function(self.last.get()) else {
            return false;
        };
        let offset = back.wrapping_sub(function.range.start) as u32;
        (self.last.get() + 1..=self.last.get() + LONGEST_CALL).contains(&back)
            && function.frame.points.exactly_at(offset).is_some()
    }
}

impl Stand {
    /// Whether it is a point, reached on this stack.
    pub fn is_on(&self, stack: &Range<usize>) -> bool {
        matches!(self, Stand::Point { at, .. } if stack.contains(&at.sp))
    }

    /// Walks the thread, which stands so and is stopped: at a point, the innermost frame by its
    /// places. `encoding` is the number that the code was registered with.
    pub fn walk(
        &self,
        mutator: &StoppedMutator<'_>,
        encoding: u32,
        sink: &mut dyn RootSink,
    ) -> WalkStats {
        match self {
            Stand::Native => mutator.walk(sink),
            Stand::Point {
                at,
                entry,
                frame,
                places,
            } => at.walk(frame, *entry, *places, mutator, encoding, sink),
        }
    }
}

impl Standing<'_> {
    /// Where the thread stands.
    pub fn at(&self) -> &Stand {
        // SAFETY: the thread has written it and stands, for as long as this value lives.
        unsafe { &*self.0.stand.get() }
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire in `stand_still`.
        self.0.state.store(RUNNING, Ordering::Release);
        futex_wake(&self.0.state, 1);
    }
}

/// The hook of a stepped thread. It has no size, so that all threads may use the same one.
struct Hook;

impl OnTrap for Hook {
    fn trapped(&mut self, at: &Interruption) -> bool {
        let current = CURRENT.get();
        // SAFETY: `Entered` borrows the value for as long as `CURRENT` names it.
        let Some(stepped) = (unsafe { current.as_ref() }) else {
            return false;
        };
        let steps_on = stepped.stepped(at);
        // Relaxed: the stopper's signals only.
        stepped.steps.store(steps_on, Ordering::Relaxed);
        steps_on
    }
}

impl Stepped {
    /// After an instruction: whether the thread steps on.
    fn stepped(&self, at: &Interruption) -> bool {
        // Relaxed: a count.
        self.instructions.fetch_add(1, Ordering::Relaxed);
        // Relaxed: the change to `STANDS` decides.
        if self.state.load(Ordering::Relaxed) != ASKED {
            return false;
        }
        let Some(function) = self.function(at.pc) else {
            if self.was_called(at) {
                self.stand_still(Stand::Native);
            } else {
                self.is_native();
            }
            return false;
        };
        self.last.set(at.pc);
        let entry = function.range.start;
        let Some(places) = function.frame.points.exactly_at((at.pc - entry) as u32) else {
            return true;
        };
        self.stand_still(Stand::Point {
            at: at.clone(),
            entry,
            frame: Arc::clone(&function.frame),
            places,
        });
        false
    }
}

extern "C" fn on_request(_: c_int, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: as in `trapped`.
    let Some(stepped) = (unsafe { CURRENT.get().as_ref() }) else {
        return;
    };
    // SAFETY: the kernel's argument.
    let at = unsafe { Interruption::of_signal(ucontext) };
    if single_step::is_stepping() {
        return;
    }
    if stepped.function(at.pc).is_none() {
        return stepped.is_native();
    }
    stepped.last.set(at.pc);
    // Relaxed: the stopper's signals only.
    stepped.steps.store(true, Ordering::Relaxed);
    // SAFETY: the running handler's argument; a hook without a size is at any address, for ever.
    unsafe { single_step::step_from(ucontext, NonNull::<Hook>::dangling()) };
}

/// Installs the handlers, once in the process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        single_step::install();
        // SAFETY: installs a handler of this type.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_request as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            // No trap inside of the handler.
            libc::sigaddset(&raw mut action.sa_mask, libc::SIGTRAP);
            libc::sigaction(REQUEST, &raw const action, std::ptr::null_mut())
        };
        assert_eq!(failed, 0, "SIGUSR2 has a handler");
    });
}
