//! What the variants of a dynamic value hold, and the word that a value is in a cell.
//!
//! ```text
//! 0000 aaaaaaaaaaa t       a reference: the address of a cell, and the variant's number t
//! 0001..fff1 ...           an f64: its bits and 2^48, all NaNs as one
//! fff2..fffe dddddddddddd  plain data of 33 to 48 bits: one variant for each of the upper numbers
//! ffff vvvv dddddddd       plain data of up to 32 bits, of variant v
//! 0                        the null variant
//! ```
//! Cells are aligned to 16 bytes, so a reference has room for 16 variants. One
//! [`Encoding::DYNAMIC`] finds the address in such a word and in the plain word of a
//! [`Field`](crate::Field). So a kind may have both at its edges.
//!
//! A word is decoded into the variant that encoded it. So the type of the cell that a reference
//! leads to is known without a look at the cell. The words of one enum are never decoded as another
//! enum's: the types of fields and roots name the enum.

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::api::local::Local;
use crate::api::trace::{Leaf, Trace};
use crate::encoding::Encoding;

/// Added to the bits of an `f64`. Then its upper 16 bits are 1 to 0xfff1.
const DOUBLE: u64 = 1 << 48;
/// The upper 16 bits of the first variant of wide plain data, and their number.
const WIDE: u64 = 0xfff2 << 48;
const WIDE_VARIANTS: usize = 13;
/// The upper 16 bits of narrow plain data.
const NARROW: u64 = 0xffff << 48;
const NARROW_BITS: u32 = 32;
const WIDE_BITS: u32 = 48;
const REFERENCE_VARIANTS: usize = 16;
/// The bits of a reference that are its variant's number.
const NUMBER: u64 = 15;

// The collector takes the same words for edges.
const _: () = {
    let Encoding { mask, value, keep } = Encoding::DYNAMIC;
    assert!(mask as u64 == NARROW && value == 0 && keep as u64 == !(NARROW | NUMBER));
};

/// What a variant holds. The derive of an enum uses it.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Nothing,
    /// Plain data of so many bits; all bits zero are a value.
    Plain(u32),
    /// An address outside of the heap, not zero.
    Static,
    Double,
    Reference,
}

/// A type that a variant of a dynamic value may hold, while a scope `'s` is open: a
/// [`Local<'s, T>`](Local), an `f64`, a [`Static`], or [`Plain`] data.
///
/// # Safety
/// `from_word` returns what `into_word` was called with. Only [`Local`]s are references. All other
/// types are `Send`, `Sync` and `'static`.
#[diagnostic::on_unimplemented(
    message = "a variant of a dynamic value cannot hold a `{Self}`",
    label = "not a `Local<'_, T>`, an `f64`, or plain data of at most 48 bits",
    note = "plain data: `bool`, `char`, integers of at most 32 bits, `f32`, `Fixnum` (48 bits), `Static<T>`, pairs of these, and types that derive `Plain`",
    note = "larger data lies in a cell of its own: hold a `Local<'_, T>` to it"
)]
pub unsafe trait Datum<'s>: Sized {
    #[doc(hidden)]
    const CLASS: Class;

    /// The word is the sum of this and the variant's key.
    #[doc(hidden)]
    fn into_word(self) -> u64;

    /// # Safety
    /// `word` is that of a variant of this type in the same enum. If it is a reference, its cell
    /// lives while `'s` lasts.
    #[doc(hidden)]
    unsafe fn from_word(word: u64) -> Self;
}

// SAFETY: the address of a cell is a multiple of 16 below 2^48, so the lowest 4 and the upper 16
// bits are free. The lifetime of the local is that of the value.
unsafe impl<'s, T: Trace> Datum<'s> for Local<'s, T> {
    const CLASS: Class = Class::Reference;

    #[inline(always)]
    fn into_word(self) -> u64 {
        self.cell().as_ptr().expose_provenance() as u64
    }

    #[inline(always)]
    unsafe fn from_word(word: u64) -> Self {
        let cell = core::ptr::with_exposed_provenance_mut((word & !NUMBER) as usize);
        // SAFETY: the word was made by `into_word` from a local of this type, so the address is
        // not null, and the cell holds a `T`. The caller says that it lives.
        unsafe { Local::from_cell(NonNull::new_unchecked(cell)) }
    }
}

