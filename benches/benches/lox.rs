//! Compares Lox with and without its JIT to clox, for each program, as processes in alternation.
//!
//! `URGE_CLOX=/path/to/clox cargo bench -p benches --bench lox`. clox is the C implementation of
//! *Crafting Interpreters*, built with `-O3 -DNDEBUG`. A run is a process from its start to its
//! end, compilation included: of this binary, which does the work of `gclab run`, or of clox. The
//! output is compared with the program's `.out`.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use benches::lox::{Heavy, PROGRAMS, path_of};
use benches::paired::{Block, Paired};
use benches::{Mode, wanted};
use criterion::{Criterion, SamplingMode};
use gc_test_harness::lox::run::{RunConfig, run_file};

/// The variable that makes this binary run the Lox program of this name only.
const CHILD: &str = "URGE_BENCH_LOX";

fn main() -> ExitCode {
    if let Some(program) = std::env::var_os(CHILD) {
        let config = RunConfig {
            jit: std::env::var_os("URGE_BENCH_NO_JIT").is_none(),
            stream: true,
            ..RunConfig::default()
        };
        let outcome = run_file(Path::new(&program), &config);
        print!("{}", String::from_utf8_lossy(&outcome.stdout));
        eprint!("{}", String::from_utf8_lossy(&outcome.stderr));
        return ExitCode::from(outcome.exit_code);
    }
    let mode = Mode::from_args();
    if mode != Mode::List && wanted("lox") {
        tables(mode);
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    groups(&mut criterion, mode);
    criterion.final_summary();
    ExitCode::SUCCESS
}

/// Runs a command that must print `expected`, and returns its time.
fn run(mut command: Command, expected: &[u8]) -> Block {
    let start = Instant::now();
    let output = command.stderr(Stdio::inherit()).output();
    let time = start.elapsed();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success() && output.stdout == expected,
        "{command:?}: {}, and printed {:?} instead of {:?}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(expected)
    );
    Block::new(1, time)
}

fn ours(program: &Path, jit: bool) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
    command.env(CHILD, program);
    if !jit {
        command.env("URGE_BENCH_NO_JIT", "1");
    }
    command
}

fn peer(clox: &OsString, program: &Path) -> Command {
    let mut command = Command::new(clox);
    command.arg(program);
    command
}

fn tables(mode: Mode) {
    let clox = std::env::var_os("URGE_CLOX");
    if clox.is_none() {
        println!("clox: URGE_CLOX is not set (build craftinginterpreters' c/ with -O3), skipped");
    }
    // In the quick mode, one program that allocates and calls is enough.
    let programs = mode.pick(&PROGRAMS[..], &PROGRAMS[7..8]);
    let mut ratios: Vec<(Heavy, f64, f64)> = Vec::new();
    for &(name, heavy) in programs {
        let program = path_of(name);
        let expected = std::fs::read(program.with_extension("out")).expect("the program's .out");
        let title = format!("lox {name} ({heavy:?})");
        let mut paired = Paired::new(&title, "run")
            .contender("jit", || run(ours(&program, true), &expected))
            .contender("no jit", || run(ours(&program, false), &expected));
        if let Some(clox) = &clox {
            paired = paired.contender("clox", || run(peer(clox, &program), &expected));
        }
        let measured = paired.measure(mode.pick(9, 1));
        if let (Some(jit), Some(interpreter)) = (
            measured.ratio("clox", "jit"),
            measured.ratio("clox", "no jit"),
        ) {
            ratios.push((heavy, jit.p50, interpreter.p50));
        }
        println!(
            "{}",
            measured
                .with_ratio("clox", "jit")
                .with_ratio("clox", "no jit")
                .with_ratio("no jit", "jit")
        );
    }
    if ratios.is_empty() {
        return;
    }
    println!("geometric means of the programs' median ratios, clox / ours");
    println!("{:<34}{:>10}{:>10}", "", "jit", "no jit");
    let line = |label: &str, wanted: &dyn Fn(Heavy) -> bool| {
        let of = |pick: fn(&(Heavy, f64, f64)) -> f64| {
            let logs: Vec<f64> = ratios
                .iter()
                .filter(|ratio| wanted(ratio.0))
                .map(|ratio| pick(ratio).ln())
                .collect();
            (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp()
        };
        println!("{label:<34}{:>10.2}{:>10.2}", of(|r| r.1), of(|r| r.2));
    };
    line("allocation-heavy", &|heavy| heavy == Heavy::Allocation);
    line("call-heavy", &|heavy| heavy == Heavy::Calls);
    line("both of these", &|heavy| heavy != Heavy::Else);
    line("all programs", &|_| true);
    println!();
}

/// Runs whole programs in this process, by criterion.
fn groups(criterion: &mut Criterion, mode: Mode) {
    let mut group = criterion.benchmark_group("lox");
    group.sampling_mode(SamplingMode::Flat);
    for (name, _) in mode.pick(&PROGRAMS[..], &PROGRAMS[..0]) {
        let program = path_of(name);
        group.bench_function(*name, |b| {
            b.iter(|| {
                let outcome = run_file(&program, &RunConfig::default());
                assert_eq!(outcome.exit_code, 0);
                outcome.stdout.len()
            });
        });
    }
    group.finish();
}
