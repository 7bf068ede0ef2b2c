//! `gclab`: the command line of the laboratory. Without a command it runs the demo.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use gc_test_harness::kernels::talk::{Kernel, Strategy};
use gc_test_harness::lab::explain::ExplainArgs;
use gc_test_harness::lab::green::{self, GreenArgs};
use gc_test_harness::lab::{
    churn, concurrent, demo, explain, fragment, fuzz, mark, pause, soak, talk, trees, warm, whole,
};
use gc_test_harness::lox::{self, run::RunArgs};
use gc_test_harness::search::{Count, Options};

/// In tests, malloc aborts where it could wait for a stopped thread.
#[cfg(feature = "faults")]
#[global_allocator]
static STRICT: gc_preempt::StrictAllocator = gc_preempt::StrictAllocator;

/// The exit code for wrong usage (EX_USAGE of sysexits.h), as in clox.
const USAGE: u8 = 64;

/// Stops threads at any instruction, scans their stacks, collects, and measures how long that
/// takes.
///
/// Without a command, gclab runs the demo: managed threads in loops without polls beside threads
/// that allocate. A signal stops all of them, the collector scans their stacks and collects the
/// heap, and the threads resume. Each thread checks its own answers.
#[derive(Debug, Parser)]
#[command(name = "gclab", version, max_term_width = 100)]
struct Cli {
    /// Print one JSON object on stdout instead of a table (`run`: on stderr, because stdout belongs
    /// to the program)
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a Lox program with the output, messages and exit codes of the book's clox
    Run(RunArgs),
    /// Measure time to stop, pause and stall of threads in loops without polls, beside the signal
    /// floor
    Pause(Pause),
    /// Run the benchmarks game's binary trees on one or more mutators of one heap
    Trees(Trees),
    /// Measure full markings of a random graph beside the limit program, or the pauses while a
    /// mutator changes the graph
    Mark(Mark),
    /// Replace values of 16 bytes to 4 KiB in a cache
    Churn(Churn),
    /// Measure peak memory: allocate cells of one size, drop nine in ten at random, allocate cells
    /// of another size
    Fragment(Fragment),
    /// Compare the cells that arbitrary words keep with an exact model, or the output of random Lox
    /// programs in all tiers
    Fuzz(Fuzz),
    /// Run all workloads together until the time is over or an answer is wrong
    Soak(Soak),
    /// List a function's machine code, and say for each instruction what a stop there scans
    Explain(ExplainArgs),
    /// Measure the ways to interrupt a loop that "Pardon the Interruption" names, on the same
    /// kernels
    Talk(Talk),
    /// Play scenes with green threads, which yield at calls only or are preempted in their loops
    Green(GreenArgs),
    /// Touch memory and free it, so that the next program does not wait for memory of the virtual
    /// machine's host
    Warm(Warm),
}

#[derive(Args, Debug)]
struct Talk {
    /// Measure little: some seconds instead of some minutes, for a look and not for figures
    #[arg(long)]
    quick: bool,
    /// Only this strategy; repeat for more [default: all]
    #[arg(long, value_enum)]
    strategy: Vec<Strategy>,
    /// Only this kernel; repeat for more [default: all]
    #[arg(long, value_enum)]
    kernel: Vec<Kernel>,
    /// Run each kernel under so many stops and collections instead, and check its answers
    #[arg(long, value_name = "STOPS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    storm: Option<u32>,
    /// Write the figures to FILE as one HTML page; with all strategies and kernels it has the
    /// scheduler's scenes, too
    #[arg(long, value_name = "FILE", conflicts_with = "storm")]
    html: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Warm {
    /// MiB to touch, more than the next program needs; the host takes them back some seconds later
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(warm::LARGEST)))]
    mib: u32,
}

