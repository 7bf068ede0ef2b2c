//! Copies a heap's graph in a stop: its cells, their edges and its roots. `inspect.rs` and
//! `snapshot.rs` read the copy while the program runs again.
//!
//! A stopped thread may hold malloc's lock, so the stop fills tables that were mapped before it. If
//! the heap has outgrown them meanwhile, the mutators are resumed, and the stop is made again with
//! larger tables.
//!
//! Another thread makes the stop, because a mutator cannot stop its own world. The caller waits for
//! it in `blocking`, where its stack and handles are roots like those of any other mutator.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::fmt;

use gc_preempt::{StopError, Stopped};

use crate::api::heap::Heap;
use crate::encoding::Encoding;
use crate::heap::{Cell, PAGE};
use crate::kind::KindId;
use crate::memory::MapError;
use crate::memory::tables::Mapped;
use crate::mutator::record::context_of;
use crate::roots::Lister;
use crate::thread::Thread;

/// Why a heap could not be inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InspectError {
    /// The mutators could not be stopped.
    Stop(StopError),
    /// The system refused addresses or memory for the copy of the graph.
    Map(MapError),
    /// The system refused a thread.
    Thread,
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop(error) => write!(f, "the heap cannot be inspected here: {error}"),
            Self::Map(error) => write!(f, "no memory for a copy of the heap's graph: {error}"),
            Self::Thread => f.write_str("no thread to inspect the heap from"),
        }
    }
}

impl std::error::Error for InspectError {}

impl From<StopError> for InspectError {
    fn from(error: StopError) -> Self {
        Self::Stop(error)
    }
}

impl From<MapError> for InspectError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Where a root lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RootPlace {
    /// A [`Root`](crate::Root) or [`RawRoot`](crate::raw::RawRoot).
    Root,
    /// A root range or a root callback.
    Range,
    /// A suspended stack, by its number.
    Suspended(usize),
    /// An open scope's handle of the mutator of this number.
    Handle(usize),
    /// The stack or a register of the mutator of this number.
    Stack(usize),
}

impl fmt::Display for RootPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("a Root"),
            Self::Range => f.write_str("a root range or a root callback"),
            Self::Suspended(stack) => write!(f, "suspended stack {stack}"),
            Self::Handle(mutator) => write!(f, "a handle of a scope of mutator {mutator}"),
            Self::Stack(mutator) => write!(f, "the stack or a register of mutator {mutator}"),
        }
    }
}

impl RootPlace {
    fn word(self) -> usize {
        let (tag, number) = match self {
            Self::Root => (0, 0),
            Self::Range => (1, 0),
            Self::Suspended(number) => (2, number),
            Self::Handle(number) => (3, number),
            Self::Stack(number) => (4, number),
        };
        number << 3 | tag
    }

    fn of(word: usize) -> Self {
        match (word & 7, word >> 3) {
            (0, _) => Self::Root,
            (1, _) => Self::Range,
            (2, number) => Self::Suspended(number),
            (3, number) => Self::Handle(number),
            (_, number) => Self::Stack(number),
        }
    }
}

/// A list in mapped memory that grows without malloc. Relaxed throughout: one thread writes it, and
/// its readers got the list from that thread's end.
struct List {
    words: Mapped<AtomicUsize>,
    len: usize,
}

impl List {
    fn new(words: usize) -> Result<Self, MapError> {
        Ok(Self {
            words: Mapped::growing(words)?,
            len: 0,
        })
    }

    /// Adds a word. `false`: the list is full, or the system refuses memory.
    fn push(&mut self, word: usize) -> bool {
        let at = self.len;
        let fits = at < self.words.writable() || {
            at < self.words.len() && self.words.make_writable(at + 1).is_ok()
        };
        if fits {
            self.words[at].store(word, Ordering::Relaxed);
            self.len += 1;
        }
        fits
    }

    fn get(&self, at: usize) -> usize {
        debug_assert!(at < self.len);
        self.words[at].load(Ordering::Relaxed)
    }
}

/// Words of a cell in [`Capture::cells`]: its base, its size and kind, and the end of its edges.
const CELL: usize = 3;

/// A heap's graph, as it was in one stop. Cells are numbered in the order of their addresses.
pub(super) struct Capture {
    cells: List,
    /// The first bytes of the cells that edges lead to, in the order of the cells that have them.
    edges: List,
    /// Two words for each root: its cell's first byte, and its place.
    roots: List,
    is_full: bool,
}

