//! The parts that all rows share: the options, contenders in alternation, and the claims so far.

use std::time::Duration;

use benches::contenders::alternate::{Alternated, Piece, alternate};
use benches::contenders::process::{Used, run, run_for};
use benches::contenders::workshop::{Peer, Program, Workshop, installed};
use benches::paired::Spread;
use benches::results::claim::{Beside, Claim, Favourable, Wanted};
use benches::results::machine::{Machine, now};
use benches::results::{data, render};

/// The variable that makes this binary run as one of Urge's contenders.
pub const CHILD: &str = "URGE_BENCH_PEERS";

/// Urge's name in the tables.
pub const OURS: &str = "Urge";
/// The limit programs' name in the tables.
pub const LIMIT: &str = "limit program";

/// This binary as the contender `work`.
pub fn ours(work: &str) -> Program {
    let itself = std::env::current_exe().expect("this binary has a path");
    Program::new(itself).with(CHILD, work)
}

/// Touches and frees `mib` MiB of memory in a process of its own, as [`gc_test_harness::lab::warm`]
/// describes.
pub fn warm(mib: u32) -> Result<(), String> {
    run(ours("warm").command(&[mib]), false).map(drop)
}

/// On a virtual machine that reports free memory to its host, waits until the memory that the last
/// process freed has been reported.
///
/// The kernel begins to report free memory two seconds later, in pieces, and every step of a stop
/// takes longer meanwhile (docs/experiments.md).
pub fn settle(scale: Scale) {
    if scale == Scale::Full && std::path::Path::new("/sys/module/page_reporting").exists() {
        std::thread::sleep(Duration::from_secs(10));
    }
}

/// The size of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The size that is claimed.
    Full,
    /// `--quick`: a smaller size, which claims nothing.
    Short,
    /// `cargo test`: each row once, with the smallest size.
    Test,
}

#[derive(Clone, Debug)]
pub struct Options {
    scale: Scale,
    turns: Option<usize>,
    /// The rows to run; empty: all of them.
    pub rows: Vec<String>,
    /// Whether the data file, the page and the plots are written.
    pub write: bool,
    /// Whether only the names of the rows are printed.
    pub list: bool,
}

impl Options {
    /// Parses the arguments.
    ///
    /// # Errors
    /// A message that says which arguments are right.
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
                // Flags that cargo passes to criterion's benches as well.
                "--test" | "--noplot" | "--nocapture" | "--quiet" | "--exact" => {}
                row if known.contains(&row) => {
                    options.rows.push(row.to_owned());
                }
                other => {
                    let rows = known.join(" ");
                    // `cargo test NAME` passes NAME to every binary.
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

/// The parts of a claim except its ratio.
pub struct Row<'a> {
    /// The work.
    pub work: &'a str,
    /// The quantity that is measured.
    pub measure: &'a str,
    /// The contender that Urge is compared with.
    pub beside: Beside,
    /// The medians of Urge and of the other contender, and their unit.
    pub figures: Option<(f64, f64, &'a str)>,
    /// The side of 1 on which a ratio is in Urge's favour.
    pub favourable: Favourable,
    /// The ratio that is wanted.
    pub wanted: Wanted,
}

/// The median of one figure of a contender; 0 if the contender was skipped.
pub fn p50<S>(runs: &Alternated<S>, name: &str, of: impl Fn(&S) -> f64) -> f64 {
    runs.spread(name, of).map_or(0.0, |spread| spread.p50)
}

/// The state of a run of the bench.
pub struct Bench {
    /// The directory in which peers are built.
    pub workshop: Workshop,
    /// The size of the work.
    pub scale: Scale,
    turns: Option<usize>,
    write: bool,
    claims: Vec<Claim>,
    skipped: Vec<String>,
}

impl Bench {
    /// A run without claims.
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

    /// The value for the present scale.
    pub fn pick<T>(&self, full: T, short: T, test: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Short => short,
            Scale::Test => test,
        }
    }

    /// The number of turns: the option, or else `full` at full scale.
    pub fn turns(&self, full: usize) -> usize {
        self.turns.unwrap_or(self.pick(full, 3, 1))
    }

    /// Leaves out peers that are not installed, and notes their names.
    pub fn installed(&mut self, peers: Vec<Peer>) -> Vec<(String, Program)> {
        let (there, skipped) = installed(peers);
        for name in skipped {
            if !self.skipped.contains(&name) {
                self.skipped.push(name);
            }
        }
        there
    }

    /// Adds a claim if there is a ratio. There is none if a contender was skipped, which was
    /// printed then.
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

    /// Runs whole processes in alternation, Urge's first. All must print `expected`. Before each,
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

    /// Adds claims of the other contenders' time and memory, as multiples of Urge's. `time` and
    /// `memory` give the ratio that is wanted for each peer.
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

    /// Writes the machine's data file, the page and the plots, if the options say so. It is called
    /// after each row, so that an interrupted run keeps its finished rows.
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

/// Prints times and memory of whole processes.
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
