//! The planted faults of the Lox runtime.

gc_preempt::faults! {
    /// The faults of this crate. `HAZARDS.md` names the test that finds each.
    pub(crate) enum Fault {
        StaleVectors = "stale-vectors",
        CapturedUnused = "captured-unused",
        StaleLoopSlots = "stale-loop-slots",
        StaleNativeStack = "stale-native-stack",
        KeepRefused = "keep-refused",
        RefuseCode = "refuse-code",
        StackArguments = "stack-arguments",
        StaleArguments = "stale-arguments",
        UndeclaredResults = "undeclared-results",
        DeadOperandsNil = "dead-operands-nil",
        StaleCapturedSlots = "stale-captured-slots",
        CachedStackTop = "cached-stack-top",
        StaleInterpreted = "stale-interpreted",
        SuspendedAnywhere = "suspended-anywhere",
        SlicesWithoutEnd = "slices-without-end",
    }
}
