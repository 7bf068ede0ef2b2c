//! `gclab run`: runs a Lox program in isolates on one heap, each on a thread of its own.

use super::cells::{BOXED, LoxHeap};
use super::compiler::compile;
use super::green::GREEN_NATIVES;
use super::isolate::{NATIVES, Output, Vm};
use super::jit::{self, JitConfig};
use super::vm::StartError;
use crate::report::{Quantiles, peak_rss_bytes};
use gc_core::raw::Encoding;
use gc_core::{Heap, HeapStats};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The exit code for a file that cannot be read.
pub const EXIT_UNREADABLE: u8 = 74;
/// The exit code for a source with errors.
pub const EXIT_COMPILE_ERROR: u8 = 65;
/// The exit code for a program that ended by a runtime error.
pub const EXIT_RUNTIME_ERROR: u8 = 70;
/// The exit code for invalid options.
pub const EXIT_USAGE: u8 = 64;

/// The slice of a green thread, as Go's.
pub const SLICE: Duration = Duration::from_millis(10);

/// Bytes of native stack of an isolate's thread. The compiler's recursion is bounded by
/// [`NESTING_MAX`](super::compiler) levels, the interpreter's by 64 activations.
const THREAD_STACK: usize = 64 << 20;

/// The options of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// Number of isolates, each of which runs the whole program.
    pub threads: usize,
    /// Whether hot functions are compiled to machine code.
    pub jit: bool,
    /// The JIT's options, which say when a function is hot.
    pub hot: JitConfig,
    /// The heap's growth between collections, in percent of its live bytes.
    pub gc_percent: Option<u32>,
    /// The most bytes that cells may take.
    pub heap_limit: Option<u64>,
    /// Allocations between full collections, if these are requested.
    pub gc_every: Option<u64>,
    /// The time from each resume to the next requested stop, if stops are requested.
    pub storm: Option<Duration>,
    /// Whether collections follow each other without a pause, with each phase held open.
    pub continuous: bool,
    /// Whether a collection stops the isolates from its beginning to its end.
    pub stop_the_world: bool,
    /// Whether each collection marks a second time and compares the results.
    pub verify: bool,
    /// The file for a heap snapshot at the end of the program.
    pub snapshot: Option<PathBuf>,
    /// Whether the messages have a census of the heap at the end of the program.
    pub census: bool,
    /// Whether each isolate runs its program in green threads.
    pub green: bool,
    /// The time after which a green thread lets others run.
    pub slice: Duration,
    /// Whether a single isolate may write to this process's stdout while it runs.
    pub stream: bool,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            threads: 1,
            jit: true,
            hot: JitConfig::default(),
            gc_percent: None,
            heap_limit: None,
            gc_every: None,
            storm: None,
            continuous: false,
            stop_the_world: false,
            verify: false,
            snapshot: None,
            census: false,
            green: false,
            slice: SLICE,
            stream: false,
        }
    }
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The printed text of all isolates, in their order, without text that was streamed.
    pub stdout: Vec<u8>,
    /// The messages of all isolates, in their order.
    pub stderr: Vec<u8>,
    /// The largest exit code of all isolates: 0, 64, 65, 70 or 74.
    pub exit_code: u8,
    /// The heap's figures at the end, if there was a heap.
    pub stats: Option<HeapStats>,
    /// Number of stops that were requested by [`RunConfig::storm`].
    pub storm_stops: u64,
    /// Number of functions and loops that were interpreted because the JIT contradicted itself.
    /// Other than 0, the JIT has a fault.
    pub contradictions: usize,
    /// How often green threads were suspended because their slices were over.
    pub preemptions: u64,
    /// The time from before the source was compiled until the last isolate ended.
    pub took: Duration,
}

impl Outcome {
    fn failed(exit_code: u8, message: impl Into<Vec<u8>>) -> Outcome {
        Outcome {
            stderr: message.into(),
            exit_code,
            ..Outcome::default()
        }
    }
}

/// Runs the program in a file.
pub fn run_file(path: &Path, config: &RunConfig) -> Outcome {
    let name = path.display();
    let Ok(mut file) = std::fs::File::open(path) else {
        return Outcome::failed(
            EXIT_UNREADABLE,
            format!("Could not open file \"{name}\".\n"),
        );
    };
    let mut source = Vec::new();
    match std::io::Read::read_to_end(&mut file, &mut source) {
        Ok(_) => run_source(&source, config),
        Err(_) => Outcome::failed(
            EXIT_UNREADABLE,
            format!("Could not read file \"{name}\".\n"),
        ),
    }
}

