//! What all rows need: what was asked for, contenders in alternation, and the claims so far.

use std::time::Duration;

use benches::contenders::alternate::{Alternated, Piece, alternate};
use benches::contenders::process::{Used, run, run_for};
use benches::contenders::workshop::{Peer, Program, Workshop, installed};
use benches::paired::Spread;
use benches::results::claim::{Beside, Claim, Favourable, Wanted};
use benches::results::machine::{Machine, now};
use benches::results::{data, render};

/// Set, this binary is one of our own contenders.
pub const CHILD: &str = "URGE_BENCH_PEERS";

/// Our own name in the tables.
pub const OURS: &str = "Urge";
/// The limit programs' name.
pub const LIMIT: &str = "limit program";

/// This binary, as a contender.
pub fn ours(work: &str) -> Program {
    let itself = std::env::current_exe().expect("this binary has a path");
    Program::new(itself).with(CHILD, work)
}

/// Has so much memory touched and given back by a process of its own: see
/// [`gc_test_harness::lab::warm`].
pub fn warm(mib: u32) -> Result<(), String> {
    run(ours("warm").command(&[mib]), false).map(drop)
}

/// Waits until the host has the memory that the process before has freed, where free memory goes
/// to a host.
///
/// The kernel begins to report free memory two seconds later, piece by piece, and every step of a
/// stop takes longer meanwhile (docs/experiments.md).
pub fn settle(scale: Scale) {
    if scale == Scale::Full && std::path::Path::new("/sys/module/page_reporting").exists() {
        std::thread::sleep(Duration::from_secs(10));
    }
}

/// How large the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// What is claimed.
    Full,
    /// `--quick`: the same in small, which claims nothing.
    Short,
    /// `cargo test`: everything once, to see that it runs.
    Test,
}

#[derive(Clone, Debug)]
pub struct Options {
    scale: Scale,
    turns: Option<usize>,
    /// The rows to run; empty: all of them.
    pub rows: Vec<String>,
    /// Whether the data file and what is made of it are to be written.
    pub write: bool,
    /// Only say what there is.
    pub list: bool,
}

impl Options {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    pub fn from(
        arguments: impl Iterator<Item = String>,
        known: &[&str],
    ) -> Result<Options, String> {
        let mut options = Options {
            scale: Scale::Test,
            turns: None,
            rows: Vec::new(),
            write: true,
            list: false,
        };
        let mut arguments = arguments.peekable();
        let mut quick = false;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => options.scale = Scale::Full,
                "--quick" => quick = true,
                "--no-write" => options.write = false,
                "--list" => options.list = true,
                "--turns" => {
                    let turns = arguments.next().and_then(|n| n.parse().ok());
                    options.turns = Some(turns.filter(|n| *n > 0).ok_or("--turns N")?);
                }
                // What cargo and criterion's benches are given besides.
                "--test" | "--noplot" | "--nocapture" | "--quiet" | "--exact" => {}
                row if known.contains(&row) => {
                    options.rows.push(row.to_owned());
                }
                other => {
                    let rows = known.join(" ");
                    // `cargo test NAME` gives NAME to every binary.
                    if options.scale == Scale::Full {
                        return Err(format!("{other:?} is no row; rows are: {rows}"));
                    }
                    options.rows.push(other.to_owned());
                }
            }
        }
        if quick && options.scale == Scale::Full {
            options.scale = Scale::Short;
        }
        options.write &= options.scale == Scale::Full;
        Ok(options)
    }
}

/// A claim without its ratio.
pub struct Row<'a> {
    /// The work.
    pub work: &'a str,
    /// What is measured of it.
    pub measure: &'a str,
    /// With what Urge is compared.
    pub beside: Beside,
    /// The medians of Urge and of the other, and their unit.
    pub figures: Option<(f64, f64, &'a str)>,
    /// Which side of 1 is in Urge's favour.
    pub favourable: Favourable,
    /// What the ratio should be.
    pub wanted: Wanted,
}

/// The median of one figure of a contender; 0 where it was skipped.
pub fn p50<S>(runs: &Alternated<S>, name: &str, of: impl Fn(&S) -> f64) -> f64 {
    runs.spread(name, of).map_or(0.0, |spread| spread.p50)
}

/// What has been measured so far, and with what.
pub struct Bench {
    /// Where peers are built.
    pub workshop: Workshop,
    /// How large the work is.
    pub scale: Scale,
    turns: Option<usize>,
    write: bool,
    claims: Vec<Claim>,
    skipped: Vec<String>,
}

