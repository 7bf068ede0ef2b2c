//! What a heap holds, and why: a count of cells by kind, and the path from a root to a cell.

use std::fmt;
use std::ptr::NonNull;

use crate::api::capture::{Capture, InspectError, RootPlace, on_another_thread};
use crate::api::heap::Heap;
use crate::api::local::Local;
use crate::api::trace::Trace;
use crate::mutator::record::context_of;

/// The cells of a heap by kind: [`Heap::census`]. It displays as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    /// The kinds that have cells, those with the most bytes first.
    pub kinds: Vec<KindCount>,
}

/// The cells of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KindCount {
    /// The name of the kind. Two kinds may have one name.
    pub name: String,
    /// The number of cells.
    pub cells: u64,
    /// Their bytes, with the bytes that rounding up to the size classes adds.
    pub bytes: u64,
}

impl Census {
    /// The number of all cells.
    pub fn cells(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.cells).sum()
    }

    /// The bytes of all cells.
    pub fn bytes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.bytes).sum()
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>14} {:>12}  kind", "bytes", "cells")?;
        for KindCount { name, cells, bytes } in &self.kinds {
            writeln!(f, "{bytes:>14} {cells:>12}  {name}")?;
        }
        write!(f, "{:>14} {:>12}  all", self.bytes(), self.cells())
    }
}

/// The path from a root to a cell: [`Heap::why_alive`]. It displays one cell a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WhyAlive {
    /// Where the root lies.
    pub root: RootPlace,
    /// The cells from the root's cell to the cell in question.
    pub path: Vec<PathStep>,
}

/// One cell of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathStep {
    /// The name of the cell's kind.
    pub kind: String,
    /// The address of the cell.
    pub address: usize,
    /// The bytes of the cell.
    pub bytes: usize,
}

impl fmt::Display for WhyAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "root: {}", self.root)?;
        for PathStep {
            kind,
            address,
            bytes,
        } in &self.path
        {
            write!(f, "\n  {address:#x} {kind:?}, {bytes} bytes")?;
        }
        Ok(())
    }
}

impl Heap {
    /// Counts the heap's cells and their bytes by kind, in a stop. Dead cells count until a
    /// collection has freed them; call [`collect`](Self::collect) first to count the living.
    ///
    /// ```
    /// use gc_core::{Heap, Trace};
    /// #[derive(Default, Trace)]
    /// struct Point { x: f64, y: f64 }
    ///
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// let root = mutator.scope(|s| Ok(heap.root(&s.alloc(Point::default())?)))?;
    /// mutator.collect();
    /// let census = heap.census()?;
    /// assert_eq!((census.cells(), census.kinds[0].bytes), (1, 16));
    /// println!("{census}");
    /// # drop(root);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The caller holds a stop, or the system has no thread.
    ///
    /// # Panics
    /// Inside [`no_preempt`](crate::Mutator::no_preempt).
    #[track_caller]
    pub fn census(&self) -> Result<Census, InspectError> {
        // Room for each kind; the stop calls no malloc.
        let mut counts = vec![(0i64, 0i64); 1 << 16];
        on_another_thread(|| {
            let space = &self.shared().space;
            self.with_stopped(|stopped| {
                let mut count = |cell: crate::heap::Cell, by: i64| {
                    let (cells, bytes) = &mut counts[cell.kind.index()];
                    *cells += by;
                    *bytes += by * cell.size as i64;
                };
                space.for_each_cell(&mut |cell| count(cell, 1));
                // The tails of mutators' runs look like cells, and no program has them yet.
                for mutator in stopped.mutators() {
                    if let Some(context) = context_of(&mutator) {
                        let mut not_yet = |at| {
                            if let Some(cell) = space.resolve(at) {
                                count(cell, -1);
                            }
                        };
                        // SAFETY: the runs are those of a stopped mutator of this heap.
                        unsafe { context.local.for_each_unallocated(space, &mut not_yet) };
                    }
                }
            })?;
            Ok(())
        })?;
        let name = |kind: usize| self.kind_name_of(crate::kind::KindId(kind as u16));
        let mut kinds: Vec<_> = counts
            .iter()
            .enumerate()
            .filter(|(_, (cells, _))| *cells > 0)
            .map(|(kind, (cells, bytes))| KindCount {
                name: name(kind),
                cells: *cells as u64,
                bytes: *bytes as u64,
            })
            .collect();
        kinds.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        Ok(Census { kinds })
    }

