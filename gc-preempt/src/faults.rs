//! Planted faults: a test switches a hazard's cure off, to see that it fails without the cure.
//!
//! A crate lists its faults by the macro [`faults!`](crate::faults!), and asks
//! `Fault::NoResend.planted()` at the place of the cure. `URGE_FAULT` names the faults that are
//! planted in a process, separated by commas.
//!
//! All this is behind the cargo feature `faults`, which only tests turn on. Without the feature
//! `planted` is the constant `false`, and the compiler drops the branch.

crate::faults! {
    /// The faults of this crate. `gc-test-harness/HAZARDS.md` says which test finds which.
    pub(crate) enum Fault {
        // Signals and the system.
        ErrnoLost = "errno-lost",
        CancelOpen = "cancel-open",
        Unpinned = "unpinned",
        NoLifeline = "no-lifeline",
        StackByLimit = "stack-by-limit",
        AsksProc = "asks-proc",
        EndsAnywhere = "ends-anywhere",
        SmallAlternate = "small-alternate",
        NoAlternateStack = "no-alternate-stack",
        DisablesAlternate = "disables-alternate",
        AlternateGivenBack = "alternate-given-back",
        ParkedOpen = "parked-open",
        NoReinstall = "no-reinstall",
        NoPassOn = "no-pass-on",
        ChainLoops = "chain-loops",
        NoUnblock = "no-unblock",
        // Code, stack maps and unwind tables.
        AllocasAsPairs = "allocas-as-pairs",
        UnboundedLocations = "unbounded-locations",
        UnboundedCie = "unbounded-cie",
        SilenceEndsWalks = "silence-ends-walks",
        NoUnwindTables = "no-unwind-tables",
        AskTheLoader = "ask-the-loader",
        LinearCode = "linear-code",
        LinearSearch = "linear-search",
        // Walks.
        NoRegisters = "no-registers",
        NoVectors = "no-vectors",
        NoRedZone = "no-red-zone",
        NoArguments = "no-arguments",
        NoSavedRegisters = "no-saved-registers",
        EndByRbpOnly = "end-by-rbp-only",
        MapBehindInterruption = "map-behind-interruption",
        WordsBehindInjection = "words-behind-injection",
        EndsBehindInjection = "ends-behind-injection",
        TrustMissingMaps = "trust-missing-maps",
        NoOuterRestart = "no-outer-restart",
        // A thread's side of a stop.
        StrayStops = "stray-stops",
        StaysOnStack = "stays-on-stack",
        NoVectorSave = "no-vector-save",
        NoReason = "no-reason",
        NoUnsafeRanges = "no-unsafe-ranges",
        NoAlternateCheck = "no-alternate-check",
        NoStackCheck = "no-stack-check",
        NoRestart = "no-restart",
        HandlersUnmoved = "handlers-unmoved",
        DeepHandlersUnmoved = "deep-handlers-unmoved",
        WholeWalkFirst = "whole-walk-first",
        NoRoomCheck = "no-room-check",
        InjectsAnywhere = "injects-anywhere",
        NoBlockingSection = "no-blocking-section",
        Caught = "caught",
        WaitsForItself = "waits-for-itself",
        BackUnlocked = "back-unlocked",
        NoExitDetach = "no-exit-detach",
        ForkHandlersLate = "fork-handlers-late",
        NoForkHandler = "no-fork-handler",
        // Stacks that are not a thread's own.
        HalfSwitched = "half-switched",
        ResumesUnreported = "resumes-unreported",
        ReportedEarly = "reported-early",
        InnermostStackOnly = "innermost-stack-only",
        LeftAboveSaves = "left-above-saves",
        KeepsRecord = "keeps-record",
        NothingLost = "nothing-lost",
        ReapsBehindSuspended = "reaps-behind-suspended",
        DropsSuspended = "drops-suspended",
        NoGuardPage = "no-guard-page",
        GuardByMapping = "guard-by-mapping",
        PoolsUnlocked = "pools-unlocked",
        // The stopper's side.
        NoGate = "no-gate",
        GateLocked = "gate-locked",
        SignalBlocked = "signal-blocked",
        MallocInStop = "malloc-in-stop",
        NoDeadCheck = "no-dead-check",
        NoResend = "no-resend",
        NoWatchdog = "no-watchdog",
        HookBelow = "hook-below",
        StopperUnasked = "stopper-unasked",
        WaiterAside = "waiter-aside",
        PreemptsBlocked = "preempts-blocked",
        PreemptsSuccessor = "preempts-successor",
    }
}

