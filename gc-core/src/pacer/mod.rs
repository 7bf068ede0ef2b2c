//! When to collect: a pure function of what the last collection found.
//!
//! The rule is Go's (`mgcpacer.go`, design 44167): the heap may grow by `gc_percent` of what was live *and* of what had to be scanned
//! besides (stacks, root ranges, globals), since both are the cost of a collection; never below a minimum, lest a small program does
//! nothing but collect. Where ours deviates: the trigger *is* the goal while collections stop the world, because nothing is
//! allocated between them; and a heap with a hard limit is not made to collect ever more often as it fills up, the limit itself does that.

/// The least goal, in bytes. Below it a collection costs more in stops than it gives back.
///
/// 4 MiB is Go's figure, measured there to keep a small program under a few collections a second; it is scaled by `gc_percent` as Go
/// does it, so that a caller who asks for a tight heap gets one.
pub(crate) const MINIMUM: u64 = 4 << 20;

/// What the embedder asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How much the heap may grow over what was live, in percent. `u32::MAX` means: collect only when asked or at the limit.
    pub gc_percent: u32,
    /// Bytes the heap should keep to.
    pub memory_limit: Option<u64>,
    /// Bytes the heap may hold.
    pub hard_limit: Option<u64>,
}

/// What the last collection found, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Cells that were marked.
    pub live: u64,
    /// Stacks, root ranges and handles that were scanned.
    pub roots: u64,
    /// Memory outside of the heap that cells keep, as reported.
    pub external: u64,
}

/// The bytes in use (cells and reported memory) at which the next collection begins.
pub(crate) fn trigger(policy: Policy, found: Found) -> u64 {
    if policy.gc_percent == u32::MAX {
        return policy.hard_limit.unwrap_or(u64::MAX);
    }
    let base = found.live.saturating_add(found.external);
    let growth = percent(base.saturating_add(found.roots), policy.gc_percent);
    let goal = base
        .saturating_add(growth)
        .max(percent(MINIMUM, policy.gc_percent.min(100)).max(base.saturating_add(LEAST_GROWTH)));
    let soft = policy.memory_limit.map_or(u64::MAX, |limit| {
        limit.max(base.saturating_add(LEAST_GROWTH))
    });
    goal.min(soft).min(policy.hard_limit.unwrap_or(u64::MAX))
}

/// Even at `gc_percent(0)` a heap may grow by this much between collections, in bytes: a few runs a mutator.
const LEAST_GROWTH: u64 = 256 << 10;

fn percent(bytes: u64, p: u32) -> u64 {
    (u128::from(bytes) * u128::from(p) / 100).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn live(live: u64) -> Found {
        Found {
            live,
            ..Found::default()
        }
    }

    #[test]
    fn a_small_heap_waits_for_the_minimum() {
        assert_eq!(
            trigger(
                Policy {
                    gc_percent: 100,
                    hard_limit: None,
                    memory_limit: None
                },
                live(0)
            ),
            MINIMUM
        );
        assert_eq!(
            trigger(
                Policy {
                    gc_percent: 50,
                    hard_limit: None,
                    memory_limit: None
                },
                live(0)
            ),
            MINIMUM / 2
        );
        assert_eq!(
            trigger(
                Policy {
                    gc_percent: 400,
                    hard_limit: None,
                    memory_limit: None
                },
                live(0)
            ),
            MINIMUM
        );
    }

    #[test]
    fn the_goal_grows_with_live_bytes_and_roots() {
        let policy = Policy {
            gc_percent: 100,
            hard_limit: None,
            memory_limit: None,
        };
        assert_eq!(trigger(policy, live(100 * MIB)), 200 * MIB);
        assert_eq!(
            trigger(
                policy,
                Found {
                    live: 100 * MIB,
                    roots: 10 * MIB,
                    external: 0
                }
            ),
            210 * MIB
        );
        assert_eq!(
            trigger(
                policy,
                Found {
                    live: 60 * MIB,
                    roots: 0,
                    external: 40 * MIB
                }
            ),
            200 * MIB
        );
        assert_eq!(
            trigger(
                Policy {
                    gc_percent: 50,
                    hard_limit: None,
                    memory_limit: None
                },
                live(100 * MIB)
            ),
            150 * MIB
        );
    }

    #[test]
    fn the_limit_caps_the_goal() {
        let policy = Policy {
            gc_percent: 100,
            memory_limit: None,
            hard_limit: Some(128 * MIB),
        };
        assert_eq!(trigger(policy, live(100 * MIB)), 128 * MIB);
        assert_eq!(trigger(policy, live(10 * MIB)), 20 * MIB);
    }

    #[test]
    fn collecting_can_be_left_to_the_limit() {
        assert_eq!(
            trigger(
                Policy {
                    gc_percent: u32::MAX,
                    hard_limit: None,
                    memory_limit: None
                },
                live(1)
            ),
            u64::MAX
        );
        assert_eq!(
            trigger(
                Policy {
                    gc_percent: u32::MAX,
                    memory_limit: None,
                    hard_limit: Some(9 * MIB)
                },
                live(1)
            ),
            9 * MIB
        );
    }

    #[test]
    fn nothing_overflows_and_there_is_always_room_to_allocate() {
        for gc_percent in [0, 1, 100, u32::MAX - 1, u32::MAX] {
            for live in [0, 1, MIB, u64::MAX / 2, u64::MAX] {
                let found = Found {
                    live,
                    roots: live,
                    external: live,
                };
                assert!(
                    trigger(
                        Policy {
                            gc_percent,
                            hard_limit: None,
                            memory_limit: None
                        },
                        found
                    ) >= live.saturating_add(LEAST_GROWTH.min(u64::MAX - live))
                );
            }
        }
    }
}
