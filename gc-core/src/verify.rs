//! `URGE_VERIFY=1`: marks a second time, alone and in the stop, and compares.
//!
//! A collector that frees a live cell shows it far from the fault, if at all. The verifier finds
//! the fault in the cycle that is about to free the cell. It lists the roots as stop 1 finds them.
//! In stop 2, when all is marked and weak words are cleared, and before the bitmaps swap, it walks
//! the graph from these roots, as the graph is then. The walk and the markers share only the
//! look-up of a word ([`Space::resolve`]) and the edges of each kind (`follow.rs`). Each cell that
//! the walk reaches must be marked: the cell was reachable when marking began, or was allocated
//! since. If a cell is not marked, the verifier prints the path to it, and aborts the process
//! without a change to the heap.
//!
//! The verifier does not scan for roots again: a second scan of stacks would find other dead words,
//! and cells that died meanwhile by them. The walk follows a conservative word of a *cell* only
//! where it leads to a marked cell: a number that was stored a moment ago may look like an address.
//!
//! # What it costs
//! The whole marking again, in the stop. The tables take 16 bytes of address space for each 16
//! bytes of the heap, mapped beforehand: 8 for the cell from which the walk reached a granule, and
//! 8 for the walk's stack. They take memory only for cells that the walk reaches. The verifier is
//! for tests and for finding faults.
//!
//! # Trace functions
//! The second walk calls the kinds' own trace functions, and would miss what they miss. So once
//! every reported cell is found marked, the verifier looks into each reached cell of a traced kind
//! for a word that names the first byte of a cell which this collection is about to free, in one of
//! the kind's encodings. No function reported such a word, and it dangles in a moment. Data that
//! looks like an address raises a false alarm only if it is the very address of a cell that dies
//! now. A word that has ceased to be an edge is null by the contract of
//! [`TraceFn`](crate::raw::TraceFn).
//!
//! Everything here runs in the stop: no malloc, no lock, and output goes by `write(2)`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::heap::{Cell, GRANULE, Space};
use crate::kind::Tag;
use crate::memory::MapError;
use crate::memory::tables::Mapped;
use crate::weak::for_each_dead_word;

/// The most roots that are listed; further roots are not checked. A thread has some hundred.
const ROOTS: usize = 1 << 24;

/// Set in an element of `from`: the cell is a root's, and the other bits are its source.
const ROOT: usize = 1 << 63;

/// Cells of a path that the report prints at either end.
const SHOWN: usize = 12;

/// The place in which a root was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// On the stack or in the registers of the heap's mutator of this number.
    Stack(usize),
    /// In the handles of the open scopes of the heap's mutator of this number.
    Handles(usize),
    /// On the stack or in the handles of the mutator of this number among those that are aside.
    Aside(usize),
    /// On the suspended stack of this number.
    Suspended(usize),
    /// In a handle, a range or a callback of the heap's tables.
    Tables,
}

impl Source {
    fn word(self) -> usize {
        match self {
            Source::Tables => 0,
            Source::Stack(mutator) => 1 + 4 * mutator,
            Source::Handles(mutator) => 2 + 4 * mutator,
            Source::Aside(mutator) => 3 + 4 * mutator,
            Source::Suspended(stack) => 4 + 4 * stack,
        }
    }
}

/// Displays a [`Source::word`].
struct Named(usize);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(word) = self.0.checked_sub(1) else {
            return write!(f, "a handle, a root range or a root callback");
        };
        let mutator = word / 4;
        match word % 4 {
            0 => write!(f, "the stack or a register of mutator {mutator}"),
            1 => write!(f, "a handle of a scope of mutator {mutator}"),
            2 => write!(
                f,
                "the stack or a handle of mutator {mutator} of those that are aside"
            ),
            _ => write!(f, "suspended stack {mutator}"),
        }
    }
}

