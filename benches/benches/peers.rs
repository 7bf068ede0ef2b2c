//! Urge beside bdwgc, mimalloc, Go, Java and clox, as processes in alternation; writes its section of `RESULTS.md`.
//!
//! `cargo bench -p benches --bench peers [-- ROW... --quick --turns N --no-write]`. [`benches::peers`] says what the
//! peers need and how they are found. Without rows, all of them run: some half an hour, for a quiet machine. `--quick` is
//! a trial of two minutes with smaller work, which writes nothing. Ours is this binary itself, as a child that does what
//! `gclab` does.
//!
//! | row | work | gclab |
//! |---|---|---|
//! | `trees` | binary trees, one mutator; the limit program, too | `gclab trees 20`, `gclab trees 20 --limit` |
//! | `mutators` | the same on two threads over one heap | `gclab trees 20 --mutators 2` |
//! | `mark` | full markings of a random graph by one marker | `gclab mark 64`, `256`, `1024` |
//! | `pauses` | the longest pause of a cycle while the graph is changed, and the mutator's utilisation | `gclab mark 64 --concurrent`, `1024`, `4096` |
//! | `churn` | a cache of 256 MiB with replacement | `gclab churn 256` |
//! | `fragment` | fill with one size, drop nine in ten, fill with another | `gclab fragment 256` |
//! | `lox` | Lox programs that allocate, with the JIT | `gclab run FILE.lox` |
//!
//! In `trees`, `mutators` and `churn` whole processes are timed from start to end; all must print the same. Java's start
//! of some 50 ms is in that, and so are the processors that Go's collector takes beside the program. All use their
//! collectors as they come, but that bdwgc's inside addresses count on stacks only, as Urge's.

use std::process::ExitCode;

use benches::lox::{Heavy, PROGRAMS, path_of};
use benches::paired::Spread;
use benches::peers::claims::{Alternated, Claim, Piece, Wanted, alternate};
use benches::peers::process::{Server, Used, go_cycles, run, run_for};
use benches::peers::results;
use benches::peers::workshop::{Peer, Program, Workshop, installed};
use gc_test_harness::lab::{churn, concurrent, fragment, mark, trees};
use gc_test_harness::lox::run::{RunConfig, run_file};

/// Set, this binary is one of our own contenders.
const CHILD: &str = "URGE_BENCH_PEERS";

/// Our own name in the tables.
const OURS: &str = "Urge";
const OURS_TWICE: &str = "Urge, 2 mutators";
const LIMIT: &str = "limit program";

/// A row's name, and what measures it.
type Row = (&'static str, fn(&mut Bench));

/// Every row.
const ROWS: [Row; 7] = [
    ("trees", trees_row),
    ("mutators", mutators_row),
    ("mark", mark_row),
    ("pauses", pauses_row),
    ("churn", churn_row),
    ("fragment", fragment_row),
    ("lox", lox_row),
];

fn main() -> ExitCode {
    if let Ok(work) = std::env::var(CHILD) {
        return match child(&work) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{OURS}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let options = match Options::from(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("peers: {why}");
            return ExitCode::from(64);
        }
    };
    if options.list {
        for (row, _) in ROWS {
            println!("{row}: benchmark");
        }
        return ExitCode::SUCCESS;
    }
    let mut bench = Bench {
        workshop: Workshop::new(),
        scale: options.scale,
        turns: options.turns,
        claims: Vec::new(),
        skipped: Vec::new(),
    };
    for (row, measure) in ROWS {
        if options.rows.is_empty() || options.rows.iter().any(|wanted| wanted == row) {
            println!("== {row} (load {})", results::load());
            measure(&mut bench);
            println!();
        }
    }
    bench.finish(options.write && options.scale == Scale::Full)
}

/// How large the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    /// What is claimed.
    Full,
    /// `--quick`: the same in small, which claims nothing.
    Short,
    /// `cargo test`: everything once, to see that it runs.
    Test,
}

struct Options {
    scale: Scale,
    turns: Option<usize>,
    rows: Vec<String>,
    write: bool,
    list: bool,
}

