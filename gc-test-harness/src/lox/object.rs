//! The layout of each sort of cell that Lox has in the heap.
//!
//! The interpreter, the runtime and compiled code read and write cells by these layouts. All cells
//! are `repr(C)`, consist of words of 8 bytes, and are zero when fresh. References inside cells are
//! boxed [`Value`]s, with one exception: a closure's upvalues are raw addresses, since every access
//! to a captured variable follows one. Compiled code keeps a reference across a call **boxed**,
//! because a code range has one encoding.
//!
//! # The header
//!
//! Every cell that a [`Value`] can refer to begins with a [`Header`] word:
//!
//! | bits | name | meaning |
//! |---|---|---|
//! | 0..8 | tag | the sort of the cell, [`Tag`] |
//! | 8..32 | index | instance: its shape's index in the class; closure: upvalues; overflow: slots |
//! | 32..64 | id | instance: its shape's; class: its own; closure: the function's; other cells: 0 |
//!
//! Ids of all three sorts come from one counter of the isolate, are never used twice and are never
//! 0. So one comparison of the 32 bits at [`HEADER_ID`] with a constant decides the type *and* the
//! shape, class or function. A cache or compiled code that recognises a cell by its id need not
//! keep the cell alive, and does not mistake a new cell at a reused address for the old one.
//!
//! # Instances, classes, shapes
//!
//! An instance consists of its header, one reference, and the inline slots of the first fields. The
//! number of slots is a property of the shape (`inline_capacity`). A class predicts it from the
//! fields that its instances have used so far. The reference ([`Instance::class`]) is the class
//! while all fields have inline slots. When there are more fields (tag [`Tag::InstanceOverflow`],
//! which the shape's id implies), the reference is the [`Overflow`] cell, which refers to the class
//! and holds the further fields. When the overflow cell is full, one store replaces it by a longer
//! copy.
//!
//! Adding a field within the capacity takes two plain stores. The first stores the value into the
//! slot. It needs no barrier, because the old content is the zero of a fresh cell, which is no
//! reference. The second stores the new shape's [`Shape::instance_header`] over the header. The
//! collector reads no headers: it takes every boxed word after the first as an edge. So it may read
//! the instance between the two stores.
//!
//! A class's methods never change after its first instance was made: a class declaration runs no
//! other code between its first and its last instruction. So the meaning of `instance.name` is
//! fixed by the shape: a field's slot, or an entry of the class's method table. An inline
//! [`Cache`](super::proto::Cache) holds this slot or entry.
//!
//! A property's name is a *symbol*: a small number, one for each name of the program (see
//! [`super::bytecode`]).

use super::proto::{Isolate, Proto};
use super::value::Value;
use std::mem::offset_of;

/// The sort of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Tag {
    /// [`Str`]
    String = 1,
    /// [`Native`]
    Native = 2,
    /// [`Closure`]
    Closure = 3,
    /// [`BoundMethod`]
    BoundMethod = 4,
    /// [`Class`]
    Class = 5,
    /// [`Shape`]; never a program's value
    Shape = 6,
    /// [`Array`]; never a program's value
    Array = 7,
    /// [`Methods`]; never a program's value
    Methods = 8,
    /// [`Overflow`]; never a program's value
    Overflow = 9,
    /// [`Channel`]
    Channel = 10,
    /// [`Instance`] with all fields in its own slots
    Instance = 16,
    /// [`Instance`] whose further fields are in an [`Overflow`] cell
    InstanceOverflow = 17,
}

/// The bits of a tag that are the same for all instances, with and without overflow: a masked tag
/// of an instance is [`Tag::Instance`].
pub const INSTANCE_TAG_MASK: u8 = 0xFE;

/// The first word of a cell, as the module's documentation describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Header(pub u64);

/// Byte offset of the tag (one byte) in a cell.
pub const HEADER_TAG: i32 = 0;
/// Byte offset of the id (`u32`) in a cell.
pub const HEADER_ID: i32 = 4;

impl Header {
    /// A header of these parts. Only the low 24 bits of `index` are used.
    #[inline(always)]
    pub const fn new(tag: Tag, index: u32, id: u32) -> Header {
        Header(tag as u64 | ((index as u64) << 8 & 0xFFFF_FF00) | (id as u64) << 32)
    }