/// The verifier of a heap.
pub(crate) struct Verify {
    /// Two words for each root of stop 1: the granule of its cell, and its source.
    roots: Mapped<AtomicUsize>,
    len: AtomicUsize,
    source: AtomicUsize,
    /// By granule: 0, not reached; the granule of the cell that led here, plus one; or a root's
    /// source, with [`ROOT`].
    from: Mapped<AtomicUsize>,
    /// Granules of cells that the walk has reached and not followed yet.
    stack: Mapped<AtomicUsize>,
    /// One past the highest granule reached since `from` was clear.
    top: AtomicUsize,
}

impl Verify {
    pub(crate) fn new(space: &Space) -> Result<Verify, MapError> {
        let granules = space.len() / GRANULE;
        Ok(Verify {
            roots: Mapped::reserve(2 * ROOTS, 2)?,
            len: AtomicUsize::new(0),
            source: AtomicUsize::new(0),
            from: Mapped::reserve(granules, granules)?,
            stack: Mapped::reserve(granules, granules)?,
            top: AtomicUsize::new(0),
        })
    }

    /// Before stop 1: empties the list of roots and the tables of the walk.
    pub(crate) fn begin(&self) {
        // Relaxed, here and everywhere: only the collector's thread uses it.
        self.len.store(0, Ordering::Relaxed);
        // SAFETY: the collector's thread alone uses it.
        unsafe { self.from.zero(self.top.swap(0, Ordering::Relaxed)) };
    }

    /// The roots that follow come from `source`.
    pub(crate) fn source(&self, source: Source) {
        self.source.store(source.word(), Ordering::Relaxed);
    }

    /// A root names the cell at `offset` of the address range.
    pub(crate) fn root(&self, offset: usize) {
        let at = self.len.load(Ordering::Relaxed);
        if 2 * at + 1 < self.roots.len() {
            self.roots[2 * at].store(offset / GRANULE, Ordering::Relaxed);
            let source = self.source.load(Ordering::Relaxed);
            self.roots[2 * at + 1].store(source, Ordering::Relaxed);
            self.len.store(at + 1, Ordering::Relaxed);
        }
    }

    /// Lists the cell that a root's word names, if it names one: for roots that are marked later.
    pub(crate) fn root_word(&self, space: &Space, word: usize) {
        if let Some(cell) = space.resolve(word) {
            self.root(cell.base - space.base());
        }
    }

    /// In stop 2, before the bitmaps swap: aborts if the walk reaches a cell that is not marked.
    pub(crate) fn check(&self, space: &Space, collection: u64) {
        let mut walk = Walk {
            all: self,
            space,
            depth: 0,
            first_lost: None,
            lost: 0,
        };
        for at in 0..self.len.load(Ordering::Relaxed) {
            let [granule, source] = [0, 1].map(|i| self.roots[2 * at + i].load(Ordering::Relaxed));
            if let Some(cell) = space.resolve(space.base() + granule * GRANULE) {
                walk.reach(cell, ROOT | source);
            }
        }
        while let Some(granule) = walk.pop() {
            let Some(cell) = space.resolve(space.base() + granule * GRANULE) else {
                continue;
            };
            let certain = space.kinds.get(cell.kind).tag != Tag::Conservative;
            space.for_each_edge(cell, &mut |target| {
                if certain || space.is_marked(target.base) {
                    walk.reach(target, granule + 1);
                }
            });
            for_each_dead_word(space, cell, &mut |target| walk.reach(target, granule + 1));
        }
        if walk.first_lost.is_none() {
            walk.look_at_tracers(collection);
        }
        if let Some(lost) = walk.first_lost {
            walk.report(lost, collection);
            std::process::abort();
        }
    }
}

/// A walk that is under way.
struct Walk<'a> {
    all: &'a Verify,
    space: &'a Space,
    depth: usize,
    first_lost: Option<Cell>,
    lost: u64,
}

