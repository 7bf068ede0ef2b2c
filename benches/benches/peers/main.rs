//! Compares Urge with bdwgc, mimalloc, Go, Java and clox, as processes in alternation, and writes
//! the machine's data file, `RESULTS.md` and its plots.
//!
//! `cargo bench -p benches --bench peers [-- ROW... --quick --turns N --no-write]`.
//! [`benches::contenders`] says what the peers need and how they are found. Without names of rows,
//! all rows run, for about half an hour; the machine must be quiet. `--quick` is a trial of about
//! two minutes with smaller work, which writes nothing. Urge's contender is this binary, as a child
//! that does the work of `gclab`.
//!
//! | row | work | gclab |
//! |---|---|---|
//! | `trees` | binary trees, one mutator | `gclab trees 20`, and with `--limit` |
//! | `mutators` | the same on two threads over one heap | `gclab trees 20 --mutators 2` |
//! | `mark` | full markings of a random graph by one marker | `gclab mark 64`, `256`, `1024` |
//! | `markers` | the same by two markers | `gclab mark 64 --markers 2`, `1024` |
//! | `memory` | metadata bytes over the heap's | `gclab mark 256 --json`, `gclab churn 64 --json` |
//! | `pauses` | the longest pause beside changes | `gclab mark 64 --concurrent`, `1024`, `4096` |
//! | `churn` | a cache of 256 MiB with replacement | `gclab churn 256` |
//! | `fragment` | fill with one size, drop nine in ten, fill with another | `gclab fragment 256` |
//! | `lox` | Lox programs that allocate, with the JIT | `gclab run FILE.lox` |
//!
//! `trees`, `mutators` and `churn` time whole processes from start to end, which must all print the
//! same. The time includes Java's start. Go's collector may use more processors than the program.
//! Each peer runs as it is installed. bdwgc runs a second time with the settings that are nearest
//! to Urge's (`bdwgc, exact sizes`).
//!
//! Before each process the bench touches and frees as much memory as the process will need, so that
//! no contender waits for the memory of a virtual machine's host (`gclab warm`). Before a run whose
//! stops are measured, the bench waits instead ([`bench::settle`]). The bench writes the results of
//! each row when the row has ended.

mod bench;
mod graphs;
mod programs;

use std::process::ExitCode;

use benches::results::{data, machine};
use gc_test_harness::lab::{churn, concurrent, fragment, mark, trees, warm};
use gc_test_harness::lox::run::{RunConfig, run_file};

use crate::bench::{Bench, CHILD, OURS, Options};

/// A row's name, and the function that measures it.
type Row = (&'static str, fn(&mut Bench));

/// Every row.
const ROWS: [Row; 9] = [
    ("trees", programs::trees_row),
    ("mutators", programs::mutators_row),
    ("mark", graphs::mark_row),
    ("markers", graphs::markers_row),
    ("memory", graphs::memory_row),
    ("pauses", graphs::pauses_row),
    ("churn", programs::churn_row),
    ("fragment", programs::fragment_row),
    ("lox", programs::lox_row),
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
    let options = match Options::from(std::env::args().skip(1), &ROWS.map(|(row, _)| row)) {
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
    let mut bench = Bench::new(&options);
    for (row, measure) in ROWS {
        if options.rows.is_empty() || options.rows.iter().any(|wanted| wanted == row) {
            println!("== {row} (load {})", machine::load());
            measure(&mut bench);
            println!();
            bench.save();
        }
    }
    bench.print();
    if options.write {
        println!("written to {}", data::folder().display());
    }
    ExitCode::SUCCESS
}

/// Runs as Urge's contender `work`, or as the limit program.
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
            let graph = mark::Graph::build(number(1)?, 1)?;
            println!("ready {}", graph.objects());
            for line in std::io::stdin().lines() {
                line?;
                println!("{}", graph.mark()?.mark.as_nanos());
            }
        }
        "limit" => {
            let options = mark::Options {
                mib: number(1)?,
                markers: number(2)?,
            };
            let outcome = mark::measure(&options)?;
            for (at, (ours, limit)) in outcome.rounds.iter().enumerate() {
                print!("{} {}", ours.mark.as_nanos(), limit.time.as_nanos());
                if let Some((ours, limit)) = outcome.single.get(at) {
                    print!(" {} {}", ours.mark.as_nanos(), limit.time.as_nanos());
                }
                println!();
            }
        }
        "concurrent" => println!("{}", concurrent::measure(number(1)?, number(2)?)?.json()),
        "churn" | "churn json" => {
            let (mib, rounds) = (number(1)?, number(2)?);
            let outcome = churn::run(&churn::Options { mib, rounds })?;
            if work == "churn" {
                println!("{}", outcome.line());
            } else {
                println!("{}", outcome.json());
            }
        }
        "mark json" => {
            let options = mark::Options {
                mib: number(1)?,
                markers: number(2)?,
            };
            println!("{}", mark::measure(&options)?.json());
        }
        "warm" => drop(warm::warm(number(1)?)?),
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
