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
//! each byte that it allocates as at `gc_percent(10)`, and [`Plan::over_limit`] says that the limit
//! is not kept. Where there is a little room, less than 1/64 of what is alive, the distance is
//! 1/64: a limit that is passed by that much is kept as well as one can be.

use crate::config::Young;

mod assist;
mod generation;
mod limiter;
mod share;
#[cfg(test)]
mod simulation;
mod vain;

pub(crate) use assist::{Marking, moment, respite};
use generation::Generation;
use limiter::Limiter;
pub(crate) use share::{Share, rest, share};
pub(crate) use vain::Vain;

/// The least goal, in bytes. Below it a collection costs more in stops than it gives back.
///
/// 4 MiB is Go's figure, measured there to keep a small program under a few collections a second;
/// it is scaled by `gc_percent` as Go does it, so that a caller who asks for a tight heap gets one.
pub(crate) const MINIMUM: u64 = 4 << 20;

/// Even at `gc_percent(0)`, and at a limit, a heap may grow by this much between collections, in
/// bytes: a few runs a mutator.
const LEAST_GROWTH: u64 = 256 << 10;

/// Of what was born, the bytes that count as alive where the collector is kept busy; and those that
/// are allocated at most while it rests. A large heap gets less of a rest: with all that was born
/// counted, a graph of 1 GiB that is changed as fast as it is marked took 6 GiB.
const MOST_BORN: u64 = 64 << 20;

/// The parts of what is alive by which a heap grows from cycle to cycle where that is more than its
/// soft limit has, and where the limit leaves less than that. See the module's head.
const OVER_LIMIT: u64 = 10;
const NEAR_LIMIT: u64 = 64;

/// Cells that the background must have marked for its speed to be believed.
const ENOUGH_WORK: u64 = 4096;

/// What the embedder asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How much the heap may grow over what was live, in percent. `u32::MAX` means: collect only
    /// when asked or at a limit.
    pub gc_percent: u32,
    /// Bytes the heap should keep to.
    pub memory_limit: Option<u64>,
    /// Bytes the heap may hold.
    pub hard_limit: Option<u64>,
    /// Whether a cycle may be a young one.
    pub young: Young,
}

/// What one cycle was. Bytes in use are those of cells and, as reported, of memory outside that
/// they keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cycle {
    /// Bytes in use when its snapshot was taken.
    pub begin: u64,
    /// Bytes of cells that it marked.
    pub live: u64,
    /// Bytes handed out while it marked.
    pub born: u64,
    /// Bytes of stacks, root ranges and handles that were scanned.
    pub roots: u64,
    /// Bytes of memory outside of the heap, in use at its end.
    pub external: u64,
    /// Bytes that the heap takes and no cell does.
    pub overhead: u64,
    /// Cells marked by the collector's threads and by mutators, and those that a young cycle
    /// followed although they were marked.
    pub marked: u64,
    /// Of these, by mutators.
    pub assisted: u64,
    /// How long it marked while mutators ran, in nanoseconds; 0: all in one stop.
    pub beside: u64,
    /// Mutators that wanted to run meanwhile.
    pub running: u32,
    /// Time that mutators spent helping, in nanoseconds, all of them together.
    pub assist: u64,
    /// Processor time that it took the collector's threads, and what stops took from mutators, in
    /// nanoseconds.
    pub cost: u64,
    /// From the end of the cycle before to the end of this one, in nanoseconds.
    pub interval: u64,
    /// Somebody asked for it; it was not the trigger.
    pub forced: bool,
    /// It took what was old for alive: `live` has that, `marked` has not.
    pub young: bool,
    /// Bytes of spans of cells with edges that a young cycle need not look at.
    pub settled: u64,
}

impl Cycle {
    /// Bytes in use at its end, but for what was born.
    fn old(&self) -> u64 {
        self.live.saturating_add(self.external)
    }

    /// Bytes in use at its end.
    fn now(&self) -> u64 {
        self.old().saturating_add(self.born)
    }
}

/// What follows from the cycles so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes in use at which the next cycle begins.
    pub trigger: u64,
    /// Bytes in use at which it should have ended.
    pub goal: u64,
    /// Bytes in use after the last one.
    now: u64,
    /// Bytes by which the heap is meant to grow over what is alive.
    growth: u64,
    /// Cells that the next cycle is expected to mark.
    work: u64,
    /// The next cycle is a young one, unless somebody asks for more.
    pub young: bool,
    /// The one after it might be.
    pub notes_allocated_black: bool,
    /// The goal lies beyond the soft limit.
    pub over_limit: bool,
}

