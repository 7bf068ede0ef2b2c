//! `gclab fuzz --lox`: checks that random programs have the same result interpreted and compiled,
//! at each compilation threshold, and with frequent collections.
//!
//! Each program ([`make`]) runs in two lengths. Short runs compile code at once or nearly at once;
//! one of them collects at every allocation. Long runs are hot enough for the default thresholds,
//! in functions and in the middle of loops. The output, the message, the stack trace and the exit
//! code are compared. The interpreter's result is the expected one; if clox is given, its result is
//! compared as well. A program with a difference is shortened ([`shrink`]).

pub mod make;
mod maker;
pub mod shrink;
pub mod tree;
mod values;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use self::tree::Program;
use super::jit::JitConfig;
use super::run::{EXIT_RUNTIME_ERROR, RunConfig, run_source};
use crate::search::{self, counts};

/// The options of a search.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The time of the search. At least one program runs.
    pub time: Duration,
    /// The first program's seed; the others follow it. By default, the seed is taken from the
    /// clock.
    pub seed: Option<u64>,
    /// The path of a clox to compare with.
    pub clox: Option<PathBuf>,
    /// Whether each run has a process of its own. This is slower, but a crash or a hang is then a
    /// difference.
    pub apart: bool,
}

/// Calls of each part in the short program.
const SHORT: u32 = 6;
/// Calls of each part in the long program: more than the default threshold of calls. The iterations
/// of its loop exceed the threshold of loops.
const LONG: u32 = 420;
/// The heap limit in bytes. No program needs as much.
const HEAP_LIMIT: u64 = 64 << 20;
/// The longest time that a program is shortened.
const SHRINK_TIME: Duration = Duration::from_secs(30);
/// The time after which a process counts as hung.
const HANGS: Duration = Duration::from_secs(20);

/// One way to run a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    long: bool,
    tier: Tier,
    gc_every: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tier {
    Interpreter,
    /// compiled after this number of calls or iterations
    After(u32),
    /// compiled at the default thresholds
    Default,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gclab run {}", self.arguments().join(" "))
    }
}

impl Way {
    fn turns(self) -> u32 {
        if self.long { LONG } else { SHORT }
    }

    /// The way whose result is the expected one.
    fn reference(self) -> Way {
        Way {
            tier: Tier::Interpreter,
            gc_every: None,
            ..self
        }
    }

    fn config(self) -> RunConfig {
        RunConfig {
            jit: self.tier != Tier::Interpreter,
            hot: match self.tier {
                Tier::After(times) => JitConfig::after(times),
                Tier::Interpreter | Tier::Default => JitConfig::default(),
            },
            gc_every: self.gc_every,
            heap_limit: Some(HEAP_LIMIT),
            ..RunConfig::default()
        }
    }

    fn arguments(self) -> Vec<String> {
        let mut arguments = vec!["--heap-limit".to_owned(), HEAP_LIMIT.to_string()];
        match self.tier {
            Tier::Interpreter => arguments.push("--no-jit".to_owned()),
            Tier::After(times) => arguments.extend(["--jit-after".to_owned(), times.to_string()]),
            Tier::Default => {}
        }
        if let Some(every) = self.gc_every {
            arguments.extend(["--gc-every".to_owned(), every.to_string()]);
        }
        arguments
    }
}

/// The ways to run the program for a seed.
fn ways(seed: u64) -> Vec<Way> {
    let way = |long, tier, gc_every| Way {
        long,
        tier,
        gc_every,
    };
    let warm = Tier::After([2, 3, 4, 7, 11][(seed % 5) as usize]);
    let stressed = [Tier::After(1), warm, Tier::Interpreter][(seed % 3) as usize];
    let mut ways = vec![
        way(false, Tier::After(1), None),
        way(false, stressed, Some(1)),
        way(true, Tier::Default, None),
    ];
    if seed.is_multiple_of(2) {
        ways.push(way(false, warm, None));
    } else {
        ways.push(way(true, Tier::Default, Some(50 + seed % 97)));
    }
    // Ways with the same reference follow each other.
    ways.sort_by_key(|way| way.long);
    ways
}

