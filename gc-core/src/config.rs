//! A heap's settings: the builder's values, overridden by the environment.
//!
//! `build()` reads the environment once. A variable with an invalid value is an error that names
//! the variable and its valid values. It is never replaced by the default, since a setting without
//! effect is hard to notice.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

/// The least [hard limit](crate::HeapBuilder::hard_limit), in bytes. Below it even a small program
/// fails, since each kind and size of cells takes a span.
pub const MINIMUM_LIMIT: u64 = 4 << 20;

/// The default [reserve](crate::HeapBuilder::reserve), in bytes of addresses, of the first heaps of
/// a process. It takes no memory. The 47 bits of addresses of a process have room for hundreds of
/// such heaps.
pub const DEFAULT_RESERVE: u64 = 256 << 30;

/// The default reserve of a heap in a process whose heaps have reserved `taken` bytes.
///
/// All heaps together leave the process half of its 2^47 bytes. Each takes at most a 64th of the
/// rest of the other half, and at least 1 GiB, which ten thousand heaps may take.
pub(crate) fn default_reserve(taken: u64) -> u64 {
    const HALF: u64 = 1 << 46;
    const PART: u64 = 64;
    (HALF.saturating_sub(taken) / PART).clamp(1 << 30, DEFAULT_RESERVE)
}

/// The default reserve, if the process may have `limit` bytes of addresses (`RLIMIT_AS`) and has
/// `heaps` heaps: five sixteenths of the limit for the first heap, and that divided by n cubed for
/// the nth. So the large heaps together take less than half of the addresses, and small heaps and
/// the program have the rest. 64 GiB suffice for a thousand heaps, since a small heap takes 31 MiB
/// with its tables and a thread's stack.
pub(crate) fn default_reserve_within(limit: u64, heaps: u64) -> u64 {
    let nth = heaps.min(1 << 16) + 1;
    (limit / 16 * 5 / nth.pow(3)).max(crate::limits::MIN_RESERVE)
}

/// The least [reserve](crate::HeapBuilder::reserve), in bytes of addresses.
pub const MINIMUM_RESERVE: u64 = 16 << 20;

/// When a heap's collections may be young: see
/// [`HeapBuilder::young_collections`](crate::HeapBuilder::young_collections).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Young {
    /// Each collection traces all cells. In the environment `URGE_YOUNG=0`.
    Never,
    /// Collections are young while most of the heap's cells with edges are of
    /// [immutable](crate::raw::Kind::immutable) kinds, and most new cells die young. In the
    /// environment `URGE_YOUNG=1`.
    #[default]
    WherePays,
    /// Three of four due collections are young, whatever the heap holds. For stress tests. In the
    /// environment `URGE_YOUNG=always`.
    Always,
}

/// Whether the system may back a heap by huge pages of 2 MiB: see
/// [`HeapBuilder::huge_pages`](crate::HeapBuilder::huge_pages).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// As [`Always`](Self::Always), except in a heap whose hard limit is below 64 MiB when it is
    /// built: there a huge page is a large part of the heap. In the environment
    /// `URGE_HUGE_PAGES=auto`.
    #[default]
    Automatic,
    /// The heap asks for huge pages. In the environment `URGE_HUGE_PAGES=1`.
    Always,
    /// The heap asks for system pages of 4 KiB. In the environment `URGE_HUGE_PAGES=0`.
    Never,
}

/// The hard limit below which [`HugePages::Automatic`] takes system pages.
const SMALL_HEAP: u64 = 64 << 20;

