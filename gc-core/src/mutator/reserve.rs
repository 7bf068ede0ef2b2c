//! A heap's address space: the size of its reserve, and the sizes of its tables.
//!
//! The reserve gives the size of each table, since no table has more entries than cells fit into
//! the reserve, or than a program has of them. So a small heap is small in all its parts. If the
//! system limits addresses (`RLIMIT_AS`), all parts are mapped together: if one part does not fit,
//! all of them are unmapped, and half of the reserve is tried. If each part took the largest size
//! that fits, the first would leave nothing to the others.

use crate::config::{Config, default_reserve, default_reserve_within};
use crate::encoding::{Encoding, Encodings};
use crate::error::SpaceError;
use crate::finalize::Finalizers;
use crate::heap::{GRANULE, Space, SpaceConfig, kinds_for, live_heaps};
use crate::limits::MIN_RESERVE;
use crate::mark::MarkQueue;
use crate::memory::os::{Before, Map, addresses, mapped_bytes};
use crate::memory::tables::Slab;
use crate::mutator::shared::Attached;
use crate::mutator::types::Types;
use crate::roots::Roots;
use crate::satb_log::{LOG_WORDS, SharedLog};
use crate::verify::Verify;
use crate::weak::WeakWork;

/// The mappings of a heap.
pub(crate) struct Memory {
    pub(crate) space: Space,
    pub(crate) queue: MarkQueue,
    pub(crate) weak: WeakWork,
    pub(crate) encodings: Encodings,
    pub(crate) log: SharedLog,
    pub(crate) roots: Roots,
    pub(crate) finalizers: Finalizers,
    pub(crate) drops: Finalizers,
    pub(crate) types: Types,
    pub(crate) contexts: Slab<Attached>,
    pub(crate) verify: Option<Verify>,
}

/// The numbers of entries of a heap's tables, by its reserve.
struct Sizes {
    /// Handles that can be open at once.
    handles: usize,
    /// Finalizers that can be registered, and as many that wait: at most one for each cell. Their
    /// tables grow.
    finalizers: usize,
    /// Words of the heap's log, at most 2 MiB: a thread that only overwrites edges to unmarked
    /// cells fills it in several milliseconds.
    log: usize,
    /// Entries of the mark queue. A graph that needs more is marked all the same, by mark queue
    /// overflow.
    queue: usize,
    /// Mutators whose records the child of a fork can find.
    mutators: usize,
}

impl Sizes {
    fn of(reserve: usize) -> Sizes {
        Sizes {
            handles: (reserve / 64).min(1 << 26),
            finalizers: (reserve / GRANULE).min(1 << 26),
            log: (reserve / 256).clamp(LOG_WORDS, 1 << 18),
            queue: (reserve / 128).min(1 << 26),
            mutators: (reserve / 4096).min(1 << 20),
        }
    }
}

/// Bytes of addresses that a heap of an explicit reserve leaves to the process: for the collector's
/// stack and a mutator's tables.
const LEFT: usize = 8 << 20;

impl Memory {
    /// The memory of a heap of the reserve in `config`, or of as large a part of it as the system
    /// has addresses for.
    pub(crate) fn fitting(
        config: &Config,
        conservative: &[Encoding],
        past_the_end: bool,
    ) -> Result<Memory, SpaceError> {
        let wanted = config.reserve;
        let by_default = || {
            let any = default_reserve(mapped_bytes() as u64);
            let within = |limit| default_reserve_within(limit, live_heaps() as u64);
            let within = addresses()
                .filter(|_| seam::looks_at_the_limit())
                .map_or(u64::MAX, within);
            any.min(within)
        };
        let mut reserve = wanted.unwrap_or_else(by_default);
        loop {
            let space = SpaceConfig {
                reserve,
                hard_limit: config.hard_limit,
                conservative: conservative.to_vec(),
                past_the_end,
                collect_every: config.collect_every,
                pre_touch: config.pre_touch,
                huge_pages: config.uses_huge_pages(),
            };
            let memory = Memory::new(config, space).and_then(|memory| {
                // A program that has not said how many addresses its cells take needs some for
                // itself.
                let left = wanted.map_or(reserve as usize / 2, |_| LEFT);
                if seam::leaves_addresses() {
                    Map::reserve(left, Before::Nothing)?;
                }
                Ok(memory)
            });
            match memory {
                Err(SpaceError::Map(_)) if reserve / 2 >= MIN_RESERVE => reserve /= 2,
                memory => return memory,
            }
        }
    }

    fn new(config: &Config, space: SpaceConfig) -> Result<Memory, SpaceError> {
        let space = Space::new(space)?;
        let sizes = Sizes::of(space.reserved().len());
        let queue = MarkQueue::new(&space, sizes.queue)?;
        if space.pre_touched != 0 {
            queue.pre_touch(space.pre_touched);
        }
        let kinds = kinds_for(space.reserved().len() as u64);
        let verify = config.verify.then(|| Verify::new(&space));
        Ok(Memory {
            verify: verify.transpose()?,
            weak: WeakWork::new(&space)?,
            encodings: Encodings::new()?,
            space,
            queue,
            log: SharedLog::new(seam::log(sizes.log))?,
            roots: Roots::new(sizes.handles)?,
            finalizers: Finalizers::new(sizes.finalizers)?,
            drops: Finalizers::new(sizes.finalizers)?,
            types: Types::new(kinds)?,
            contexts: Slab::new(sizes.mutators)?,
        })
    }
}

mod seam {
    use crate::fault::Fault;

    /// Looks at the limit of addresses before it tries reserves.
    pub(super) fn looks_at_the_limit() -> bool {
        !Fault::HalvesAlone.planted() && leaves_addresses()
    }

    /// Leaves addresses to the program.
    pub(super) fn leaves_addresses() -> bool {
        !Fault::NoAddressesLeft.planted()
    }

    /// Not a planted fault: the tests of a full log need a small one.
    pub(super) fn log(words: usize) -> usize {
        if Fault::SmallLog.planted() {
            1024
        } else {
            words
        }
    }
}