/// The visible result of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// its output
    pub stdout: String,
    /// its messages
    pub stderr: String,
    /// its exit code; `None`: the process crashed or hung
    pub code: Option<i32>,
    /// number of functions whose translation contradicted its analysis
    pub contradictions: usize,
}

impl Seen {
    /// Whether the program ran out of memory, which may happen at different places in different
    /// ways.
    fn is_full(&self) -> bool {
        self.stderr.starts_with("Out of memory.")
    }
}

/// Runs a source in this process.
fn run_here(source: &str, way: Way) -> Seen {
    let outcome = run_source(source.as_bytes(), &way.config());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Seen {
        stdout: text(&outcome.stdout),
        stderr: text(&outcome.stderr),
        code: Some(i32::from(outcome.exit_code)),
        contradictions: outcome.contradictions,
    }
}

/// Runs `program` on a file with the source, in a process of its own.
fn run_program(program: &Path, arguments: &[String], source: &str) -> std::io::Result<Seen> {
    let file = |extension: &str| {
        std::env::temp_dir().join(format!("urge-fuzz-{}.{extension}", std::process::id()))
    };
    let (lox, out, err) = (file("lox"), file("out"), file("err"));
    std::fs::write(&lox, source)?;
    // The output goes to files, so that a process that prints much does not wait for a reader.
    let mut child = Command::new(program)
        .args(arguments)
        .arg(&lox)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&err)?)
        .spawn()?;
    let begun = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if begun.elapsed() > HANGS {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let text = |file: &Path| -> std::io::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(file)?).into_owned())
    };
    let seen = Seen {
        stdout: text(&out)?,
        stderr: text(&err)?,
        code,
        contradictions: 0,
    };
    for file in [lox, out, err] {
        std::fs::remove_file(file)?;
    }
    Ok(seen)
}

/// Compares the ways to run a program.
#[derive(Clone, Debug)]
pub struct Judge {
    /// See [`Options::clox`].
    pub clox: Option<PathBuf>,
    /// See [`Options::apart`]: the path of `gclab`.
    pub apart: Option<PathBuf>,
}

/// Two runs that differ.
#[derive(Clone, Debug)]
pub struct Difference {
    /// the way with a wrong result; `None`: the interpreter's differs from clox's
    pub way: Option<Way>,
    /// the expected result, of the interpreter or of clox
    pub right: Seen,
    /// this way's result
    pub wrong: Seen,
}

counts! {
    /// The counts of a search.
    pub struct Counts {
        /// programs
        programs,
        /// runs in all ways
        runs,
        /// programs that ended without an error
        good,
        /// programs that ended by a runtime error
        failed,
    }
}

impl Judge {
    fn run(&self, source: &str, way: Way) -> Result<Seen, std::io::Error> {
        match &self.apart {
            None => Ok(run_here(source, way)),
            Some(gclab) => {
                let arguments = [vec!["run".to_owned()], way.arguments()].concat();
                run_program(gclab, &arguments, source)
            }
        }
    }

    /// The first difference between these ways and the interpreter.
    ///
    /// # Errors
    /// The error of a process that could not be run.
    pub fn differs(
        &self,
        program: &Program,
        ways: &[Way],
        counts: &mut Counts,
    ) -> Result<Option<Difference>, std::io::Error> {
        let mut known: Option<(Way, Seen)> = None;
        for &way in ways {
            let reference = way.reference();
            let source = program.source(way.turns());
            let right = match &known {
                Some((known, right)) if *known == reference => right.clone(),
                _ => {
                    let right = self.run(&source, reference)?;
                    counts.runs += 1;
                    if known.is_none() {
                        match right.code {
                            Some(0) => counts.good += 1,
                            Some(code) if code == i32::from(EXIT_RUNTIME_ERROR) => {
                                counts.failed += 1;
                            }
                            _ => {}
                        }
                    }
                    if let Some(difference) = self.against_clox(&source, &right, way, counts)? {
                        return Ok(Some(difference));
                    }
                    known = Some((reference, right.clone()));
                    right
                }
            };
            let wrong = self.run(&source, way)?;
            counts.runs += 1;
            if wrong != right && !right.is_full() && !wrong.is_full() {
                return Ok(Some(Difference {
                    way: Some(way),
                    right,
                    wrong,
                }));
            }
        }
        Ok(None)
    }