impl Bench {
    /// Nothing yet.
    pub fn new(options: &Options) -> Bench {
        Bench {
            workshop: Workshop::new(),
            scale: options.scale,
            turns: options.turns,
            write: options.write,
            claims: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// One size for what is claimed, one for a trial, one to see that it runs.
    pub fn pick<T>(&self, full: T, short: T, test: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Short => short,
            Scale::Test => test,
        }
    }

    /// Turns to measure: what was asked for, or so many.
    pub fn turns(&self, full: usize) -> usize {
        self.turns.unwrap_or(self.pick(full, 3, 1))
    }

    /// Leaves out what is not there, and remembers its name.
    pub fn installed(&mut self, peers: Vec<Peer>) -> Vec<(String, Program)> {
        let (there, skipped) = installed(peers);
        for name in skipped {
            if !self.skipped.contains(&name) {
                self.skipped.push(name);
            }
        }
        there
    }

    /// Enters a claim, if there is a ratio to make it with: without one, a contender was skipped,
    /// which the bench has said.
    pub fn claim(&mut self, row: Row<'_>, ratio: Option<Spread>, turns: usize) {
        let Some(ratio) = ratio else {
            return;
        };
        self.claims.push(Claim {
            work: row.work.to_owned(),
            measure: row.measure.to_owned(),
            beside: row.beside,
            figures: row
                .figures
                .map(|(ours, theirs, unit)| (ours, theirs, unit.to_owned())),
            ratio: ratio.into(),
            favourable: row.favourable,
            wanted: row.wanted,
            turns,
            taken: now(),
        });
    }

    /// Whole processes in alternation, which all must print the same; ours first. Before each,
    /// `most` MiB are warmed.
    pub fn processes(
        &mut self,
        contenders: Vec<(String, Program)>,
        sizes: &[u32],
        expected: &str,
        most: u32,
    ) -> Alternated<Used> {
        let turns = self.turns(7);
        let pieces = contenders.into_iter().map(|(name, program)| {
            let piece = move || {
                warm(most)?;
                run_for(program.command(sizes), expected)
            };
            (name, Box::new(piece) as Piece<'_, Used>)
        });
        let runs = alternate(turns, self.scale != Scale::Test, pieces.collect());
        let runs = runs.unwrap_or_else(|why| panic!("{why}"));
        print_used(&runs);
        runs
    }

    /// Enters how many times as long as ours the others took, and how much memory; `time` and
    /// `memory` say what is wanted beside which peer.
    pub fn time_and_memory(
        &mut self,
        work: &str,
        runs: &Alternated<Used>,
        time: &dyn Fn(&str) -> Wanted,
        memory: &dyn Fn(&str) -> Wanted,
    ) {
        let seconds: fn(&Used) -> f64 = |used| used.seconds;
        let peak: fn(&Used) -> f64 = |used| used.peak_mib;
        for name in runs.names().iter().filter(|name| *name != OURS) {
            let figures = |of, unit| Some((p50(runs, OURS, of), p50(runs, name, of), unit));
            let turns = runs.of(name).map_or(0, <[Used]>::len);
            if name == LIMIT {
                let row = Row {
                    work,
                    measure: "time",
                    beside: Beside::Limit(name.clone()),
                    figures: figures(seconds, "s"),
                    favourable: Favourable::Below,
                    wanted: Wanted::AtMost(1.35),
                };
                self.claim(row, runs.ratio(OURS, name, seconds), turns);
                continue;
            }
            for (measure, of, unit, wanted) in [
                ("time", seconds, "s", time(name)),
                ("peak memory", peak, "MiB", memory(name)),
            ] {
                let row = Row {
                    work,
                    measure,
                    beside: Beside::Peer(name.clone()),
                    figures: figures(of, unit),
                    favourable: Favourable::Above,
                    wanted,
                };
                self.claim(row, runs.ratio(name, OURS, of), turns);
            }
        }
    }

    /// Writes the machine's data file and all that is made of it, if that was asked for. Called
    /// after each row, so that a run which is broken off keeps the rows before.
    pub fn save(&mut self) {
        if !self.write {
            return;
        }
        let machine = Machine::here(self.workshop.versions(), self.skipped.clone());
        let written = data::of(machine).and_then(|mut data| {
            data.update(&self.claims);
            data.write()?;
            render::write()
        });
        written.unwrap_or_else(|why| panic!("{why}"));
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("{}", Claim::head());
        for claim in &self.claims {
            println!("{}", claim.line());
        }
        if !self.skipped.is_empty() {
            println!("not there, and skipped: {}", self.skipped.join(", "));
        }
        if self.scale != Scale::Full {
            println!("(a trial with smaller work: no figures)");
        }
    }
}

/// Times and memory of whole processes, for people.
pub fn print_used(runs: &Alternated<Used>) {
    println!(
        "{:<28}{:>9}{:>9}{:>9}{:>9}{:>12}{:>10}",
        "seconds", "min", "p50", "p99", "max", "processors", "peak MiB"
    );
    for name in runs.names() {
        let of = |of: fn(&Used) -> f64| runs.spread(name, of).unwrap_or(Spread::of(&[]));
        let time = of(|used| used.seconds);
        let cells = [time.min, time.p50, time.p99, time.max].map(|s| format!("{s:>9.3}"));
        println!(
            "{name:<28}{}{:>12.3}{:>10.1}",
            cells.concat(),
            of(|used| used.processor_seconds).p50,
            of(|used| used.peak_mib).p50
        );
    }
}