// SAFETY: the key that is added is taken away again.
unsafe impl Datum<'_> for f64 {
    const CLASS: Class = Class::Double;

    #[inline(always)]
    fn into_word(self) -> u64 {
        // One NaN for all: the sum of others and the key would be other variants' words.
        if self.is_nan() {
            f64::NAN.to_bits() & !(1 << 63)
        } else {
            self.to_bits()
        }
    }

    #[inline(always)]
    unsafe fn from_word(word: u64) -> Self {
        f64::from_bits(word.wrapping_sub(DOUBLE))
    }
}

/// Plain data that a variant of a dynamic value may hold: at most 48 bits. Derive it for enums
/// without data, and for structs of one member ([`Plain`](derive@crate::Plain)).
///
/// ```
/// use gc_core::{Local, Bytes, Plain, Trace};
///
/// #[derive(Plain, Clone, Copy, PartialEq, Debug)]
/// struct Symbol(u32);
///
/// #[derive(Plain, Clone, Copy, PartialEq, Debug)]
/// enum Builtin { Car, Cdr, Cons }
///
/// #[derive(Trace, Clone, Copy)]
/// enum Value<'s> {
///     Nil,
///     Symbol(Symbol),
///     Builtin(Builtin),
///     Text(Local<'s, Bytes>),
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a `{Self}` is not plain data of at most 48 bits",
    note = "plain data: `bool`, `char`, integers of at most 32 bits, `f32`, `Fixnum` (48 bits), pairs of these, and types that derive `Plain`"
)]
pub trait Plain: Send + Sync + Sized + 'static {
    /// The bits that a value takes, at most 48.
    const BITS: u32;

    /// The value as bits. Bits above the lowest [`BITS`](Self::BITS) are lost.
    fn into_bits(self) -> u64;

    /// The value of these bits. The dynamic value passes what [`into_bits`](Self::into_bits)
    /// returned, or zero.
    fn from_bits(bits: u64) -> Self;
}

// SAFETY: only the lowest BITS bits are used, which the variant's key leaves zero: `keys` refuses
// more than 48.
unsafe impl<T: Plain> Datum<'_> for T {
    const CLASS: Class = Class::Plain(T::BITS);

    #[inline(always)]
    fn into_word(self) -> u64 {
        self.into_bits() & ((1 << T::BITS) - 1)
    }

    #[inline(always)]
    unsafe fn from_word(word: u64) -> Self {
        T::from_bits(word & ((1 << T::BITS) - 1))
    }
}

macro_rules! integers {
    ($($type:ident as $unsigned:ident),* $(,)?) => {$(
        impl Plain for $type {
            const BITS: u32 = $type::BITS;
            #[inline(always)]
            fn into_bits(self) -> u64 {
                u64::from(self as $unsigned)
            }
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as $unsigned as $type
            }
        }
    )*};
}

integers!(
    i8 as u8, i16 as u16, i32 as u32, u8 as u8, u16 as u16, u32 as u32
);

impl Plain for bool {
    const BITS: u32 = 1;
    #[inline(always)]
    fn into_bits(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        bits != 0
    }
}

