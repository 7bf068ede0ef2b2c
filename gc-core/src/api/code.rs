//! Machine code that an embedder has made: its frames are scanned by stack maps.

use std::any::Any;
use std::ops::Range;

use gc_preempt::stackmap::StackMaps;
use gc_preempt::{CodeError, CodeGuard, CodeSpec, CodeWhat, FrameRule};

use crate::api::heap::Heap;
use crate::encoding::Encoding;

impl Heap {
    /// Registers managed code with its stack maps: frames of it that are stopped at a call are
    /// scanned exactly, slot words being edges of `encoding`. Dropping the guard ends that once no
    /// stack returns into `range` any more; `owner` is dropped then.
    ///
    /// # Errors
    /// [`CodeError`]: the range is empty or overlaps other code.
    ///
    /// # Safety
    /// As for [`World::register_code`](gc_preempt::World::register_code): the code stays mapped until `owner` is dropped (for ever
    /// without one), keeps the System V convention and the frame rule, and at each call every
    /// reference that lives across it stands in a slot that `maps` names.
    pub unsafe fn register_code(
        &self,
        range: Range<usize>,
        frames: FrameRule,
        maps: StackMaps,
        encoding: Encoding,
        owner: Option<Box<dyn Any + Send>>,
    ) -> Result<CodeGuard, CodeError> {
        self.shared().stacks.are_used();
        let encoding = self.shared().encodings.number(encoding);
        let encoding = encoding.expect("a heap has less than 1024 encodings");
        let spec = CodeSpec {
            range,
            what: CodeWhat::Managed {
                frames,
                maps,
                encoding,
            },
            owner,
        };
        // SAFETY: the caller's contract.
        unsafe { self.shared().world.register_code(spec) }
    }
}