    pub(super) fn kind_name_of(&self, kind: crate::kind::KindId) -> String {
        let name = self.shared().space.kinds.borrowed_name(kind);
        name.unwrap_or("?").to_owned()
    }

    /// Why the cell of a handle is alive: a shortest path from a root to it, with the kind, address
    /// and size of each cell on it. Roots that name the cell itself from a handle or from a stack
    /// count only if there is no other path, since the caller has such a handle.
    ///
    /// `None`: no root leads to the cell.
    ///
    /// ```
    /// use gc_core::{Field, Heap, RootPlace, Trace};
    /// #[derive(Default, Trace)]
    /// struct Node { next: Field<Node> }
    ///
    /// let heap = Heap::builder().build()?;
    /// let mutator = heap.attach()?;
    /// mutator.scope(|s| {
    ///     let tail = s.alloc(Node::default())?;
    ///     let head = s.alloc(Node::default())?;
    ///     head.next.set(s, &tail);
    ///     let _root = heap.root(&head);
    ///     let why = heap.why_alive(&tail).unwrap().unwrap();
    ///     assert_eq!((why.root, why.path.len()), (RootPlace::Root, 2));
    ///     println!("{why}");
    ///     Ok(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The caller holds a stop, or the system refuses memory for a copy of the graph: 24 bytes
    /// for each cell and 8 for each edge.
    ///
    /// # Panics
    /// Inside [`no_preempt`](crate::Mutator::no_preempt).
    #[track_caller]
    pub fn why_alive<T: Trace>(
        &self,
        local: &Local<'_, T>,
    ) -> Result<Option<WhyAlive>, InspectError> {
        self.why_alive_raw(local.cell().cast())
    }

    /// As [`why_alive`](Self::why_alive), for the address of a cell's first byte. `None` also
    /// where no cell of this heap begins there. Any thread may ask about any address.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// let elsewhere = std::ptr::NonNull::from(&7).cast();
    /// assert_eq!(heap.why_alive_raw(elsewhere)?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`why_alive`](Self::why_alive).
    ///
    /// # Panics
    /// Inside [`no_preempt`](crate::Mutator::no_preempt).
    #[track_caller]
    pub fn why_alive_raw(&self, cell: NonNull<u8>) -> Result<Option<WhyAlive>, InspectError> {
        let address = cell.as_ptr() as usize;
        on_another_thread(|| {
            let capture = Capture::of(self, true)?;
            let Some(target) = capture.find(address) else {
                return Ok(None);
            };
            let is_direct = |(place, cell): (RootPlace, usize)| {
                let may_ask = matches!(place, RootPlace::Handle(_) | RootPlace::Stack(_));
                may_ask && cell == target
            };
            let found = path_to(&capture, target, |root| !is_direct(root))
                .or_else(|| path_to(&capture, target, |_| true));
            Ok(found.map(|(root, cells)| WhyAlive {
                root,
                path: cells
                    .into_iter()
                    .map(|cell| PathStep {
                        kind: self.kind_name_of(capture.kind(cell)),
                        address: capture.base(cell),
                        bytes: capture.size(cell),
                    })
                    .collect(),
            }))
        })
    }
}

/// A shortest path from one of these roots to a cell, by a search in breadth.
fn path_to(
    capture: &Capture,
    target: usize,
    counts: impl Fn((RootPlace, usize)) -> bool,
) -> Option<(RootPlace, Vec<usize>)> {
    const NONE: usize = usize::MAX;
    let mut from = vec![NONE; capture.len()];
    let mut places = std::collections::HashMap::new();
    let mut reached = Vec::new();
    for (place, cell) in capture.roots().filter(|root| counts(*root)) {
        if from[cell] == NONE {
            from[cell] = cell;
            places.insert(cell, place);
            reached.push(cell);
        }
    }
    let mut at = 0;
    while from[target] == NONE {
        let cell = *reached.get(at)?;
        at += 1;
        for next in capture.edges(cell) {
            if from[next] == NONE {
                from[next] = cell;
                reached.push(next);
            }
        }
    }
    let mut path = vec![target];
    let mut cell = target;
    while from[cell] != cell {
        cell = from[cell];
        path.push(cell);
    }
    path.reverse();
    Some((places[&cell], path))
}