impl Plain for char {
    const BITS: u32 = 21;
    #[inline(always)]
    fn into_bits(self) -> u64 {
        u64::from(u32::from(self))
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        char::from_u32(bits as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

impl Plain for f32 {
    const BITS: u32 = 32;
    #[inline(always)]
    fn into_bits(self) -> u64 {
        u64::from(self.to_bits())
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
}

impl Plain for () {
    const BITS: u32 = 0;
    #[inline(always)]
    fn into_bits(self) -> u64 {
        0
    }
    #[inline(always)]
    fn from_bits(_: u64) -> Self {}
}

impl<A: Plain, B: Plain> Plain for (A, B) {
    const BITS: u32 = A::BITS + B::BITS;
    #[inline(always)]
    fn into_bits(self) -> u64 {
        self.0.into_bits() & ((1 << A::BITS) - 1) | self.1.into_bits() << A::BITS
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        let (a, b) = (bits & ((1 << A::BITS) - 1), bits >> A::BITS);
        (A::from_bits(a), B::from_bits(b))
    }
}

/// An integer of 48 bits, for a variant of a dynamic value: the wide small integer (fixnum) of a
/// language whose integers are larger than 32 bits.
///
/// ```
/// use gc_core::Fixnum;
///
/// let number = Fixnum::new(-5_000_000_000).unwrap();
/// assert_eq!(number.get(), -5_000_000_000);
/// assert_eq!(Fixnum::new(1 << 47), None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fixnum(i64);

impl Fixnum {
    /// The least: -2^47.
    pub const MIN: Fixnum = Fixnum(-1 << 47);
    /// The greatest: 2^47 - 1.
    pub const MAX: Fixnum = Fixnum((1 << 47) - 1);

    /// The integer, if it has at most 48 bits.
    #[inline]
    pub const fn new(number: i64) -> Option<Fixnum> {
        if number << 16 >> 16 == number {
            Some(Fixnum(number))
        } else {
            None
        }
    }

    /// The lowest 48 bits, with the sign of bit 47.
    #[inline]
    pub const fn wrapping(number: i64) -> Fixnum {
        Fixnum(number << 16 >> 16)
    }

    /// The integer.
    #[inline]
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl Plain for Fixnum {
    const BITS: u32 = WIDE_BITS;
    #[inline(always)]
    fn into_bits(self) -> u64 {
        self.0 as u64
    }
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Fixnum::wrapping(bits as i64)
    }
}

// SAFETY: plain bits.
unsafe impl Leaf for Fixnum {}

impl From<i32> for Fixnum {
    fn from(number: i32) -> Self {
        Fixnum(number.into())
    }
}

impl From<u32> for Fixnum {
    fn from(number: u32) -> Self {
        Fixnum(number.into())
    }
}

impl TryFrom<i64> for Fixnum {
    type Error = core::num::TryFromIntError;
    fn try_from(number: i64) -> Result<Self, Self::Error> {
        // The standard library's error has no constructor.
        Fixnum::new(number).ok_or_else(|| u8::try_from(u32::MAX).expect_err("it is too large"))
    }
}

impl fmt::Display for Fixnum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A reference to a static, for a variant of a dynamic value: the descriptor of a built-in
/// function, for example.
///
/// ```
/// use gc_core::{Local, Bytes, Static, Trace};
///
/// struct Builtin { name: &'static str, call: fn(i32) -> i32 }
/// static DOUBLE: Builtin = Builtin { name: "double", call: |n| 2 * n };
///
/// #[derive(Trace, Clone, Copy)]
/// enum Value<'s> { Nil, Builtin(Static<Builtin>), Text(Local<'s, Bytes>) }
///
/// let Value::Builtin(builtin) = Value::Builtin(Static(&DOUBLE)) else { unreachable!() };
/// assert_eq!((builtin.name, (builtin.call)(21)), ("double", 42));
/// ```
#[derive(Debug)]
pub struct Static<T: 'static>(pub &'static T);

impl<T> Clone for Static<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Static<T> {}

impl<T> Deref for Static<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0
    }
}

impl<T> PartialEq for Static<T> {
    /// Whether both are the same static.
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl<T> Eq for Static<T> {}

// SAFETY: an address of a process is below 2^47, and a shared static is `Sync`.
unsafe impl<T: Sync> Datum<'_> for Static<T> {
    const CLASS: Class = Class::Static;

    #[inline(always)]
    fn into_word(self) -> u64 {
        (&raw const *self.0).expose_provenance() as u64 & !NARROW
    }