    /// The tag's number.
    #[inline(always)]
    pub const fn tag(self) -> u8 {
        self.0 as u8
    }

    /// Bits 8 to 32.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        (self.0 as u32) >> 8
    }

    /// Bits 32 to 64.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether the cell is an instance, with or without overflow.
    #[inline(always)]
    pub const fn is_instance(self) -> bool {
        self.tag() & INSTANCE_TAG_MASK == Tag::Instance as u8
    }

    /// Whether the cell has this tag.
    #[inline(always)]
    pub const fn is(self, tag: Tag) -> bool {
        self.tag() == tag as u8
    }
}

/// The largest number that fits the header's index.
pub const MAX_INDEX: u32 = (1 << 24) - 1;

/// A string: interned, immutable. Leaf. The bytes follow.
#[repr(C)]
pub struct Str {
    /// tag [`Tag::String`]
    pub header: Header,
    /// length in bytes
    pub length: u32,
    /// hash of the bytes, as the intern table computes it
    pub hash: u32,
}

/// Byte offset of a string's bytes.
pub const STRING_BYTES: usize = size_of::<Str>();

impl Str {
    /// The string's bytes.
    ///
    /// # Safety
    /// `string` must be a live string cell.
    #[inline]
    pub unsafe fn bytes<'a>(string: *const Str) -> &'a [u8] {
        // SAFETY: the caller's promise; the cell was allocated with `length` bytes behind the
        // header.
        unsafe {
            std::slice::from_raw_parts(
                string.cast::<u8>().add(STRING_BYTES),
                (*string).length as usize,
            )
        }
    }
}

/// A function written in Rust that programs can call. Leaf.
#[repr(C)]
pub struct Native {
    /// tag [`Tag::Native`]
    pub header: Header,
    /// The code. Its arguments are the isolate, the number of arguments, and the address of the
    /// first one on the value stack.
    pub function: NativeFn,
}

/// Code of a [`Native`].
pub type NativeFn =
    unsafe extern "C" fn(vm: *mut Isolate, count: u32, arguments: *const Value) -> Value;

/// A function with the variables it captured. The raw addresses of its [`Upvalue`]s follow, as many
/// as the header's index says. Traced from word 2 on, raw.
#[repr(C)]
pub struct Closure {
    /// tag [`Tag::Closure`], index: number of upvalues, id: the function's
    /// ([`Proto::id`])
    pub header: Header,
    /// The function's state in this isolate. It is outside the heap and lives as long as the
    /// isolate.
    pub proto: *mut Proto,
}

/// Byte offset of [`Closure::proto`].
pub const CLOSURE_PROTO: i32 = offset_of!(Closure, proto) as i32;
/// Byte offset of a closure's first upvalue (a raw address; 8 bytes each).
pub const CLOSURE_UPVALUES: i32 = size_of::<Closure>() as i32;

impl Closure {
    /// The address of the word that holds upvalue `index`.
    ///
    /// # Safety
    /// `closure` must be a live closure with more than `index` upvalues.
    #[inline(always)]
    pub unsafe fn upvalue(closure: *mut Closure, index: usize) -> *mut *mut Upvalue {
        // SAFETY: the caller's promise; upvalues follow the fixed part.
        unsafe { closure.add(1).cast::<*mut Upvalue>().add(index) }
    }
}

/// A captured variable. No header: no value refers to it. Traced from word 1 on.
#[repr(C)]
pub struct Upvalue {
    /// The variable's address: a slot of the value stack while the upvalue is open, then
    /// [`Upvalue::closed`] of this cell.
    pub location: *mut Value,
    /// The variable after the upvalue was closed.
    pub closed: Value,
    /// The open upvalue of the next lower slot, or nil.
    pub next: Value,
}

/// Byte offset of [`Upvalue::location`].
pub const UPVALUE_LOCATION: i32 = offset_of!(Upvalue, location) as i32;
/// Byte offset of [`Upvalue::closed`].
pub const UPVALUE_CLOSED: i32 = offset_of!(Upvalue, closed) as i32;

