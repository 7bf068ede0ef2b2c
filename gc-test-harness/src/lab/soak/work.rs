//! The threads' work beside the kernels. Each function runs until the round is over.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gc_core::{AllocError, Field, Heap, Leaf, Mutator, Root, Trace};
use memmap2::MmapMut;

use super::shared::{Round, count};
use crate::kernels::image::{Hold, Image};
use crate::kernels::loops::count_oracle;
use crate::lab::fuzz::{body, choices::Choices, mutate};
use crate::lox::jit::JitConfig;
use crate::lox::run::{RunConfig, run_source};

// ---- the safe tier ------------------------------------------------------------------------------

#[derive(Default, Trace)]
struct Node {
    next: Field<Node>,
    value: u64,
}

/// A value whose `Drop` must run once, after a collection has found it dead.
#[derive(Leaf)]
struct Dropped(u64);

static MADE: AtomicU64 = AtomicU64::new(0);
static DROPS: AtomicU64 = AtomicU64::new(0);

impl Drop for Dropped {
    fn drop(&mut self) {
        // Relaxed: a count; `use_lists` says why the order suffices.
        DROPS.fetch_add(self.0, Ordering::Relaxed);
    }
}

/// Nodes in a list.
const LENGTH: u64 = 60;

fn full(error: AllocError) -> String {
    format!("the heap has no room: {error}")
}

/// Builds a list, drops half of its nodes, and reports what is wrong with the rest.
fn use_lists(mutator: &Mutator) -> Result<(), String> {
    let heap = mutator.heap();
    let root: Root<Node> = mutator
        .scope(|s| {
            let head = s.alloc(Node::default())?;
            let weak = s.alloc_weak(&head)?;
            for value in 1..=LENGTH {
                mutator.scope(|inner| {
                    let node = inner.alloc(Node {
                        value,
                        ..Node::default()
                    })?;
                    inner.alloc(Node::default())?; // garbage
                    if let Some(next) = head.next.get(inner) {
                        node.next.set(inner, &next);
                    }
                    head.next.set(inner, &node);
                    Ok(())
                })?;
            }
            MADE.fetch_add(1, Ordering::Relaxed);
            s.alloc(Dropped(1))?;
            assert!(
                weak.upgrade(s).is_some_and(|node| node.same(head)),
                "a weak word lost a target that a handle names"
            );
            Ok(heap.root(&head))
        })
        .map_err(full)?;
    mutator.drop_dead_values();
    // Relaxed, here and above: each value's drop comes after its own allocation.
    let (drops, made) = (DROPS.load(Ordering::Relaxed), MADE.load(Ordering::Relaxed));
    if drops > made {
        return Err(format!("{drops} drops of {made} values"));
    }
    mutator.with_scope(|s| {
        let mut wanted = LENGTH;
        let mut at = root.get(s).next.get(s);
        while let Some(node) = at {
            if node.value != wanted {
                return Err(format!("a node holds {} instead of {wanted}", node.value));
            }
            wanted -= 1;
            at = node.next.get(s);
        }
        if wanted == 0 {
            Ok(())
        } else {
            Err(format!("a list ends {wanted} nodes too early"))
        }
    })
}

pub(super) fn safe(round: &Round<'_>) -> Result<(), String> {
    let mutator = round.heap.attach().map_err(|e| e.to_string())?;
    while !round.crew.is_over() {
        use_lists(&mutator)?;
        round.crew.right();
    }
    Ok(())
}

/// Threads that attach, work and end.
pub(super) fn churn(round: &Round<'_>, seed: u64) -> Result<(), String> {
    let mut choices = Choices::Seeded(seed);
    while !round.crew.is_over() {
        let leaks = choices.one_in(3);
        let idle = choices.one_in(4);
        let heap = round.heap;
        let ended = std::thread::scope(|scope| {
            let life = move || {
                if idle {
                    // an idle thread never attaches; a signal may reach it all the same
                    return Ok(());
                }
                let mutator = heap.attach().map_err(|e| e.to_string())?;
                let worked = use_lists(&mutator);
                if leaks {
                    std::mem::forget(mutator);
                }
                worked
            };
            scope.spawn(life).join()
        });
        ended.map_err(|_| "an attached thread panicked".to_owned())??;
        count(&round.tally.threads, 1);
        round.crew.right();
    }
    Ok(())
}