impl Capture {
    /// Copies the graph of `heap`. With `edges` false it copies cells only.
    pub(super) fn of(heap: &Heap, edges: bool) -> Result<Self, InspectError> {
        /// Words for cells, edges and roots that a heap gets between the look at its size and the
        /// stop.
        const SLACK: usize = 1 << 20;
        let mut scale = 1;
        loop {
            let bytes = heap.shared().space.top() * PAGE * scale;
            let mut capture = Self {
                cells: List::new(bytes / 16 * CELL + SLACK * scale)?,
                edges: List::new(if edges { bytes / 8 + SLACK * scale } else { 1 })?,
                roots: List::new(if edges { bytes / 8 + SLACK * scale } else { 1 })?,
                is_full: false,
            };
            heap.with_stopped(|stopped| capture.fill(heap, stopped, edges))?;
            // Beyond this the system has refused memory.
            if !capture.is_full {
                return Ok(capture);
            }
            if scale >= 64 {
                let bytes = (capture.cells.len + capture.edges.len + capture.roots.len) * 8;
                let errno = libc::ENOMEM;
                return Err(MapError { bytes, errno }.into());
            }
            scale *= 4;
        }
    }

    fn fill(&mut self, heap: &Heap, stopped: &Stopped<'_>, edges: bool) {
        let shared = heap.shared();
        let space = &shared.space;
        let mut is_full = false;
        let (cells, targets) = (&mut self.cells, &mut self.edges);
        space.for_each_cell(&mut |cell: Cell| {
            if edges {
                space.for_each_edge(cell, &mut |target| is_full |= !targets.push(target.base));
            }
            let kind = cell.size << 16 | cell.kind.index();
            is_full |= ![cell.base, kind, targets.len]
                .into_iter()
                .all(|word| cells.push(word));
        });
        if edges {
            let roots = &mut self.roots;
            let mut list = |place: RootPlace, from: &mut dyn FnMut(&mut Lister<'_>)| {
                let mut found = |cell: Cell| {
                    is_full |= !(roots.push(cell.base) && roots.push(place.word()));
                };
                from(&mut Lister::new(space, &shared.encodings, &mut found));
            };
            list(RootPlace::Root, &mut |lister| {
                shared
                    .roots
                    .for_each(|word| lister.word(word, Encoding::RAW));
            });
            list(RootPlace::Range, &mut |lister| lister.tables(&shared.roots));
            let are_roots = shared.stacks.are_roots();
            for (number, stack) in stopped.suspended().enumerate() {
                if are_roots || !shared.dying.is_empty() {
                    list(RootPlace::Suspended(number), &mut |lister| {
                        stack.walk(lister);
                    });
                }
            }
            for (number, mutator) in stopped.mutators().chain(stopped.aside()).enumerate() {
                let context = context_of(&mutator);
                if let Some(context) = context {
                    list(RootPlace::Handle(number), &mut |lister| {
                        let handles = &context.handles;
                        handles.for_each_open(|word| lister.word(word, Encoding::RAW));
                    });
                }
                if are_roots || context.is_none_or(|context| !context.is_exact()) {
                    list(RootPlace::Stack(number), &mut |lister| {
                        mutator.walk(lister);
                    });
                }
            }
        }
        self.is_full = is_full;
    }

    /// The number of cells.
    pub(super) fn len(&self) -> usize {
        self.cells.len / CELL
    }

    pub(super) fn base(&self, cell: usize) -> usize {
        self.cells.get(cell * CELL)
    }

    pub(super) fn size(&self, cell: usize) -> usize {
        self.cells.get(cell * CELL + 1) >> 16
    }

    pub(super) fn kind(&self, cell: usize) -> KindId {
        KindId(self.cells.get(cell * CELL + 1) as u16)
    }

    /// The cells that a cell's edges lead to, once for each edge.
    pub(super) fn edges(&self, cell: usize) -> impl Iterator<Item = usize> + '_ {
        let end = |cell: usize| self.cells.get(cell * CELL + 2);
        let from = cell.checked_sub(1).map_or(0, end);
        (from..end(cell)).filter_map(|edge| self.find(self.edges.get(edge)))
    }

    /// The roots: the place and the cell of each.
    pub(super) fn roots(&self) -> impl Iterator<Item = (RootPlace, usize)> + '_ {
        (0..self.roots.len / 2).filter_map(|at| {
            let cell = self.find(self.roots.get(2 * at))?;
            Some((RootPlace::of(self.roots.get(2 * at + 1)), cell))
        })
    }

    /// The cell that begins at `base`.
    pub(super) fn find(&self, base: usize) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.base(middle).cmp(&base) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// Runs `f` on a thread that may stop the heap, and waits for it.
///
/// # Panics
/// As [`Heap::collect`].
#[track_caller]
pub(super) fn on_another_thread<R: Send>(
    f: impl FnOnce() -> Result<R, InspectError> + Send,
) -> Result<R, InspectError> {
    assert!(
        !gc_preempt::in_no_preempt_here(),
        "a heap is inspected inside no_preempt: the stop would wait for the end of the section"
    );
    if gc_preempt::holds_a_stop() {
        return Err(StopError::HoldsAStop.into());
    }
    gc_preempt::blocking_here(|| {
        let mut result = Err(InspectError::Thread);
        let body = || result = f();
        // SAFETY: the thread is joined below, before what it borrows is gone.
        let thread = unsafe { Thread::start("urge-inspector", body) };
        thread.map_err(|_| InspectError::Thread)?.join();
        result
    })
}
