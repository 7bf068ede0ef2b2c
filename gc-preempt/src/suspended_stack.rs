//! The view of a suspended stack, for the owner of its world.

use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::Ordering;

use crate::code::CODE;
use crate::stack_record::StackRecord;
use crate::walk::{self, RootSink, WalkStats};

/// A [`Stack`](crate::Stack) whose frames stand still: in a stop, or under the registry lock.
pub struct SuspendedStack<'s> {
    pub(crate) stack: &'static StackRecord,
    /// The number of the stop; [`NEVER`](crate::unwind::NEVER) outside of stops.
    pub(crate) number: u64,
    /// Borrows from the holder of the registry lock.
    pub(crate) _held: PhantomData<&'s ()>,
}

impl SuspendedStack<'_> {
    /// The word that [`Stack::set_data`](crate::Stack::set_data) has set.
    pub fn data(&self) -> *mut () {
        self.stack.data.load(Ordering::Relaxed)
    }

    /// The addresses of the stack, in use or not.
    pub fn memory(&self) -> Range<usize> {
        self.stack.memory.clone()
    }

    /// SP where the stack was left. The words below are not in use.
    pub fn sp(&self) -> usize {
        self.stack.left.sp()
    }

    /// Walks the stack's frames from where it was left, and reports their words to `sink`.
    ///
    /// The rules for the sink are those of a stop's walk, also beside the program, since the
    /// registry lock is held.
    pub fn walk(&self, sink: &mut dyn RootSink) -> WalkStats {
        // SAFETY: the holder of the registry lock, from which this value borrows, keeps the frames
        // from running (see the head of `stack_record.rs`), and the stack is registered, so it is
        // mapped.
        unsafe {
            walk::walk_left(
                &CODE,
                self.number,
                &self.stack.left,
                self.stack.frames(),
                sink,
            )
        }
    }
}
