//! `gclab soak`: all workloads together, for a given time or until an answer is wrong.
//!
//! A soak is a sequence of rounds of a few seconds. Each round is a process of its own, so that the
//! soak knows the seed of a round that crashes or hangs, and so that each round can have its own
//! environment. The round's seed alone determines its mixture ([`plan`]): kernels, the safe and the
//! raw tier, Lox programs, threads that attach and end, held registers, coroutine stacks, blocking
//! regions, forks, a host program's signals at 1 kHz, verification, several heaps, and storms of
//! stops, parked and injected.
//!
//! The interleaving of a round depends on the machine's timing. So a seed repeats the mixture, but
//! not the interleaving.

mod counts;
pub mod plan;
mod round;
mod shared;
mod work;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use counts::Counts;
pub use plan::Plan;
use plan::ROUND;
pub use round::run_round;
pub use work::holds_its_registers;

use crate::report::grouped;
use crate::search::{self, Options};

/// A round hangs if it takes this many times its length.
const HANGS: u32 = 20;

/// The report of a soak without a wrong answer.
pub type Report = search::Report<Counts>;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = &self.counts;
        writeln!(
            f,
            "{} stops in {} rounds from seed {} in {:.1} s: no wrong answer",
            grouped(n.stops),
            grouped(n.rounds),
            self.seed,
            self.time.as_secs_f64()
        )?;
        for (label, number) in [
            ("stops without a running thread", n.idle_stops),
            ("threads stopped while running", n.signalled),
            ("threads held", n.held),
            ("collections", n.collections),
            ("answers checked, all right", n.answers),
            ("threads that attached and ended", n.threads),
            ("forks", n.forks),
            ("Lox programs", n.programs),
            ("fuzz cases", n.cases),
            ("turns on coroutine stacks", n.turns),
            ("host signals", n.signals),
        ] {
            writeln!(f, "{label:<30}{:>15}", grouped(number))?;
        }
        Ok(())
    }
}

/// The first round with a wrong answer.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The seed that repeats the round.
    pub seed: u64,
    /// The round's message.
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wrong answer in the round of seed {0} ({1}): {2}\nrepeat it with `gclab soak --seconds 0 --seed {0}`",
            self.seed,
            Plan::of(self.seed),
            self.what
        )
    }
}

impl std::error::Error for Wrong {}

/// Runs rounds until the time is over or an answer is wrong, and shows progress on standard error.
///
/// # Errors
/// The first round with a wrong answer.
pub fn run(options: &Options) -> Result<Report, Wrong> {
    let begun = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut so_far = Counts::default();
    let mut told = Instant::now();
    let report = search::run(options, |seed| {
        let mut counts = child(seed).map_err(|what| Wrong { seed, what })?;
        counts.rounds = 1;
        so_far += counts;
        if terminal || told.elapsed() >= Duration::from_secs(30) {
            told = Instant::now();
            tell(&so_far, begun.elapsed(), terminal);
        }
        Ok(counts)
    });
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    report
}

/// Shows the counts so far on standard error.
fn tell(counts: &Counts, time: Duration, terminal: bool) {
    let line = format!(
        "{:6.0} s  {} rounds  {} stops  {} collections  {} answers",
        time.as_secs_f64(),
        grouped(counts.rounds),
        grouped(counts.stops),
        grouped(counts.collections),
        grouped(counts.answers)
    );
    // A closed standard error does not end the soak.
    let _ = if terminal {
        write!(std::io::stderr(), "\r{line}\x1b[K")
    } else {
        writeln!(std::io::stderr(), "{line}")
    };
}

/// Runs one round in a child process.
fn child(seed: u64) -> Result<Counts, String> {
    let program =
        std::env::current_exe().map_err(|e| format!("cannot find gclab's own path: {e}"))?;
    let mut child = Command::new(program)
        .arg("soak")
        .args(["--seed", &seed.to_string(), "--round"])
        .envs(Plan::of(seed).environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start a round's process: {e}"))?;
    let begun = Instant::now();
    // A round's output fits into the pipes, so the child never waits for a reader.
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if begun.elapsed() < ROUND * HANGS => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(None) => {
                // SIGABRT leaves a core dump where core dumps are on.
                // SAFETY: the child is ours and has not been waited for, so its process id is still
                // its own.
                unsafe { libc::kill(child.id() as i32, libc::SIGABRT) };
                let said = said(child);
                return Err(format!(
                    "the round hung for {:?}; its output: {said}",
                    ROUND * HANGS
                ));
            }
            Err(e) => return Err(format!("cannot wait for the round: {e}")),
        }
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    match Counts::read(&stdout) {
        Some(counts) if output.status.success() => Ok(counts),
        _ => Err(format!(
            "{}; its output: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

fn said(child: std::process::Child) -> String {
    child.wait_with_output().map_or_else(
        |e| e.to_string(),
        |output| String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    )
}
