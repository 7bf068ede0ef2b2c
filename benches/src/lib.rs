//! What the benches share: blocks in alternation and ratios between them, and the peers. The limit
//! programs are the harness's: `gc_test_harness::lab::baselines`.
//!
//! Machines are noisy, so a figure here is a ratio within one run: every contender of a table has a
//! block of work, the blocks alternate (A B C A B C ...), and what is reported is how the
//! contenders compare block by block. Criterion's own groups stand beside the tables; they are for
//! comparing one's own changes, run after run, on one's own machine.

pub mod bdwgc;
pub mod contenders;
pub mod lox;
pub mod paired;
pub mod results;

use std::arch::asm;
use std::time::Duration;

use criterion::Criterion;

/// What a bench binary is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `cargo bench`: measure.
    Full,
    /// `cargo test`, or `cargo bench -- --test`: run everything once, in small.
    Quick,
    /// Only say what there is.
    List,
}

impl Mode {
    /// Reads the arguments as criterion does.
    pub fn from_args() -> Mode {
        let has = |flag: &str| std::env::args().skip(1).any(|arg| arg == flag);
        if has("--list") {
            Mode::List
        } else if has("--bench") && !has("--test") {
            Mode::Full
        } else {
            Mode::Quick
        }
    }

    /// One number for measuring, another for trying.
    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self == Mode::Full { full } else { quick }
    }
}

/// Runs criterion's groups of a bench, of short functions: half a second to warm up, two to
/// measure.
pub fn run_groups(groups: impl FnOnce(&mut Criterion)) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    groups(&mut criterion);
    criterion.final_summary();
}

/// Whether a part of a bench is wanted: no name was given as an argument, or its name contains the
/// one that was.
pub fn wanted(part: &str) -> bool {
    const WITHOUT_VALUE: [&str; 9] = [
        "--bench",
        "--test",
        "--exact",
        "--quiet",
        "--verbose",
        "--quick",
        "--noplot",
        "--nocapture",
        "--list",
    ];
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut names = arguments.iter().enumerate().filter(|&(i, argument)| {
        let is_a_value = i > 0
            && arguments[i - 1].starts_with('-')
            && !WITHOUT_VALUE.contains(&arguments[i - 1].as_str());
        !argument.starts_with('-') && !is_a_value
    });
    names
        .next()
        .is_none_or(|(_, name)| part.contains(name.as_str()))
}

/// Uses up a word in a register, without a store: the compiler has to compute the word.
#[inline(always)]
pub fn consume(word: usize) {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {0} */", in(reg) word, options(nomem, nostack, preserves_flags)) };
}
