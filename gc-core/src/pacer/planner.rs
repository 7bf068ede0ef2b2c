//! The planner: computes the next plan from the cycles so far.

use super::cycle::Cycle;
use super::generation::{self, Generation};
use super::limiter::Limiter;
use super::plan::{LEAST_GROWTH, MINIMUM, Plan};
use crate::config::Young;

/// The most bytes allocated black that count as alive while the collector is kept busy, and the
/// most bytes that mutators allocate while it rests. So a large heap gets less of a rest.
pub(super) const MOST_BLACK: u64 = 64 << 20;

/// Divisors of the live bytes: the heap grows by these parts of them from cycle to cycle, if more
/// is alive than its soft limit allows, and if the limit leaves less than the second part. See
/// `mod.rs`.
const OVER_LIMIT: u64 = 10;
const NEAR_LIMIT: u64 = 64;

/// The least cells that the background must have marked before its speed counts.
const ENOUGH_WORK: u64 = 4096;

/// The embedder's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How much the heap may grow over what was live, in percent. `u32::MAX` means: collect only
    /// when asked or at a limit.
    pub gc_percent: u32,
    /// The soft limit, in bytes.
    pub memory_limit: Option<u64>,
    /// The hard limit, in bytes.
    pub hard_limit: Option<u64>,
    /// Whether a cycle may be a young one.
    pub young: Young,
}

/// The pacer's state from cycle to cycle.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    policy: Policy,
    /// Whether mutators run while the collector marks. If not, the trigger is the goal, since
    /// mutators allocate nothing in between.
    concurrent: bool,
    limiter: Limiter,
    /// Whether a limit has lowered the goal.
    pressed: bool,
    /// Whether a limit has lowered the goal, and another cycle like the last would take more time
    /// than the limiter has left.
    limiting: bool,
    /// Cycles in a row, without forced ones, after which the soft limit left hardly any room.
    vain: u32,
    cores: u32,
    /// Live bytes of the last whole cycle, and the cells that it marked.
    live: u64,
    marked: u64,
    /// Bytes allocated from its snapshot to the snapshot of the last cycle.
    allocated: u64,
    /// Bytes allocated black in the last cycle.
    allocated_black: u64,
    generation: Generation,
    /// Bytes that mutators allocate while the background marks a cell. `None`: no cycle has shown
    /// it yet.
    pub(super) ratio: Option<f64>,
    /// Bytes that mutators allocate from the trigger to the snapshot.
    pub(super) lag: f64,
    plan: Plan,
    /// What the plan was made of: the last cycle, and the arguments of `plan_after` beside it.
    last: (Cycle, f64, u64),
}

