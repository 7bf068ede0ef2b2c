//! The kinds and sites of Lox's cells in a heap.
//!
//! # The end of a cell
//! A loop over words or bytes may keep a pointer one past the end as its only pointer into a cell.
//! So each cell that Rust code loops over (strings, closures with captures, tables) has `SPARE`
//! bytes behind its last one, and that pointer is an interior pointer. Rust and compiled code reach
//! the fields of all other cells at constant offsets. The heap's own
//! [`past_the_end`](gc_core::HeapBuilder::past_the_end) would add the byte to those cells as well,
//! and an instance of two fields would take 48 bytes instead of 32.

use super::object::*;
use super::value::{ADDRESS, REFERENCE};
use gc_core::Heap;
use gc_core::raw::{Encoding, Kind, KindId, Site};
use std::sync::Arc;

/// The encoding of boxed words: in the value stack, in globals, in cells' fields and in stack-map
/// slots.
pub const BOXED: Encoding =
    Encoding::nan_box(REFERENCE as usize, REFERENCE as usize, ADDRESS as usize);

/// The most fields that an instance has inline. Further fields are in its overflow cell.
pub const INLINE_MAX: u32 = 32;

/// The length in bytes of the longest string that is allocated through a site.
pub(super) const SHORT_STRING: usize = 256;

/// Bytes behind the last element of a cell that Rust code loops over: the pointer past the end lies
/// in the cell.
pub(super) const SPARE: usize = 1;

/// The error of an allocation: the heap is full, or a count is larger than its field in the header.
#[derive(Clone, Copy, Debug)]
pub struct OutOfMemory;

/// A heap in which Lox's kinds are registered. All isolates on it share it.
#[derive(Clone)]
pub struct LoxHeap {
    /// the heap itself
    pub heap: Heap,
    /// the kinds and sites that were registered with it
    pub cells: Arc<Cells>,
}

/// The kinds and sites of Lox's cells in one heap.
pub struct Cells {
    /// the kind of strings, for strings longer than the sites are for
    pub string: KindId,
    /// the kind of [`Overflow`]
    pub overflow: KindId,
    /// the kind of [`Array`]
    pub array: KindId,
    /// the kind of [`Methods`]
    pub methods: KindId,
    /// the kind of [`Interned`]
    pub interned: KindId,
    /// strings, by their cell's size in units of 16 bytes
    pub strings: Vec<Site>,
    /// closures, by number of upvalues
    pub closures: Vec<Site>,
    /// instances, by half their inline capacity
    pub instances: Vec<Site>,
    /// the site of [`Native`]
    pub native: Site,
    /// the site of [`Upvalue`]
    pub upvalue: Site,
    /// the site of [`Class`]
    pub class: Site,
    /// the site of [`Shape`]
    pub shape: Site,
    /// the site of [`BoundMethod`]
    pub bound: Site,
    /// the site of [`Channel`]
    pub channel: Site,
}

impl Cells {
    /// The site of instances with `inline_capacity` inline slots.
    pub fn instance_site(&self, inline_capacity: u32) -> Site {
        self.instances[inline_capacity as usize / 2]
    }
}

impl LoxHeap {
    /// Registers Lox's kinds and sites with a heap.
    pub fn new(heap: Heap) -> Result<LoxHeap, Box<dyn std::error::Error>> {
        let string = heap.kind(Kind::leaf_uninit("lox string"))?;
        let native = heap.kind(Kind::leaf("lox native"))?;
        let closure = heap.kind(Kind::array("lox closure", 2, Encoding::RAW))?;
        let upvalue = heap.kind(Kind::array("lox upvalue", 1, BOXED))?;
        let class = heap.kind(Kind::array("lox class", 3, BOXED))?;
        let instance = heap.kind(Kind::array("lox instance", 1, BOXED))?;
        let shape = heap.kind(Kind::array("lox shape", 3, BOXED))?;
        let bound = heap.kind(Kind::array("lox bound method", 1, BOXED))?;
        let channel = heap.kind(Kind::array("lox channel", 1, BOXED))?;
        let site = |kind, bytes| {
            heap.site(kind, bytes)
                .map_err(|error| format!("no site for {bytes} bytes: {error:?}"))
        };
        let mut strings = Vec::new();
        for units in 0..=(STRING_BYTES + SHORT_STRING + SPARE).div_ceil(16) {
            strings.push(site(string, (units * 16).max(STRING_BYTES))?);
        }
        let mut closures = Vec::new();
        for upvalues in 0..=256 {
            let spare = if upvalues == 0 { 0 } else { SPARE };
            closures.push(site(closure, size_of::<Closure>() + 8 * upvalues + spare)?);
        }
        let mut instances = Vec::new();
        for half in 0..=INLINE_MAX as usize / 2 {
            instances.push(site(instance, size_of::<Instance>() + 16 * half)?);
        }
        let cells = Cells {
            string,
            overflow: heap.kind(Kind::array("lox overflow", 1, BOXED))?,
            array: heap.kind(Kind::array("lox array", 1, BOXED))?,
            methods: heap.kind(Kind::array("lox methods", 1, BOXED))?,
            interned: heap.kind(Kind::weak(
                "lox intern table",
                2,
                BOXED,
                INTERN_CLEARED.0 as usize,
            ))?,
            strings,
            closures,
            instances,
            native: site(native, size_of::<Native>())?,
            upvalue: site(upvalue, size_of::<Upvalue>())?,
            class: site(class, size_of::<Class>())?,
            shape: site(shape, size_of::<Shape>())?,
            bound: site(bound, size_of::<BoundMethod>())?,
            channel: site(channel, size_of::<Channel>())?,
        };
        Ok(LoxHeap {
            heap,
            cells: Arc::new(cells),
        })
    }
}