/// All settings of a heap.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) gc_percent: u32,
    pub(crate) hard_limit: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
    /// Whether the control group's limit lowers the memory limit.
    pub(crate) cgroup: bool,
    /// The time after the last collection at which an idle heap is collected; zero means never.
    pub(crate) idle: Duration,
    pub(crate) trace: bool,
    pub(crate) verify: bool,
    /// Whether collections fill the cells that they free.
    pub(crate) poison: bool,
    /// The bytes of addresses to reserve; `None` means [`default_reserve`].
    pub(crate) reserve: Option<u64>,
    /// The bytes that the system backs from the start.
    pub(crate) pre_touch: u64,
    pub(crate) huge_pages: HugePages,
    pub(crate) collect_every: Option<u64>,
    pub(crate) signals: bool,
    pub(crate) inject: bool,
    /// Whether mutators stay stopped while cells are marked.
    pub(crate) stop_the_world: bool,
    /// The number of threads that mark; `None` means as many as the pacer allows.
    pub(crate) markers: Option<u32>,
    /// When a collection may be young.
    pub(crate) young: Young,
    /// Whether stacks are left out of the roots; `None` means until the fast tier is used.
    pub(crate) exact: Option<bool>,
    /// Stress: whether collections follow each other without a request.
    pub(crate) continuous: bool,
    /// Stress: whether collections keep their phases open.
    pub(crate) stress_phases: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gc_percent: 100,
            hard_limit: None,
            memory_limit: None,
            cgroup: false,
            idle: Duration::from_secs(120),
            trace: false,
            verify: false,
            poison: false,
            reserve: None,
            pre_touch: 0,
            huge_pages: HugePages::Automatic,
            collect_every: None,
            signals: true,
            inject: false,
            stop_the_world: false,
            markers: None,
            young: Young::WherePays,
            exact: None,
            continuous: false,
            stress_phases: false,
        }
    }
}

/// A setting has an invalid value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The environment variable, or the builder's method.
    pub name: &'static str,
    /// The invalid value.
    pub value: String,
    /// The valid values.
    pub expected: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is {:?}; it must be {}",
            self.name, self.value, self.expected
        )
    }
}

impl std::error::Error for ConfigError {}

const SWITCH: &str = "0 or 1";
const BYTES_OR_CGROUP: &str = "a number of bytes, as in 67108864, 65536K, 64M or 1G, or `cgroup`";
const SECONDS: &str = "a number of seconds, as in 120 or 0.5; 0 is never";
const BYTES: &str = "a number of bytes, as in 67108864, 65536K, 64M or 1G";
const PERCENT: &str = "a number of percent from 0 to 4294967294, or `off`";
const MARKERS: &str = "a number of threads from 1 to 64";
const MARKER_COUNTS: core::ops::RangeInclusive<u32> = 1..=64;
const HUGE: &str = "0, 1 or `auto`";
const YOUNG: &str = "0, 1 or `always`";
const EVERY: &str = "a number of allocations of at least 1, or `off`";

impl Config {
    /// Overrides these settings by the environment's variables, and checks the result.
    pub(crate) fn with_environment(self) -> Result<Self, ConfigError> {
        self.with(|name| std::env::var_os(name))
    }

    fn with(mut self, get: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        set(&get, "URGE_STW", SWITCH, switch, &mut self.stop_the_world)?;
        set(
            &get,
            "URGE_MARKERS",
            MARKERS,
            |v| {
                v.parse()
                    .ok()
                    .filter(|n| MARKER_COUNTS.contains(n))
                    .map(Some)
            },
            &mut self.markers,
        )?;
        set(&get, "URGE_YOUNG", YOUNG, young, &mut self.young)?;
        set(
            &get,
            "URGE_CONTINUOUS",
            SWITCH,
            switch,
            &mut self.continuous,
        )?;
        set(
            &get,
            "URGE_STRESS_PHASES",
            SWITCH,
            switch,
            &mut self.stress_phases,
        )?;
        set(&get, "URGE_ASYNC", SWITCH, switch, &mut self.signals)?;
        set(&get, "URGE_INJECT", SWITCH, switch, &mut self.inject)?;
        set(
            &get,
            "URGE_GC_PERCENT",
            PERCENT,
            percent,
            &mut self.gc_percent,
        )?;
        set(
            &get,
            "URGE_HEAP_LIMIT",
            BYTES,
            |v| bytes(v).map(Some),
            &mut self.hard_limit,
        )?;
        let mut limit = None;
        set(
            &get,
            "URGE_MEMORY_LIMIT",
            BYTES_OR_CGROUP,
            |v| match v {
                "cgroup" => Some(Some(None)),
                v => bytes(v).map(|limit| Some(Some(limit))),
            },
            &mut limit,
        )?;
        match limit {
            Some(Some(limit)) => (self.memory_limit, self.cgroup) = (Some(limit), false),
            Some(None) => self.cgroup = true,
            None => {}
        }
        set(&get, "URGE_IDLE", SECONDS, seconds, &mut self.idle)?;
        set(&get, "URGE_TRACE", SWITCH, switch, &mut self.trace)?;
        set(&get, "URGE_VERIFY", SWITCH, switch, &mut self.verify)?;
        set(&get, "URGE_POISON", SWITCH, switch, &mut self.poison)?;
        set(
            &get,
            "URGE_RESERVE",
            BYTES,
            |v| bytes(v).map(Some),
            &mut self.reserve,
        )?;
        set(&get, "URGE_PRE_TOUCH", BYTES, bytes, &mut self.pre_touch)?;
        set(&get, "URGE_HUGE_PAGES", HUGE, huge, &mut self.huge_pages)?;
        set(&get, "URGE_GC_EVERY", EVERY, every, &mut self.collect_every)?;
        self.checked()
    }

