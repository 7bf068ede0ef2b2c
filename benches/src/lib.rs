//! The parts that the benches share: blocks in alternation, their ratios, and the peers. The limit
//! programs are in `gc_test_harness::lab::baselines`.
//!
//! Machines are noisy, so each figure is a ratio within one run: every contender of a table has a
//! block of work, the blocks alternate (A B C A B C ...), and the contenders are compared block by
//! block. The benches also have criterion's groups, for comparing a change with the code before it
//! on one machine.

pub mod bdwgc;
pub mod contenders;
pub mod lox;
pub mod paired;
pub mod results;

use std::arch::asm;
use std::time::Duration;

use criterion::Criterion;

/// The task of a bench binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `cargo bench`: measures.
    Full,
    /// `cargo test`, or `cargo bench -- --test`: runs everything once, with small sizes.
    Quick,
    /// `--list`: only prints names.
    List,
}

impl Mode {
    /// Parses the arguments as criterion does.
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

    /// `full` to measure, or `quick` for any other mode.
    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self == Mode::Full { full } else { quick }
    }
}

/// Runs criterion's groups of a bench with short functions: half a second to warm up, two seconds
/// to measure.
pub fn run_groups(groups: impl FnOnce(&mut Criterion)) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    groups(&mut criterion);
    criterion.final_summary();
}

/// Whether a part of a bench is to run: no name was given as an argument, or the part's name
/// contains the given name.
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

/// Uses a word in a register without a store, so that the compiler must compute the word.
#[inline(always)]
pub fn consume(word: usize) {
    // SAFETY: the assembly has no instructions.
    unsafe { asm!("/* {0} */", in(reg) word, options(nomem, nostack, preserves_flags)) };
}
