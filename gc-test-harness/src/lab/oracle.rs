//! An oracle for scans of an interrupted frame: at each instruction of a run, which cells a scan
//! must keep, and which it keeps.
//!
//! # What is alive
//!
//! A cell is alive at an instruction if the program's answer depends on it. The oracle finds out by
//! trying: it runs the program again, single-steps to the instruction, ruins one cell, and lets the
//! program end. A cell whose ruin changes the answer is alive. So liveness comes from what the
//! program does, and neither from the compiler's output nor from a model of it. It is the strictest
//! definition: a cell that another path of the program would use is dead.
//!
//! # What a scan keeps
//!
//! A scan keeps the cells that its words name, those that the program's own roots name, and all
//! that these lead to. A root counts for as long as the answer depends on it, which the oracle
//! finds out in the same way. A live cell that is not kept is *missed*: a collection at this
//! instruction would free it. A kept cell is *dead* if it is not alive, and neither a live cell nor
//! a root leads to it: no exact collector would keep it.
//!
//! Programs must be short: the oracle runs one once for each pair of an instruction and a cell.

use std::cell::RefCell;
use std::ops::Range;

use crate::kernels::codegen::Code;
use crate::kernels::exact::ExactFrame;
use crate::kernels::interruption::Interruption;
use crate::kernels::places::{Place, Places};
use crate::kernels::single_step::step_through;

/// The most cells of a program.
pub const MOST_CELLS: usize = 64;

/// A program that can be run again and again. Methods between [`reset`](Program::reset) and the end
/// of [`run`](Program::run) are called in a signal handler that has interrupted managed code.
pub trait Program {
    /// Its managed code.
    fn code(&self) -> &[Code];
    /// Puts everything into the first state.
    fn reset(&self);
    /// Runs, and gives an answer that depends on no address.
    fn run(&self) -> u64;
    /// The addresses of its cells, at most [`MOST_CELLS`], and the bytes of each. A cell that is
    /// not allocated yet has no bytes. The numbers of cells are the same in each run.
    fn cells(&self) -> Vec<Range<usize>>;
    /// The words outside of the frame that name cells.
    fn roots(&self) -> Vec<usize>;
    /// The words that the cell of this number holds.
    fn words_of(&self, cell: usize) -> Vec<usize>;
    /// Gives the cell another content, with which the program must still end.
    fn ruin(&self, cell: usize);
    /// Gives the root of this number another content.
    fn ruin_root(&self, root: usize);
}

/// A set of cells: a bit for each.
pub type Cells = u64;

/// How a stop scans the innermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// At each instruction, word by word.
    Words,
    /// At each instruction, by the table of all instructions.
    Maps,
    /// At points only, by the table of points.
    Points,
    /// Where calls return to, by the calls' stack maps. The callee-saved registers are scanned,
    /// too: the callee keeps them, and is native code.
    Calls,
    /// At the loads that [`Body::mark`](crate::kernels::codegen::Body::mark) has marked, by the
    /// table of points.
    Marks,
}

impl Scan {
    /// All scans.
    pub const ALL: [Scan; 5] = [
        Scan::Words,
        Scan::Maps,
        Scan::Points,
        Scan::Calls,
        Scan::Marks,
    ];
}

/// One instruction of a run.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Which function of [`Program::code`] it is of.
    pub function: usize,
    /// Its offset in the function.
    pub offset: u32,
    /// The cells that are alive.
    pub alive: Cells,
    /// The cells that an exact collector would keep.
    pub needed: Cells,
    /// What each cell leads to, itself included.
    leads_to: Vec<Cells>,
    /// What each of the program's roots keeps.
    rooted: Vec<Cells>,
    /// What each scan keeps, in the order of `Scan::ALL`. `None`: no stop of this sort is here.
    kept: [Option<Cells>; 5],
}

impl Instruction {
    /// What a scan keeps here.
    pub fn kept(&self, scan: Scan) -> Option<Cells> {
        self.kept[scan as usize]
    }
}

/// The sum of a scan's faults over the instructions of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Instructions at which a stop scans so.
    pub stops: u64,
    /// Live cells that were missed, over all of them.
    pub missed: u64,
    /// Instructions at which a live cell was missed.
    pub stops_with_missed: u64,
    /// Dead cells that were kept, over all of them.
    pub dead: u64,
    /// The most dead cells that were kept at one instruction.
    pub dead_most: u64,
    /// Instructions at which a dead cell was kept.
    pub stops_with_dead: u64,
    /// Where a live cell was missed: the function and the offset of each instruction, once.
    pub wrong: Vec<(usize, u32)>,
}

impl Judgement {
    /// Adds up a scan's faults.
    pub fn of(run: &[Instruction], scan: Scan) -> Judgement {
        let mut sum = Judgement::default();
        for instruction in run {
            let Some(kept) = instruction.kept(scan) else {
                continue;
            };
            let missed = (instruction.alive & !kept).count_ones();
            let dead = (kept & !instruction.needed).count_ones();
            sum.stops += 1;
            sum.missed += u64::from(missed);
            sum.stops_with_missed += u64::from(missed > 0);
            sum.dead += u64::from(dead);
            sum.dead_most = sum.dead_most.max(u64::from(dead));
            sum.stops_with_dead += u64::from(dead > 0);
            if missed > 0 {
                sum.wrong.push((instruction.function, instruction.offset));
            }
        }
        sum.wrong.sort_unstable();
        sum.wrong.dedup();
        sum
    }
}

