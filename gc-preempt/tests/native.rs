//! Threads that are stopped at any instruction of native code and walked there: in libc, the vDSO,
//! malloc and the dynamic loader (hazards H11 and H12).

mod common;

use std::ffi::c_void;
use std::hint::black_box;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use common::{Find, hazard, wait_for};
use gc_preempt::{Config, WalkStats, World};

#[derive(Default)]
struct Tally {
    walks: u32,
    lost: u32,
    frames: u32,
    in_vdso: u32,
    in_libc: u32,
}

/// Runs `work` repeatedly on a mutator that holds one word on its stack, and stops and walks the
/// mutator `stops` times.
fn storm(stops: u32, work: fn(u64)) -> Tally {
    let world = World::new(Config::default()).unwrap();
    // The complement, so that only the mutator's stack has the word itself.
    let not = AtomicUsize::new(!0x0bad_5eed_0bad_5eed);
    let (done, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    let [vdso, libc] = [
        module(vdso_function()),
        module(libc::qsort as *const () as usize),
    ];
    let mut tally = Tally::default();
    std::thread::scope(|s| {
        s.spawn(|| {
            let mutator = world.attach(ptr::null_mut()).unwrap();
            let held = [!not.load(SeqCst)];
            black_box(&held);
            begun.store(true, SeqCst);
            for round in 0.. {
                work(round);
                if done.load(SeqCst) {
                    break;
                }
            }
            black_box(&held);
            drop(mutator);
        });
        wait_for(&begun);
        while tally.walks < stops {
            let stopped = world.stop().unwrap();
            for mutator in stopped.mutators() {
                let mut search = Find::complement_of(not.load(SeqCst));
                let stats: WalkStats = mutator.walk(&mut search);
                assert!(search.count > 0, "the word of the outermost frame");
                assert_eq!((stats.precise, stats.unknown_sites), (0, 0));
                let pc = mutator.snapshot().registers.pc;
                tally.walks += 1;
                tally.lost += u32::from(stats.to_base);
                tally.frames += stats.conservative;
                tally.in_vdso += u32::from(vdso.contains(&pc));
                tally.in_libc += u32::from(libc.contains(&pc));
            }
            let report = stopped.resume();
            if report.signalled == 0 {
                // The thread is still parked from the stop before.
                std::thread::yield_now();
            }
        }
        done.store(true, SeqCst);
    });
    tally
}

fn vdso_function() -> usize {
    // SAFETY: the call only reads.
    unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) as usize }
}

/// The mapping of an address, and the mappings of the same file beside it.
fn module(address: usize) -> Range<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next().unwrap().split_once('-').unwrap();
        let parse = |s| usize::from_str_radix(s, 16).unwrap();
        (
            parse(start)..parse(end),
            fields.nth(4).unwrap_or_default().to_owned(),
        )
    });
    let lines: Vec<(Range<usize>, String)> = lines.collect();
    let name = &lines
        .iter()
        .find(|(r, _)| r.contains(&address))
        .expect("mapped")
        .1;
    let mut same = lines.iter().filter(|(_, n)| n == name);
    let first = &same.next().expect("itself").0;
    first.start..same.next_back().map_or(first.end, |last| last.0.end)
}

/// Checks that nearly all walks reach the stack's end. They may fail at a few instructions, because
/// some hand-written assembly has no unwind tables.
fn knows_its_way(tally: &Tally) {
    assert!(
        tally.lost * 50 <= tally.walks,
        "lost {} times of {}",
        tally.lost,
        tally.walks
    );
    assert!(tally.frames >= 2 * tally.walks);
}

#[test]
fn a_thread_inside_malloc_and_formatting_is_walked_from_any_instruction() {
    let tally = storm(2000, |round| {
        let numbers = (0..round % 50).map(|x| x.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut words: Vec<String> = numbers
            .map(|x| format!("{x:x} {}", x as f64 / 3.0))
            .collect();
        words.sort();
        black_box(words);
    });
    knows_its_way(&tally);
    assert!(tally.in_libc > 0);
}

#[test]
fn a_thread_inside_libcs_sort_and_printf_is_walked_from_any_instruction() {
    extern "C" fn compare(a: *const c_void, b: *const c_void) -> i32 {
        // SAFETY: qsort passes pointers to two items.
        unsafe { (*a.cast::<u64>()).cmp(&*b.cast::<u64>()) as i32 }
    }
    let tally = storm(2000, |round| {
        let mut items = [round, 7, 3, 9, 1, 12, 5, round / 2];
        let mut text = [0u8; 100];
        // SAFETY: the arguments are eight items of eight bytes, a buffer of a hundred bytes, and a
        // format with its arguments.
        unsafe {
            libc::qsort(items.as_mut_ptr().cast(), 8, 8, Some(compare));
            let format = c"%g %s %lu".as_ptr();
            let text = text.as_mut_ptr().cast();
            libc::snprintf(
                text,
                100,
                format,
                1.5 * round as f64,
                c"text".as_ptr(),
                round,
            );
        }
        black_box((items, text));
    });
    knows_its_way(&tally);
    assert!(tally.in_libc > 0);
}

#[test]
fn a_thread_inside_the_vdso_is_walked_from_any_instruction() {
    let tally = storm(2000, |_| {
        for _ in 0..1000 {
            black_box(std::time::Instant::now());
        }
    });
    knows_its_way(&tally);
    assert!(tally.in_vdso > 0, "the clock was never caught in the vDSO");
}

/// A thread that opens and closes libraries holds the loader's lock half of the time, and changes
/// the list of modules while the walker reads it.
#[test]
fn a_thread_inside_dlopen_does_not_hold_up_a_walk() {
    hazard(
        "a_thread_inside_dlopen_does_not_hold_up_a_walk",
        "ask-the-loader",
        || {
            if std::env::var("URGE_FAULT").is_ok_and(|faults| !faults.is_empty()) {
                // The child is expected to hang forever, so a few seconds are enough.
                // SAFETY: SIGALRM has no handler, so it ends the process.
                unsafe { libc::alarm(5) };
            }
            let tally = storm(1000, |_| {
                for name in [
                    c"libm.so.6",
                    c"libgcc_s.so.1",
                    c"libutil.so.1",
                    c"libanl.so.1",
                ] {
                    // SAFETY: libraries of the system, whose initialisers have no effect here.
                    unsafe {
                        let library =
                            libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
                        if !library.is_null() {
                            libc::dlclose(library);
                        }
                    }
                }
            });
            // The share of walks that reach the stack's end is not checked. Code that runs while
            // its module is being relocated (libm's choice of functions by processor) is not in the
            // loader's table yet, and its stack is scanned to the base.
            assert!(tally.frames > 0);
        },
    );
}