crate::faults! {
    /// Delays, which are no faults: each makes a short time long, so that a test meets it. Named by
    /// `URGE_FAULT` as the faults are.
    pub(crate) enum Delay {
        /// Each frame of a walk takes 100 us.
        SlowFrames = "slow-frames",
        /// A thread takes long to enter `blocking`.
        SlowBlocking = "slow-blocking",
        /// A thread that has claimed a stack waits for `while_held` before it switches.
        HeldClaim = "held-claim",
        /// A thread that has locked a pool of stacks waits for `while_held`.
        HeldPool = "held-pool",
    }
}

/// Defines the planted faults of a crate: an enum, with the name of each fault in `URGE_FAULT`.
///
/// ```
/// gc_preempt::faults! {
///     /// The faults of this crate.
///     pub(crate) enum Fault {
///         /// Roots in registers are not scanned.
///         BlindToRegisters = "blind-to-registers",
///     }
/// }
/// assert!(!Fault::BlindToRegisters.planted());
/// ```
#[macro_export]
macro_rules! faults {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$fault_meta:meta])* $fault:ident = $text:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        $vis enum $name {
            $($(#[$fault_meta])* $fault,)*
        }

        impl $name {
            #[allow(dead_code)] // without the feature `faults`
            const NAMES: &'static [&'static str] = &[$($text,)*];

            /// Is it planted in this process? Constant `false` without the feature `faults`.
            /// Async-signal-safe.
            #[inline(always)]
            $vis fn planted(self) -> bool {
                $crate::faults::is_planted(Self::NAMES, self as usize)
            }
        }

        $crate::__list_faults!($name::NAMES);
    };
}

/// Adds names to those that [`refuse_unknown_names`] knows, when the program is loaded.
#[cfg(feature = "faults")]
#[doc(hidden)]
#[macro_export]
macro_rules! __list_faults {
    ($names:expr) => {
        const _: () = {
            static LIST: $crate::faults::List = $crate::faults::List::new($names);
            extern "C" fn add() {
                LIST.add();
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static AT_LOAD: extern "C" fn() = add;
        };
    };
}

#[cfg(not(feature = "faults"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __list_faults {
    ($names:expr) => {};
}

/// Is the fault with that place in its crate's list planted? For the macro
/// [`faults!`](crate::faults!).
#[cfg(feature = "faults")]
#[doc(hidden)]
pub fn is_planted(names: &[&str], index: usize) -> bool {
    planted(names[index])
}

#[cfg(not(feature = "faults"))]
#[doc(hidden)]
#[inline(always)]
pub const fn is_planted(_: &[&str], _: usize) -> bool {
    false
}

/// Is the fault of that name planted? For tests that plant a fault of their own; code asks its
/// crate's enum. Async-signal-safe.
#[cfg(feature = "faults")]
pub fn planted(name: &str) -> bool {
    real::names().split(',').any(|n| n == name)
}

/// Is the fault of that name planted? Never, without the cargo feature `faults`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// How many steps the searches of the process's code map have taken so far. Tests compare them
/// instead of times.
#[cfg(feature = "faults")]
pub fn steps() -> u64 {
    // Relaxed: a count.
    real::STEPS.load(core::sync::atomic::Ordering::Relaxed)
}

/// Counts one step of a search, for `steps`. Async-signal-safe.
#[inline(always)]
pub(crate) fn count_step() {
    #[cfg(feature = "faults")]
    real::STEPS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
}

/// At a place that a planted condition names: while a thread is in `while_held`, waits until the
/// function there has run. Async-signal-safe.
#[inline(always)]
pub fn hold() {
    #[cfg(feature = "faults")]
    real::hold();
}

/// At a place that a planted condition names: waits until `reached` is true. Async-signal-safe,
/// if `reached` is.
#[inline(always)]
pub fn hold_until(reached: impl Fn() -> bool) {
    #[cfg(feature = "faults")]
    real::until(reached);
    #[cfg(not(feature = "faults"))]
    let _ = reached;
}

/// Reads `URGE_FAULT`, once, outside of any handler.
pub(crate) fn read_environment() {
    #[cfg(feature = "faults")]
    real::read_environment();
}

#[cfg(feature = "faults")]
pub use real::{List, refuse_unknown_names, while_held};

#[cfg(feature = "faults")]
mod real {
    use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

    pub(super) static STEPS: AtomicU64 = AtomicU64::new(0);
    static NAMES: AtomicPtr<String> = AtomicPtr::new(core::ptr::null_mut());
    static LISTS: AtomicPtr<List> = AtomicPtr::new(core::ptr::null_mut());