    #[inline(always)]
    unsafe fn from_word(word: u64) -> Self {
        let address = (word & !NARROW) as usize;
        // SAFETY: `into_word` made the word from a reference that lasts for ever.
        Static(unsafe { &*core::ptr::with_exposed_provenance(address) })
    }
}

// SAFETY: the value lies outside of the heap, where a field stays null: it refuses every store.
unsafe impl<T: Sync> Leaf for Static<T> {}

/// The key of variant `at`: what its words have in the bits that [`key_of`] returns. The derive of
/// an enum uses it, and evaluates it at compile time.
///
/// # Panics
/// If the variant has no room.
#[doc(hidden)]
#[must_use]
pub const fn key(classes: &[Class], at: usize) -> u64 {
    let (mut references, mut wide, mut doubles) = (0, 0, 0);
    let mut earlier = 0;
    while earlier < at {
        match classes[earlier] {
            Class::Reference => references += 1,
            Class::Double => doubles += 1,
            class if is_wide(class) => wide += 1,
            _ => {}
        }
        earlier += 1;
    }
    match classes[at] {
        Class::Reference => {
            assert!(
                references < REFERENCE_VARIANTS,
                "more than 16 variants hold a `Local`: put the rarer types into one struct"
            );
            references as u64
        }
        Class::Double => {
            assert!(
                doubles == 0,
                "two variants hold an `f64`, and a word has room for one: let the other one hold an `f32`, or a `Local<'_, f64>`"
            );
            DOUBLE
        }
        Class::Plain(bits) if bits > WIDE_BITS => panic!(
            "a variant's plain data has more than 48 bits: keep it in a cell, and hold a `Local` to it"
        ),
        class if is_wide(class) => {
            assert!(
                wide < WIDE_VARIANTS,
                "more than 13 variants hold plain data of more than 32 bits, or a `Static`: keep the rarer ones in cells, and hold a `Local` to them"
            );
            WIDE + ((wide as u64) << WIDE_BITS)
        }
        _ => NARROW | (at as u64) << NARROW_BITS,
    }
}

const fn is_wide(class: Class) -> bool {
    match class {
        Class::Plain(bits) => bits > NARROW_BITS,
        Class::Static => true,
        Class::Nothing | Class::Double | Class::Reference => false,
    }
}

/// The variant that a null word is: the marked one, or the first one without data, or the first one
/// with plain data. The derive of an enum uses it, and evaluates it at compile time.
///
/// # Panics
/// If there is no such variant, or if a variant has no key.
#[doc(hidden)]
#[must_use]
pub const fn null_variant(classes: &[Class], marked: Option<usize>) -> usize {
    let (mut null, mut at) = (None, classes.len());
    while at > 0 {
        at -= 1;
        let _has_room = key(classes, at);
        null = match (classes[at], null) {
            (Class::Nothing, _) => Some(at),
            (Class::Plain(_), None) => Some(at),
            (Class::Plain(_), Some(later)) if !matches!(classes[later], Class::Nothing) => Some(at),
            (_, null) => null,
        };
    }
    match (marked, null) {
        (Some(marked), _) => {
            assert!(
                matches!(classes[marked], Class::Nothing | Class::Plain(_)),
                "the variant of a new field holds nothing, or plain data that may be zero: not a `Local`, an `f64` or a `Static`"
            );
            marked
        }
        (None, Some(null)) => null,
        (None, None) => panic!("no variant for a new field: add one that holds nothing (`Nil`)"),
    }
}

/// The bits of a word, not zero, that tell its variant. The derive of an enum uses it.
#[doc(hidden)]
#[inline(always)]
#[must_use]
pub const fn key_of(word: u64) -> u64 {
    let upper = word & NARROW;
    if upper == 0 {
        word & NUMBER
    } else if upper == NARROW {
        word >> NARROW_BITS << NARROW_BITS
    } else if upper >= WIDE {
        upper
    } else {
        DOUBLE
    }
}
