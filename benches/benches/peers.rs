//! Binary trees and full markings beside bdwgc, mimalloc, Go and Java, as processes in alternation.
//!
//! `cargo bench -p benches --bench peers [-- trees | mark]`. The peers' programs are the sources in `peers/`; what is
//! installed is built into a temporary directory, and what is not is skipped by name. `URGE_GO` says where `go` is if it
//! is not on the path. Ours is this binary itself, as a child.
//!
//! *Trees*: whole processes from start to end, which all must print the same lines; time, processors' time and peak
//! memory. Java's start of some 50 ms is in it, and so are the processors that Go's collector takes beside the program.
//!
//! *Mark*: every contender makes the graph once (32-byte objects, each with two edges to random older ones, all held by
//! one table) and says `ready` and the number of objects; then each line that it reads has it collect once and print the
//! nanoseconds. All use one marker. What is timed differs, never to our advantage: ours is the whole pause; bdwgc's is
//! marking alone, as its events tell; Go's is `runtime.GC()`; Java's is `System.gc()` of SerialGC, which also compacts. All
//! graphs are in memory at once: some 6 GiB for the largest.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use benches::paired::{Block, LEAST_TURNS, Paired};
use benches::{Mode, wanted};
use gc_test_harness::lab::report::median;
use gc_test_harness::lab::{mark, trees};

/// Set, this binary is one of our own contenders: `trees MUTATORS` or `mark`.
const CHILD: &str = "URGE_BENCH_PEERS";

/// Our own name in the tables.
const OURS: &str = "Urge";
const OURS_TWICE: &str = "Urge, 2 mutators, the program on each";

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
    let mode = Mode::from_args();
    if mode != Mode::List {
        let workshop = Workshop::new();
        if wanted("trees") {
            compare_trees(mode, &workshop);
        }
        if wanted("mark") {
            compare_marks(mode, &workshop);
        }
    }
    ExitCode::SUCCESS
}

/// Our own contenders.
fn child(work: &str) -> Result<(), Box<dyn std::error::Error>> {
    let size = std::env::args().nth(1).unwrap_or_default().parse()?;
    if let Some(mutators) = work.strip_prefix("trees ") {
        for line in trees::run(size, mutators.parse()?)?.checks {
            println!("{line}");
        }
        return Ok(());
    }
    let graph = mark::Graph::build(size)?;
    println!("ready {}", graph.objects());
    for line in std::io::stdin().lines() {
        line?;
        println!("{}", graph.mark()?.pause.as_nanos());
    }
    Ok(())
}