    /// [`FREE`], [`WANTED`] or [`HELD`].
    static HOLD: AtomicU8 = AtomicU8::new(FREE);
    /// No thread is in [`while_held`].
    const FREE: u8 = 0;
    /// The next thread that comes to a [`hold`] is to wait there.
    const WANTED: u8 = 1;
    /// A thread waits in [`hold`].
    const HELD: u8 = 2;

    /// 50 us.
    const A_MOMENT: libc::timespec = libc::timespec {
        tv_sec: 0,
        tv_nsec: 50_000,
    };

    /// Waits asleep, so that a thread that shares the processor runs at once.
    pub(super) fn until(reached: impl Fn() -> bool) {
        while !reached() {
            // SAFETY: a system call on a valid value.
            unsafe { libc::nanosleep(&A_MOMENT, core::ptr::null_mut()) };
        }
    }

    /// Waits while the hold is in `state`.
    fn while_in(state: u8) {
        // Acquire pairs with the Release of the store that ends the state: this thread sees what
        // the other one did before.
        until(|| HOLD.load(Ordering::Acquire) != state);
    }

    pub(super) fn hold() {
        // AcqRel: as in `while_in`, in both directions.
        let held = HOLD.compare_exchange(WANTED, HELD, Ordering::AcqRel, Ordering::Relaxed);
        if held.is_ok() {
            while_in(HELD);
        }
    }

    /// Runs `begin`, after which a thread comes to a place that a condition planted in this process
    /// holds ([`hold`](super::hold)). Waits for that thread, and runs `f` while it is held. By one
    /// thread at a time.
    pub fn while_held<R>(begin: impl FnOnce(), f: impl FnOnce() -> R) -> R {
        // Release and Acquire: as in `while_in`.
        HOLD.store(WANTED, Ordering::Release);
        begin();
        while_in(WANTED);
        let result = f();
        HOLD.store(FREE, Ordering::Release);
        result
    }

    /// The names of one crate's faults. For the macro [`faults!`](crate::faults!).
    #[doc(hidden)]
    pub struct List {
        names: &'static [&'static str],
        next: AtomicPtr<List>,
    }

    impl List {
        #[doc(hidden)]
        pub const fn new(names: &'static [&'static str]) -> Self {
            Self {
                names,
                next: AtomicPtr::new(core::ptr::null_mut()),
            }
        }

        /// Once for each list, while the loader runs the module's initialisers, one at a time.
        #[doc(hidden)]
        pub fn add(&'static self) {
            // Relaxed: what the initialisers store is seen by the threads that come later.
            self.next
                .store(LISTS.load(Ordering::Relaxed), Ordering::Relaxed);
            LISTS.store(core::ptr::from_ref(self).cast_mut(), Ordering::Relaxed);
        }
    }

    /// The names in `URGE_FAULT` that no crate of the process has listed.
    fn unknown(planted: &str) -> impl Iterator<Item = &str> {
        let known = |name: &str| {
            let mut at = LISTS.load(Ordering::Relaxed);
            // SAFETY: null, or a static.
            while let Some(list) = unsafe { at.as_ref() } {
                if list.names.contains(&name) {
                    return true;
                }
                at = list.next.load(Ordering::Relaxed);
            }
            false
        };
        planted
            .split(',')
            .filter(move |name| !name.is_empty() && !known(name))
    }

    /// Ends the process if `URGE_FAULT` names a fault that no crate of the process has listed: a
    /// test that plants it would pass for another reason. For a program whose crates list all of
    /// their faults by [`faults!`](crate::faults!).
    pub fn refuse_unknown_names() {
        read_environment();
        let unknown: Vec<&str> = unknown(names()).collect();
        if !unknown.is_empty() {
            eprintln!(
                "urge: URGE_FAULT={} names no fault: {}",
                names(),
                unknown.join(", ")
            );
            std::process::exit(2);
        }
    }

    pub(super) fn names() -> &'static str {
        // Acquire pairs with the Release below: the string is whole before it is found.
        // SAFETY: null, or a leaked string.
        unsafe { NAMES.load(Ordering::Acquire).as_ref() }.map_or("", String::as_str)
    }

    pub(super) fn read_environment() {
        if NAMES.load(Ordering::Relaxed).is_null() {
            let names = Box::leak(Box::new(std::env::var("URGE_FAULT").unwrap_or_default()));
            NAMES.store(names, Ordering::Release);
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn names_that_no_crate_lists_are_unknown() {
            let unknown = |planted| super::unknown(planted).collect::<Vec<_>>();
            assert_eq!(unknown(""), [""; 0]);
            assert_eq!(unknown(",no-resend,slow-frames"), [""; 0]);
            assert_eq!(unknown("no-resend,no-resent,,"), ["no-resent"]);
        }
    }
}
