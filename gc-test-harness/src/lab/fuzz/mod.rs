//! `gclab fuzz`: arbitrary words in arbitrary places over arbitrary heaps, and an exact model of
//! what they keep alive.
//!
//! Nothing reachable may be freed, nothing may be marked but cells of handed-out runs, and nothing
//! retained but what the words name and what that reaches. The words are valid cells, their
//! insides, one past their ends, tagged, boxed; free cells, tails of runs and spans, released
//! memory, the heap's own tables, other heaps, unmapped addresses, and anything.
//!
//! Each case is one of three sorts: [`body`] has no threads and takes its decisions from a fuzzing
//! engine as well, [`threads`] has real threads, stopped and scanned, [`mutate`] has threads that
//! change their graphs while cycles mark them; a fuzzing engine decides for one of them in
//! [`operations`].

pub mod body;
pub mod choices;
pub mod model;
pub mod mutate;
pub mod threads;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

pub use body::fuzz_one;
use choices::Choices;
pub use mutate::operations;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long. At least one case runs.
    pub time: Duration,
    /// The first case's seed; the others follow. By default the clock says.
    pub seed: Option<u64>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cases.
    pub cases: u64,
    /// Cells that were allocated.
    pub objects: u64,
    /// Words that were placed somewhere.
    pub words: u64,
    /// Collections.
    pub collections: u64,
    /// Cells that a collection kept, as it had to.
    pub kept: u64,
    /// Cells that a collection freed, as it had to.
    pub freed: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.cases += other.cases;
        self.objects += other.objects;
        self.words += other.words;
        self.collections += other.collections;
        self.kept += other.kept;
        self.freed += other.freed;
    }
}

/// A run without a wrong answer.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The first case's seed.
    pub seed: u64,
    /// What was done.
    pub counts: Counts,
    /// How long it took.
    pub time: Duration,
}

impl Report {
    /// One JSON object.
    pub fn json(&self) -> String {
        let Counts {
            cases,
            objects,
            words,
            collections,
            kept,
            freed,
        } = self.counts;
        json!({
            "seed": self.seed, "seconds": self.time.as_secs_f64(), "cases": cases, "objects": objects, "words": words,
            "collections": collections, "kept": kept, "freed": freed, "wrong": 0,
        })
        .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            cases,
            objects,
            words,
            collections,
            kept,
            freed,
        } = self.counts;
        writeln!(
            f,
            "{cases} cases from seed {} in {:.1} s: no wrong answer",
            self.seed,
            self.time.as_secs_f64()
        )?;
        writeln!(
            f,
            "{objects} cells, {words} words, {collections} collections, which kept {kept} cells and freed {freed}"
        )
    }
}

/// The first wrong answer.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The seed that repeats it.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wrong answer in the case of seed {0}: {1}\nrepeat it with `gclab fuzz --seconds 0 --seed {0}`",
            self.seed, self.what
        )
    }
}

impl std::error::Error for Wrong {}

/// Of so many cases one has threads that are scanned; those without threads are a few hundred times
/// cheaper.
const THREADS_EVERY: u64 = 4;
/// Of so many one has threads that change their graphs, which take some hundred times as long
/// again.
const MUTATE_EVERY: u64 = 12;

/// The case that runs, for [`say_the_seed`].
static SEED: AtomicU64 = AtomicU64::new(0);

/// A seed that no other run had.
pub(crate) fn clock() -> u64 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |t| t.as_nanos() as u64 >> 8)
}

/// Notes which case runs, for [`say_the_seed`].
pub(crate) fn set_seed(seed: u64) {
    // Relaxed: the handler that reads it runs on the thread that crashes, or prints an older seed.
    SEED.store(seed, Ordering::Relaxed);
}

/// Fuzzes until the time is over or an answer is wrong.
///
/// # Errors
/// The first wrong answer, after which threads may be in any state: end the process.
pub fn run(options: &Options) -> Result<Report, Wrong> {
    let first = options.seed.unwrap_or_else(clock);
    say_the_seed();
    let wrong = |seed, what| Wrong { seed, what };
    let pool = threads::Pool::new().map_err(|e| wrong(first, format!("no threads: {e}")))?;
    let begun = Instant::now();
    let mut counts = Counts::default();
    for seed in (0..).map(|case| first.wrapping_add(case)) {
        set_seed(seed);
        let mut choices = Choices::Seeded(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let case = || {
            if seed % THREADS_EVERY == 0 {
                pool.check(&mut choices)
            } else if seed % MUTATE_EVERY == 2 {
                mutate::check(&mut choices)
            } else {
                body::check(&mut choices)
            }
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|panic| Err(message(&panic)));
        counts += outcome.map_err(|what| wrong(seed, what))?;
        if begun.elapsed() >= options.time {
            break;
        }
    }
    Ok(Report {
        seed: first,
        counts,
        time: begun.elapsed(),
    })
}

/// What a panic said.
fn message(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("of another type"))
}

/// Has a crash say which seed repeats it.
pub(crate) fn say_the_seed() {
    extern "C" fn crashed(signal: libc::c_int) {
        let mut text = *b"gclab: crashed in the case of seed 00000000000000000000\n";
        let mut seed = SEED.load(Ordering::Relaxed);
        for digit in text[35..55].iter_mut().rev() {
            *digit = b'0' + (seed % 10) as u8;
            seed /= 10;
        }
        // SAFETY: writes a buffer of its own; then the signal strikes again, unhandled.
        unsafe {
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
        // SAFETY: the handler is async-signal-safe.
        unsafe {
            libc::signal(
                signal,
                crashed as extern "C" fn(libc::c_int) as libc::sighandler_t,
            )
        };
    }
}