/// Runs a program.
pub fn run_source(source: &[u8], config: &RunConfig) -> Outcome {
    let begun = Instant::now();
    let mut natives = NATIVES.to_vec();
    if config.green {
        natives.extend(GREEN_NATIVES.iter().map(|(name, _)| name));
    }
    let compiled = on_large_stack(|| compile(source, &natives));
    let program = match compiled {
        Ok(program) => Arc::new(program),
        Err(messages) => return Outcome::failed(EXIT_COMPILE_ERROR, messages),
    };
    let lox = match make_heap(config) {
        Ok(lox) => lox,
        Err(error) => return Outcome::failed(EXIT_USAGE, format!("{error}\n")),
    };

    let done = AtomicBool::new(false);
    let stops = AtomicU64::new(0);
    let isolates: Vec<Outcome> = std::thread::scope(|scope| {
        let storm = config.storm.map(|interval| {
            let (heap, done, stops, hot) = (&lox.heap, &done, &stops, &config.hot);
            scope.spawn(move || storm(heap, interval, done, stops, hot))
        });
        let threads: Vec<_> = (0..config.threads)
            .map(|number| {
                let (lox, program) = (&lox, program.clone());
                std::thread::Builder::new()
                    .name(format!("lox {number}"))
                    .stack_size(THREAD_STACK)
                    .spawn_scoped(scope, move || run_isolate(lox, program, config))
            })
            .collect();
        let outcomes = threads
            .into_iter()
            .map(|thread| match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(error) => Outcome::failed(
                    EXIT_RUNTIME_ERROR,
                    format!("Could not start a thread for an isolate: {error}\n"),
                ),
            })
            .collect();
        // Relaxed: no other data is published by it.
        done.store(true, Ordering::Relaxed);
        if let Some(storm) = storm {
            storm.thread().unpark();
        }
        outcomes
    });

    let mut all = Outcome {
        stats: Some(lox.heap.stats()),
        storm_stops: stops.into_inner(),
        took: begun.elapsed(),
        ..Outcome::default()
    };
    for isolate in isolates {
        all.stdout.extend(isolate.stdout);
        all.stderr.extend(isolate.stderr);
        all.exit_code = all.exit_code.max(isolate.exit_code);
        all.contradictions += isolate.contradictions;
        all.preemptions += isolate.preemptions;
    }
    all
}

/// A heap with the options of `config` and Lox's cells.
pub fn make_heap(config: &RunConfig) -> Result<LoxHeap, Box<dyn std::error::Error>> {
    // Registers hold boxed words as often as raw ones. `cells.rs` says what holds for pointers past
    // the end of a cell.
    let mut builder = Heap::builder()
        .conservative(&[Encoding::RAW, BOXED])
        .stress(gc_core::Stress {
            collect_every: config.gc_every,
            phases: config.continuous,
            continuous: config.continuous,
        })
        .poison(config.gc_every == Some(1))
        .stop_the_world(config.stop_the_world)
        .verify(config.verify);
    if let Some(percent) = config.gc_percent {
        builder = builder.gc_percent(percent);
    }
    if let Some(bytes) = config.heap_limit {
        builder = builder.hard_limit(bytes);
    }
    LoxHeap::new(builder.build()?)
}

pub(super) fn on_large_stack<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(THREAD_STACK)
            .spawn_scoped(scope, f);
        thread
            .expect("the system has a thread and 64 MiB of addresses to give")
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run_isolate(
    lox: &LoxHeap,
    program: Arc<super::bytecode::Program>,
    config: &RunConfig,
) -> Outcome {
    let streams = config.stream && config.threads == 1;
    let output = if streams {
        Output::Stdout(Vec::new())
    } else {
        Output::Kept(Vec::new())
    };
    let mut vm = match Vm::new(lox, program, output) {
        Ok(vm) => vm,
        Err(StartError::OutOfMemory) => {
            return Outcome::failed(EXIT_RUNTIME_ERROR, "Out of memory.\n");
        }
        Err(StartError::Attach(error)) => {
            return Outcome::failed(EXIT_RUNTIME_ERROR, format!("{error}\n"));
        }
    };
    if config.green
        && let Err(error) = vm.prepare_green()
    {
        return Outcome::failed(EXIT_RUNTIME_ERROR, format!("{error}\n"));
    }
    // If the JIT has no code generator for this processor, all code is interpreted.
    let compiler = config
        .jit
        .then(|| jit::attach(&mut vm, config.hot.clone()).ok());
    let good = match config.green {
        true => vm.run_green(config.slice),
        false => vm.run(),
    };
    let contradictions = compiler
        .as_ref()
        .and_then(|attached| attached.as_ref())
        .map_or(0, jit::Attached::contradictions);
    drop(compiler);
    let mut stderr = if good { Vec::new() } else { vm.error_text() };
    stderr.extend(inspect(&lox.heap, config).into_bytes());
    Outcome {
        stdout: vm.take_output(),
        stderr,
        exit_code: if good { 0 } else { EXIT_RUNTIME_ERROR },
        contradictions,
        preemptions: vm.preemptions(),
        ..Outcome::default()
    }
}