/// What the collector remembers from cycle to cycle.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    policy: Policy,
    /// Mutators run while it marks. Otherwise the trigger is the goal: nothing is allocated in
    /// between.
    concurrent: bool,
    limiter: Limiter,
    /// A limit has lowered the goal.
    pressed: bool,
    /// It has, and another cycle like the last would take more than the mutators have left over.
    limiting: bool,
    /// Cycles in a row, but for those that were asked for, after which the soft limit left no room
    /// to speak of.
    vain: u32,
    cores: u32,
    /// Of the last cycle that was not young: what was alive, and the cells that it marked.
    live: u64,
    marked: u64,
    /// Bytes allocated since its snapshot, up to that of the last cycle.
    allocated: u64,
    /// What was born in the last cycle.
    born: u64,
    generation: Generation,
    /// Bytes that mutators allocate while the background marks a cell. `None`: not known yet.
    ratio: Option<f64>,
    /// Bytes that they allocate from the trigger to the snapshot.
    lag: f64,
    plan: Plan,
}

impl Pacer {
    /// A new heap's.
    pub(crate) fn new(policy: Policy, concurrent: bool, cores: u32) -> Self {
        let mut pacer = Self {
            policy,
            concurrent,
            limiter: Limiter::new(cores),
            pressed: false,
            limiting: false,
            vain: 0,
            cores: cores.max(1),
            live: 0,
            marked: 0,
            allocated: 0,
            born: 0,
            generation: Generation::default(),
            ratio: None,
            lag: 0.0,
            plan: Plan::default(),
        };
        pacer.plan = pacer.plan_after(&Cycle::default(), 0.0, LEAST_GROWTH);
        // Nothing has been marked yet.
        pacer.plan.young = false;
        pacer
    }

    /// What the present plan is.
    pub(crate) fn plan(&self) -> Plan {
        self.plan
    }

    /// Must mutators not help, and the heap grow instead?
    pub(crate) fn is_limiting(&self) -> bool {
        self.limiting
    }

    /// A cycle has ended: the next one's plan.
    pub(crate) fn ended(&mut self, cycle: &Cycle) -> Plan {
        let before = self.plan;
        // Of the bytes allocated between the two snapshots, how much is alive for good?
        self.allocated = self
            .allocated
            .saturating_add(self.born)
            .saturating_add(cycle.begin.saturating_sub(before.now));
        let grown = cycle.live.saturating_sub(self.live);
        let growing = ratio(grown, self.allocated).min(1.0);
        if !cycle.forced {
            self.learn(cycle, before);
        }
        // Mutators had what processors they wanted, less what the collector took of those and what
        // they gave.
        let running = cycle.running.clamp(1, self.cores);
        let wanted = cycle.interval.saturating_mul(u64::from(running));
        let idle = cycle
            .interval
            .saturating_mul(u64::from(self.cores - running));
        let taken = cycle.cost.saturating_sub(idle).saturating_add(cycle.assist);
        let mutators = wanted.saturating_sub(taken);
        let cost = cycle.cost.saturating_add(cycle.assist);
        self.limiter.add(cost, mutators);
        // Where no limit presses, collecting costs what `gc_percent` says, and a heap that outgrows
        // it must be helped with.
        self.limiting = self.pressed && self.limiter.has_no_room_for(cost);
        // What a limit leaves to grow by at least.
        let mut breath = LEAST_GROWTH;
        if self.limiting {
            let allocated = cycle.begin.saturating_add(cycle.born);
            let allocated = allocated.saturating_sub(before.now);
            breath = breath.max(times(cost, ratio(allocated, mutators)));
        }
        self.born = cycle.born;
        if !cycle.young {
            (self.live, self.marked, self.allocated) = (cycle.live, cycle.marked, 0);
        }
        self.plan = if cycle.young {
            self.plan_within(cycle)
        } else {
            self.plan_after(cycle, growing, breath)
        };
        self.plan
    }

