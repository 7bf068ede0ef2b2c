//! `gclab explain`: a function's machine code, and for each instruction what a stop there does.
//!
//! Each answer comes from [`gc_preempt::explain`], which asks the tables that stops use.

mod piece;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use gc_core::Heap;
use gc_core::internals::barrier_routines;
use gc_core::raw::Encoding;
use gc_preempt::StopError;
use serde_json::{Value, json};

pub use self::piece::{Call, Data, Line, Piece};
use crate::kernels::alloc::Allocating;
use crate::kernels::codegen::{Arena, Code};
use crate::kernels::deep::Frames;
use crate::kernels::exact::ExactFrame;
use crate::kernels::loops::Loops;
use crate::kernels::talk::{Kernel, Maker, Strategy};
use crate::lox::listing;
use crate::lox::run::{EXIT_COMPILE_ERROR, EXIT_UNREADABLE, EXIT_USAGE};

/// The options of `gclab explain`.
#[derive(clap::Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The function: a kernel or a routine of the write barrier, or with --file a function of a Lox
    /// program; without it, the names are listed
    pub function: Option<String>,
    /// A Lox program, which runs to its end before its functions are listed; its output is lost
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Compile the program's functions without running the program
    #[arg(long, requires = "file")]
    pub cold: bool,
    /// List a kernel of `gclab talk`, as it is compiled for this way to interrupt a loop
    #[arg(long, value_enum, conflicts_with = "file")]
    pub strategy: Option<Strategy>,
}

/// Why there is no listing.
#[derive(Debug)]
pub struct ExplainError {
    /// The exit code.
    pub code: u8,
    why: String,
}

impl ExplainError {
    fn new(code: u8, why: impl fmt::Display) -> ExplainError {
        ExplainError {
            code,
            why: why.to_string(),
        }
    }
}

impl fmt::Display for ExplainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for ExplainError {}

/// What `gclab explain` prints.
#[derive(Debug)]
pub enum Outcome {
    /// The names of all functions.
    Names(Vec<String>),
    /// The code of one function. A Lox function may have several pieces: it was compiled more than
    /// once, or its loops were compiled by themselves.
    Pieces(Vec<Piece>),
}

impl Outcome {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        match self {
            Outcome::Names(names) => json!({ "functions": names }),
            Outcome::Pieces(pieces) => {
                let pieces: Vec<Value> = pieces.iter().map(Piece::json).collect();
                json!({ "pieces": pieces })
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Names(names) => names.iter().try_for_each(|name| writeln!(f, "{name}")),
            Outcome::Pieces(pieces) => {
                for piece in pieces {
                    writeln!(f, "{piece}")?;
                }
                f.write_str(LEGEND)
            }
        }
    }
}

const LEGEND: &str = "\
safe         a thread stops there and continues there
restartable  a thread stops there, and continues at the first instruction of the range
unsafe       no thread stops there: the stopper signals it again until it is elsewhere

A stop scans all registers and the vector registers in use word by word, and of the innermost frame
each word from the red zone below SP to the CFA. Before `push rbp` and at `ret` the return address
is at SP, so the CFA is SP+8; after the push it is SP+16; elsewhere RBP gives it. `|` says what a
stop scans of the frame while the call before it has not returned. With --strategy maps or step, the
last column has the places that the map of the instruction names, and the points that steps go to.
";

/// A registered function.
struct Source<'a> {
    /// The name by which it is asked for.
    name: &'a str,
    /// The heading of its listing.
    title: &'a str,
    address: usize,
    bytes: &'a [u8],
    /// Offsets of instructions besides the first.
    entries: Vec<u32>,
    /// The places of its references at each instruction, if the compiler kept them.
    exact: Option<&'a ExactFrame>,
}

impl<'a> Source<'a> {
    fn of_code(name: &'a str, code: &'a Code) -> Source<'a> {
        Source {
            name,
            title: &code.name,
            address: code.facts.address,
            bytes: code.bytes(),
            entries: code.facts.sites.iter().map(|s| s.return_offset).collect(),
            exact: code.exact.as_deref(),
        }
    }
}

/// The name of the Lox function that a piece of code belongs to.
fn lox_name(code: &Code) -> Option<&str> {
    let rest = code.name.strip_prefix("lox ")?;
    let (rest, _) = rest.rsplit_once(" #")?;
    Some(rest.rsplit_once(" loop at ").map_or(rest, |(name, _)| name))
}