#[derive(Args, Debug)]
struct Fuzz {
    /// Seconds to run; at least one case runs
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seed of the first case; each further case takes the next number [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Compare the output of random Lox programs in the interpreter, in compiled code and under
    /// collections
    #[arg(long)]
    lox: bool,
    /// Compare with the output of the book's clox at PATH, too
    #[arg(long, requires = "lox", value_name = "PATH")]
    clox: Option<PathBuf>,
    /// Run each program in separate processes, so that a program that crashes or hangs is
    /// shortened, too
    #[arg(long, requires = "lox")]
    apart: bool,
}

#[derive(Args, Debug)]
struct Soak {
    /// Seconds to run, in rounds of a few seconds; at least one round runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the first round; each further round takes the next number [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Run the seed's round in this process
    #[arg(long, hide = true, requires = "seed")]
    round: bool,
}

#[derive(Args, Debug)]
struct Pause {
    /// Threads in loops [default: one for each processor]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
    /// Blocks of stops, in alternation with blocks of the signal floor; with a thousand threads a
    /// block takes minutes
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    blocks: u32,
    /// Rounds in a block [default: 500; fewer with more than 16 threads]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rounds: Option<u32>,
    /// Microseconds to sleep after each resume
    #[arg(long, default_value_t = 100)]
    gap: u64,
}

#[derive(Args, Debug)]
struct Trees {
    /// Depth of the long-lived tree; values below 6 count as 6
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(trees::DEEPEST)))]
    depth: u32,
    /// Threads; each runs the whole program
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    mutators: u32,
    /// Run the limit program instead: a bare heap of bump allocation and a bitmap, for one thread
    #[arg(long, conflicts_with = "mutators")]
    limit: bool,
}

#[derive(Args, Debug)]
struct Mark {
    /// MiB of 32-byte objects
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(mark::LARGEST)))]
    mib: u32,
    /// Threads that mark; with more than one, the same run measures one thread, too
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    markers: u32,
    /// Collect while a mutator replaces edges and allocates, beside the signal floor
    #[arg(long, conflicts_with = "markers")]
    concurrent: bool,
    /// Least number of collections, with --concurrent
    #[arg(long, requires = "concurrent", default_value_t = concurrent::CYCLES, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    cycles: u32,
}

#[derive(Args, Debug)]
struct Churn {
    /// MiB of live values
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(churn::LARGEST)))]
    mib: u32,
    /// Times that each value is replaced, on average
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
}

#[derive(Args, Debug)]
struct Fragment {
    /// MiB of cells of the first size
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(fragment::LARGEST)))]
    mib: u32,
    /// Bytes of each cell of the first size
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=32768))]
    from: u32,
    /// Bytes of each cell of the second size
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(16..=32768))]
    to: u32,
}

fn main() -> ExitCode {
    // A reader that closes the pipe early (`| head`) must not cause a panic.
    // SAFETY: SIGPIPE has no handler yet, and there is no other thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors and go to stdout, which may be closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match cli.command {
        None => run_demo(cli.json),
        Some(Command::Run(options)) => ExitCode::from(options.execute(cli.json)),
        Some(Command::Pause(options)) => run_pause(&options, cli.json),
        Some(Command::Trees(options)) => run_trees(&options, cli.json),
        Some(Command::Mark(options)) => run_mark(&options, cli.json),
        Some(Command::Churn(options)) => run_churn(&options, cli.json),
        Some(Command::Fragment(options)) => run_fragment(&options, cli.json),
        Some(Command::Fuzz(options)) => run_fuzz(&options, cli.json),
        Some(Command::Soak(options)) => run_soak(&options, cli.json),
        Some(Command::Explain(options)) => run_explain(&options, cli.json),
        Some(Command::Talk(options)) => run_talk(&options, cli.json),
        Some(Command::Green(options)) => show(cli.json, green::run(&options), green::Outcome::json),
        Some(Command::Warm(options)) => run_warm(&options, cli.json),
    }
}

fn run_demo(json: bool) -> ExitCode {
    show(json, demo::run(), demo::Outcome::json)
}

fn run_pause(options: &Pause, json: bool) -> ExitCode {
    let threads = options.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |threads| threads as usize,
    );
    let outcome = pause::measure(&pause::Options {
        threads,
        rounds: options.rounds.unwrap_or_else(|| pause::rounds_for(threads)),
        blocks: options.blocks as usize,
        gap: Duration::from_micros(options.gap),
    });
    show(json, outcome, pause::Outcome::json)
}

fn run_trees(options: &Trees, json: bool) -> ExitCode {
    let outcome = if options.limit {
        trees::run_bare(options.depth)
    } else {
        trees::run(options.depth, options.mutators as usize)
    };
    show(json, outcome, trees::Outcome::json)
}

fn run_mark(options: &Mark, json: bool) -> ExitCode {
    if options.concurrent {
        let outcome = concurrent::measure(options.mib, options.cycles);
        return show(json, outcome, concurrent::Outcome::json);
    }
    let outcome = mark::measure(&mark::Options {
        mib: options.mib,
        markers: options.markers,
    });
    show(json, outcome, mark::Outcome::json)
}