/// Waits in `blocking` while handles are open.
pub(super) fn block(round: &Round<'_>) -> Result<(), String> {
    let mutator = round.heap.attach().map_err(|e| e.to_string())?;
    while !round.crew.is_over() {
        let right = mutator
            .scope(|s| {
                let node = s.alloc(Node {
                    value: 42,
                    ..Node::default()
                })?;
                mutator.blocking(|| std::thread::sleep(Duration::from_micros(300)));
                Ok(mutator.no_preempt(|| node.value) == 42)
            })
            .map_err(full)?;
        if !right {
            return Err("a handle's value changed during a blocking call".to_owned());
        }
        round.crew.right();
    }
    Ok(())
}

// ---- registers ----------------------------------------------------------------------------------

/// Checks that stops change nothing of a thread's state.
///
/// A new thread, which `attach` attaches, holds arbitrary words in every register (vectors and
/// masks included), in its frame and in its red zone, until `meanwhile` returns.
///
/// # Errors
/// The words of the thread before and after, if they differ.
pub fn holds_its_registers<M>(
    attach: impl FnOnce() -> M + Send,
    how: Hold,
    choices: &mut Choices<'_>,
    meanwhile: impl FnOnce(),
) -> Result<(), String> {
    let mut image = Image::new();
    let mut next = || choices.word();
    let registers = &mut image.registers;
    registers.vectors.as_flattened_mut().fill_with(&mut next);
    for part in [
        &mut registers.gpr[..],
        &mut registers.mmx,
        &mut registers.masks,
    ] {
        part.fill_with(&mut next);
    }
    image.stack.fill_with(&mut next);
    image.red_zone.fill_with(&mut next);
    image.trim();
    let before = (image.registers.clone(), image.stack, image.red_zone);
    let image = Box::into_raw(image) as usize;
    std::thread::scope(|s| {
        let holder = s.spawn(move || {
            let mutator = attach();
            // SAFETY: the image lives until the scope has ended. Until then other threads access
            // its flags only.
            unsafe { how.hold(image as *mut Image) };
            drop(mutator);
        });
        // SAFETY: the image lives, and this reads one of its flags.
        while !unsafe { Image::is_held(image as *const Image) } {
            // The scope passes the thread's panic on.
            if holder.is_finished() {
                return;
            }
            std::thread::yield_now();
        }
        meanwhile();
        // SAFETY: the image lives, and this writes one of its flags.
        unsafe { Image::release(image as *const Image) };
    });
    // SAFETY: the thread has ended, so the image is this function's alone.
    let image = unsafe { Box::from_raw(image as *mut Image) };
    if before == (image.after.clone(), image.stack, image.red_zone) {
        return Ok(());
    }
    Err(format!(
        "{how:?}: {:x?} became {:x?}",
        before.0, image.after
    ))
}

pub(super) fn hold(round: &Round<'_>, seed: u64) -> Result<(), String> {
    let mut choices = Choices::Seeded(seed);
    let attach = || round.heap.attach().expect("a thread attaches");
    while !round.crew.is_over() {
        let how = [Hold::Native, Hold::Managed, Hold::Called][choices.below(3)];
        let time = Duration::from_micros(choices.below(20_000) as u64);
        holds_its_registers(attach, how, &mut choices, || std::thread::sleep(time))?;
        count(&round.tally.threads, 1);
        round.crew.right();
    }
    Ok(())
}

// ---- coroutines ---------------------------------------------------------------------------------

/// A separate stack that a thread switches to and from, by libc's `swapcontext`.
struct Coroutine {
    _stack: MmapMut,
    inside: Box<libc::ucontext_t>,
    outside: Box<libc::ucontext_t>,
    count: extern "C" fn(u64, u64) -> u64,
    answer: u64,
    done: bool,
}

/// Bytes of a coroutine's stack.
const STACK: usize = 256 << 10;
/// Iterations of the counting loop in one turn on the coroutine's stack.
const SLICE: u64 = 10_000;

