//! Takes what Cranelift says of a compiled function, in structs that do not depend on any release of Cranelift.

/// One compiled function, at its final address.
#[derive(Clone, Debug)]
pub struct Function {
    /// Where its first instruction lies.
    pub address: usize,
    /// Bytes of code, constants and jump tables included (`buffer.total_size()`).
    pub size: u32,
    /// FP less SP at each of its calls (`frame_layout.frame_to_fp_offset`).
    pub frame_to_fp: u32,
    /// Bytes below FP where it saves registers of its caller's (`DefineNewFrame.offset_downward_to_clobbers`).
    pub clobber: u32,
    /// Bytes from SP upwards where it puts the arguments of its calls: up to its lowest sized slot. A function without sized slots gives `frame_to_fp - clobber`.
    pub outgoing: u32,
    /// Every call in it.
    pub sites: Vec<Site>,
}

/// One call, seen from the frame that makes it.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where the call returns to, in bytes from the function's address.
    pub return_offset: u32,
    /// Whether `slots` is all there is. False for a call that may be a libcall, which gets no map although references live across it: such a frame is scanned
    /// conservatively.
    pub known: bool,
    /// The references that live across the call, in bytes from SP. A call without a user stack map has none.
    pub slots: Vec<u32>,
}