    fn against_clox(
        &self,
        source: &str,
        ours: &Seen,
        way: Way,
        counts: &mut Counts,
    ) -> Result<Option<Difference>, std::io::Error> {
        let Some(clox) = &self.clox else {
            return Ok(None);
        };
        // clox has one tier and one pace of collections, so the long program would test nothing
        // more.
        if way.long || ours.is_full() {
            return Ok(None);
        }
        let right = run_program(clox, &[], source)?;
        counts.runs += 1;
        Ok((right != *ours).then(|| Difference {
            way: None,
            right,
            wrong: ours.clone(),
        }))
    }
}

/// The first program whose ways differ.
#[derive(Clone, Debug)]
pub struct Found {
    /// the program's seed
    pub seed: u64,
    /// the shortened program's source
    pub source: String,
    /// the difference
    pub difference: Difference,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { way, right, wrong } = &self.difference;
        let (right_name, wrong_name) = match way {
            Some(way) => ("the interpreter".to_owned(), way.to_string()),
            None => ("clox".to_owned(), "the interpreter".to_owned()),
        };
        writeln!(
            f,
            "a program of seed {} differs; shortened:\n{}",
            self.seed, self.source
        )?;
        for (name, seen) in [(right_name, right), (wrong_name, wrong)] {
            writeln!(f, "{name}: {:?}", seen.code)?;
            write!(f, "{}{}", seen.stdout, seen.stderr)?;
            if seen.contradictions > 0 {
                writeln!(
                    f,
                    "{} functions use a value that their analysis takes for dead",
                    seen.contradictions
                )?;
            }
        }
        write!(
            f,
            "repeat it with `gclab fuzz --lox --seconds 0 --seed {}`",
            self.seed
        )
    }
}

impl std::error::Error for Found {}

/// A search without a difference.
pub type Report = search::Report<Counts>;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = &self.counts;
        writeln!(
            f,
            "{} programs from seed {} in {:.1} s, {} runs: no difference",
            n.programs,
            self.seed,
            self.time.as_secs_f64(),
            n.runs
        )?;
        writeln!(
            f,
            "{} ended well, {} by a runtime error, {} did not compile",
            n.good,
            n.failed,
            n.programs - n.good - n.failed
        )
    }
}

/// Searches until the time is over or a program differs.
///
/// # Errors
/// [`Found`], or the error of a process that could not be run.
pub fn run(options: &Options) -> Result<Report, Box<dyn std::error::Error>> {
    search::name_in_crashes();
    let judge = Judge {
        clox: options.clox.clone(),
        apart: options.apart.then(std::env::current_exe).transpose()?,
    };
    let (time, seed) = (options.time, options.seed);
    search::run(&search::Options { time, seed }, |seed| {
        let mut counts = Counts {
            programs: 1,
            ..Counts::default()
        };
        match check(&judge, seed, &mut counts)? {
            Some(found) => Err(found.into()),
            None => Ok(counts),
        }
    })
}

/// Runs the program for a seed in all ways. If a way differs, the program is shortened.
///
/// # Errors
/// The error of a process that could not be run.
pub fn check(
    judge: &Judge,
    seed: u64,
    counts: &mut Counts,
) -> Result<Option<Found>, std::io::Error> {
    let program = make::program(seed);
    let Some(difference) = judge.differs(&program, &ways(seed), counts)? else {
        return Ok(None);
    };
    // Shortening runs only the way that differed. If the difference is from clox, any way will do,
    // as clox runs beside each.
    let way = difference.way.unwrap_or(Way {
        long: false,
        tier: Tier::Interpreter,
        gc_every: None,
    });
    let again = |program: &Program| {
        judge
            .differs(program, &[way], &mut Counts::default())
            .ok()
            .flatten()
    };
    let short = shrink::shrink(&program, Instant::now() + SHRINK_TIME, |program| {
        again(program).is_some()
    });
    let difference = again(&short).unwrap_or(difference);
    Ok(Some(Found {
        seed,
        source: short.source(way.turns()),
        difference,
    }))
}