extern "C" fn coroutine_main(low: u32, high: u32) {
    let this = (u64::from(high) << 32 | u64::from(low)) as *mut Coroutine;
    loop {
        // SAFETY: `Coroutine::new` passes its own box, which outlives this stack. The owning thread
        // reads and writes the box only while it is not on this stack.
        unsafe {
            (*this).answer = ((*this).count)(1, SLICE);
            let (inside, outside) = (&raw mut *(*this).inside, &raw mut *(*this).outside);
            libc::swapcontext(inside, outside);
            if (*this).done {
                return;
            }
        }
    }
}

impl Coroutine {
    fn new(count: extern "C" fn(u64, u64) -> u64) -> Result<Box<Coroutine>, String> {
        let mut stack = MmapMut::map_anon(STACK).map_err(|e| e.to_string())?;
        // SAFETY: zero is a valid ucontext; `getcontext` fills it below.
        let blank = || Box::new(unsafe { std::mem::zeroed::<libc::ucontext_t>() });
        let mut this = Box::new(Coroutine {
            inside: blank(),
            outside: blank(),
            count,
            answer: 0,
            done: false,
            _stack: {
                stack[0] = 0;
                stack
            },
        });
        let address = &raw mut *this as u64;
        // SAFETY: the context is ours. Its stack is the mapping, which `this` keeps.
        unsafe {
            if libc::getcontext(&raw mut *this.inside) != 0 {
                return Err(std::io::Error::last_os_error().to_string());
            }
            this.inside.uc_stack.ss_sp = this._stack.as_mut_ptr().cast::<c_void>();
            this.inside.uc_stack.ss_size = STACK;
            this.inside.uc_link = &raw mut *this.outside;
            let main = coroutine_main as extern "C" fn(u32, u32);
            let main = std::mem::transmute::<extern "C" fn(u32, u32), extern "C" fn()>(main);
            libc::makecontext(
                &raw mut *this.inside,
                main,
                2,
                address as u32,
                (address >> 32) as u32,
            );
        }
        Ok(this)
    }

    /// Switches to the coroutine's stack for one turn, and gives its answer.
    fn turn(&mut self) -> u64 {
        // SAFETY: both contexts are ours. `inside` was made by `makecontext` or saved by a switch.
        unsafe { libc::swapcontext(&raw mut *self.outside, &raw const *self.inside) };
        self.answer
    }
}

pub(super) fn coroutine(round: &Round<'_>) -> Result<(), String> {
    let mutator = round.heap.attach().map_err(|e| e.to_string())?;
    let mut coroutine = Coroutine::new(round.kernels.count())?;
    let wanted = count_oracle(1, SLICE);
    while !round.crew.is_over() {
        for _ in 0..20 {
            let got = coroutine.turn();
            if got != wanted {
                return Err(format!("{got:#x} on its stack instead of {wanted:#x}"));
            }
            count(&round.tally.turns, 1);
        }
        use_lists(&mutator)?;
        round.crew.right();
    }
    coroutine.done = true;
    coroutine.turn();
    Ok(())
}

// ---- other heaps --------------------------------------------------------------------------------

macro_rules! programs {
    ($($name:literal)*) => {
        /// Programs: name, source and expected output.
        const PROGRAMS: &[(&str, &str, &str)] = &[$((
            $name,
            include_str!(concat!("../../../programs/", $name, ".lox")),
            include_str!(concat!("../../../programs/", $name, ".out")),
        )),*];
    };
}

programs!("classes" "closures" "control" "cycles" "globals" "higher_order" "inheritance" "initialisers"
    "interned" "interpreter" "long_lived" "numbers" "recursion" "search_tree" "shapes" "short_lived" "strings");

pub(super) fn lox(round: &Round<'_>, seed: u64) -> Result<(), String> {
    let mut choices = Choices::Seeded(seed);
    while !round.crew.is_over() {
        let (name, source, wanted) = PROGRAMS[choices.below(PROGRAMS.len())];
        let hot = if choices.one_in(2) {
            JitConfig::after(1)
        } else {
            JitConfig::default()
        };
        let config = RunConfig {
            threads: 1 + choices.below(2),
            jit: !choices.one_in(4),
            hot,
            gc_every: [None, Some(500), Some(5_000)][choices.below(3)],
            storm: [None, Some(Duration::from_micros(50))][choices.below(2)],
            stop_the_world: choices.one_in(6),
            verify: choices.one_in(4),
            ..RunConfig::default()
        };
        let outcome = run_source(source.as_bytes(), &config);
        let said = String::from_utf8_lossy(&outcome.stdout);
        if outcome.exit_code != 0 || said != wanted.repeat(config.threads) {
            return Err(format!(
                "{name} with {config:?}: exit {}, {said:?}, {:?}",
                outcome.exit_code,
                String::from_utf8_lossy(&outcome.stderr)
            ));
        }
        let stats = outcome.stats.unwrap_or_default();
        count(&round.tally.programs, 1);
        count(&round.tally.collections, stats.collections);
        let stops = stats.stops.pause.len() + outcome.storm_stops;
        count(&round.tally.stops, stops);
        round.crew.right();
    }
    Ok(())
}

