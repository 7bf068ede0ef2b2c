//! The planted faults of the kernels and of the scheduler.

gc_preempt::faults! {
    /// The faults of this crate besides Lox's. `HAZARDS.md` names the test that finds each.
    pub(crate) enum Fault {
        PollsByPage = "polls-by-page",
        PollsByLoad = "polls-by-load",
        RefusalsUntold = "refusals-untold",
    }
}

gc_preempt::faults! {
    /// Conditions, which are no faults: each makes a rare event certain.
    pub(crate) enum Event {
        /// The heap refuses to attach a scheduler's second worker.
        WorkerRefused = "worker-refused",
    }
}