impl Pacer {
    /// The state of a new heap.
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
            allocated_black: 0,
            generation: Generation::default(),
            ratio: None,
            lag: 0.0,
            plan: Plan::default(),
            last: (Cycle::default(), 0.0, LEAST_GROWTH),
        };
        pacer.plan = pacer.plan_after(&Cycle::default(), 0.0, LEAST_GROWTH);
        // No cell has been marked yet.
        pacer.plan.young = false;
        pacer
    }

    /// The present plan.
    pub(crate) fn plan(&self) -> Plan {
        self.plan
    }

    /// Must mutators not assist, and the heap grow instead?
    pub(crate) fn is_limiting(&self) -> bool {
        self.limiting
    }

    /// A cycle has ended: returns the plan of the next one.
    pub(crate) fn ended(&mut self, cycle: &Cycle) -> Plan {
        let before = self.plan;
        // `growing`: the part of the bytes allocated between the two snapshots by which the heap
        // has grown.
        self.allocated = self
            .allocated
            .saturating_add(self.allocated_black)
            .saturating_add(cycle.begin.saturating_sub(before.now));
        let grown = cycle.live.saturating_sub(self.live);
        let growing = ratio(grown, self.allocated).min(1.0);
        if !cycle.forced {
            self.learn(cycle, before);
        }
        // The time of mutators: the processors that they wanted, less the collector's part of
        // these, less their assists.
        let running = cycle.running.clamp(1, self.cores);
        let wanted = cycle.interval.saturating_mul(u64::from(running));
        let idle = cycle
            .interval
            .saturating_mul(u64::from(self.cores - running));
        let taken = cycle.cost.saturating_sub(idle).saturating_add(cycle.assist);
        let mutators = wanted.saturating_sub(taken);
        let cost = cycle.cost.saturating_add(cycle.assist);
        self.limiter.add(cost, mutators);
        // If no limit presses, collecting costs what `gc_percent` says, and mutators assist in a
        // heap that outgrows its goal.
        self.limiting = self.pressed && self.limiter.has_no_room_for(cost);
        // The least distance that a limit leaves.
        let mut breath = LEAST_GROWTH;
        if self.limiting {
            let allocated = cycle.begin.saturating_add(cycle.allocated_black);
            let allocated = allocated.saturating_sub(before.now);
            breath = breath.max(times(cost, ratio(allocated, mutators)));
        }
        self.allocated_black = cycle.allocated_black;
        if !cycle.young {
            (self.live, self.marked, self.allocated) = (cycle.live, cycle.marked, 0);
        }
        self.last = (*cycle, growing, breath);
        self.plan = if cycle.young {
            self.plan_within(cycle)
        } else {
            self.plan_after(cycle, growing, breath)
        };
        self.plan
    }

    /// The embedder's settings.
    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    /// Changes the settings by `change`, and makes the plan again from the last cycle. Returns the
    /// new settings.
    pub(crate) fn change_policy(&mut self, change: impl FnOnce(&mut Policy)) -> Policy {
        change(&mut self.policy);
        let (cycle, growing, breath) = self.last;
        // On a copy, so that no counter of cycles counts the last one twice.
        let mut again = self.clone();
        let plan = again.plan_after(&cycle, growing, breath);
        self.pressed = again.pressed;
        self.generation.room = again.generation.room;
        self.plan = Plan {
            young: self.plan.young,
            ..plan
        };
        self.policy
    }

    /// Takes from a cycle how fast mutators allocate beside the collector.
    fn learn(&mut self, cycle: &Cycle, plan: Plan) {
        // One huge allocation may pass the trigger by any number of bytes, which does not predict
        // the next cycle. So the lag is bounded.
        let lag = cycle.begin.saturating_sub(plan.trigger);
        let lag = lag.min(plan.goal.saturating_sub(plan.now) / 4) as f64;
        self.lag = lag.max((self.lag + lag) / 2.0);
        let background = cycle.marked.saturating_sub(cycle.assisted);
        let sample = if cycle.beside == 0 {
            0.0
        } else if background < ENOUGH_WORK {
            return;
        } else {
            // Without assists the mutators would have had more time to allocate in.
            let had = cycle.beside.saturating_mul(u64::from(cycle.running.max(1)));
            let assisted = ratio(cycle.assist, had).min(0.9);
            ratio(cycle.allocated_black, background) / (1.0 - assisted)
        };
        if cycle.young {
            // Much of a young cycle's time is not marking.
            return;
        }
        self.ratio = Some(match self.ratio {
            None => sample,
            Some(known) => sample.max((known + sample) / 2.0),
        });
    }

    /// The plan after `cycle`, if the part `growing` of the allocated bytes stays alive, and a
    /// limit must leave `breath` bytes.
    fn plan_after(&mut self, cycle: &Cycle, growing: f64, breath: u64) -> Plan {
        let Policy {
            gc_percent,
            memory_limit,
            hard_limit,
            young,
        } = self.policy;
        let now = cycle.now();
        let base = cycle
            .old()
            .saturating_add(times(cycle.allocated_black, growing));
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
                // Growth past the goal does not count, or a heap would grow the more, the less the
                // collector can keep up.
                let counted = now.min(goal).min(base.saturating_add(MOST_BLACK));
                let counted = counted.saturating_add(cycle.roots);
                let most = percent(counted, gc_percent);
                goal = goal.max(now.saturating_add(lead.saturating_mul(2).min(most)));
            }
            // If very much was allocated black, there is still half a heap's growth between two
            // cycles.
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

    /// The bytes by which the heap grows until the next cycle although it passes a soft limit by
    /// that. `base` bytes are alive.
    fn over(&mut self, limit: u64, cycle: &Cycle, base: u64) -> u64 {
        let cells = limit.saturating_sub(cycle.overhead);
        let share = if base.saturating_add(LEAST_GROWTH) > cells {
            base / OVER_LIMIT
        } else {
            base / NEAR_LIMIT
        };
        if cells.saturating_sub(base) >= share || !seam::passes_limits() {
            self.vain = 0;
            return 0;
        }
        let distance = share.min(LEAST_GROWTH << self.vain.min(32));
        if !cycle.forced {
            self.vain = self.vain.saturating_add(1);
        }
        distance
    }

    /// The plan, after `cycle`, by which `work` cells are marked at the goal.
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

    /// The plan after a young cycle. The goal stays as the last whole cycle left it: cells that
    /// have become old since may be dead, so they do not raise it.
    fn plan_within(&mut self, cycle: &Cycle) -> Plan {
        let Plan { goal, growth, .. } = self.plan;
        let left = goal.saturating_sub(cycle.old());
        let young = !self.pressed && self.generation.goes_on(self.policy.young, cycle, left);
        // If all young cells live on, the heap still grows a little before a whole cycle.
        let goal = goal.max(cycle.now().saturating_add((growth / 4).max(LEAST_GROWTH)));
        let work = if young {
            self.generation.work(cycle)
        } else {
            self.marked.saturating_add(cycle.marked)
        };
        self.plan_of(cycle, goal, growth, work, young)
    }

    /// The bytes from the trigger to the goal, for a cycle of `work` cells and a goal at
    /// `distance`.
    fn lead_of(&self, work: u64, distance: u64) -> u64 {
        if !self.concurrent {
            return 0;
        }
        let rest = (distance / 2).min(MOST_BLACK);
        self.lead(work, distance).min(distance - rest)
    }

    /// The bytes that mutators will allocate from the trigger until `work` cells are marked, with a
    /// goal at `distance`.
    fn lead(&self, work: u64, distance: u64) -> u64 {
        let runway = match self.ratio {
            // No cycle has been measured yet; an eighth is enough for most programs.
            None => distance / 8,
            Some(known) => times(work, known),
        };
        runway.saturating_add(self.lag as u64)
    }
}

/// Cells that will be alive at the next snapshot, near a goal at `distance`.
fn work_after(cycle: &Cycle, growing: f64, distance: u64) -> u64 {
    let allocated = cycle.allocated_black.saturating_add(distance);
    let larger = 1.0 + growing * ratio(allocated, cycle.live.max(1));
    times(cycle.marked, larger)
}

fn percent(bytes: u64, p: u32) -> u64 {
    (u128::from(bytes) * u128::from(p) / 100).min(u128::from(u64::MAX)) as u64
}

/// `a / b`; 0 where `b` is 0.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// `a * by`, rounded down; a float's conversion stops at the ends.
fn times(a: u64, by: f64) -> u64 {
    (a as f64 * by) as u64
}

mod seam {
    use crate::fault::Fault;

    /// Passes a soft limit rather than collecting without end.
    pub(super) fn passes_limits() -> bool {
        !Fault::VainCycles.planted()
    }
}
