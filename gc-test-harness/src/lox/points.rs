//! Points: the instructions of compiled code at which a green thread may be suspended.
//!
//! A loop's head and a function's first block begin with one, in an isolate with green threads. It
//! is Cranelift's `sequence_point`, which takes no instruction. No load crosses it: what an
//! instruction behind it knows of a cell or a global was loaded behind it.
//!
//! # Concurrency
//! The isolate's thread adds compiled functions. A signal handler on this thread reads the table at
//! any instruction. So the table is a list that only grows at its head: a reader finds all
//! functions, or all but the newest one.

use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The points of an isolate's compiled code.
#[derive(Debug, Default)]
pub struct Points {
    newest: AtomicPtr<Function>,
}

#[derive(Debug)]
struct Function {
    range: Range<usize>,
    /// Addresses in ascending order.
    points: Box<[usize]>,
    older: *mut Function,
}

impl Points {
    /// Adds a function with the addresses of its points.
    pub fn add(&self, range: Range<usize>, mut points: Vec<usize>) {
        points.sort_unstable();
        let function = Box::new(Function {
            range,
            points: points.into(),
            // Relaxed: this thread alone adds.
            older: self.newest.load(Ordering::Relaxed),
        });
        // Release: a handler on this thread finds the function whole. (It needs no more than the
        // order of the instructions.)
        self.newest
            .store(Box::into_raw(function), Ordering::Release);
    }

    /// Whether an instruction is a point; `None` if it is not compiled code. Async-signal-safe.
    pub fn at(&self, pc: usize) -> Option<bool> {
        // Acquire pairs with the Release in `add`.
        let mut function = self.newest.load(Ordering::Acquire);
        // SAFETY: `add` made the functions, which live as long as the table and do not change.
        while let Some(this) = unsafe { function.as_ref() } {
            if this.range.contains(&pc) {
                return Some(this.points.binary_search(&pc).is_ok());
            }
            function = this.older;
        }
        None
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        let mut function = std::mem::replace(self.newest.get_mut(), null_mut());
        while !function.is_null() {
            // SAFETY: `add` made the pointer from a box, and the table is not used any more.
            function = unsafe { Box::from_raw(function) }.older;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Points;

    #[test]
    fn functions_are_found_with_their_points() {
        let points = Points::default();
        assert_eq!(points.at(5), None);
        points.add(10..20, vec![17, 12]);
        points.add(30..40, vec![]);
        let found = [9, 10, 12, 17, 20, 35].map(|pc| points.at(pc));
        let (no, yes) = (Some(false), Some(true));
        assert_eq!(found, [None, no, yes, yes, None, no]);
    }
}
