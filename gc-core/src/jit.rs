//! For compilers: what machine code finds at fixed offsets, what it calls, and how it is
//! registered.
//!
//! A mutator's record is a [`Context`]; [`Mutator::context`](crate::Mutator::context) gives its
//! address, which is constant while the thread is attached. Machine code may bake it in or keep it
//! in a register. It allocates inline from a [`Run`], which
//! [`Mutator::runs`](crate::Mutator::runs) describes.
//!
//! # Allocation
//! With `R` the address of the site's run, which is that of
//! [`Mutator::runs`](crate::Mutator::runs) plus [`Site::index`](crate::raw::Site::index) times the
//! size of a [`Run`], and `size` the site's [`size`](crate::raw::Site::size), an allocation is five
//! instructions:
//! ```text
//!     start:  mov  cell, [R]                         ; the cursor
//!             lea  next, [cell + size]
//!             cmp  next, [R + 8]                     ; the limit
//!             ja   slow                              ; out of line: call Mutator::alloc_at
//!             mov  [R], next
//!     end:
//! ```
//! `[start, end)` is a [restart range](CodeSpec::restart_range). The first store into the cell
//! comes after it.
//!
//! # The write barrier and the weak load
//! Both units follow the System V convention and may be called from managed code like any C
//! function:
//!
//! | unit | address | rdi | rsi | rdx | result |
//! |---|---|---|---|---|---|
//! | store | [`store_address`] | `*mut Context` | address of the word | new word | none |
//! | weak load | [`load_weak_address`] | `*mut Context` | address of the word | | rax |
//!
//! A JIT treats them as calls. Their short path clobbers rax, rcx and the flags only. Where the log
//! is full, the other caller-saved registers are lost as well: r8 to r11, and the vectors.
//!
//! A code generator that decides the place of every instruction (an assembler, a template JIT) may
//! have them inline. With `C` the record:
//! ```text
//!     start:  cmp  dword ptr [C + CONTEXT_MARKING], 0
//!             je   store
//!             mov  t0, [slot]
//!             mov  t1, [C + CONTEXT_LOG_CURSOR]
//!             cmp  t1, [C + CONTEXT_LOG_LIMIT]
//!             je   full                          ; out of line: call the store unit, go to `end`
//!             mov  [t1], t0
//!             add  t1, 8
//!             mov  [C + CONTEXT_LOG_CURSOR], t1
//!     store:  mov  [slot], value
//!     end:
//! ```
//! `[start, end)` must be contiguous, must keep `C`, `slot` and `value` in place, and must be
//! a [restart range](CodeSpec::restart_range) of its code. Cranelift promises none
//! of this: call the unit.

pub use crate::alloc::Run;
pub use crate::api::code::{CodeError, CodeGuard, CodeSpec};
pub use crate::barrier::{load_weak_address, store_address};
pub use crate::mutator::record::{
    CONTEXT_LOG_CURSOR, CONTEXT_LOG_LIMIT, CONTEXT_MARKING, CONTEXT_RUNS, Context,
};
pub use gc_preempt::FrameRule;
pub use gc_preempt::stackmap::StackMaps;