/// A class. Traced from word 3 on.
#[repr(C)]
pub struct Class {
    /// tag [`Tag::Class`], id: the class's
    pub header: Header,
    /// The header of a fresh instance. It changes when the predicted capacity changes; older
    /// headers stay valid.
    pub instance_header: Header,
    /// Inline slots of a fresh instance, an even number. The cell has `16 + 8 * inline_capacity`
    /// bytes.
    pub inline_capacity: u32,
    /// The number of shapes in [`Class::shapes`].
    pub shape_count: u32,
    /// boxed [`Str`]
    pub name: Value,
    /// boxed [`Methods`], or nil
    pub methods: Value,
    /// boxed [`Closure`] of `init`, or nil
    pub init: Value,
    /// boxed [`Array`] of all shapes of this class's instances, by index
    pub shapes: Value,
}

/// Byte offset of [`Class::instance_header`].
pub const CLASS_INSTANCE_HEADER: i32 = offset_of!(Class, instance_header) as i32;
/// Byte offset of [`Class::inline_capacity`].
pub const CLASS_INLINE_CAPACITY: i32 = offset_of!(Class, inline_capacity) as i32;
/// Byte offset of [`Class::methods`].
pub const CLASS_METHODS: i32 = offset_of!(Class, methods) as i32;
/// Byte offset of [`Class::init`].
pub const CLASS_INIT: i32 = offset_of!(Class, init) as i32;

/// An instance; its inline slots follow. Traced from word 1 on.
#[repr(C)]
pub struct Instance {
    /// tag [`Tag::Instance`] or [`Tag::InstanceOverflow`], index: the shape's in [`Class::shapes`],
    /// id: the shape's
    pub header: Header,
    /// boxed [`Class`]; with tag [`Tag::InstanceOverflow`], boxed [`Overflow`]
    pub class: Value,
}

/// Byte offset of [`Instance::class`].
pub const INSTANCE_CLASS: i32 = offset_of!(Instance, class) as i32;
/// Byte offset of an instance's first slot.
pub const INSTANCE_SLOTS: i32 = size_of::<Instance>() as i32;

/// The fields of an instance that have no inline slot. Traced from word 1 on.
#[repr(C)]
pub struct Overflow {
    /// tag [`Tag::Overflow`], index: number of slots
    pub header: Header,
    /// boxed [`Class`]
    pub class: Value,
}

/// Byte offset of [`Overflow::class`].
pub const OVERFLOW_CLASS: i32 = offset_of!(Overflow, class) as i32;
/// Byte offset of the first slot of an overflow cell.
pub const OVERFLOW_SLOTS: i32 = size_of::<Overflow>() as i32;

/// The fields of an instance, in the order in which they were added, and its number of inline
/// slots. Immutable except for the list of children. Traced from word 3 on.
#[repr(C)]
pub struct Shape {
    /// tag [`Tag::Shape`], index: inline capacity
    pub header: Header,
    /// The header of an instance of this shape, ready to be stored.
    pub instance_header: Header,
    /// number of fields
    pub fields: u32,
    /// the symbol of the field that was added last (meaningless without fields)
    pub symbol: u32,
    /// boxed shape without the last field, or nil
    pub parent: Value,
    /// boxed first shape that has one field more, or nil
    pub first_child: Value,
    /// boxed next shape with the same parent, or nil
    pub next_sibling: Value,
}

impl Shape {
    /// The number of inline slots of an instance of this shape.
    #[inline(always)]
    pub fn inline_capacity(&self) -> u32 {
        self.header.index()
    }
}

/// A plain array of values. Traced from word 1 on.
#[repr(C)]
pub struct Array {
    /// tag [`Tag::Array`], index: number of elements
    pub header: Header,
}

impl Array {
    /// The number of elements.
    ///
    /// # Safety
    /// `array` must be a live array.
    #[inline(always)]
    pub unsafe fn length(array: *const Array) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { (*array).header.index() }
    }
}

/// A channel of green threads. Traced from word 1 on: the numbers are small, so they are no edges.
#[repr(C)]
pub struct Channel {
    /// tag [`Tag::Channel`]
    pub header: Header,
    /// boxed [`Array`] with as many elements as the channel's capacity
    pub buffer: Value,
    /// The place of the first value in the buffer, which is used as a ring.
    pub first: u32,
    /// The number of values in the buffer.
    pub length: u32,
    /// Green threads that wait until their value is taken.
    pub senders: Queue,
    /// Green threads that wait for a value.
    pub receivers: Queue,
}