/// Finds and explains what the options name.
///
/// # Errors
/// There is no such function, the file cannot be read or compiled, or the system refuses memory.
pub fn run(options: &ExplainArgs) -> Result<Outcome, ExplainError> {
    let name = options.function.as_deref();
    if let Some(strategy) = options.strategy {
        return talk_kernels(name, strategy);
    }
    let Some(path) = &options.file else {
        return kernels(name);
    };
    let source = std::fs::read(path).map_err(|error| {
        ExplainError::new(EXIT_UNREADABLE, format_args!("{}: {error}", path.display()))
    })?;
    let listed = listing::with_code(&source, options.cold, |codes| {
        let sources = codes.iter();
        let mut sources: Vec<Source<'_>> = sources
            .filter_map(|code| Some(Source::of_code(lox_name(code)?, code)))
            .collect();
        sources.extend(routines());
        choose(&sources, name)
    });
    listed.map_err(|why| ExplainError::new(EXIT_COMPILE_ERROR, why.trim_end()))?
}

/// The routines of the write barrier.
fn routines<'a>() -> impl Iterator<Item = Source<'a>> {
    barrier_routines().into_iter().map(|(name, range)| Source {
        name,
        title: name,
        address: range.start,
        // SAFETY: the program's own text.
        bytes: unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) },
        entries: Vec::new(),
        exact: None,
    })
}

fn failed(error: impl fmt::Display) -> ExplainError {
    ExplainError::new(1, error)
}

fn kernels(name: Option<&str>) -> Result<Outcome, ExplainError> {
    let mut arena = Arena::new().map_err(failed)?;
    let all = [
        Loops::compile(&mut arena).map(|all| all.code),
        Frames::compile(&mut arena).map(|all| all.code),
        Allocating::compile(&mut arena).map(|all| all.code),
    ];
    let mut codes = Vec::new();
    for compiled in all {
        codes.extend(compiled.map_err(failed)?);
    }
    registered(&codes, || {
        let sources = codes.iter().map(|code| Source::of_code(&code.name, code));
        choose(&sources.chain(routines()).collect::<Vec<_>>(), name)
    })
}

/// The kernels of `gclab talk`. Each has several functions.
fn talk_kernels(name: Option<&str>, strategy: Strategy) -> Result<Outcome, ExplainError> {
    let mut all = Vec::new();
    for kernel in Kernel::ALL {
        let mut maker = Maker::new(strategy).map_err(failed)?;
        if matches!(strategy, Strategy::Maps | Strategy::Step) {
            maker.arena.keep_places();
        }
        kernel.build(&mut maker).map_err(failed)?;
        all.push((kernel, maker.finish().map_err(failed)?.code));
    }
    let codes: Vec<Code> = all.iter().flat_map(|(_, code)| code.clone()).collect();
    registered(&codes, || {
        let sources = all.iter().flat_map(|(kernel, codes)| {
            codes
                .iter()
                .map(|code| Source::of_code(kernel.name(), code))
        });
        choose(&sources.collect::<Vec<_>>(), name)
    })
}

/// Calls `f` while the code is registered with a heap.
fn registered<R>(
    codes: &[Code],
    f: impl FnOnce() -> Result<R, ExplainError>,
) -> Result<R, ExplainError> {
    let heap = Heap::builder().build().map_err(failed)?;
    let guards = codes
        .iter()
        .map(|code| code.register_with(&heap, Encoding::RAW));
    let _guards = guards.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    f()
}

/// Explains the functions of that name, or lists all names.
fn choose(sources: &[Source<'_>], name: Option<&str>) -> Result<Outcome, ExplainError> {
    let mut names: Vec<String> = Vec::new();
    for source in sources {
        if !names.iter().any(|known| known == source.name) {
            names.push(source.name.to_owned());
        }
    }
    let Some(name) = name else {
        return Ok(Outcome::Names(names));
    };
    let known: BTreeMap<u64, String> = sources
        .iter()
        .map(|source| (source.address as u64, source.title.to_owned()))
        .collect();
    let chosen = sources.iter().filter(|source| source.name == name);
    let pieces: Vec<Piece> = chosen
        .map(|s| {
            let piece = Piece::new(s.title, s.address, s.bytes, &s.entries, &known)?;
            Ok(s.exact.into_iter().fold(piece, Piece::with_places))
        })
        .collect::<Result<_, StopError>>()
        .map_err(|error| ExplainError::new(1, error))?;
    if pieces.is_empty() {
        let why = format!("no function `{name}`; there are: {}", names.join(", "));
        return Err(ExplainError::new(EXIT_USAGE, why));
    }
    Ok(Outcome::Pieces(pieces))
}