impl Options {
    fn from(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
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
                row if ROWS.iter().any(|(name, _)| *name == row) => {
                    options.rows.push(row.to_owned());
                }
                other => {
                    let rows = ROWS.map(|(name, _)| name).join(" ");
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
        Ok(options)
    }
}

/// Our own contenders.
fn child(work: &str) -> Result<(), Box<dyn std::error::Error>> {
    let argument = |at: usize| std::env::args().nth(at).unwrap_or_default();
    let number = |at: usize| argument(at).parse::<u32>();
    match work {
        "trees" | "bare trees" => {
            let depth = number(1)?;
            let outcome = if work == "trees" {
                trees::run(depth, number(2)? as usize)?
            } else {
                trees::run_bare(depth)?
            };
            for line in outcome.checks {
                println!("{line}");
            }
        }
        "mark" => {
            let graph = mark::Graph::build(number(1)?)?;
            println!("ready {}", graph.objects());
            for line in std::io::stdin().lines() {
                line?;
                println!("{}", graph.mark()?.mark.as_nanos());
            }
        }
        "limit" => {
            let options = mark::Options {
                mib: number(1)?,
                markers: 1,
            };
            for (ours, limit) in mark::measure(&options)?.rounds {
                println!("{} {}", ours.mark.as_nanos(), limit.time.as_nanos());
            }
        }
        "concurrent" => println!("{}", concurrent::measure(number(1)?, number(2)?)?.json()),
        "churn" => {
            let (mib, rounds) = (number(1)?, number(2)?);
            println!("{}", churn::run(&churn::Options { mib, rounds })?.line());
        }
        "fragment" => {
            let (mib, from, to) = (number(1)?, number(2)?, number(3)?);
            let options = fragment::Options { mib, from, to };
            println!("{}", fragment::run(&options)?.line());
        }
        "lox" => {
            let config = RunConfig {
                stream: true,
                ..RunConfig::default()
            };
            let outcome = run_file(argument(1).as_ref(), &config);
            eprint!("{}", String::from_utf8_lossy(&outcome.stderr));
            print!("{}", String::from_utf8_lossy(&outcome.stdout));
            if outcome.exit_code != 0 {
                return Err(format!("exit code {}", outcome.exit_code).into());
            }
        }
        _ => return Err(format!("no contender is called {work:?}").into()),
    }
    Ok(())
}

/// This binary, as a contender.
fn ours(work: &str) -> Program {
    let itself = std::env::current_exe().expect("this binary has a path");
    Program::new(itself).with(CHILD, work)
}

/// What has been measured so far, and with what.
struct Bench {
    workshop: Workshop,
    scale: Scale,
    turns: Option<usize>,
    claims: Vec<Claim>,
    skipped: Vec<String>,
}

impl Bench {
    fn pick<T>(&self, full: T, short: T, test: T) -> T {
        match self.scale {
            Scale::Full => full,
            Scale::Short => short,
            Scale::Test => test,
        }
    }

    /// Turns to measure: what was asked for, or so many.
    fn turns(&self, full: usize) -> usize {
        self.turns.unwrap_or(self.pick(full, 3, 1))
    }

    /// Leaves out what is not there, and remembers its name.
    fn installed(&mut self, peers: Vec<Peer>) -> Vec<(String, Program)> {
        let (there, skipped) = installed(peers);
        for name in skipped {
            if !self.skipped.contains(&name) {
                self.skipped.push(name);
            }
        }
        there
    }