fn run_churn(options: &Churn, json: bool) -> ExitCode {
    let outcome = churn::run(&churn::Options {
        mib: options.mib,
        rounds: options.rounds,
    });
    show(json, outcome, churn::Outcome::json)
}

fn run_fragment(options: &Fragment, json: bool) -> ExitCode {
    let outcome = fragment::run(&fragment::Options {
        mib: options.mib,
        // The sizes are whole words.
        from: options.from.next_multiple_of(8),
        to: options.to.next_multiple_of(8),
    });
    show(json, outcome, fragment::Outcome::json)
}

fn run_fuzz(options: &Fuzz, json: bool) -> ExitCode {
    if options.lox {
        return run_lox_fuzz(options, json);
    }
    let outcome = fuzz::run(&Options {
        time: Duration::from_secs(options.seconds),
        seed: options.seed,
    });
    show(json, outcome, fuzz::Report::json)
}

fn run_soak(options: &Soak, json: bool) -> ExitCode {
    if let (true, Some(seed)) = (options.round, options.seed) {
        return match soak::run_round(seed) {
            Ok(counts) => {
                println!("{}", counts.json());
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let outcome = soak::run(&Options {
        time: Duration::from_secs(options.seconds),
        seed: options.seed,
    });
    show(json, outcome, soak::Report::json)
}

fn run_lox_fuzz(options: &Fuzz, json: bool) -> ExitCode {
    let outcome = lox::fuzz::run(&lox::fuzz::Options {
        time: Duration::from_secs(options.seconds),
        seed: options.seed,
        clox: options.clox.clone(),
        apart: options.apart,
    });
    show(json, outcome, lox::fuzz::Report::json)
}

fn run_explain(options: &ExplainArgs, json: bool) -> ExitCode {
    match explain::run(options) {
        Err(error) => {
            eprintln!("gclab: {error}");
            ExitCode::from(error.code)
        }
        outcome => show(json, outcome, explain::Outcome::json),
    }
}

fn run_talk(options: &Talk, json: bool) -> ExitCode {
    let or_all = |some: &[Strategy]| match some {
        [] => Strategy::ALL.to_vec(),
        some => some.to_vec(),
    };
    let chosen = talk::Options {
        strategies: or_all(&options.strategy),
        kernels: match &options.kernel[..] {
            [] => Kernel::ALL.to_vec(),
            some => some.to_vec(),
        },
        quick: options.quick,
    };
    if let Some(stops) = options.storm {
        return show(json, talk::storms(&chosen, stops), talk::Storms::json);
    }
    // Before the measurement, which takes minutes.
    let page = options.html.as_ref().map(std::fs::File::create).transpose();
    let mut page = match page {
        Ok(page) => page,
        Err(error) => {
            eprintln!("gclab: cannot write the page: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Who asks for one strategy or one kernel asks for no scenes.
    let is_all = options.strategy.is_empty() && options.kernel.is_empty();
    let mut line = Line::new();
    let outcome = whole::run(&chosen, is_all, |part| line.show(part));
    drop(line);
    if let (Some(page), Ok(whole)) = (&mut page, &outcome)
        && let Err(error) = page.write_all(whole.page().as_bytes())
    {
        eprintln!("gclab: cannot write the page: {error}");
        return ExitCode::FAILURE;
    }
    show(json, outcome, whole::Whole::json)
}

/// A line on standard error that says which part of a measurement is under way, if that is a
/// terminal. Its drop clears it.
struct Line(bool);

impl Line {
    fn new() -> Line {
        Line(std::io::stderr().is_terminal())
    }

    fn show(&mut self, part: &str) {
        if self.0 {
            // A closed standard error does not end the measurement.
            let _ = write!(std::io::stderr(), "\r{part}\x1b[K");
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.show("");
    }
}

fn run_warm(options: &Warm, json: bool) -> ExitCode {
    show(json, warm::warm(options.mib), warm::Outcome::json)
}

/// Prints the outcome of a command as text or as one JSON object, and an error on standard error.
fn show<T, E, J>(json: bool, outcome: Result<T, E>, as_json: impl Fn(&T) -> J) -> ExitCode
where
    T: Display,
    E: Display,
    J: Display,
{
    match outcome {
        Ok(outcome) if json => println!("{}", as_json(&outcome)),
        Ok(outcome) => print!("{outcome}"),
        Err(error) => {
            eprintln!("gclab: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
