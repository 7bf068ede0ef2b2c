//! For compilers: the offsets that machine code uses, the routines that it calls, and its
//! registration.
//!
//! [`CodeSpec`] describes machine code, and [`Heap::register_code`](crate::Heap::register_code)
//! registers it.
//!
//! A mutator's record is a [`Context`]. [`Mutator::context`](crate::Mutator::context) gives its
//! address, which is constant while the thread is attached, so machine code may have it as a
//! constant or in a register. Machine code allocates inline from a [`Run`] of
//! [`Mutator::runs`](crate::Mutator::runs).
//!
//! # Allocation
//!
//! Let `R` be the address of the site's run: [`Mutator::runs`](crate::Mutator::runs) plus
//! [`Site::index`](crate::raw::Site::index) times the size of a [`Run`]. Let `size` be the site's
//! [`size`](crate::raw::Site::size) in bytes. An allocation is five instructions:
//!
//! ```text
//!     start:  mov  cell, [R]                         ; the cursor
//!             lea  next, [cell + size]
//!             cmp  next, [R + 8]                     ; the limit
//!             ja   slow                              ; out of line: call Mutator::alloc_at
//!             mov  [R], next
//!     end:
//! ```
//!
//! `[start, end)` must be registered as a [restart range](CodeSpec::restart_range). The first store
//! into the cell comes after it.
//!
//! # The write barrier and the weak load
//!
//! Both routines follow the System V convention, and managed code may call them like any C
//! function:
//!
//! | routine | address | rdi | rsi | rdx | result |
//! |---|---|---|---|---|---|
//! | store | [`store_address`] | `*mut Context` | address of the word | new word | none |
//! | weak load | [`load_weak_address`] | `*mut Context` | address of the word | | rax |
//!
//! A JIT treats them as calls. Their short path changes rax, rcx and the flags only. If the log is
//! full, they change the other caller-saved registers as well: r8 to r11, and the vector registers.
//!
//! A code generator that places every instruction itself (an assembler, a template JIT) may emit
//! the store inline. With `C` the address of the record:
//!
//! ```text
//!     start:  cmp  dword ptr [C + CONTEXT_MARKING], 0
//!             je   store
//!             mov  t0, [slot]
//!             mov  t1, [C + CONTEXT_LOG_CURSOR]
//!             cmp  t1, [C + CONTEXT_LOG_LIMIT]
//!             je   full                          ; out of line: call the store routine, then `end`
//!             mov  [t1], t0
//!             add  t1, 8
//!             mov  [C + CONTEXT_LOG_CURSOR], t1
//!     store:  mov  [slot], value
//!     end:
//! ```
//!
//! `[start, end)` must be contiguous, must leave `C`, `slot` and `value` unchanged, and must be
//! registered as a [restart range](CodeSpec::restart_range). Cranelift guarantees none of this, so
//! its code calls the routine.

pub use crate::alloc::Run;
pub use crate::api::code::{CodeError, CodeGuard, CodeSpec};
pub use crate::barrier::{load_weak_address, store_address};
pub use crate::mutator::record::{
    CONTEXT_LOG_CURSOR, CONTEXT_LOG_LIMIT, CONTEXT_MARKING, CONTEXT_RUNS, Context,
};
pub use gc_preempt::FrameRule;
pub use gc_preempt::stackmap::StackMaps;
