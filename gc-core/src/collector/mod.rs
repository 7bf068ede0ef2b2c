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
//!     Idle <-- Sweep <-- resume -- SwapBitmaps <== QueueForDrop <===========  ClearLong
//! ```
//!
//! Mutators run where the arrow is single; `==>` stays in the stop. Where much has died, the
//! collector resumes the mutators in a phase from `ClearWeak` to `QueueForDrop`, and `SwapBitmaps`
//! stops the world again (`judge.rs`).
//!
//! Marking takes a snapshot of the heap as it is in stop 1 (Yuasa 1990, "Real-time garbage
//! collection on general-purpose machines"): it marks what is reachable then, and what is allocated
//! afterwards. Five rules make this true:
//!
//! * Stop 1 scans all stacks and root ranges, so a change of them needs no barrier. The stack of a
//!   mutator that is aside does not change, and is scanned later (`aside.rs`). A suspended stack is
//!   scanned later, too, and does not run before (`suspended.rs`).
//! * Roots and handles are scanned beside the mutators. A thread that ends one that has not been
//!   scanned yet logs the word that it held.
//! * A store to an edge logs the old word (`barrier.rs`), and a load of a weak word logs the word
//!   that it returns.
//! * Cells that are allocated from stop 1 on are allocated black: stop 1 marks the tails of all
//!   runs, and a new run is marked when it is installed.
//! * A cell that leaves a table of the collector for a mutator (the cell of a finalizer, a value
//!   that is to be dropped) is logged as it leaves.
//!
//! `Finish` makes sure, with all mutators stopped, that no log holds a word and no marker a cell.
//! It traces what it finds in the stop if that takes some ten microseconds, otherwise beside the
//! mutators again. Each such round marks a cell of the snapshot, so the rounds come to an end. With
//! `URGE_STW=1` mutators stay stopped from `Scan` to `SwapBitmaps`. They also stay stopped if the
//! heap is so small that `Finish` succeeds at once and few cells have died.
//!
//! # What each phase guarantees at its end
//! * **Prepare**: every span is swept. The spare bitmap is zero, or in a young collection has the
//!   marks of all old cells and no others. Marking can begin at any time.
//! * **Scan**: every cell that a stack or a range names is marked, and so are the cells that
//!   mutators will allocate from their present runs. Stores are logged.
//! * **Mark**: every cell that a root named in stop 1 is marked or logged. No marker has a grey
//!   cell, but a mutator may have one in its log. Old cells that may have changed have been
//!   followed.
//! * **Finish**: mutators are stopped, and no edge leads from a marked cell to an unmarked one.
//! * **ClearWeak**: no short weak word of a marked cell leads to an unmarked cell, and no
//!   ephemeron's key is unmarked.
//! * **Resurrect**: every unmarked cell is without a finalizer. Only unmarked cells and long weak
//!   words lead to it.
//! * **ClearLong**: no weak word at all leads from a marked cell to an unmarked one.
//! * **QueueForDrop**: dead values that need `Drop` are queued for drop, and marked, with null
//!   edges. Nothing leads to them: all weak words have been cleared before, so no mutator can find
//!   a value that is about to be dropped.
//! * **SwapBitmaps**: allocated cells are exactly the marked ones. The others are free, though no
//!   sweep has found them yet. Stores are not logged.
//! * **Sweep**: allocation finds the free cells.
//!
//! The collector is a thread of its own and never a mutator, so no stop stops it or waits for it.
//! Between a stop and its resume it takes no lock that the process shares with the host: it calls
//! no malloc and prints nothing. All memory that it writes there was mapped beforehand.

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
mod suspended;
mod swap_bitmaps;
mod tracing;

pub(crate) use aside::back;
pub(crate) use fork::enrol;
pub(crate) use pace::Pace;
pub(crate) use requests::Requests;
pub(crate) use run::spawn;
pub(crate) use state::{IdleAfter, OldMarks, OverFork, State};
pub(crate) use suspended::hooks;
