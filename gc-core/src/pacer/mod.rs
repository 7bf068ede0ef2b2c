//! When to collect, how hard, and who pays: pure functions of what the last cycles were.
//!
//! Everything here is arithmetic on numbers that the collector hands in, so that `simulation.rs`
//! can run it against programs that do not exist: steady ones, growing ones, bursts, heaps of a
//! terabyte.
//!
//! # The heap's goal
//! The rule is Go's (`mgcpacer.go`, design 44167): the heap may grow by `gc_percent` of what is
//! alive *and* of what has to be scanned besides (stacks, root ranges, globals), since both are the
//! cost of a collection; never below a minimum, lest a small program does nothing but collect. By
//! then marking should be done.
//!
//! What is alive is known of the snapshot only. What was handed out while it was being marked
//! (*born*) is kept unseen: Go counts all of it as alive, so that a program that allocates much
//! while it is marked gets a goal twice as far off as it deserves. We count of it what the heap has
//! grown by: of the bytes allocated between two snapshots, the part by which the second one's live
//! bytes exceed the first's. That is nothing in a steady program, which frees as much as it
//! allocates, and all of it in one that only builds.
//!
//! # The trigger
//! ```text
//!            |<------------- distance ------------>|
//!            |                     |<---- lead --->|
//!     now ---+---------------------+-------+-------+ goal
//!      |                           |       |
//!      live + born              trigger  begin: the world is stopped, marking begins
//! ```
//! The lead is what mutators allocate until marking is done: until the collector has woken and
//! stopped the world (*lag*, which is large where sweeping is not finished), and then while it
//! marks (*runway*). Both are predicted from the last cycles. The runway is the work that is
//! expected, times the bytes that were allocated per cell that the background marked: Go's
//! cons/mark ratio, but taken at the share of the machine that the collector really had, so that an
//! idle processor, or a busy neighbour, is in it without being modelled. Time that mutators lost by
//! helping is put back, so that the next trigger is early enough to need no help.
//!
//! A prediction that fell short is believed at once, one that was too long by halves: ending below
//! the goal costs a little processor time, ending above it costs memory and help. (Go had a PI
//! controller here, and now takes the largest of the last four ratios, to the same end.)
//!
//! The lead leaves a rest of half the distance, or of 64 MiB where that is less: an earlier trigger
//! would only have the collector mark the same cells more often for the same bytes, and keep more
//! that was born meanwhile. Where a lead of half is not enough the goal is put off until it is, at
//! most about to where Go's is, which counts all that was born as alive (we: 64 MiB of it). So the
//! collector of a small heap rests as long as it marks. If it cannot keep up even so, mutators help
//! (`assist.rs`). Before, a program that allocates while it is marked as much as its heap may grow
//! by was marked nearly all the time: `gclab trees 20` for 21 of each 29 MiB, with a third of its
//! mutator's time in help, and took 1.26 times as long (six pairs). And with a rest of half the
//! distance in heaps of any size, a graph of 1 GiB that lies at random, whose cells take 80 ns each
//! then, ended its cycles a sixth above their goal, and its mutator helped for a quarter to a third
//! of their time: of the worst hundredth of windows of 10 ms it had 0.51 at best, and has 0.75
//! (`gclab mark 1024 --concurrent`).
//!
//! # The memory limit
//! A soft limit lowers the goal (design 48409): limit less what the heap takes beside cells, less a
//! little headroom. Where nearly all of it is alive there is no distance left, and every cycle
//! would trigger the next. So a limit leaves a least distance, and once collecting has taken as
//! much time as the mutators had, for a second of each processor's (`limiter.rs`), one that the
//! mutators need as long for as the collector for a cycle. Then the heap passes its limit instead
//! of the program coming to a halt. A hard limit lowers the goal in the same way; what it refuses
//! is the allocator's business.
//!
//! Time alone is no bound where cycles are short: 16 MiB alive under a limit of 8 were marked 200
//! times a second, at half of all time, and the limit was passed all the same. So where what is
//! alive leaves no room below a soft limit, cycles are in vain: each leaves twice the distance of
//! the one before, up to a tenth of what is alive. Then the program is marked about as often for
//! each byte that it allocates as at `gc_percent(10)`, and `Plan::over_limit` says that the limit
//! is not kept. Where there is a little room, less than 1/64 of what is alive, the distance is
//! 1/64: a limit that is passed by that much is kept as well as one can be.

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
