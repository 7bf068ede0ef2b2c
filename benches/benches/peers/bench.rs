//! What all rows need: what was asked for, contenders in alternation, and the claims so far.

use std::time::Duration;

use benches::paired::Spread;
use benches::peers::claims::{Alternated, Claim, Piece, Wanted, alternate};
use benches::peers::process::{Used, run, run_for};
use benches::peers::results;
use benches::peers::workshop::{Peer, Program, Workshop, installed};

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

/// Waits until what the process before has freed is the host's again, where free memory goes to a
/// host.
///
/// The kernel begins to report it two seconds later, piece by piece, and what runs meanwhile is
/// slower: in a stop then, every step takes up to ten times as long, without a page fault. The
/// longest stop of `gclab mark 1024 --concurrent --cycles 4`, begun at once after another process
/// had freed 5.6 GiB: 64 310 460 498 545 696 us; begun ten seconds later: 31 37 40 40 42 64 (six
/// runs each, in alternation).
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
    /// None: all of them.
    pub rows: Vec<String>,
    /// Whether `RESULTS.md` is to be changed.
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

/// What has been measured so far, and with what.
pub struct Bench {
    /// Where peers are built.
    pub workshop: Workshop,
    /// How large the work is.
    pub scale: Scale,
    turns: Option<usize>,
    write: bool,
    claims: Vec<Claim>,
    /// Of these, how many are in `RESULTS.md`.
    written: usize,
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
            written: 0,
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

    /// Enters a claim, if there is a ratio to make it with.
    pub fn claim(
        &mut self,
        work: &str,
        beside: &str,
        ratio: Option<Spread>,
        wanted: Wanted,
        figures: String,
        turns: usize,
    ) {
        // Without a ratio the peer was skipped, which has been said.
        if let Some(ratio) = ratio {
            let claim = Claim {
                work: work.to_owned(),
                beside: beside.to_owned(),
                ratio,
                wanted,
                figures,
                turns,
            };
            self.claims.push(claim);
        }
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

    /// How many times as long as ours did the others take, and how much memory; what is wanted of
    /// whom.
    pub fn time_and_memory(
        &mut self,
        work: &str,
        runs: &Alternated<Used>,
        time: &dyn Fn(&str) -> Wanted,
        memory: &dyn Fn(&str) -> Wanted,
    ) {
        let p50 = |name: &str, of: fn(&Used) -> f64| runs.spread(name, of).map_or(0.0, |s| s.p50);
        for name in runs.names().iter().filter(|name| *name != OURS) {
            let seconds: fn(&Used) -> f64 = |used| used.seconds;
            if name == LIMIT {
                let figures = format!("{:.2} s, {:.2} s", p50(OURS, seconds), p50(name, seconds));
                let ratio = runs.ratio(OURS, name, seconds);
                let turns = runs.of(name).map_or(0, <[Used]>::len);
                let work = format!("{work}: time over the limit's");
                self.claim(&work, name, ratio, Wanted::AtMost(1.35), figures, turns);
                continue;
            }
            let figures = format!("{:.2} s, {:.2} s", p50(OURS, seconds), p50(name, seconds));
            let ratio = runs.ratio(name, OURS, seconds);
            let turns = runs.of(name).map_or(0, <[Used]>::len);
            self.claim(
                &format!("{work}: time"),
                name,
                ratio,
                time(name),
                figures,
                turns,
            );
            let peak: fn(&Used) -> f64 = |used| used.peak_mib;
            let figures = format!("{:.0} MiB, {:.0} MiB", p50(OURS, peak), p50(name, peak));
            let ratio = runs.ratio(name, OURS, peak);
            let work = format!("{work}: peak memory");
            self.claim(&work, name, ratio, memory(name), figures, turns);
        }
    }

    /// Writes down what is new since the last time, if that was asked for: what is broken off costs
    /// nothing of what was before it.
    pub fn save(&mut self) {
        if !self.write {
            return;
        }
        let machine = results::machine(&self.workshop.versions(), &self.skipped);
        let written = results::write(&machine, &self.claims[self.written..]);
        written.unwrap_or_else(|error| panic!("{}: {error}", results::path().display()));
        self.written = self.claims.len();
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
