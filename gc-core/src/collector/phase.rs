//! The phases of a collection, in the order in which they follow each other: see
//! `collector/mod.rs`.

/// Where the collector stands.
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