/// The first and the last of the green threads that wait, by their numbers; 0 is none.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Queue {
    /// the one that is served next
    pub first: u32,
    /// the one that came last
    pub last: u32,
}

/// Byte offset of an array's first element.
pub const ARRAY_ELEMENTS: i32 = size_of::<Array>() as i32;

/// A class's methods: a hash table with open addressing. A table that grows is replaced by a new
/// one. [`MethodEntry`]s follow. Traced from word 1 on: `count` and the keys are small numbers,
/// which are no edges.
#[repr(C)]
pub struct Methods {
    /// tag [`Tag::Methods`], index: number of entries, a power of two
    pub header: Header,
    /// number of entries in use
    pub count: u64,
}

/// One entry of [`Methods`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MethodEntry {
    /// the method's symbol plus one; 0: free
    pub key: u64,
    /// boxed [`Closure`]
    pub method: Value,
}

/// Byte offset of the first [`MethodEntry`].
pub const METHODS_ENTRIES: i32 = size_of::<Methods>() as i32;

/// A method with the instance that it was read from. Traced from word 1 on.
#[repr(C)]
pub struct BoundMethod {
    /// tag [`Tag::BoundMethod`]
    pub header: Header,
    /// boxed instance
    pub receiver: Value,
    /// boxed [`Closure`]
    pub method: Value,
}

/// Byte offset of [`BoundMethod::receiver`].
pub const BOUND_RECEIVER: i32 = offset_of!(BoundMethod, receiver) as i32;
/// Byte offset of [`BoundMethod::method`].
pub const BOUND_METHOD: i32 = offset_of!(BoundMethod, method) as i32;

/// The intern table; [`InternEntry`]s follow. Weak from word 2 on: the table does not keep its
/// strings alive.
#[repr(C)]
pub struct Interned {
    /// number of entries, a power of two
    pub capacity: u64,
    /// number of entries in use, cleared ones included
    pub used: u64,
}

/// One entry of the intern table. A free entry is all zero. When the string has died, the collector
/// writes [`INTERN_CLEARED`] over the reference.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InternEntry {
    /// the string's hash: a search need not read the strings of most entries that do not match
    pub hash: u64,
    /// boxed [`Str`], a weak word: followed only after
    /// [`Mutator::load_weak`](gc_core::Mutator::load_weak)
    pub string: Value,
}

/// The value that the collector writes over the reference to a dead string.
pub const INTERN_CLEARED: Value = Value::FALSE;

/// The header of the cell that `value` refers to.
///
/// # Safety
/// `value` must refer to a live cell.
#[inline(always)]
pub unsafe fn header(value: Value) -> Header {
    // SAFETY: all cells that values refer to begin with a header.
    unsafe { *value.as_cell::<Header>() }
}

/// Whether `value` refers to a cell with this tag.
///
/// # Safety
/// `value` must be a number, a singleton or refer to a live cell.
#[inline(always)]
pub unsafe fn is(value: Value, tag: Tag) -> bool {
    // SAFETY: the caller's promise.
    value.is_cell() && unsafe { header(value) }.is(tag)
}

/// The class of an instance.
///
/// # Safety
/// `instance` must refer to a live instance.
#[inline(always)]
pub(super) unsafe fn class_of(instance: Value) -> *mut Class {
    let instance: *mut Instance = instance.as_cell();
    // SAFETY: the caller's promise; the tag says whether the reference is to a class or to an
    // overflow cell.
    unsafe {
        if (*instance).header.is(Tag::Instance) {
            (*instance).class.as_cell()
        } else {
            (*(*instance).class.as_cell::<Overflow>()).class.as_cell()
        }
    }
}

/// The address of inline slot `slot`.
///
/// # Safety
/// `instance` must refer to a live instance with more than `slot` inline slots.
#[inline(always)]
pub(super) unsafe fn inline_slot(instance: Value, slot: u32) -> *mut Value {
    // SAFETY: the caller's promise; slots follow the fixed part.
    unsafe {
        instance
            .as_cell::<Instance>()
            .add(1)
            .cast::<Value>()
            .add(slot as usize)
    }
}

/// The address of slot `slot` of the overflow cell.
///
/// # Safety
/// `instance` must refer to a live instance with an overflow cell of more than `slot` slots.
#[inline(always)]
pub(super) unsafe fn overflow_slot(instance: Value, slot: u32) -> *mut Value {
    // SAFETY: the caller's promise; slots follow the fixed part.
    unsafe {
        let overflow: *mut Overflow = (*instance.as_cell::<Instance>()).class.as_cell();
        overflow.add(1).cast::<Value>().add(slot as usize)
    }
}