/// Writes the snapshot that is asked for, and returns the census, or what has failed.
fn inspect(heap: &Heap, config: &RunConfig) -> String {
    let mut text = String::new();
    if config.snapshot.is_none() && !config.census {
        return text;
    }
    heap.collect();
    if let Some(path) = &config.snapshot
        && let Err(error) = std::fs::File::create(path).and_then(|file| heap.snapshot(file))
    {
        text += &format!("{}: {error}\n", path.display());
    }
    if config.census {
        text += &match heap.census() {
            Ok(census) => format!("{census}\n"),
            Err(error) => format!("{error}\n"),
        };
    }
    text
}

/// Requests stops until `done`, each `interval` after the last resume.
fn storm(heap: &Heap, interval: Duration, done: &AtomicBool, stops: &AtomicU64, hot: &JitConfig) {
    // Relaxed, all three: one stop more or less does not matter, and joining the thread publishes
    // the count.
    while !done.load(Ordering::Relaxed) {
        std::thread::park_timeout(interval);
        let look = |stopped: &gc_preempt::Stopped<'_>| {
            if let Some(oracle) = &hot.oracle {
                oracle.check(stopped);
            }
        };
        if heap.with_stopped(look).is_ok() {
            stops.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The options of `gclab run`.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// The Lox program
    pub file: PathBuf,
    /// Isolates over one heap, each running the whole program on a thread of its own
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// Run the program in green threads, with the natives spawn, yield, sleep, channel, send and
    /// receive
    #[arg(long)]
    pub green: bool,
    /// The milliseconds after which a green thread lets others run
    #[arg(long, value_name = "MS", default_value_t = 10, requires = "green", value_parser = clap::value_parser!(u64).range(1..))]
    pub slice: u64,
    /// Interpret all code
    #[arg(long)]
    pub no_jit: bool,
    /// Compile a function after N calls or cache misses, and a loop after N iterations
    #[arg(long, value_name = "N", conflicts_with = "no_jit")]
    pub jit_after: Option<u32>,
    /// How much the heap may grow over its live bytes before a collection ends, in percent
    #[arg(long, value_name = "P")]
    pub gc_percent: Option<u32>,
    /// The most bytes that the program's data may take
    #[arg(long, value_name = "BYTES")]
    pub heap_limit: Option<u64>,
    /// A full collection every N allocations
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub gc_every: Option<u64>,
    /// Stop the world MICROS microseconds after each resume
    #[arg(long, value_name = "MICROS")]
    pub storm: Option<u64>,
    /// Collect without pause, and keep each phase open until the program has run in it
    #[arg(long)]
    pub continuous: bool,
    /// Stop the program for the whole of each collection
    #[arg(long)]
    pub stw: bool,
    /// Mark a second time at the end of each collection, and abort with the path to a cell that the
    /// first marking missed
    #[arg(long)]
    pub verify: bool,
    /// Write the heap at the program's end to FILE, for the Memory panel of Chromium's developer
    /// tools (usual ending: .heapsnapshot)
    #[arg(long, value_name = "FILE", conflicts_with = "threads")]
    pub snapshot: Option<PathBuf>,
    /// Print on stderr what is alive at the program's end, by kind
    #[arg(long, conflicts_with = "threads")]
    pub census: bool,
    /// Print the collector's figures on stderr; with --json, as one JSON object
    #[arg(long)]
    pub stats: bool,
}

impl RunArgs {
    /// The configuration that the options describe.
    pub fn config(&self) -> RunConfig {
        RunConfig {
            threads: usize::from(self.threads),
            jit: !self.no_jit,
            hot: self
                .jit_after
                .map_or_else(JitConfig::default, JitConfig::after),
            gc_percent: self.gc_percent,
            heap_limit: self.heap_limit,
            gc_every: self.gc_every,
            storm: self.storm.map(Duration::from_micros),
            continuous: self.continuous,
            stop_the_world: self.stw,
            verify: self.verify,
            snapshot: self.snapshot.clone(),
            census: self.census,
            green: self.green,
            slice: Duration::from_millis(self.slice),
            stream: true,
        }
    }

    /// Runs the program, writes its output and messages, and returns the exit code. The figures go
    /// to stderr, since stdout is the program's: as text, or as one JSON object on the last line.
    pub fn execute(&self, json: bool) -> u8 {
        let outcome = run_file(&self.file, &self.config());
        let mut stdout = std::io::stdout().lock();
        // Errors are ignored, as in a C program that ignores `printf`'s result.
        let _ = stdout
            .write_all(&outcome.stdout)
            .and_then(|()| stdout.flush());
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(&outcome.stderr);
        if json {
            let _ = writeln!(stderr, "{}", self.json(&outcome));
            return outcome.exit_code;
        }
        if self.storm.is_some() {
            let _ = writeln!(stderr, "storm: {} stops", outcome.storm_stops);
        }
        if let (true, Some(stats)) = (self.stats, &outcome.stats) {
            let _ = write_stats(&mut stderr, stats);
        }
        outcome.exit_code
    }

    /// The object that `--json` prints. Without a heap (a file that cannot be read, a compile
    /// error) all its figures are 0.
    fn json(&self, outcome: &Outcome) -> serde_json::Value {
        let stats = outcome.stats.clone().unwrap_or_default();
        let quantiles = |times| Quantiles::of_stops(times).json();
        serde_json::json!({
            "threads": self.threads,
            "exit_code": outcome.exit_code,
            "seconds": outcome.took.as_secs_f64(),
            "collections": stats.collections,
            "stops": stats.stops.pause.len(),
            "storm_stops": outcome.storm_stops,
            "preemptions": outcome.preemptions,
            "stop_us": quantiles(&stats.stops.time_to_stop),
            "pause_us": quantiles(&stats.stops.pause),
            "pause_total_seconds": stats.pause_total.as_secs_f64(),
            "collector_cpu_seconds": stats.collector_cpu_total.as_secs_f64(),
            "assist_seconds": stats.assist_total.as_secs_f64(),
            "allocated_bytes": stats.allocated_total,
            "used_bytes": stats.used_bytes,
            "cells_freed": stats.cells_freed,
            "cells_live": stats.last.cells_live,
            "live_bytes": stats.last.bytes_live,
            "frames_precise": stats.last.frames_precise,
            "frames_conservative": stats.last.frames_conservative,
            "peak_rss_bytes": peak_rss_bytes(),
        })
    }
}

fn write_stats(out: &mut impl Write, stats: &HeapStats) -> std::io::Result<()> {
    let last = &stats.last;
    let frames = u64::from(last.frames_precise) + u64::from(last.frames_conservative);
    writeln!(out, "collections:     {}", stats.collections)?;
    writeln!(out, "allocated:       {} bytes", stats.allocated_total)?;
    writeln!(out, "in use:          {} bytes", stats.used_bytes)?;
    writeln!(out, "cells freed:     {}", stats.cells_freed)?;
    let at = |q| std::time::Duration::from_nanos(stats.stops.pause.value_at_quantile(q));
    writeln!(
        out,
        "stopped:         {:?} in all, {} times, p50 {:?}, p99 {:?}, longest {:?}",
        stats.pause_total,
        stats.stops.pause.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    )?;
    writeln!(
        out,
        "processors:      {:?} of the collector, {:?} of mutators' assists",
        stats.collector_cpu_total, stats.assist_total
    )?;
    writeln!(
        out,
        "next collection: from {} bytes in use, to end at {}",
        stats.trigger_bytes, stats.goal_bytes
    )?;
    writeln!(
        out,
        "last collection: {:?} to stop, {:?} stopped, {} cells alive",
        last.time_to_stop, last.pause, last.cells_live
    )?;
    writeln!(
        out,
        "                 {frames} frames, {} of them by a stack map",
        last.frames_precise
    )
}
