//! The faults that a test can plant in this crate, and the protection of tables that mutators
//! change.

gc_preempt::faults! {
    /// The faults of this crate, by the folder that has the cure. `gc-test-harness/HAZARDS.md` says
    /// which test finds which.
    pub(crate) enum Fault {
        // alloc
        NoClear = "no-clear",
        WhiteRuns = "white-runs",
        NoRunBits = "no-run-bits",
        StaleRunsKept = "stale-runs-kept",
        StaleRunsUnlistedOnly = "stale-runs-unlisted-only",
        WhiteHoles = "white-holes",
        OldTails = "old-tails",
        OwnedUnkept = "owned-unkept",
        // api
        ClearInside = "clear-inside",
        ColdTouched = "cold-touched",
        BlocksOvershoot = "blocks-overshoot",
        SlowAssists = "slow-assists",
        BriskAssists = "brisk-assists",
        AttachOnce = "attach-once",
        HeldAttach = "held-attach",
        AttachedUnmarked = "attached-unmarked",
        LogKeptAtDetach = "log-kept-at-detach",
        BlockingStaysAttached = "blocking-stays-attached",
        RawIfAsked = "raw-if-asked",
        WaitRunning = "wait-running",
        AsksTheDead = "asks-the-dead",
        RegisteredUnwritten = "registered-unwritten",
        NoWindow = "no-window",
        SlotsUnlogged = "slots-unlogged",
        StoresWhileDying = "stores-while-dying",
        ExchangesUnlogged = "exchanges-unlogged",
        DrainLocked = "drain-locked",
        TriesForEver = "tries-for-ever",
        PairUnlocked = "pair-unlocked",
        HeldValue = "held-value",
        PairsUnlogged = "pairs-unlogged",
        JudgedOpen = "judged-open",
        // barrier
        NoRestart = "no-restart",
        JudgedLate = "judged-late",
        // collector
        AsideDeadKept = "aside-dead-kept",
        IdleSpansKept = "idle-spans-kept",
        AsideUnscanned = "aside-unscanned",
        BackUnmarked = "back-unmarked",
        BackUnscanned = "back-unscanned",
        HeldAside = "held-aside",
        NeverIdle = "never-idle",
        HoardsMemory = "hoards-memory",
        GoalKept = "goal-kept",
        TouchedGivenBack = "touched-given-back",
        Unpoisoned = "unpoisoned",
        RunsTakenBack = "runs-taken-back",
        LateSweep = "late-sweep",
        NoForkHandlers = "no-fork-handlers",
        ReserveLostInChild = "reserve-lost-in-child",
        CycleGoesOnInChild = "cycle-goes-on-in-child",
        UnjudgedInChild = "unjudged-in-child",
        QueuedFirst = "queued-first",
        FinalizersFirst = "finalizers-first",
        NoResurrection = "no-resurrection",
        JudgedInStop = "judged-in-stop",
        AssistsUnheld = "assists-unheld",
        PrintInStop = "print-in-stop",
        WhiteTails = "white-tails",
        HandlesUnscanned = "handles-unscanned",
        RootsEndEarly = "roots-end-early",
        HeldRoots = "held-roots",
        StoresUnlogged = "stores-unlogged",
        StopTracesOn = "stop-traces-on",
        LogsLeft = "logs-left",
        EpochKept = "epoch-kept",
        SuspendedUnscanned = "suspended-unscanned",
        SuspendedDropUnscanned = "suspended-drop-unscanned",
        ResumeUnscanned = "resume-unscanned",
        HeldSuspended = "held-suspended",
        RootsLoggedInVain = "roots-logged-in-vain",
        // fault
        TablesUnprotected = "tables-unprotected",
        // finalize
        TablesKept = "tables-kept",
        TrimmedIsFull = "trimmed-is-full",
        // heap
        ShortAllocatedBlack = "short-allocated-black",
        AllocatedBlackForgotten = "allocated-black-forgotten",
        PartsKept = "parts-kept",
        NoSpareByte = "no-spare-byte",
        NoDecoding = "no-decoding",
        InteriorOffByOne = "interior-off-by-one",
        NoAllocatedBit = "no-allocated-bit",
        PagesBeforeBacking = "pages-before-backing",
        SpansLostInChild = "spans-lost-in-child",
        WalkBesideSweep = "walk-beside-sweep",
        TooLargeCollects = "too-large-collects",
        PublishFirst = "publish-first",
        ListsStale = "lists-stale",
        ReserveKept = "reserve-kept",
        MarksKeptInChild = "marks-kept-in-child",
        UnsweptUnkept = "unswept-unkept",
        // mark
        DropWithEdges = "drop-with-edges",
        StrongPairs = "strong-pairs",
        OldUnfollowed = "old-unfollowed",
        LargeUnpaced = "large-unpaced",
        FlagBeforeBits = "flag-before-bits",
        WordsWhole = "words-whole",
        NoSecondLook = "no-second-look",
        EndsAreBeginnings = "ends-are-beginnings",
        WakesForLittle = "wakes-for-little",
        ClosedOverWork = "closed-over-work",
        // memory
        AllWritable = "all-writable",
        MemoryRefused = "memory-refused",
        HugePagesUnsplit = "huge-pages-unsplit",
        // mutator
        HandlesUnlogged = "handles-unlogged",
        DropsUnheld = "drops-unheld",
        TakenUnlogged = "taken-unlogged",
        LogLost = "log-lost",
        HalvesAlone = "halves-alone",
        NoAddressesLeft = "no-addresses-left",
        SmallLog = "small-log",
        RootsUnlogged = "roots-unlogged",
        KindAType = "kind-a-type",
        // pacer
        VainCycles = "vain-cycles",
        // roots
        LogExactOnly = "log-exact-only",
        CachedLimit = "cached-limit",
        TrustRoots = "trust-roots",
        // thread
        ThreadsOfStd = "threads-of-std",
        // verify
        TracersBelieved = "tracers-believed",
        // weak
        NoWake = "no-wake",
        KeepWeak = "keep-weak",
        NoRecheck = "no-recheck",
        MetSinceKept = "met-since-kept",
        CopiesUnnoted = "copies-unnoted",
    }
}

/// Runs `f`, which changes tables. No stop comes in between.
pub(crate) fn protected<R>(f: impl FnOnce() -> R) -> R {
    if Fault::TablesUnprotected.planted() {
        f()
    } else {
        gc_preempt::no_preempt_here(f)
    }
}