/// Where peers are built; removed in the end.
struct Workshop(PathBuf);

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A contender's command, to which the size of its work is added.
struct Program {
    command: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

/// A contender: its name, and its command or why there is none.
struct Peer {
    name: &'static str,
    program: Result<Program, String>,
}

impl Program {
    fn new(command: impl Into<OsString>) -> Program {
        Program {
            command: command.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// This binary, as a contender.
    fn ours(work: &str) -> Program {
        let itself = std::env::current_exe().expect("this binary has a path");
        Program::new(itself).with(CHILD, work)
    }

    fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Program {
        self.environment.push((name, value.into()));
        self
    }

    fn command(&self, size: u32) -> Command {
        let mut command = Command::new(&self.command);
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        command
            .args(&self.arguments)
            .arg(size.to_string())
            .envs(environment);
        command
    }
}

impl Workshop {
    fn new() -> Workshop {
        let path = std::env::temp_dir().join(format!("urge-peers-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|e| panic!("no directory to build the peers in, {path:?}: {e}"));
        Workshop(path)
    }

    /// Builds a source of `peers/` by a compiler, if there is one and it can.
    fn build(&self, compiler: &Path, source: &str, arguments: &[&str]) -> Result<(), String> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("peers")
            .join(source);
        let mut command = Command::new(compiler);
        command.current_dir(&self.0);
        for argument in arguments {
            if *argument == "SOURCE" {
                command.arg(&source);
            } else {
                command.arg(argument);
            }
        }
        match command.output() {
            Err(_) => Err(format!("no {}", compiler.display())),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().find(|line| line.contains("error"));
                let line = line.or(said.lines().next()).unwrap_or("it says nothing");
                Err(format!("{} says: {line}", compiler.display()))
            }
        }
    }

    /// A C program with its library.
    fn c(&self, name: &'static str, stem: &str, library: &str) -> Peer {
        let source = format!("{stem}.c");
        let arguments = ["-O3", "-o", stem, "SOURCE", library];
        let built = self.build(Path::new("cc"), &source, &arguments);
        Peer {
            name,
            program: built.map(|()| Program::new(self.0.join(stem))),
        }
    }

    fn go(&self, name: &'static str, stem: &str) -> Peer {
        let go = std::env::var_os("URGE_GO").unwrap_or_else(|| "go".into());
        let (source, output) = (format!("{stem}.go"), format!("{stem}-go"));
        let arguments = ["build", "-o", &output, "SOURCE"];
        let built = self.build(Path::new(&go), &source, &arguments);
        Peer {
            name,
            program: built.map(|()| Program::new(self.0.join(output)).with("GOGC", "100")),
        }
    }

    fn java(&self, name: &'static str, class: &str) -> Peer {
        let arguments = ["-d", ".", "SOURCE"];
        let built = self.build(Path::new("javac"), &format!("{class}.java"), &arguments);
        let program = |()| Program {
            arguments: vec![
                "-XX:+UseSerialGC".into(),
                "-cp".into(),
                self.0.clone().into_os_string(),
                class.into(),
            ],
            ..Program::new("java")
        };
        Peer {
            name,
            program: built.map(program),
        }
    }
}

/// Leaves out what is not there, by name.
fn installed(peers: Vec<Peer>) -> Vec<(&'static str, Program)> {
    let there = peers
        .into_iter()
        .filter_map(|Peer { name, program }| match program {
            Ok(program) => Some((name, program)),
            Err(why) => {
                println!("{name}: not installed ({why}), skipped");
                None
            }
        });
    there.collect()
}

/// What a process used.
struct Used {
    block: Block,
    peak_rss_bytes: u64,
}

/// Runs a process, which must print `expected`.
fn run(name: &str, mut command: Command, expected: &str) -> Used {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{name}: {command:?}: {e}"));
    let mut printed = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let read = stdout.read_to_string(&mut printed);
        read.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let (status, usage) = wait(child);
    let time = start.elapsed();
    assert!(
        status == 0 && printed == expected,
        "{name}: wait status {status}, and printed {printed:?} instead of {expected:?}"
    );
    let duration = |time: libc::timeval| {
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_usec as u32 * 1000)
    };
    Used {
        block: Block {
            processor: Some(duration(usage.ru_utime) + duration(usage.ru_stime)),
            ..Block::new(1, time)
        },
        peak_rss_bytes: usage.ru_maxrss.cast_unsigned() * 1024,
    }
}

/// Waits for a child's end and takes what it used, which std does not tell.
fn wait(child: Child) -> (i32, libc::rusage) {
    let pid = child.id().cast_signed();
    let mut status = 0;
    // SAFETY: plain data, filled by the call; the child is ours, and nobody else waits for it.
    let (result, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let result = libc::wait4(pid, &mut status, 0, &mut usage);
        (result, usage)
    };
    assert_eq!(result, pid, "{}", std::io::Error::last_os_error());
    (status, usage)
}

fn compare_trees(mode: Mode, workshop: &Workshop) {
    let depth = mode.pick(20, 8);
    let expected: String = trees::answers(depth)
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    let ours = [
        (OURS, Program::ours("trees 1")),
        (OURS_TWICE, Program::ours("trees 2")),
    ];
    let peers = installed(vec![
        workshop.c("bdwgc", "bdwgc_trees", "-lgc"),
        workshop.c("mimalloc, freed by hand", "mimalloc_trees", "-lmimalloc"),
        workshop.go("Go, GOGC=100", "trees"),
        workshop.java("Java, SerialGC", "Trees"),
    ]);
    let memory: RefCell<BTreeMap<&str, Vec<f64>>> = RefCell::default();
    let title = format!("binary trees of depth {depth}");
    let contenders: Vec<_> = ours.into_iter().chain(peers).collect();
    let mut paired = Paired::new(&title, "run");
    for (name, program) in &contenders {
        let memory = &memory;
        let expected = &expected;
        paired = paired.contender(name, move || {
            let used = run(name, program.command(depth), expected);
            let mib = used.peak_rss_bytes as f64 / f64::from(1 << 20);
            memory.borrow_mut().entry(name).or_default().push(mib);
            used.block
        });
    }
    let mut measured = paired.measure(mode.pick(LEAST_TURNS, 1));
    for (name, _) in &contenders[1..] {
        measured = measured.with_ratio(name, OURS);
    }
    println!("{measured}");
    let memory = memory.borrow();
    let of = |name: &str| median(&memory[name]);
    println!("  peak memory, MiB (median)                   ratio");
    for (name, _) in &contenders {
        let ratio = of(name) / of(OURS).max(1e-9);
        println!("  {name:<40}{:>10.1}{ratio:>10.2}", of(name));
    }
    println!();
}

/// A contender that has made its graph and marks it when told.
struct Server {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    objects: u64,
}

impl Server {
    fn start(program: &Program, mib: u32) -> Result<Server, String> {
        let mut command = program.command(mib);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (orders, Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("it has no output".to_owned());
        };
        let mut server = Server {
            child,
            orders,
            answers: BufReader::new(answers),
            objects: 0,
        };
        let line = server.line()?;
        let objects = line.strip_prefix("ready ").and_then(|n| n.parse().ok());
        server.objects = objects.ok_or_else(|| format!("it says {line:?} instead of ready"))?;
        let expected = (u64::from(mib) << 20) / mark::CELL as u64;
        if server.objects == expected {
            Ok(server)
        } else {
            Err(format!("its graph is not of {expected} objects"))
        }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Err("it ended early".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn mark(&mut self) -> Result<Block, String> {
        let orders = self.orders.as_mut().ok_or("it takes no orders")?;
        orders.write_all(b"\n").map_err(|e| e.to_string())?;
        let line = self.line()?;
        let nanos = line
            .parse()
            .map_err(|_| format!("it says {line:?} instead of nanoseconds"))?;
        Ok(Block::new(self.objects, Duration::from_nanos(nanos)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.orders.take()); // the end of its input is its end
        let _ = self.child.wait();
    }
}

fn compare_marks(mode: Mode, workshop: &Workshop) {
    let go = workshop.go("Go, runtime.GC()", "mark");
    let go = Peer {
        name: go.name,
        program: go.program.map(|program| program.with("GOMAXPROCS", "1")),
    };
    let peers = installed(vec![
        workshop.c("bdwgc, marking alone", "bdwgc_mark", "-lgc"),
        go,
        workshop.java("Java, SerialGC's System.gc()", "Mark"),
    ]);
    println!("mimalloc: does not mark, skipped");
    let ours = (OURS, Program::ours("mark"));
    for &mib in mode.pick(&[64, 256, 1024][..], &[1]) {
        let title = format!("full marking of {mib} MiB of 32-byte objects, one marker");
        let mut paired = Paired::new(&title, "object");
        let mut names = Vec::new();
        for (name, program) in std::iter::once(&ours).chain(&peers) {
            match Server::start(program, mib) {
                Ok(mut server) => {
                    names.push(*name);
                    paired = paired.contender(name, move || {
                        server.mark().unwrap_or_else(|why| panic!("{name}: {why}"))
                    });
                }
                Err(why) if *name == OURS => panic!("{OURS}: {why}"),
                Err(why) => println!("{name}: failed at {mib} MiB ({why}), skipped"),
            }
        }
        let mut measured = paired.measure(mode.pick(LEAST_TURNS, 1));
        for name in &names[1..] {
            measured = measured.with_ratio(name, OURS);
        }
        println!("{measured}");
    }
}