    /// Takes from a cycle how fast mutators allocate beside the collector.
    fn learn(&mut self, cycle: &Cycle, plan: Plan) {
        // One huge allocation may pass the trigger by any number of bytes; that says nothing about
        // the next cycle.
        let lag = cycle.begin.saturating_sub(plan.trigger);
        let lag = lag.min(plan.goal.saturating_sub(plan.now) / 4) as f64;
        self.lag = lag.max((self.lag + lag) / 2.0);
        let background = cycle.marked.saturating_sub(cycle.assisted);
        let sample = if cycle.beside == 0 {
            0.0
        } else if background < ENOUGH_WORK {
            return;
        } else {
            // Without help they would have had more time to allocate in.
            let had = cycle.beside.saturating_mul(u64::from(cycle.running.max(1)));
            let helped = ratio(cycle.assist, had).min(0.9);
            ratio(cycle.born, background) / (1.0 - helped)
        };
        if cycle.young {
            // Of its time much went into other things than marking.
            return;
        }
        self.ratio = Some(match self.ratio {
            None => sample,
            Some(known) => sample.max((known + sample) / 2.0),
        });
    }

    /// The plan after `cycle`, when `growing` of what is allocated stays, and a limit must leave
    /// `breath` bytes.
    fn plan_after(&mut self, cycle: &Cycle, growing: f64, breath: u64) -> Plan {
        let Policy {
            gc_percent,
            memory_limit,
            hard_limit,
            young,
        } = self.policy;
        let now = cycle.now();
        let base = cycle.old().saturating_add(times(cycle.born, growing));
        let mut growth = u64::MAX;
        let mut goal = u64::MAX;
        if gc_percent != u32::MAX {
            let minimum = percent(MINIMUM, gc_percent.min(100));
            growth = percent(base.saturating_add(cycle.roots), gc_percent);
            growth = growth.max(minimum.saturating_sub(base)).max(LEAST_GROWTH);
            goal = base.saturating_add(growth);
            if self.concurrent {
                let distance = goal.saturating_sub(now);
                let lead = self.lead(work_after(cycle, growing, distance), distance);
                // What the heap has grown by past its goal counts for nothing, or it would grow the
                // more the less it can be kept up with.
                let counted = now.min(goal).min(base.saturating_add(MOST_BORN));
                let counted = counted.saturating_add(cycle.roots);
                let most = percent(counted, gc_percent);
                goal = goal.max(now.saturating_add(lead.saturating_mul(2).min(most)));
            }
            // Where very much was born, there is still half a heap's growth between two cycles.
            goal = goal.max(now.saturating_add((growth / 2).max(LEAST_GROWTH)));
        }
        let unlimited = goal;
        let soft = memory_limit.map(|limit| (limit, breath.max(self.over(limit, cycle, base))));
        let hard = hard_limit.map(|limit| (limit, breath));
        for (limit, breath) in [soft, hard].into_iter().flatten() {
            let cells = limit.saturating_sub(cycle.overhead);
            let headroom = (cells / 32).min(1 << 20);
            goal = goal.min((cells - headroom).max(now.saturating_add(breath)));
        }
        self.pressed = goal < unlimited;
        let distance = goal - now;
        let young = self.concurrent && !self.pressed && self.generation.begins(young, cycle);
        self.generation.room = goal.saturating_sub(cycle.old());
        let work = if young {
            self.generation.work(cycle)
        } else {
            work_after(cycle, growing, distance)
        };
        self.plan_of(cycle, goal, growth.min(goal), work, young)
    }

    /// The bytes by which the heap grows until the next cycle although it passes a soft limit with
    /// that. `base` bytes are alive.
    fn over(&mut self, limit: u64, cycle: &Cycle, base: u64) -> u64 {
        let cells = limit.saturating_sub(cycle.overhead);
        let share = if base.saturating_add(LEAST_GROWTH) > cells {
            base / OVER_LIMIT
        } else {
            base / NEAR_LIMIT
        };
        if cells.saturating_sub(base) >= share || crate::fault::planted("vain-cycles") {
            self.vain = 0;
            return 0;
        }
        let distance = share.min(LEAST_GROWTH << self.vain.min(32));
        if !cycle.forced {
            self.vain = self.vain.saturating_add(1);
        }
        distance
    }