/// The address of entry `index` of a method table.
///
/// # Safety
/// `methods` must be a live table with more than `index` entries.
#[inline(always)]
pub(super) unsafe fn method_entry(methods: *mut Methods, index: u32) -> *mut MethodEntry {
    // SAFETY: the caller's promise; entries follow the fixed part.
    unsafe { methods.add(1).cast::<MethodEntry>().add(index as usize) }
}

/// The closure in entry `index` of the class's method table.
///
/// # Safety
/// `class` must be a live class whose table has such an entry in use.
#[inline(always)]
pub(super) unsafe fn method_at(class: *mut Class, index: u32) -> Value {
    // SAFETY: the caller's promise.
    unsafe { (*method_entry((*class).methods.as_cell(), index)).method }
}

/// The entry of the class's method table for a symbol.
///
/// # Safety
/// `class` must be a live class.
pub(super) unsafe fn find_method(class: *mut Class, symbol: u32) -> Option<u32> {
    // SAFETY: the caller's promise; `methods` is nil or a table that is never full.
    unsafe {
        if !(*class).methods.is_cell() {
            return None;
        }
        let methods: *mut Methods = (*class).methods.as_cell();
        let mask = (*methods).header.index() - 1;
        let mut index = symbol.wrapping_mul(0x9E37_79B9) >> 8 & mask;
        loop {
            match (*method_entry(methods, index)).key {
                0 => return None,
                key if key == u64::from(symbol) + 1 => return Some(index),
                _ => index = (index + 1) & mask,
            }
        }
    }
}

/// The shape of an instance.
///
/// # Safety
/// `instance` must refer to a live instance.
pub(super) unsafe fn shape_of(instance: Value) -> *mut Shape {
    // SAFETY: the caller's promise; an instance's header has the shape's index in the class's array
    // of shapes.
    unsafe { *shape_slot((*class_of(instance)).shapes, header(instance).index()) }.as_cell()
}

/// The address of element `index` of a class's array of shapes.
///
/// # Safety
/// `shapes` must refer to a live array with more than `index` elements.
pub(super) unsafe fn shape_slot(shapes: Value, index: u32) -> *mut Value {
    // SAFETY: the caller's promise; elements follow the header.
    unsafe {
        shapes
            .as_cell::<Array>()
            .add(1)
            .cast::<Value>()
            .add(index as usize)
    }
}

/// The number of the field `symbol`. The search begins at the field that was added last.
///
/// # Safety
/// `shape` must be a live shape.
pub(super) unsafe fn field_number(mut shape: *mut Shape, symbol: u32) -> Option<u32> {
    // SAFETY: the caller's promise; parents live as long as their children.
    unsafe {
        while (*shape).fields > 0 {
            if (*shape).symbol == symbol {
                return Some((*shape).fields - 1);
            }
            shape = (*shape).parent.as_cell();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_their_parts_apart() {
        let header = Header::new(Tag::InstanceOverflow, MAX_INDEX, u32::MAX);
        assert_eq!(
            (header.tag(), header.index(), header.id()),
            (17, MAX_INDEX, u32::MAX)
        );
        let header = Header::new(Tag::Class, 0, 7);
        assert_eq!((header.tag(), header.index(), header.id()), (5, 0, 7));
        assert!(!header.is_instance());
        assert!(Header::new(Tag::Instance, 1, 2).is_instance());
        assert!(Header::new(Tag::InstanceOverflow, 1, 2).is_instance());
    }

    #[test]
    fn edges_stand_where_the_kinds_say() {
        // The kinds in `cells.rs` trace from these words on.
        assert_eq!(CLOSURE_UPVALUES, 2 * 8);
        assert_eq!(offset_of!(Upvalue, closed), 8);
        assert_eq!(offset_of!(Class, name), 3 * 8);
        assert_eq!(offset_of!(Instance, class), 8);
        assert_eq!(offset_of!(Shape, parent), 3 * 8);
        assert_eq!(size_of::<Interned>(), 2 * 8);
        assert_eq!(HEADER_TAG, 0);
    }
}