impl Walk<'_> {
    fn granule(&self, cell: Cell) -> usize {
        (cell.base - self.space.base()) / GRANULE
    }

    fn reach(&mut self, cell: Cell, from: usize) {
        let granule = self.granule(cell);
        let place = &self.all.from[granule];
        if place.load(Ordering::Relaxed) != 0 {
            return;
        }
        place.store(from, Ordering::Relaxed);
        self.all.top.fetch_max(granule + 1, Ordering::Relaxed);
        if !self.space.is_marked(cell.base) {
            self.lost += 1;
            self.first_lost.get_or_insert(cell);
        }
        // Each cell is pushed once, so there is room.
        self.all.stack[self.depth].store(granule, Ordering::Relaxed);
        self.depth += 1;
    }

    /// Searches the reached cells of traced kinds for a word that names the first byte of a cell
    /// which is about to be freed. Every cell that their functions have reported is marked by now,
    /// so such a word was not reported.
    fn look_at_tracers(&mut self, collection: u64) {
        for granule in 0..self.all.top.load(Ordering::Relaxed) {
            if self.all.from[granule].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let Some(cell) = self.space.resolve(self.space.base() + granule * GRANULE) else {
                continue;
            };
            let kinds = &self.space.kinds;
            let is_traced =
                kinds.get(cell.kind).tag == Tag::Traced && !kinds.has_spare_words(cell.kind);
            if !is_traced || !seam::checks_tracers() {
                continue;
            }
            if let Some((word, lost)) = self.unreported(cell) {
                let name = self.space.kinds.borrowed_name(cell.kind).unwrap_or("?");
                let mut line = Line::new();
                let _ = writeln!(
                    line,
                    "urge: verify: collection {collection}: the trace function of {name:?} does not report word {word} of the cell at {:#x}, which names a cell",
                    cell.base
                );
                line.print();
                let mut line = Line::new();
                let _ = writeln!(
                    line,
                    "urge: verify: if such words have no meaning, declare them by Kind::spare_words"
                );
                line.print();
                return self.reach(lost, granule + 1);
            }
        }
    }

    /// The first word of a cell that names the first byte of a cell which is about to be freed, and
    /// that cell.
    fn unreported(&self, cell: Cell) -> Option<(usize, Cell)> {
        (0..cell.size / size_of::<usize>()).find_map(|word| {
            // SAFETY: a word of an allocated cell, while every mutator is stopped.
            let bits = unsafe { (cell.base as *const usize).add(word).read_volatile() };
            let encodings = self.space.kinds.encodings(cell.kind).iter();
            encodings
                .filter_map(|encoding| encoding.decode(bits))
                .find_map(|address| {
                    let named = self.space.resolve(address)?;
                    let dies = named.base == address && !self.space.is_marked(address);
                    dies.then_some((word, named))
                })
        })
    }

    fn pop(&mut self) -> Option<usize> {
        self.depth = self.depth.checked_sub(1)?;
        Some(self.all.stack[self.depth].load(Ordering::Relaxed))
    }

    /// Prints the path from a root to `lost`. The walk's stack is empty, and serves to reverse the
    /// path.
    fn report(&self, lost: Cell, collection: u64) {
        let cell_at = |granule: usize| self.space.resolve(self.space.base() + granule * GRANULE);
        let mut line = Line::new();
        let _ = writeln!(
            line,
            "urge: verify: collection {collection} was about to free {} reachable cell(s). The path to the first:",
            self.lost
        );
        line.print();
        let (mut granule, mut length) = (self.granule(lost), 0);
        let source = loop {
            self.all.stack[length].store(granule, Ordering::Relaxed);
            length += 1;
            let from = self.all.from[granule].load(Ordering::Relaxed);
            if from & ROOT != 0 || from == 0 || length == self.all.stack.len() {
                break from & !ROOT;
            }
            granule = from - 1;
        };
        let _ = writeln!(line, "  root: {}", Named(source));
        line.print();
        for step in 0..length {
            if step == SHOWN && length > 2 * SHOWN {
                let _ = writeln!(line, "  ... and {} more ...", length - 2 * SHOWN);
                line.print();
            }
            if (SHOWN..length.saturating_sub(SHOWN)).contains(&step) {
                continue;
            }
            let at =
                |step: usize| cell_at(self.all.stack[length - 1 - step].load(Ordering::Relaxed));
            let Some(cell) = at(step) else { continue };
            let name = self.space.kinds.borrowed_name(cell.kind).unwrap_or("?");
            let _ = write!(line, "  {:#x} {name:?}, {} bytes", cell.base, cell.size);
            let next = (step + 1 < length).then(|| at(step + 1)).flatten();
            if let Some(word) = next.and_then(|next| self.word_to(cell, next)) {
                let _ = write!(line, ", word {word}");
            }
            let unmarked = !self.space.is_marked(cell.base);
            let _ = writeln!(line, "{}", if unmarked { "  <- not marked" } else { "" });
            line.print();
        }
        let _ = writeln!(
            line,
            "urge: likely causes: an edge stored without the barrier (memcpy, a plain store); a trace function that does not report an edge; a \
             tracer or a root callback that read a structure during a change; a weak word copied by a plain store; an edge of a cell of an \
             immutable kind that was changed, or stored late"
        );
        line.print();
    }

    /// The number of the word by which one cell leads to another.
    fn word_to(&self, from: Cell, to: Cell) -> Option<usize> {
        let kind = self.space.kinds.get(from.kind).encoding;
        (0..from.size / size_of::<usize>()).find(|word| {
            // SAFETY: a word of an allocated cell, while every mutator is stopped.
            let word = unsafe { (from.base as *const usize).add(*word).read_volatile() };
            core::iter::once(&kind)
                .chain(self.space.encodings())
                .filter_map(|encoding| encoding.decode(word))
                .any(|address| self.space.resolve(address) == Some(to))
        })
    }
}

