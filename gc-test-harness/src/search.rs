//! Random searches for wrong answers: seeds, counts and reports.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A search's options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The length of the search. At least one case runs.
    pub time: Duration,
    /// The first case's seed; each further case takes the next number. By default the clock gives
    /// it.
    pub seed: Option<u64>,
}

/// The counts of a search.
pub trait Count: AddAssign + Default {
    /// One JSON object with each count under its name.
    fn json(&self) -> Value;
}

/// The report of a search that found no wrong answer.
#[derive(Clone, Copy, Debug)]
pub struct Report<C> {
    /// The first case's seed.
    pub seed: u64,
    /// The counts over all cases.
    pub counts: C,
    /// The time that the search took.
    pub time: Duration,
}

impl<C: Count> Report<C> {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        let mut object = self.counts.json();
        object["seed"] = json!(self.seed);
        object["seconds"] = json!(self.time.as_secs_f64());
        object["wrong"] = json!(0);
        object
    }
}

/// Runs cases, each with its seed, until the time is over or a case gives a wrong answer.
pub(crate) fn run<C: Count, E>(
    options: &Options,
    mut case: impl FnMut(u64) -> Result<C, E>,
) -> Result<Report<C>, E> {
    let first = options.seed.unwrap_or_else(by_the_clock);
    let begun = Instant::now();
    let mut counts = C::default();
    for seed in (0..).map(|number| first.wrapping_add(number)) {
        set(seed);
        counts += case(seed)?;
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

/// Declares a struct of counts, and implements `AddAssign` and [`Count`] for it.
macro_rules! counts {
    ($(#[$meta:meta])* pub struct $counts:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl std::ops::AddAssign for $counts {
            fn add_assign(&mut self, other: $counts) {
                $(self.$name += other.$name;)*
            }
        }

        impl $crate::search::Count for $counts {
            fn json(&self) -> serde_json::Value {
                serde_json::json!({ $(stringify!($name): self.$name),* })
            }
        }
    };
}
pub(crate) use counts;

/// The seed of the current case, for [`name_in_crashes`].
static SEED: AtomicU64 = AtomicU64::new(0);

/// A seed from the clock: each run gets another one.
fn by_the_clock() -> u64 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |t| t.as_nanos() as u64 >> 8)
}

/// Notes the seed of the current case, for [`name_in_crashes`].
fn set(seed: u64) {
    // Relaxed: the crashing thread reads its own store, or prints an older seed.
    SEED.store(seed, Ordering::Relaxed);
}

/// Installs a handler that prints the current case's seed when the process crashes.
pub(crate) fn name_in_crashes() {
    extern "C" fn crashed(signal: libc::c_int) {
        let mut text = *b"gclab: crashed in the case of seed 00000000000000000000\n";
        // Relaxed: see `set`.
        let mut seed = SEED.load(Ordering::Relaxed);
        for digit in text[35..55].iter_mut().rev() {
            *digit = b'0' + (seed % 10) as u8;
            seed /= 10;
        }
        // SAFETY: the call writes from a local buffer. The signal is then raised again with its
        // default action.
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