pub(super) fn fuzz(round: &Round<'_>, seed: u64) -> Result<(), String> {
    for case in 0.. {
        if round.crew.is_over() {
            return Ok(());
        }
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(case);
        let mut choices = Choices::Seeded(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let checked = if case % 8 == 0 {
            mutate::check(&mut choices)
        } else {
            body::check(&mut choices)
        };
        let counts = checked.map_err(|what| format!("case of seed {seed}: {what}"))?;
        count(&round.tally.cases, 1);
        count(&round.tally.collections, counts.collections);
        round.crew.right();
    }
    Ok(())
}

// ---- the host -----------------------------------------------------------------------------------

/// Forks repeatedly. Each child allocates, collects, checks and ends.
pub(super) fn fork(round: &Round<'_>) -> Result<(), String> {
    while !round.crew.is_over() {
        // SAFETY: the child calls only functions that Urge supports after a fork, and malloc, which
        // glibc keeps usable.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        if pid == 0 {
            let child = std::panic::AssertUnwindSafe(|| in_child(round.heap));
            let right = matches!(std::panic::catch_unwind(child), Ok(Ok(())));
            // SAFETY: a system call. The parent's destructors do not run in the child.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = 0;
        loop {
            // SAFETY: the call waits for our own child.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            if waited == pid {
                break;
            }
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                return Err(error.to_string());
            }
        }
        if status != 0 {
            return Err(format!("a forked child ended with status {status:#x}"));
        }
        count(&round.tally.forks, 1);
        round.crew.right();
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn in_child(heap: &Heap) -> Result<(), String> {
    // SAFETY: a system call. The alarm ends a child that hangs.
    unsafe { libc::alarm(30) };
    let mutator = heap.attach().map_err(|e| e.to_string())?;
    use_lists(&mutator)?;
    mutator.collect();
    use_lists(&mutator)
}

/// A host program's profiling signals, which the kernel sends to any running thread.
pub(super) struct HostSignals(());

static SEEN: AtomicU64 = AtomicU64::new(0);
static SPOILED: AtomicBool = AtomicBool::new(false);

/// Computes with vectors for a moment, as a host's handler may.
extern "C" fn on_profile(_: i32) {
    // Relaxed, here and below: the handler's words order nothing.
    let mut block = [SEEN.load(Ordering::Relaxed) as f64; 16];
    for word in std::hint::black_box(&mut block) {
        *word = *word * 1.5 + 1.0;
    }
    if std::hint::black_box(&block)[0] < 1.0 {
        SPOILED.store(true, Ordering::Relaxed);
    }
    SEEN.fetch_add(1, Ordering::Relaxed);
}

impl HostSignals {
    /// Starts `hertz` signals a second, or none if it is zero.
    pub(super) fn start(hertz: u32) -> Result<HostSignals, String> {
        if hertz == 0 {
            return Ok(HostSignals(()));
        }
        // SAFETY: zero is a valid sigaction; the handler is async-signal-safe.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_profile as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) == 0
        };
        if !installed || !Self::every(1_000_000 / i64::from(hertz)) {
            return Err(std::io::Error::last_os_error().to_string());
        }
        Ok(HostSignals(()))
    }

    fn every(micros: i64) -> bool {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: the timer is valid, and null says that the old one is not wanted.
        unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) == 0 }
    }

    /// Ends the signals and gives the number of those that were handled.
    pub(super) fn stop(self) -> u64 {
        Self::every(0);
        // Relaxed, here and below: no further signal comes, and the counts order nothing.
        assert!(
            !SPOILED.load(Ordering::Relaxed),
            "a vector of a host's handler was spoiled"
        );
        SEEN.load(Ordering::Relaxed)
    }
}