    /// The plan to have marked so many cells at the goal, after `cycle`.
    fn plan_of(&self, cycle: &Cycle, goal: u64, growth: u64, work: u64, young: bool) -> Plan {
        let now = cycle.now();
        let notes_allocated_black =
            self.concurrent && generation::might_be(self.policy.young, cycle);
        let (trigger, growth) = if goal == u64::MAX {
            (goal, MINIMUM)
        } else {
            (goal - self.lead_of(work, goal - now), growth)
        };
        Plan {
            trigger,
            goal,
            now,
            growth,
            work,
            young,
            notes_allocated_black,
            over_limit: self
                .policy
                .memory_limit
                .is_some_and(|limit| goal.saturating_add(cycle.overhead) > limit),
        }
    }

    /// The plan after a young cycle. The goal is what the last whole one left: what has become old
    /// since may be dead, and is no reason to let the heap grow.
    fn plan_within(&mut self, cycle: &Cycle) -> Plan {
        let Plan { goal, growth, .. } = self.plan;
        let left = goal.saturating_sub(cycle.old());
        let young = !self.pressed && self.generation.goes_on(self.policy.young, cycle, left);
        // Where all that is young lives on there is still some growth before all cells are looked
        // at.
        let goal = goal.max(cycle.now().saturating_add((growth / 4).max(LEAST_GROWTH)));
        let work = if young {
            self.generation.work(cycle)
        } else {
            self.marked.saturating_add(cycle.marked)
        };
        self.plan_of(cycle, goal, growth, work, young)
    }

    /// What is left to allocate when a cycle of so many cells begins, of a distance to the goal.
    fn lead_of(&self, work: u64, distance: u64) -> u64 {
        if !self.concurrent {
            return 0;
        }
        let rest = (distance / 2).min(MOST_BORN);
        self.lead(work, distance).min(distance - rest)
    }

    /// What mutators will allocate from the trigger until `work` cells are marked, if the goal is
    /// so far off.
    fn lead(&self, work: u64, distance: u64) -> u64 {
        let runway = match self.ratio {
            // Nothing is known before the first cycle; an eighth is enough for most.
            None => distance / 8,
            Some(known) => times(work, known),
        };
        runway.saturating_add(self.lag as u64)
    }
}

/// Cells that will be alive when the next snapshot is taken, near a goal that is so far off.
fn work_after(cycle: &Cycle, growing: f64, distance: u64) -> u64 {
    let allocated = cycle.born.saturating_add(distance);
    let larger = 1.0 + growing * ratio(allocated, cycle.live.max(1));
    times(cycle.marked, larger)
}

impl Plan {
    /// Bytes in use at which mutators are to wait for a cycle that was to have begun long since.
    pub(crate) fn hard(&self) -> u64 {
        self.goal.saturating_add(self.growth / 2)
    }

    /// Bytes by which the heap is meant to grow over what is alive.
    pub(crate) fn growth(&self) -> u64 {
        self.growth
    }

    /// The line that marking keeps to, from a snapshot with `used` bytes in `cells` cells.
    pub(crate) fn marking(&self, used: u64, cells: u64) -> Marking {
        // A cycle that was asked for has all the way to the goal; one that is late has the distance
        // that the latest trigger leaves.
        let least = (self.goal.saturating_sub(self.now) / 16).max(LEAST_GROWTH / 4);
        let goal = self.goal.max(used.saturating_add(least));
        Marking {
            begin: used,
            goal,
            hard: goal.saturating_add((self.growth / 2).max(least)),
            work: self.work.min(cells),
            most: cells,
        }
    }
}

fn percent(bytes: u64, p: u32) -> u64 {
    (u128::from(bytes) * u128::from(p) / 100).min(u128::from(u64::MAX)) as u64
}