    fn claim(
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

    /// Whole processes in alternation, which all must print the same; ours first.
    fn processes(
        &mut self,
        contenders: Vec<(String, Program)>,
        sizes: &[u32],
        expected: &str,
    ) -> Alternated<Used> {
        let turns = self.turns(9);
        let pieces = contenders.into_iter().map(|(name, program)| {
            let piece = move || run_for(program.command(sizes), expected);
            (name, Box::new(piece) as Piece<'_, Used>)
        });
        let runs = alternate(turns, self.scale != Scale::Test, pieces.collect());
        let runs = runs.unwrap_or_else(|why| panic!("{why}"));
        print_used(&runs);
        runs
    }

    /// How many times as long as ours did the others take, and how much memory; what is wanted of whom.
    fn time_and_memory(
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

    /// Prints the table, and writes it down.
    fn finish(self, write: bool) -> ExitCode {
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
        if !write {
            return ExitCode::SUCCESS;
        }
        let machine = results::machine(&self.workshop.versions(), &self.skipped);
        match results::write(&machine, &self.claims) {
            Ok(()) => {
                println!("written to {}", results::path().display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{}: {error}", results::path().display());
                ExitCode::FAILURE
            }
        }
    }
}

fn print_used(runs: &Alternated<Used>) {
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

fn game(depth: u32) -> String {
    let lines = trees::answers(depth);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn trees_row(bench: &mut Bench) {
    let depth = bench.pick(20, 16, 8);
    let mut contenders = vec![
        (OURS.to_owned(), ours("trees")),
        (LIMIT.to_owned(), ours("bare trees")),
    ];
    let peers = vec![
        bench.workshop.bdwgc("trees"),
        bench.workshop.mimalloc("trees"),
        bench.workshop.go("trees"),
        bench.workshop.java("Trees"),
    ];
    contenders.extend(bench.installed(peers));
    let runs = bench.processes(contenders, &[depth, 1], &game(depth));
    let work = format!("binary trees {depth}");
    let time = |name: &str| match name {
        "bdwgc" | "Go" => Wanted::AtLeast(4.0),
        _ => Wanted::MoreThan(1.0),
    };
    let memory = |name: &str| match name {
        "bdwgc" => Wanted::AtLeast(1.0),
        _ => Wanted::Nothing,
    };
    bench.time_and_memory(&work, &runs, &time, &memory);
}

fn mutators_row(bench: &mut Bench) {
    let depth = bench.pick(20, 16, 8);
    let work = format!("binary trees {depth}, 2 mutators");
    let (one, two) = (ours("trees"), ours("trees"));
    let expected = game(depth);
    let peers = vec![
        bench.workshop.bdwgc("trees"),
        bench.workshop.mimalloc("trees"),
        bench.workshop.go("trees"),
        bench.workshop.java("Trees"),
    ];
    let peers = bench.installed(peers);
    let expected = &expected;
    let piece = |program: Program, threads: u32| {
        Box::new(move || run_for(program.command(&[depth, threads]), expected)) as Piece<'_, Used>
    };
    let mut pieces = vec![
        (OURS.to_owned(), piece(one, 1)),
        (OURS_TWICE.to_owned(), piece(two, 2)),
    ];
    pieces.extend(
        peers
            .into_iter()
            .map(|(name, program)| (format!("{name}, 2 threads"), piece(program, 2))),
    );
    let turns = bench.turns(5);
    let runs = alternate(turns, bench.scale != Scale::Test, pieces);
    let runs = runs.unwrap_or_else(|why| panic!("{why}"));
    print_used(&runs);
    let p50 = |name: &str, of: fn(&Used) -> f64| runs.spread(name, of).map_or(0.0, |s| s.p50);
    let processor: fn(&Used) -> f64 = |used| used.processor_seconds;
    let seconds: fn(&Used) -> f64 = |used| used.seconds;
    bench.claim(
        &format!("{work}: processor time over twice one mutator's"),
        "itself",
        runs.compare(OURS_TWICE, OURS, |two, one| {
            two.processor_seconds / (2.0 * one.processor_seconds)
        }),
        Wanted::AtMost(1.2),
        format!(
            "{:.2} s, {:.2} s",
            p50(OURS_TWICE, processor),
            p50(OURS, processor)
        ),
        turns,
    );
    bench.claim(
        &format!("{work}: two runs in a row over both at once"),
        "itself",
        runs.compare(OURS_TWICE, OURS, |two, one| 2.0 * one.seconds / two.seconds),
        Wanted::AtLeast(1.4),
        format!(
            "{:.2} s, {:.2} s",
            p50(OURS, seconds),
            p50(OURS_TWICE, seconds)
        ),
        turns,
    );
    for name in runs
        .names()
        .iter()
        .filter(|name| name.ends_with("2 threads"))
    {
        let figures = format!(
            "{:.2} s, {:.2} s",
            p50(OURS_TWICE, seconds),
            p50(name, seconds)
        );
        let ratio = runs.ratio(name, OURS_TWICE, seconds);
        let work = format!("{work}: time");
        bench.claim(&work, name, ratio, Wanted::Nothing, figures, turns);
    }
}

fn mark_row(bench: &mut Bench) {
    for &mib in bench.pick(&[64, 256, 1024][..], &[64][..], &[1][..]) {
        let work = format!("full mark {mib} MiB, one marker");
        let objects = (u64::from(mib) << 20) / mark::CELL as u64;
        let peers = vec![
            bench.workshop.bdwgc("mark"),
            bench.workshop.go("mark").with("GOMAXPROCS", "1"),
            bench
                .workshop
                .java("Mark")
                .named("Java, SerialGC's System.gc()"),
        ];
        let mut contenders = vec![(OURS.to_owned(), ours("mark"))];
        contenders.extend(bench.installed(peers));
        let mut pieces = Vec::new();
        for (name, program) in contenders {
            match Server::start(&program, mib, objects) {
                Ok(mut server) => {
                    let piece = move || Ok(objects as f64 / server.mark()?.as_secs_f64());
                    pieces.push((name, Box::new(piece) as Piece<'_, f64>));
                }
                Err(why) if name == OURS => panic!("{OURS}: {why}"),
                Err(why) => println!("{name}: {why}, skipped"),
            }
        }
        let turns = bench.turns(9);
        let rates = alternate(turns, true, pieces).unwrap_or_else(|why| panic!("{why}"));
        println!("{work}: million objects a second");
        let p50 = |name: &str| rates.spread(name, |rate| rate / 1e6).map_or(0.0, |s| s.p50);
        for name in rates.names() {
            println!("  {name:<40}{:>8.2}", p50(name));
        }
        for name in rates.names().iter().skip(1) {
            let wanted = match name.as_str() {
                "bdwgc" if mib == 1024 => Wanted::AtLeast(4.0),
                "Go" if mib == 1024 => Wanted::AtLeast(3.0),
                _ => Wanted::Nothing,
            };
            let figures = format!("{:.1} M/s, {:.1} M/s", p50(OURS), p50(name));
            let ratio = rates.ratio(OURS, name, |rate| *rate);
            bench.claim(&work, name, ratio, wanted, figures, turns);
        }
        drop(rates);
        limit_of_marking(bench, &work, mib, objects);
    }
}

/// The limit program over the same graph; its pairs are alternated in one process.
fn limit_of_marking(bench: &mut Bench, work: &str, mib: u32, objects: u64) {
    let ran =
        run(ours("limit").command(&[mib]), false).unwrap_or_else(|why| panic!("{OURS}: {why}"));
    let pairs: Vec<(f64, f64)> = ran
        .stdout
        .lines()
        .filter_map(|line| {
            let (ours, limit) = line.split_once(' ')?;
            Some((ours.parse().ok()?, limit.parse().ok()?))
        })
        .collect();
    let rate = |nanos: fn(&(f64, f64)) -> f64| {
        let rates: Vec<f64> = pairs
            .iter()
            .map(|pair| objects as f64 * 1e3 / nanos(pair))
            .collect();
        Spread::of(&rates).p50
    };
    let figures = format!(
        "{:.1} M/s, {:.1} M/s",
        rate(|pair| pair.0),
        rate(|pair| pair.1)
    );
    let ratios: Vec<f64> = pairs.iter().map(|(ours, limit)| limit / ours).collect();
    let ratio = Some(Spread::of(&ratios));
    let wanted = Wanted::AtLeast(0.6);
    bench.claim(work, LIMIT, ratio, wanted, figures, ratios.len());
}

/// What a run beside a changing graph tells.
#[derive(Clone, Copy, Debug, Default)]
struct Pauses {
    /// A cycle's longest pause.
    p50_us: f64,
    p99_us: f64,
    floor_p99_us: f64,
    /// The worst window, the worst in a hundred, the median.
    utilisation: [f64; 3],
    turns_per_s: f64,
}

fn our_pauses(mib: u32, cycles: u32) -> Result<Pauses, String> {
    let ran = run(ours("concurrent").command(&[mib, cycles]), false)?;
    let json: serde_json::Value =
        serde_json::from_str(&ran.stdout).map_err(|e| format!("{e}: {:?}", ran.stdout))?;
    let of = |outer: &str, inner: &str| {
        let number = json[outer][inner].as_f64();
        number.ok_or_else(|| format!("{outer}.{inner} is missing in {json}"))
    };
    let share = |inner: &str| of("utilisation", inner);
    Ok(Pauses {
        p50_us: of("pause_us", "p50")?,
        p99_us: of("pause_us", "p99")?,
        floor_p99_us: of("floor_pause_us", "p99")?,
        utilisation: [share("min")?, share("p01")?, share("p50")?],
        turns_per_s: json["turns_per_s"].as_f64().unwrap_or_default(),
    })
}

fn go_pauses(program: &Program, mib: u32, cycles: u32) -> Result<Pauses, String> {
    let command = program.clone().with("GODEBUG", "gctrace=1");
    let ran = run(command.command(&[mib, cycles]), true)?;
    let longest: Vec<f64> = go_cycles(&ran.stderr)
        .iter()
        .map(|cycle| cycle.longest_us())
        .collect();
    if longest.len() < cycles as usize {
        return Err(format!("its trace tells of {} cycles", longest.len()));
    }
    let json: serde_json::Value =
        serde_json::from_str(&ran.stdout).map_err(|e| format!("{e}: {:?}", ran.stdout))?;
    let spread = Spread::of(&longest);
    Ok(Pauses {
        p50_us: spread.p50,
        p99_us: spread.p99,
        turns_per_s: json["turns_per_s"].as_f64().unwrap_or_default(),
        ..Pauses::default()
    })
}

fn pauses_row(bench: &mut Bench) {
    let peers = vec![bench.workshop.go("concurrent")];
    let peers = bench.installed(peers);
    let sizes = bench.pick(&[64, 1024, 4096][..], &[16, 64][..], &[1][..]);
    let mut first: Option<Alternated<Pauses>> = None;
    for &mib in sizes {
        let cycles = bench.pick(concurrent::CYCLES, concurrent::CYCLES, 5);
        // Go needs half a minute for a cycle of the largest.
        let go_cycles = if mib > 1024 { 8 } else { cycles };
        let work = format!("graph of {mib} MiB, changed while marked");
        let turns = bench.turns(if mib > 1024 { 1 } else { 5 });
        let mut pieces = vec![(
            OURS.to_owned(),
            Box::new(move || our_pauses(mib, cycles)) as Piece<'_, Pauses>,
        )];
        for (name, program) in &peers {
            let piece = move || go_pauses(program, mib, go_cycles);
            pieces.push((name.clone(), Box::new(piece)));
        }
        let runs = alternate(turns, false, pieces).unwrap_or_else(|why| panic!("{why}"));
        println!("{work}: a cycle's longest pause in us (medians of {turns} runs)");
        println!(
            "  {:<20}{:>9}{:>9}{:>16}",
            "", "p50", "p99", "M turns a second"
        );
        for name in runs.names() {
            let of = |of: fn(&Pauses) -> f64| runs.spread(name, of).map_or(0.0, |s| s.p50);
            println!(
                "  {name:<20}{:>9.1}{:>9.1}{:>16.2}",
                of(|p| p.p50_us),
                of(|p| p.p99_us),
                of(|p| p.turns_per_s) / 1e6
            );
        }
        let ours_of = |of: fn(&Pauses) -> f64| runs.spread(OURS, of).map_or(0.0, |s| s.p50);
        let p99 = ours_of(|pauses| pauses.p99_us);
        bench.claim(
            &format!("{work}: pauses' p99 over the floor's"),
            "signal floor",
            runs.spread(OURS, |pauses| pauses.p99_us / pauses.floor_p99_us),
            Wanted::AtMost(3.0),
            format!("{p99:.0} us, {:.0} us", ours_of(|p| p.floor_p99_us)),
            turns,
        );
        if let Some(go) = runs.spread("Go", |pauses| pauses.p99_us) {
            bench.claim(
                &format!("{work}: pauses' p99"),
                "Go",
                runs.ratio("Go", OURS, |pauses| pauses.p99_us),
                Wanted::MoreThan(1.0),
                format!("{p99:.0} us, {:.0} us", go.p50),
                turns,
            );
        }
        let parts = ["worst", "worst of a hundred", "median"];
        for (at, (part, wanted)) in parts
            .iter()
            .zip([Wanted::AtLeast(0.6), Wanted::Nothing, Wanted::Nothing])
            .enumerate()
        {
            bench.claim(
                &format!("{work}: {part} 10 ms window in a cycle"),
                "itself between cycles",
                runs.spread(OURS, |pauses| pauses.utilisation[at]),
                wanted,
                String::new(),
                turns,
            );
        }
        match &first {
            None => first = Some(runs),
            Some(small) => {
                let at = |runs: &Alternated<Pauses>| runs.spread(OURS, |p| p.p50_us);
                let small = at(small).map_or(1.0, |spread| spread.p50);
                bench.claim(
                    &format!("{work}: longest pause of a cycle"),
                    &format!("itself at {} MiB", sizes[0]),
                    runs.spread(OURS, |pauses| pauses.p50_us / small),
                    Wanted::AtMost(1.5),
                    format!("{:.0} us, {small:.0} us", ours_of(|p| p.p50_us)),
                    turns,
                );
            }
        }
    }
}

/// What ours prints, and all others must. By a process of its own, as all work is: what this one has resident counts as
/// the peak of each of its children.
fn answer(ours: &Program, sizes: &[u32]) -> String {
    let ran = run(ours.command(sizes), false);
    ran.unwrap_or_else(|why| panic!("{OURS}: {why}")).stdout
}

fn churn_row(bench: &mut Bench) {
    let (mib, rounds) = bench.pick((256, 20), (64, 10), (1, 3));
    let expected = answer(&ours("churn"), &[mib, rounds]);
    let mut contenders = vec![(OURS.to_owned(), ours("churn"))];
    let peers = vec![
        bench.workshop.bdwgc("churn"),
        bench.workshop.mimalloc("churn"),
        bench.workshop.go("churn"),
        bench.workshop.java("Churn"),
    ];
    contenders.extend(bench.installed(peers));
    let runs = bench.processes(contenders, &[mib, rounds], &expected);
    let time = |name: &str| match name {
        "bdwgc" => Wanted::AtLeast(2.0),
        "Go" => Wanted::AtLeast(1.5),
        _ => Wanted::Nothing,
    };
    let work = format!("churn {mib} MiB");
    bench.time_and_memory(&work, &runs, &time, &|_| Wanted::Nothing);
}

fn fragment_row(bench: &mut Bench) {
    let mib = bench.pick(256, 64, 1);
    for (from, to) in [(64, 96), (96, 64)] {
        let expected = answer(&ours("fragment"), &[mib, from, to]);
        let mut contenders = vec![(OURS.to_owned(), ours("fragment"))];
        let peers = vec![bench.workshop.mimalloc("fragment")];
        contenders.extend(bench.installed(peers));
        let runs = bench.processes(contenders, &[mib, from, to], &expected);
        let p50 = |name: &str| {
            runs.spread(name, |used| used.peak_mib)
                .map_or(0.0, |s| s.p50)
        };
        bench.claim(
            &format!(
                "{mib} MiB of {from} bytes, nine in ten dropped, then {to} bytes: peak memory over"
            ),
            "mimalloc",
            runs.ratio(OURS, "mimalloc", |used| used.peak_mib),
            Wanted::AtMost(1.3),
            format!("{:.0} MiB, {:.0} MiB", p50(OURS), p50("mimalloc")),
            runs.of(OURS).map_or(0, <[Used]>::len),
        );
    }
}

fn lox_row(bench: &mut Bench) {
    let clox = bench.installed(vec![Workshop::clox()]);
    let Some((clox_name, clox)) = clox.into_iter().next() else {
        return;
    };
    let programs = PROGRAMS
        .iter()
        .filter(|(_, heavy)| *heavy == Heavy::Allocation);
    let turns = bench.turns(9);
    // By turn: the sum of logarithms, and how many.
    let mut logs = vec![(0.0, 0); turns];
    for (name, _) in programs.take(bench.pick(usize::MAX, usize::MAX, 0)) {
        let path = path_of(name);
        let expected = std::fs::read_to_string(path.with_extension("out"));
        let expected = expected.expect("the program's .out");
        let expected = &expected;
        let piece = |program: Program| {
            let program = program.argument(&path);
            Box::new(move || run_for(program.command(&[]), expected)) as Piece<'_, Used>
        };
        let pieces = vec![
            (OURS.to_owned(), piece(ours("lox"))),
            (clox_name.clone(), piece(clox.clone())),
        ];
        let runs = alternate(turns, true, pieces).unwrap_or_else(|why| panic!("{why}"));
        let ratio = runs.ratio(&clox_name, OURS, |used| used.seconds);
        let p50 = |who: &str| runs.spread(who, |used| used.seconds).map_or(0.0, |s| s.p50);
        let figures = format!("{:.3} s, {:.3} s", p50(OURS), p50(&clox_name));
        if let (Some(ours), Some(theirs)) = (runs.of(OURS), runs.of(&clox_name)) {
            for ((log, count), (ours, theirs)) in logs.iter_mut().zip(ours.iter().zip(theirs)) {
                *log += (theirs.seconds / ours.seconds).ln();
                *count += 1;
            }
        }
        let work = format!("lox {name}, JIT: time");
        bench.claim(&work, &clox_name, ratio, Wanted::Nothing, figures, turns);
    }
    let means: Vec<f64> = logs
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(log, count)| f64::exp(log / f64::from(*count)))
        .collect();
    let ratio = (!means.is_empty()).then(|| Spread::of(&means));
    let work = "lox programs that allocate, JIT, geometric mean: time";
    bench.claim(
        work,
        &clox_name,
        ratio,
        Wanted::AtLeast(4.0),
        String::new(),
        turns,
    );
}
