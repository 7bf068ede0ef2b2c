//! State that a host's threads keep over a stop (errno, a whole transfer), and the ways in which
//! they end: `pthread_exit`, cancellation, the exit system call.

mod common;

use common::{Find, beside, hazard, spin, world};
use gc_preempt::{Mutator, MutatorHooks, World};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn pthread_cancel(thread: libc::pthread_t) -> libc::c_int;
}

// Declared here because cancellation points unwind, which `libc`'s declarations rule out.
unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut c_void) -> !;
    fn pause() -> libc::c_int;
    fn read(fd: libc::c_int, to: *mut c_void, bytes: usize) -> isize;
}

const CANCELED: *mut c_void = usize::MAX as *mut c_void;

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn set_errno(errno: i32) {
    // SAFETY: errno's address is always valid.
    unsafe { *libc::__errno_location() = errno };
}

fn yield_now() {
    // SAFETY: a system call without arguments or memory. It does not touch errno.
    unsafe { libc::sched_yield() };
}

/// The number of the stop that [`errno_is_kept_by`] holds, or 0.
static STOP: AtomicU64 = AtomicU64::new(0);

/// The waits that a body has begun while a stop was held.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Runs `body` on more mutators than processors, so that a mutator whose wait ends in a stop sleeps
/// at once. Checks that `body` keeps errno while stops follow each other: for a second, and for as
/// long as it takes for 25 stops and for `waits` waits in stops.
fn errno_is_kept_by(waits: u64, body: impl Fn(&Mutator) + Sync) {
    let world = world();
    let (done, ready, lost) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let m = world.attach(std::ptr::null_mut()).unwrap();
                ready.fetch_add(1, SeqCst);
                while !done.load(Relaxed) {
                    set_errno(libc::EBADF);
                    body(&m);
                    lost.fetch_add(u64::from(errno() != libc::EBADF), Relaxed);
                }
            });
        }
        while ready.load(SeqCst) < 4 {
            yield_now();
        }
        let mut stop = 0;
        let begun = Instant::now();
        let a_second = Duration::from_secs(1);
        while stop < 25 || WAITS.load(SeqCst) < waits || begun.elapsed() < a_second {
            stop += 1;
            let stopped = world.stop().unwrap();
            STOP.store(stop, SeqCst);
            if stop % 4 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            STOP.store(0, SeqCst);
            drop(stopped);
        }
        done.store(true, SeqCst);
    });
    assert_eq!(lost.load(SeqCst), 0, "errno was another after a stop");
}

#[test]
fn h39_blocking_keeps_errno_and_what_its_closure_leaves() {
    hazard(
        "h39_blocking_keeps_errno_and_what_its_closure_leaves",
        "errno-lost",
        || {
            errno_is_kept_by(20, |m| {
                m.blocking(|| {
                    assert_eq!(errno(), libc::EBADF);
                    set_errno(libc::ENOENT);
                    yield_now();
                    // SAFETY: the call has no effect except its error, which the test wants.
                    assert_eq!(unsafe { libc::close(-1) }, -1); // EBADF
                    // The end of `blocking` waits for the end of a stop.
                    WAITS.fetch_add(u64::from(STOP.load(SeqCst) != 0), SeqCst);
                });
            });
        },
    );
}

#[test]
fn h39_polls_and_sections_keep_errno() {
    hazard("h39_polls_and_sections_keep_errno", "errno-lost", || {
        errno_is_kept_by(0, |m| {
            for _ in 0..100 {
                m.no_preempt(|| {
                    for _ in 0..200 {
                        std::hint::spin_loop();
                    }
                });
                m.poll();
            }
        });
    });
}

#[test]
fn h39_waiting_for_the_registry_keeps_errno() {
    hazard(
        "h39_waiting_for_the_registry_keeps_errno",
        "errno-lost",
        || {
            errno_is_kept_by(0, |m| m.world().warm_up_walks());
        },
    );
}

#[test]
fn h39_a_signal_anywhere_keeps_errno() {
    hazard("h39_a_signal_anywhere_keeps_errno", "errno-lost", || {
        errno_is_kept_by(0, |_| {
            for _ in 0..1_000 {
                std::hint::spin_loop();
            }
        });
    });
}

// ---- ends ---------------------------------------------------------------------------------------

type Body = extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// Starts a thread that the system may unwind.
fn start(body: Body, data: *mut c_void) -> libc::pthread_t {
    let mut thread = 0;
    // SAFETY: the two function types differ only in the assumptions that a caller may make. The
    // callers keep `data` for longer than the thread runs.
    unsafe {
        let body = std::mem::transmute::<Body, extern "C" fn(*mut c_void) -> *mut c_void>(body);
        assert_eq!(
            libc::pthread_create(&raw mut thread, std::ptr::null(), body, data),
            0
        );
    }
    thread
}

fn join(thread: libc::pthread_t) -> *mut c_void {
    let mut value = std::ptr::null_mut();
    // SAFETY: a thread from `start`, which is joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, &raw mut value) }, 0);
    value
}