/// `a / b`; 0 where that is nothing.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// `a * by`, rounded down; a float's conversion stops at the ends.
fn times(a: u64, by: f64) -> u64 {
    (a as f64 * by) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const HUNDRED: Policy = Policy {
        gc_percent: 100,
        memory_limit: None,
        hard_limit: None,
        young: Young::WherePays,
    };

    fn goal(policy: Policy, cycle: Cycle) -> u64 {
        Pacer::new(policy, true, 2).ended(&cycle).goal
    }

    /// A cycle that found so much alive, in one stop.
    fn live(live: u64) -> Cycle {
        Cycle {
            live,
            begin: live,
            marked: live / 32,
            ..Cycle::default()
        }
    }

    #[test]
    fn a_small_heap_waits_for_the_minimum() {
        for (gc_percent, expected) in [(100, MINIMUM), (50, MINIMUM / 2), (400, MINIMUM)] {
            let policy = Policy {
                gc_percent,
                ..HUNDRED
            };
            assert_eq!(Pacer::new(policy, true, 2).plan().goal, expected);
            assert_eq!(goal(policy, live(0)), expected);
        }
    }

    #[test]
    fn the_goal_grows_with_live_bytes_and_roots() {
        assert_eq!(goal(HUNDRED, live(100 * MIB)), 200 * MIB);
        let roots = 10 * MIB;
        assert_eq!(
            goal(
                HUNDRED,
                Cycle {
                    roots,
                    ..live(100 * MIB)
                }
            ),
            210 * MIB
        );
        let external = 40 * MIB;
        assert_eq!(
            goal(
                HUNDRED,
                Cycle {
                    external,
                    ..live(60 * MIB)
                }
            ),
            200 * MIB
        );
        let policy = Policy {
            gc_percent: 50,
            ..HUNDRED
        };
        assert_eq!(goal(policy, live(100 * MIB)), 150 * MIB);
    }

    #[test]
    fn what_was_born_counts_as_far_as_the_heap_grows() {
        let cycle = Cycle {
            begin: 200 * MIB,
            born: 20 * MIB,
            ..live(100 * MIB)
        };
        // A steady program: as much alive as before.
        let mut pacer = Pacer::new(HUNDRED, true, 2);
        pacer.ended(&live(100 * MIB));
        assert_eq!(pacer.ended(&cycle).goal, 200 * MIB);
        // One that only builds: all that was allocated since is alive.
        let mut pacer = Pacer::new(HUNDRED, true, 2);
        pacer.ended(&live(50 * MIB));
        let cycle = Cycle {
            begin: 100 * MIB,
            ..cycle
        };
        assert_eq!(pacer.ended(&cycle).goal, 240 * MIB);
    }

    #[test]
    fn what_became_old_is_no_reason_to_grow() {
        let mut pacer = Pacer::new(HUNDRED, true, 2);
        let whole = Cycle {
            settled: 100 * MIB,
            ..live(100 * MIB)
        };
        // Of 100 MiB that a young cycle had, 10 are alive and old now.
        let young = |live_bytes: u64| Cycle {
            young: true,
            begin: 200 * MIB,
            marked: 1000,
            settled: live_bytes,
            ..live(live_bytes)
        };
        assert!(!pacer.ended(&whole).young, "nobody knows how long it lives");
        let plan = pacer.ended(&whole);
        assert!(plan.young && plan.goal == 200 * MIB);
        for old in [110, 150] {
            let mut pacer = pacer.clone();
            let plan = pacer.ended(&young(old * MIB));
            assert!(plan.young && plan.goal == 200 * MIB, "{old}: {plan:?}");
            assert!(
                (old * MIB..plan.goal).contains(&plan.trigger),
                "{old}: {plan:?}"
            );
        }
        // Half of the room is gone: all cells are looked at. There is room for that, whatever is
        // left.
        for old in [151, 199, 230] {
            let plan = pacer.clone().ended(&young(old * MIB));
            assert!(!plan.young, "{old}: {plan:?}");
            assert_eq!(plan.goal, (200 * MIB).max((old + 25) * MIB));
        }
        // What lives for good is counted from one whole cycle to the next, so most of what was old
        // is not taken for growth.
        pacer.ended(&young(160 * MIB));
        assert_eq!(pacer.ended(&whole).goal, 200 * MIB);
    }

    #[test]
    fn a_limit_that_presses_has_all_cells_looked_at() {
        let policy = Policy {
            memory_limit: Some(150 * MIB),
            ..HUNDRED
        };
        let whole = Cycle {
            settled: 100 * MIB,
            ..live(100 * MIB)
        };
        for (policy, concurrent, young) in [
            (HUNDRED, true, true),
            (policy, true, false),
            (HUNDRED, false, false),
        ] {
            let mut pacer = Pacer::new(policy, concurrent, 2);
            pacer.ended(&whole);
            assert_eq!(pacer.ended(&whole).young, young);
        }
    }

    #[test]
    fn limits_lower_the_goal() {
        for hard in [false, true] {
            let limit = Some(128 * MIB);
            let policy = Policy {
                young: Young::WherePays,
                gc_percent: 100,
                memory_limit: limit.filter(|_| !hard),
                hard_limit: limit.filter(|_| hard),
            };
            assert_eq!(goal(policy, live(100 * MIB)), 127 * MIB);
            assert_eq!(goal(policy, live(10 * MIB)), 20 * MIB);
            let overhead = 7 * MIB;
            assert_eq!(
                goal(
                    policy,
                    Cycle {
                        overhead,
                        ..live(100 * MIB)
                    }
                ),
                120 * MIB
            );
            // No room: still some way to go.
            assert_eq!(goal(policy, live(128 * MIB)), 128 * MIB + LEAST_GROWTH);
        }
    }

    #[test]
    fn a_limit_that_is_passed_in_vain_gives_way_and_is_kept_again_when_it_can_be() {
        let policy = Policy {
            memory_limit: Some(100 * MIB),
            ..HUNDRED
        };
        let mut pacer = Pacer::new(policy, true, 2);
        let above = live(160 * MIB);
        for n in 0..10 {
            let plan = pacer.ended(&above);
            let distance = (LEAST_GROWTH << n).min(16 * MIB);
            assert_eq!(plan.goal, 160 * MIB + distance);
            assert!(plan.over_limit);
        }
        // One that was asked for says nothing, and is no step.
        let mut other = Pacer::new(policy, true, 2);
        for _ in 0..10 {
            let forced = Cycle {
                forced: true,
                ..above
            };
            assert_eq!(other.ended(&forced).goal, 160 * MIB + LEAST_GROWTH);
        }
        // It was the program's peak.
        let plan = pacer.ended(&live(90 * MIB));
        assert!(plan.goal == 99 * MIB && !plan.over_limit);
        assert_eq!(pacer.ended(&above).goal, 160 * MIB + LEAST_GROWTH);
    }

    #[test]
    fn collecting_can_be_left_to_a_limit() {
        let off = Policy {
            gc_percent: u32::MAX,
            ..HUNDRED
        };
        assert_eq!(Pacer::new(off, true, 2).plan().trigger, u64::MAX);
        assert_eq!(goal(off, live(MIB)), u64::MAX);
        let policy = Policy {
            memory_limit: Some(64 * MIB),
            ..off
        };
        assert_eq!(goal(policy, live(MIB)), 63 * MIB);
    }

    #[test]
    fn a_cycle_that_was_asked_for_teaches_nothing_about_the_trigger() {
        let mut pacer = Pacer::new(HUNDRED, true, 2);
        let cycle = Cycle {
            begin: 190 * MIB,
            born: 10 * MIB,
            beside: 1_000_000,
            running: 1,
            ..live(100 * MIB)
        };
        pacer.ended(&cycle);
        let before = (pacer.ratio, pacer.lag);
        assert!(before.0.is_some());
        let forced = Cycle {
            begin: 120 * MIB,
            born: 0,
            beside: 50_000_000,
            forced: true,
            ..cycle
        };
        pacer.ended(&forced);
        assert_eq!((pacer.ratio, pacer.lag), before);
    }

    #[test]
    fn nothing_overflows_and_there_is_always_room_to_allocate() {
        for gc_percent in [0, 1, 100, u32::MAX - 1, u32::MAX] {
            for bytes in [0, 1, MIB, u64::MAX / 4, u64::MAX] {
                for limit in [None, Some(MIB), Some(u64::MAX)] {
                    let cycle = Cycle {
                        begin: bytes,
                        born: bytes / 2,
                        roots: bytes,
                        external: bytes,
                        overhead: bytes,
                        assist: bytes,
                        cost: bytes,
                        interval: bytes,
                        beside: bytes,
                        ..live(bytes)
                    };
                    let policy = Policy {
                        young: Young::WherePays,
                        gc_percent,
                        memory_limit: limit,
                        hard_limit: limit,
                    };
                    let mut pacer = Pacer::new(policy, true, 2);
                    for _ in 0..4 {
                        let plan = pacer.ended(&cycle);
                        assert!(plan.trigger <= plan.goal);
                        let room = plan.trigger - plan.now;
                        assert!(
                            room >= (LEAST_GROWTH / 2).min(u64::MAX - plan.now),
                            "{plan:?}"
                        );
                        let marking = plan.marking(bytes, bytes);
                        assert!(marking.begin <= marking.goal && marking.goal <= marking.hard);
                        marking.owed(bytes, bytes / 2, bytes);
                    }
                }
            }
        }
    }
}