    /// Whether the system may back the heap by huge pages.
    pub(crate) fn uses_huge_pages(&self) -> bool {
        match self.huge_pages {
            HugePages::Automatic => self.hard_limit.is_none_or(|limit| limit >= SMALL_HEAP),
            HugePages::Always => true,
            HugePages::Never => false,
        }
    }

    fn checked(self) -> Result<Self, ConfigError> {
        check_limit(HARD_LIMIT, self.hard_limit)?;
        check_limit(MEMORY_LIMIT, self.memory_limit)?;
        if let Some(reserve) = self.reserve
            && reserve < MINIMUM_RESERVE
        {
            return Err(ConfigError {
                name: "the heap's reserve of addresses (reserve, URGE_RESERVE)",
                value: format!("{reserve} bytes"),
                expected: "at least 16777216 bytes (16M)",
            });
        }
        if let Some(markers) = self.markers
            && !MARKER_COUNTS.contains(&markers)
        {
            return Err(ConfigError {
                name: "markers",
                value: markers.to_string(),
                expected: MARKERS,
            });
        }
        if self.collect_every == Some(0) {
            return Err(ConfigError {
                name: "collect_every",
                value: "0".into(),
                expected: EVERY,
            });
        }
        Ok(self)
    }
}

pub(crate) const HARD_LIMIT: &str = "the heap's hard limit (hard_limit, URGE_HEAP_LIMIT)";
pub(crate) const MEMORY_LIMIT: &str = "the heap's memory limit (memory_limit, URGE_MEMORY_LIMIT)";

/// Checks the limit of this name.
pub(crate) fn check_limit(name: &'static str, limit: Option<u64>) -> Result<(), ConfigError> {
    match limit {
        Some(limit) if limit < MINIMUM_LIMIT => Err(ConfigError {
            name,
            value: format!("{limit} bytes"),
            expected: "at least 4194304 bytes (4M)",
        }),
        _ => Ok(()),
    }
}

fn set<T>(
    get: &impl Fn(&str) -> Option<OsString>,
    name: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
    into: &mut T,
) -> Result<(), ConfigError> {
    let Some(value) = get(name).filter(|v| !v.is_empty()) else {
        return Ok(());
    };
    match value.to_str().and_then(parse) {
        Some(v) => {
            *into = v;
            Ok(())
        }
        None => Err(ConfigError {
            name,
            value: value.to_string_lossy().into_owned(),
            expected,
        }),
    }
}

fn switch(v: &str) -> Option<bool> {
    match v {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn huge(v: &str) -> Option<HugePages> {
    match v {
        "0" => Some(HugePages::Never),
        "1" => Some(HugePages::Always),
        "auto" => Some(HugePages::Automatic),
        _ => None,
    }
}

fn young(v: &str) -> Option<Young> {
    match v {
        "0" => Some(Young::Never),
        "1" => Some(Young::WherePays),
        "always" => Some(Young::Always),
        _ => None,
    }
}

fn percent(v: &str) -> Option<u32> {
    if v == "off" {
        Some(u32::MAX)
    } else {
        v.parse().ok().filter(|p| *p != u32::MAX)
    }
}

fn every(v: &str) -> Option<Option<u64>> {
    if v == "off" {
        Some(None)
    } else {
        v.parse().ok().filter(|n| *n > 0).map(Some)
    }
}

fn seconds(v: &str) -> Option<Duration> {
    let seconds = v.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn bytes(v: &str) -> Option<u64> {
    let (digits, shift) = match v.as_bytes().last()? {
        b'k' | b'K' => (&v[..v.len() - 1], 10),
        b'm' | b'M' => (&v[..v.len() - 1], 20),
        b'g' | b'G' => (&v[..v.len() - 1], 30),
        _ => (v, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests;
