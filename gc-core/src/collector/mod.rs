//! A collection, from the request to the last swept span: the phases as a state machine.
//!
//! ```text
//!     Idle -- request --> Prepare ==> Scan ---> Mark -- stop 2 --> Finish ==> ClearWeak
//!                              stop 1           ^                  |  ^           ||
//!                                               '------------------'  |           \/
//!                                    too much is left: mark on        |       Resurrect
//!                                                                     |           ||
//!                                  long weak words were loaded: again '-----------||
//!                                                                                 \/
//!     Idle <-- Sweep <-- resume -- Flip <== QueueForDrop <==================  ClearLong
//! ```
//! Mutators run where the arrow is single; `==>` stays in the stop. Where much has died, the stop
//! is left anywhere from `ClearWeak` to `QueueForDrop`, and `SwapBitmaps` stops the world again
//! (`judge.rs`). Marking takes a snapshot of the heap as it was in stop 1 (Yuasa 1990, "Real-time
//! garbage collection on general-purpose machines"): what was reachable then is marked, and so is
//! what was allocated since. These things see to that:
//!
//! * all stacks and ranges are scanned in stop 1, so a change of them needs no barrier; those
//!   of mutators that wait for long stand still, and are scanned later (`aside.rs`);
//! * roots and handles are scanned beside the mutators, and a thread that ends one that has not
//!   been scanned yet logs what it held;
//! * a store to an edge logs the old one (`barrier.rs`), and a load of a weak word logs
//!   what it got;
//! * cells allocated from stop 1 on are black from birth: the rests of runs are marked in stop 1,
//!   new runs when they are installed;
//! * what leaves a table of the collector's for a mutator (the cell of a finalizer, a value to be
//!   dropped) is logged as it leaves.
//!
//! `Finish` makes sure, with all mutators stopped, that no log holds a word and no marker a cell.
//! Whatever it finds is traced right there if that takes some ten microseconds, otherwise beside
//! the mutators again; each such round marks something that the snapshot had, so there is an end to
//! them. With `URGE_STW=1` mutators stay stopped from `Scan` to `SwapBitmaps`; so they do while the heap
//! is so small that `Finish` succeeds at once, and little dies that has to be looked at.
//!
//! # What each phase leaves behind
//! * **Prepare**: every span is swept. The spare bitmap is zero, or in a young collection has the
//!   marks of all old cells and no others. Marking can begin at any time.
//! * **Scan**: every cell that a stack or a range names is marked, and so is what mutators will
//!   allocate from their present runs. Stores are logged.
//! * **Mark**: every cell that a root named in stop 1 is marked or logged. No marker knows of a
//!   grey cell, but a mutator may, in its log. Old cells that may have changed have been followed.
//! * **Finish**: mutators are stopped, and no edge leads from a marked cell to an unmarked one.
//! * **ClearWeak**: no short weak word of a marked cell leads to an unmarked cell, and no
//!   ephemeron's key is unmarked.
//! * **Resurrect**: every unmarked cell is without a finalizer; what leads to it is unmarked, or a
//!   long weak word.
//! * **ClearLong**: no weak word at all leads from a marked cell to an unmarked one.
//! * **QueueForDrop**: values that need `Drop` and died are queued for it, and marked, with null
//!   edges. Nothing leads to them: weak words have been cleared before, so a value that is about to
//!   be dropped cannot be found.
//! * **SwapBitmaps**: allocated cells are exactly those that were marked. The others are free, though no
//!   sweep has found them yet. Stores are not logged.
//! * **Sweep**: allocation finds the free cells.
//!
//! The collector is a thread of its own and never a mutator, so it can be neither stopped nor
//! waited for by a stop. Between a stop and its resume it calls nothing that takes a lock of the
//! process's: no malloc, no printing. All it writes was mapped beforehand.

mod aside;
mod background;
mod beside;
mod cycle;
mod fork;
mod judge;
mod pace;
mod phase;
mod requests;
mod run;
mod scan;
mod state;
mod stress;
mod swap_bitmaps;
mod tracing;

pub(crate) use aside::back;
pub(crate) use fork::enrol;
pub(crate) use pace::Pace;
pub(crate) use requests::Requests;
pub(crate) use run::spawn;
pub(crate) use state::{OldMarks, OverFork, State};
