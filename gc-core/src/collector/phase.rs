//! The phases of a collection, in their order: see `collector/mod.rs`.

/// The phase that the collector is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    Idle,
    Prepare,
    Scan,
    Mark,
    Finish,
    ClearWeak,
    Resurrect,
    ClearLong,
    QueueForDrop,
    SwapBitmaps,
    Sweep,
}
