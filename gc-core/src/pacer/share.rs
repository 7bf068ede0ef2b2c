//! How much of the machine the collector may have beside the program.
//!
//! A quarter of the processors, as Go's collector takes ("Go 1.5 GC pacing"), and all processors
//! that the mutators leave idle: a marker on an idle processor costs the program only a little
//! memory bandwidth, and ends the cycle sooner. A mutator counts as wanting a processor unless it
//! is in `blocking`; one that waits in a system call without having said so makes the collector too
//! modest, which is the safe side.

/// How many threads mark, and how much of its time each does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Threads, the collector's own among them.
    pub markers: u32,
    /// Of each thread's time, in thousandths.
    pub permille: u32,
}

/// The share of the collector in `cores` processors while `running` mutators want them.
pub(crate) fn share(cores: u32, running: u32) -> Share {
    let cores = u64::from(cores.max(1));
    let idle = cores.saturating_sub(u64::from(running)) * 1000;
    let all = idle.max(cores * 250);
    let markers = all.div_ceil(1000);
    Share {
        markers: markers as u32,
        permille: (all / markers) as u32,
    }
}

impl Share {
    /// Processors, in thousandths.
    #[cfg(test)]
    pub(crate) fn processors(self) -> u32 {
        self.markers * self.permille
    }
}

/// The time by which a marker may exceed its share, in nanoseconds: it marks for so long without a
/// rest. A time slice of the kernel is as long, so a shorter one would cost switches and give the
/// mutators nothing.
const AHEAD: u64 = 1_000_000;

/// The longest rest, in nanoseconds: then the collector counts the mutators again.
const LONGEST_REST: u64 = 2_000_000;

/// How long a marker has to rest that was busy for `busy` of the `elapsed` nanoseconds since its
/// cycle began; 0: it goes on.
pub(crate) fn rest(busy: u64, elapsed: u64, permille: u32) -> u64 {
    let due = u128::from(busy) * 1000 / u128::from(permille.clamp(1, 1000));
    let ahead = due.saturating_sub(u128::from(elapsed));
    if permille >= 1000 || ahead < u128::from(AHEAD) {
        0
    } else {
        ahead.min(u128::from(LONGEST_REST)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_processors_are_left_to_the_mutators() {
        for cores in 1..=128 {
            for running in cores..cores + 3 {
                let share = share(cores, running);
                assert!(share.markers >= 1 && share.permille <= 1000);
                assert!(share.processors() <= cores * 250);
                // Dividing rounds down, by a thousandth of each marker's time.
                assert!(share.processors() + share.markers > cores * 250);
            }
        }
        assert_eq!(
            share(2, 2),
            Share {
                markers: 1,
                permille: 500
            }
        );
    }

    #[test]
    fn idle_processors_are_used() {
        assert_eq!(
            share(2, 1),
            Share {
                markers: 1,
                permille: 1000
            }
        );
        assert_eq!(share(2, 0).processors(), 2000);
        assert_eq!(share(16, 13).markers, 4);
        assert_eq!(share(16, 3).processors(), 13_000);
        assert_eq!(share(0, 0).markers, 1);
    }

    #[test]
    fn a_marker_keeps_to_its_share() {
        for permille in [1, 250, 500, 999, 1000] {
            let (mut busy, mut elapsed) = (0, 0);
            while elapsed < 1_000_000_000 {
                let rest = rest(busy, elapsed, permille);
                assert!(rest <= LONGEST_REST);
                if rest == 0 {
                    busy += 50_000;
                }
                elapsed += rest.max(50_000);
            }
            let most = elapsed / 1000 * u64::from(permille) + 2 * AHEAD;
            assert!(busy <= most, "{busy} of {elapsed} at {permille}");
            assert!(busy + 2 * AHEAD + LONGEST_REST >= elapsed / 1000 * u64::from(permille));
        }
        assert_eq!(rest(u64::MAX, 0, 0), LONGEST_REST);
    }
}