/// The data that the threads of these tests share.
struct Shared {
    world: World,
    pipe: libc::c_int,
    ready: AtomicU64,
    ends: Ends,
}

impl Shared {
    fn new(pipe: libc::c_int, ends: Ends) -> Shared {
        Shared {
            world: world(),
            pipe,
            ready: AtomicU64::new(0),
            ends,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Ends {
    ByExit,
    ByCancellation,
}

/// # Safety
/// `data` must be a `Shared` that lives longer than the thread, passed through `start`.
unsafe fn shared<'a>(data: *mut c_void) -> &'a Shared {
    // SAFETY: the caller's promise.
    unsafe { &*data.cast::<Shared>() }
}

extern "C-unwind" fn ends_in_blocking(data: *mut c_void) -> *mut c_void {
    // SAFETY: `start` was given a `Shared`.
    let shared = unsafe { shared(data) };
    let m = shared.world.attach(std::ptr::null_mut()).unwrap();
    m.blocking(|| {
        shared.ready.fetch_add(1, SeqCst);
        // SAFETY: both calls end the thread by unwinding, which drops the mutator.
        unsafe {
            if shared.ends == Ends::ByExit {
                pthread_exit(CANCELED);
            }
            loop {
                pause();
            }
        }
    })
}

#[test]
fn h40_a_thread_may_end_inside_blocking() {
    hazard("h40_a_thread_may_end_inside_blocking", "caught", || {
        for ends in [Ends::ByExit, Ends::ByCancellation] {
            let shared = Shared::new(-1, ends);
            let done = AtomicBool::new(false);
            std::thread::scope(|s| {
                s.spawn(|| {
                    while !done.load(Relaxed) {
                        drop(shared.world.stop().unwrap());
                    }
                });
                for round in 1..=50 {
                    let data = std::ptr::from_ref(&shared).cast_mut().cast();
                    let thread = start(ends_in_blocking, data);
                    while shared.ready.load(SeqCst) < round {
                        yield_now();
                    }
                    if ends == Ends::ByCancellation {
                        // SAFETY: the thread has not been joined yet.
                        unsafe { pthread_cancel(thread) };
                    }
                    assert_eq!(join(thread), CANCELED);
                }
                done.store(true, SeqCst);
            });
            let stopped = shared.world.stop().unwrap();
            assert_eq!(stopped.mutators().count(), 0, "it is detached");
        }
    });
}

extern "C-unwind" fn reads(data: *mut c_void) -> *mut c_void {
    // SAFETY: `start` was given a `Shared`.
    let shared = unsafe { shared(data) };
    // The mutator is leaked in its frame, so the thread's end detaches it.
    let _m = std::mem::ManuallyDrop::new(shared.world.attach(std::ptr::null_mut()).unwrap());
    shared.ready.fetch_add(1, SeqCst);
    loop {
        let mut byte = 0u8;
        // This is the cancellation point. Stops meet the thread here as in any other code.
        // SAFETY: the byte is this frame's.
        unsafe { read(shared.pipe, (&raw mut byte).cast(), 1) };
    }
}

#[test]
fn h40_a_cancellation_that_comes_while_a_thread_is_parked_waits_for_the_resume() {
    let name = "h40_a_cancellation_that_comes_while_a_thread_is_parked_waits_for_the_resume";
    hazard(name, "cancel-open", || {
        let mut pipe = [0; 2];
        // SAFETY: an array of two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let shared = Shared::new(pipe[0], Ends::ByCancellation);
        for round in 1..=100 {
            let thread = start(reads, std::ptr::from_ref(&shared).cast_mut().cast());
            while shared.ready.load(SeqCst) < round {
                yield_now();
            }
            std::thread::sleep(Duration::from_micros(300)); // the thread waits in `read` by then
            let stopped = shared.world.stop().unwrap();
            assert_eq!(stopped.mutators().count(), 1);
            // SAFETY: the thread has not been joined yet.
            unsafe { pthread_cancel(thread) };
            std::thread::sleep(Duration::from_micros(300)); // the signal has come by then
            drop(stopped);
            drop(shared.world.stop().unwrap());
            assert_eq!(join(thread), CANCELED);
            assert_eq!(shared.world.stop().unwrap().mutators().count(), 0);
        }
    });
}

#[test]
fn the_stopper_may_change_its_credentials() {
    // glibc makes all threads of the process change their credentials and waits for them. Parked
    // threads take part.
    let world = world();
    beside(&world, spin, || {
        let stopped = world.stop().unwrap();
        // SAFETY: a system call without memory. It sets the present value.
        assert_eq!(unsafe { libc::setuid(libc::getuid()) }, 0);
        drop(stopped);
    });
}

extern "C-unwind" fn ends_by_the_bare_call(data: *mut c_void) -> *mut c_void {
    // SAFETY: `start` was given a `Shared`.
    let shared = unsafe { shared(data) };
    // SAFETY: the hooks only count.
    let m = unsafe { shared.world.attach_with(7 as *mut (), COUNTED) }.unwrap();
    // SAFETY: ends the thread without destructors.
    m.blocking(|| unsafe { libc::syscall(libc::SYS_exit, 0) });
    data
}

static GONE: AtomicUsize = AtomicUsize::new(0);
const COUNTED: MutatorHooks = MutatorHooks {
    at_exit: |_| unreachable!("no destructor has run"),
    gone: |data| {
        GONE.fetch_add(data as usize, SeqCst);
    },
    back: None,
};

#[test]
fn h41_a_thread_that_ended_by_the_bare_call_in_blocking_is_left_out() {
    hazard(
        "h41_a_thread_that_ended_by_the_bare_call_in_blocking_is_left_out",
        "no-lifeline",
        || {
            let shared = Shared::new(-1, Ends::ByExit);
            for round in 1..=20 {
                let mut thread = 0;
                // The stack is larger than the stacks that glibc caches, so that joining unmaps it.
                // SAFETY: as in `start`, the function types differ only in a caller's assumptions,
                // and `data` outlives the thread.
                unsafe {
                    let mut kind = std::mem::zeroed();
                    libc::pthread_attr_init(&raw mut kind);
                    libc::pthread_attr_setstacksize(&raw mut kind, 64 << 20);
                    let body = std::mem::transmute::<Body, extern "C" fn(*mut c_void) -> *mut c_void>(
                        ends_by_the_bare_call,
                    );
                    let data = std::ptr::from_ref(&shared).cast_mut().cast();
                    let made = libc::pthread_create(&raw mut thread, &raw const kind, body, data);
                    assert_eq!(made, 0);
                    libc::pthread_attr_destroy(&raw mut kind);
                }
                join(thread);
                // The sink reads each word that a walk reports.
                let mut find = Find::complement_of(0);
                let stopped = shared.world.stop().unwrap();
                for m in stopped.mutators() {
                    m.walk(&mut find);
                }
                assert_eq!(stopped.mutators().count(), 0);
                assert_eq!(stopped.resume().mutators, 0);
                assert_eq!(GONE.load(SeqCst), 7 * round, "the hook runs once");
            }
        },
    );
}

#[test]
fn h41_a_new_thread_at_the_same_place_finds_it_gone() {
    hazard(
        "h41_a_new_thread_at_the_same_place_finds_it_gone",
        "no-lifeline",
        || {
            let shared = Shared::new(-1, Ends::ByExit);
            let data = std::ptr::from_ref(&shared).cast_mut().cast();
            join(start(ends_by_the_bare_call, data));
            // glibc gives the new thread the stack and the control block of the ended one.
            std::thread::scope(|s| {
                s.spawn(|| {
                    let m = shared.world.attach(std::ptr::null_mut()).unwrap();
                    drop(m);
                });
            });
            drop(shared.world.stop().unwrap());
            assert_eq!(GONE.load(SeqCst), 7, "the hook runs once");
            join(start(ends_by_the_bare_call, data));
            assert_eq!(shared.world.stop().unwrap().mutators().count(), 0);
            assert_eq!(GONE.load(SeqCst), 14);
        },
    );
}

// ---- transfers ----------------------------------------------------------------------------------

/// Writes 1 MiB to a pipe that is read slowly, while stops follow each other. Gives the number of
/// bytes that `write` returns.
fn write_beside_stops(write: impl Fn(&Mutator, libc::c_int, &[u8]) -> isize + Sync) -> isize {
    let world = world();
    let mut pipe = [0; 2];
    // SAFETY: an array of two descriptors.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let (ready, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        let writer = s.spawn(|| {
            let m = world.attach(std::ptr::null_mut()).unwrap();
            let bytes = vec![1u8; 1 << 20];
            ready.store(true, SeqCst);
            let written = write(&m, pipe[1], &bytes);
            done.store(true, SeqCst);
            // SAFETY: the pipe's end is closed once.
            unsafe { libc::close(pipe[1]) };
            written
        });
        s.spawn(|| {
            let mut bytes = vec![0u8; 8192];
            // SAFETY: the bytes are this frame's.
            while unsafe { libc::read(pipe[0], bytes.as_mut_ptr().cast(), bytes.len()) } > 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        while !ready.load(SeqCst) {
            yield_now();
        }
        let begun = Instant::now();
        while !done.load(SeqCst) && begun.elapsed() < Duration::from_secs(30) {
            drop(world.stop().unwrap());
            std::thread::sleep(Duration::from_micros(500));
        }
        writer.join().unwrap()
    })
}

#[test]
fn h5_a_write_in_blocking_is_whole() {
    hazard("h5_a_write_in_blocking_is_whole", "signal-blocked", || {
        let written = write_beside_stops(|m, fd, bytes| {
            // SAFETY: the bytes live until the call returns.
            m.blocking(|| unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
        });
        assert_eq!(written, 1 << 20);
    });
}
