//! The pacer: it decides when to collect, how hard, and who pays. Pure functions of the numbers of
//! past cycles.
//!
//! All of it is arithmetic on numbers that the collector passes, so `simulation.rs` can run it on
//! simulated programs: steady ones, growing ones, bursts, heaps of a terabyte.
//!
//! # The heap's goal
//! The rule is Go's (`mgcpacer.go`, design 44167). The heap may grow by `gc_percent` of what is
//! alive *and* of what has to be scanned besides (stacks, root ranges, globals), since both are the
//! cost of a collection. A minimum keeps a small program from collecting all the time. Marking
//! should be done when the heap reaches the goal.
//!
//! The collector finds out what is alive in its snapshot only. It keeps all cells that mutators
//! were given while it marked (they are *allocated black*), and does not look at them. Go counts
//! all of them as alive, so a program that allocates much while it is marked gets a goal twice as
//! far off as it should. This pacer counts the part by which the heap has grown: of the bytes
//! allocated between two snapshots, the share by which the second one's live bytes exceed the
//! first's. In a steady program, which frees as much as it allocates, that share is nothing; in a
//! program that only builds, it is all.
//!
//! # The trigger
//! ```text
//!            |<------------- distance ------------>|
//!            |                     |<---- lead --->|
//!     now ---+---------------------+-------+-------+ goal
//!      |                           |       |
//!      live + allocated black   trigger  begin: the world is stopped, marking begins
//! ```
//! The lead is the bytes that mutators allocate until marking is done: until the collector has
//! woken and stopped the world (*lag*, which is large while sweeping is not finished), and then
//! while it marks (*runway*). The pacer predicts both from the last cycles. The runway is the
//! expected work times the bytes that mutators allocated for each cell that the background marked.
//! This is Go's cons/mark ratio, but measured with the share of the machine that the collector
//! really had, so it includes an idle processor or a busy neighbour. The pacer adds the time that
//! mutators lost in assists, so that the next trigger is early enough to need no assists.
//!
//! A prediction that was too short is corrected at once, one that was too long by half: ending
//! below the goal costs a little processor time, ending above it costs memory and assists. (Go had
//! a PI controller here, and now takes the largest of the last four ratios, to the same end.)
//!
//! The lead leaves a rest of half the distance, and of at most 64 MiB. An earlier trigger would
//! only make the collector mark the same cells more often for the same bytes, and keep more cells
//! that were allocated black meanwhile. If a lead of half is not enough, the pacer puts the goal
//! off until it is, at most about to Go's goal, which counts all cells allocated black as alive
//! (here: 64 MiB of them). So the collector of a small heap rests as long as it marks. If it cannot
//! keep up even so, mutators assist (`assist.rs`). Two designs lost: no rest, and a rest of half
//! the distance in heaps of any size (docs/experiments.md).
//!
//! # The memory limit
//! A soft limit lowers the goal (design 48409): to the limit less the memory that the heap takes
//! beside cells, less a little headroom. If nearly all of the limit is alive there is no distance
//! left, and every cycle would trigger the next. So a limit leaves a least distance. Once
//! collecting has taken as much time as the mutators had, for a second of each processor
//! (`limiter.rs`), the distance is at least what the mutators allocate in the time of a cycle. Then
//! the heap passes its limit instead of stopping the program. A hard limit lowers the goal in the
//! same way; the allocator enforces it.
//!
//! Time alone is no bound if cycles are short. So if the live bytes leave no room below a soft
//! limit, each cycle leaves twice the distance of the one before, up to a tenth of the live bytes.
//! Then the program is marked about as often for each byte that it allocates as at
//! `gc_percent(10)`, and `Plan::over_limit` says that the limit is not kept. If there is a little
//! room, less than 1/64 of the live bytes, the distance is 1/64: a limit that is passed by that
//! much is kept as well as possible.

mod assist;
mod cycle;
mod generation;
mod limiter;
mod plan;
mod planner;
mod share;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod vain;

pub(crate) use assist::{Marking, assist_credit, moment};
pub(crate) use cycle::Cycle;
pub(crate) use planner::{Pacer, Policy};
pub(crate) use share::{Share, rest, share};
pub(crate) use vain::Vain;