/// The cells of a program.
struct Heap<'p> {
    program: &'p dyn Program,
    cells: Vec<Range<usize>>,
}

impl Heap<'_> {
    /// The cells that these words keep.
    fn keep(&self, words: impl Iterator<Item = usize>) -> Cells {
        let mut kept = 0;
        let mut left: Vec<usize> = words.collect();
        while let Some(word) = left.pop() {
            if let Some(number) = self.cells.iter().position(|cell| cell.contains(&word))
                && kept & 1 << number == 0
            {
                kept |= 1 << number;
                left.extend(self.program.words_of(number));
            }
        }
        kept
    }

    /// What each cell leads to.
    fn leads_to(&self) -> Vec<Cells> {
        let starts = self.cells.iter().map(|cell| cell.start);
        starts.map(|word| self.keep([word].into_iter())).collect()
    }

    /// What each scan keeps at an instruction of this function.
    fn kept(&self, code: &Code, frame: &ExactFrame, at: &Interruption) -> [Option<Cells>; 5] {
        let entry = code.range().start;
        let offset = (at.pc - entry) as u32;
        // SAFETY: the thread is about to run the instruction.
        let cfa = unsafe { at.cfa(entry) };
        // SAFETY: the thread stands in the handler that made `at`.
        let by_places = |places: Places| self.keep(unsafe { at.words_at(places, cfa) });
        Scan::ALL.map(|scan| match scan {
            // SAFETY: as above.
            Scan::Words => Some(self.keep(unsafe { at.conservative_words(cfa) })),
            Scan::Maps => Some(by_places(frame.instructions.at(offset))),
            Scan::Points => frame.points.exactly_at(offset).map(by_places),
            Scan::Calls => {
                let sites = &code.facts.sites;
                let site = sites.iter().find(|site| site.return_offset == offset)?;
                let slots = site.slots.iter();
                let slots = slots.map(|slot| Place::BelowCfa(code.facts.frame_to_fp + 16 - slot));
                let mut places = Places::default();
                for place in slots.chain([3, 12, 13, 14, 15].map(Place::Register)) {
                    places.insert(place).ok()?;
                }
                Some(by_places(places))
            }
            Scan::Marks => {
                code.marks.iter().find(|mark| mark.start == offset)?;
                frame.points.exactly_at(offset).map(by_places)
            }
        })
    }
}

/// Runs a program under the oracle: each instruction of its managed code, in the order of the run.
///
/// # Panics
/// The program has too many cells, its code has no tables of places, or its runs differ.
pub fn judge(program: &dyn Program) -> Vec<Instruction> {
    let ranges: Vec<Range<usize>> = program.code().iter().map(Code::range).collect();
    let run = RefCell::new(Vec::new());
    program.reset();
    let answer = stepped(program, &ranges, &mut |_, at| {
        let function = ranges.iter().position(|range| at.is_in(range));
        let function = function.expect("only managed code is stepped");
        let code = &program.code()[function];
        let frame = code.exact.as_deref().expect("places are kept");
        let heap = Heap {
            program,
            cells: program.cells(),
        };
        assert!(heap.cells.len() <= MOST_CELLS, "too many cells");
        let roots = program.roots().into_iter();
        run.borrow_mut().push(Instruction {
            function,
            offset: (at.pc - code.range().start) as u32,
            alive: 0,
            needed: 0,
            leads_to: heap.leads_to(),
            rooted: roots.map(|root| heap.keep([root].into_iter())).collect(),
            kept: heap.kept(code, frame, at),
        });
        true
    });
    let mut run = run.into_inner();
    for (number, instruction) in run.iter_mut().enumerate() {
        let matters = |ruin: &dyn Fn()| {
            program.reset();
            let ruined = stepped(program, &ranges, &mut |step, _| {
                if step == number {
                    ruin();
                }
                step < number
            });
            ruined != answer
        };
        let mut rooted = 0;
        for (root, keeps) in instruction.rooted.iter().enumerate() {
            if matters(&|| program.ruin_root(root)) {
                rooted |= keeps;
            }
        }
        instruction.needed = rooted;
        for (cell, leads_to) in instruction.leads_to.iter().enumerate() {
            if *leads_to != 0 && matters(&|| program.ruin(cell)) {
                instruction.alive |= 1 << cell;
                instruction.needed |= leads_to;
            }
        }
        for kept in instruction.kept.iter_mut().flatten() {
            *kept |= rooted;
        }
    }
    run
}

/// Runs the program with `each` called before each instruction of managed code, until it returns
/// false.
fn stepped(
    program: &dyn Program,
    ranges: &[Range<usize>],
    each: &mut dyn FnMut(usize, &Interruption) -> bool,
) -> u64 {
    let mut step = 0;
    let mut answer = 0;
    let mut each = |at: &Interruption| {
        let steps_on = each(step, at);
        step += 1;
        steps_on
    };
    step_through(ranges, &mut each, || answer = program.run());
    answer
}