/// A line of text without malloc, cut off at the buffer's end.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line {
            bytes: [0; 512],
            len: 0,
        }
    }

    /// Writes the line to standard error without a lock, and empties it.
    fn print(&mut self) {
        // SAFETY: the bytes are initialised; a short or failed write loses a line, nothing else.
        unsafe { libc::write(2, self.bytes.as_ptr().cast(), self.len) };
        self.len = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

mod seam {
    use crate::fault::Fault;

    pub(super) fn checks_tracers() -> bool {
        !Fault::TracersBelieved.planted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Encoding;
    use crate::heap::tests::Toy;
    use crate::kind::Kind;

    #[test]
    fn what_is_reached_is_what_was_marked_again_and_again() {
        let mut toy = Toy::small();
        let array = toy
            .space
            .add_kind(Kind::array("array", 0, Encoding::RAW))
            .unwrap();
        let verify = Verify::new(&toy.space).unwrap();
        let cells: Vec<usize> = (0..1000).map(|_| toy.alloc(array, 48)).collect();
        for at in 1..1000 {
            // SAFETY: cells of ours.
            unsafe {
                (cells[at] as *mut usize).write(cells[at / 2]);
                (cells[at / 2] as *mut usize)
                    .add(1 + at % 2)
                    .write(cells[at]);
            }
        }
        for round in 0..3 {
            verify.begin();
            verify.source(Source::Stack(7));
            verify.root(cells[17 + round] - toy.space.base());
            toy.mark(&[cells[17 + round]]);
            verify.check(&toy.space, 1);
            let reached = verify.from.iter().take(verify.top.load(Ordering::Relaxed));
            assert_eq!(
                reached
                    .filter(|from| from.load(Ordering::Relaxed) != 0)
                    .count(),
                1000
            );
            toy.finish();
        }
    }

    #[test]
    fn sources_are_named() {
        for (source, name) in [
            (Source::Tables, "a handle, a root range or a root callback"),
            (Source::Stack(0), "the stack or a register of mutator 0"),
            (Source::Stack(9), "the stack or a register of mutator 9"),
            (Source::Handles(0), "a handle of a scope of mutator 0"),
            (Source::Handles(3), "a handle of a scope of mutator 3"),
            (
                Source::Aside(2),
                "the stack or a handle of mutator 2 of those that are aside",
            ),
            (Source::Suspended(7), "suspended stack 7"),
        ] {
            assert_eq!(Named(source.word()).to_string(), name);
        }
    }
}
