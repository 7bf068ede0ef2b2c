//! A Lox value in one 64-bit word, NaN-boxed.
//!
//! A word that is not a quiet NaN with bits 50 to 62 set is a double. The other words are:
//!
//! | bits | value |
//! |---|---|
//! | `0x7FFC_0000_0000_0000` | [`Value::ERROR`]: a runtime error is being unwound |
//! | `.. | 1`, `.. | 2`, `.. | 3` | `nil`, `false`, `true` |
//! | `.. | 4` | [`Value::UNDEFINED`]: a global variable before its definition |
//! | `.. | 5` | [`Value::RESUME`]: a compiled loop has ended, the interpreter continues |
//! | `0xFFFC_0000_0000_0000 | address` | a cell of the heap |
//!
//! A program never holds `ERROR` or `RESUME`. The quiet NaN that x86 arithmetic makes is
//! `0xFFF8_0000_0000_0000`: bit 50 is clear, so it is a number. References *inside cells* are boxed
//! in the same way, except in closures (see [`super::object`]).

/// Bits that all values other than numbers have set.
pub const QNAN: u64 = 0x7FFC_0000_0000_0000;
/// Bits that are all set in a reference, and in nothing else.
pub const REFERENCE: u64 = 0xFFFC_0000_0000_0000;
/// The bits of a reference that are the cell's address.
pub const ADDRESS: u64 = !REFERENCE;

/// A NaN-boxed Lox value.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Value(pub u64);

impl Value {
    /// The result of a function that failed. The message is in the isolate.
    pub const ERROR: Value = Value(QNAN);
    /// `nil`
    pub const NIL: Value = Value(QNAN | 1);
    /// `false`
    pub const FALSE: Value = Value(QNAN | 2);
    /// `true`
    pub const TRUE: Value = Value(QNAN | 3);
    /// The content of a global variable before its definition.
    pub const UNDEFINED: Value = Value(QNAN | 4);

    /// The result of a compiled loop when control has left the loop, but not the function.
    pub const RESUME: Value = Value(QNAN | 5);

    /// Boxes a number.
    #[inline(always)]
    pub fn number(number: f64) -> Value {
        Value(number.to_bits())
    }

    /// `true` or `false`.
    #[inline(always)]
    pub fn boolean(boolean: bool) -> Value {
        Value(Value::FALSE.0 + boolean as u64)
    }

    /// Boxes the address of a cell.
    #[inline(always)]
    pub fn cell<T>(cell: *const T) -> Value {
        Value(REFERENCE | cell as u64)
    }

    /// Whether this is a number.
    #[inline(always)]
    pub fn is_number(self) -> bool {
        self.0 & QNAN != QNAN
    }

    /// The number; meaningful only where [`Value::is_number`].
    #[inline(always)]
    pub fn as_number(self) -> f64 {
        f64::from_bits(self.0)
    }

    /// Whether this is a reference to a cell. References are the largest words, so one unsigned
    /// comparison is enough.
    #[inline(always)]
    pub fn is_cell(self) -> bool {
        self.0 >= REFERENCE
    }

    /// The cell's address; meaningful only where [`Value::is_cell`].
    #[inline(always)]
    pub fn as_cell<T>(self) -> *mut T {
        (self.0 & ADDRESS) as *mut T
    }

    /// Whether this counts as false in a condition: `nil` and `false` do.
    #[inline(always)]
    pub fn is_falsey(self) -> bool {
        self == Value::NIL || self == Value::FALSE
    }

    /// Whether this is [`Value::ERROR`].
    #[inline(always)]
    pub fn is_error(self) -> bool {
        self == Value::ERROR
    }

    /// Lox's `==`: compares numbers as doubles, so a NaN differs from itself and 0 equals -0, and
    /// other values by identity. Strings are interned, so strings of the same content are
    /// identical.
    #[inline(always)]
    pub fn equals(self, other: Value) -> bool {
        if self.is_number() && other.is_number() {
            self.as_number() == other.as_number()
        } else {
            self == other
        }
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Value::ERROR => write!(f, "error"),
            Value::NIL => write!(f, "nil"),
            Value::FALSE => write!(f, "false"),
            Value::TRUE => write!(f, "true"),
            Value::UNDEFINED => write!(f, "undefined"),
            Value::RESUME => write!(f, "resume"),
            value if value.is_number() => write!(f, "{:?}", value.as_number()),
            value => write!(f, "cell {:p}", value.as_cell::<u8>()),
        }
    }
}

/// `left + right`. Of two NaNs the result is the left one, as in clox and as x86's instruction has
/// it: programs print `nan` or `-nan` accordingly. A plain `+` does not do, since the Rust compiler
/// may exchange the operands.
#[inline(always)]
pub fn sum(left: f64, right: f64) -> f64 {
    let result = left + right;
    if result.is_nan() {
        left_nan(left, right, result)
    } else {
        result
    }
}

/// `left * right`, with NaNs as in [`sum`].
#[inline(always)]
pub fn product(left: f64, right: f64) -> f64 {
    let result = left * right;
    if result.is_nan() {
        left_nan(left, right, result)
    } else {
        result
    }
}

#[cold]
fn left_nan(left: f64, right: f64, result: f64) -> f64 {
    if left.is_nan() {
        left
    } else if right.is_nan() {
        right
    } else {
        result
    }
}

/// Appends a number as C's `%g` prints it: `nan` and `-nan`, `inf`, `-0`, six digits, `1e+06`.
///
/// The C library formats the number, so that rounding and the sign of a NaN are the same as clox's.
/// Small integers are formatted here, because most numbers that programs print are small integers.
pub fn write_number(out: &mut Vec<u8>, number: f64) {
    use std::io::Write;
    let integer = number as i32;
    if f64::from(integer).to_bits() == number.to_bits() && integer.unsigned_abs() < 1_000_000 {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{integer}");
        return;
    }
    let mut buffer = [0u8; 32];
    // SAFETY: `%g` takes one double, and writes at most `buffer.len()` bytes (it never needs more
    // than 13).
    let length = unsafe {
        libc::snprintf(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            c"%g".as_ptr(),
            number,
        )
    };
    out.extend_from_slice(&buffer[..usize::try_from(length).unwrap_or(0).min(buffer.len() - 1)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: f64) -> String {
        let mut out = Vec::new();
        write_number(&mut out, number);
        String::from_utf8(out).expect("numbers are ASCII")
    }

    #[test]
    fn numbers_print_as_percent_g() {
        let table: &[(f64, &str)] = &[
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.0, "-1"),
            (1.5, "1.5"),
            (0.1, "0.1"),
            (0.1 + 0.2, "0.3"),
            (1.0 / 3.0, "0.333333"),
            (2.0 / 3.0, "0.666667"),
            (123456.0, "123456"),
            (999999.0, "999999"),
            (-999999.0, "-999999"),
            (999999.5, "1e+06"),
            (1_000_000.0, "1e+06"),
            (-1_000_000.0, "-1e+06"),
            (1_234_567.0, "1.23457e+06"),
            (123456.7, "123457"),
            (99999.95, "99999.9"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000123456789, "0.000123457"),
            (1e100, "1e+100"),
            (1.7976931348623157e308, "1.79769e+308"),
            (5e-324, "4.94066e-324"),
            (2.5, "2.5"),
            (1.000004, "1"),
            (1.0000051, "1.00001"),
            (2147483647.0, "2.14748e+09"),
            (-2147483648.0, "-2.14748e+09"),
            (4503599627370496.5, "4.5036e+15"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::from_bits(0x7FF8_0000_0000_0000), "nan"),
            (f64::from_bits(0xFFF8_0000_0000_0000), "-nan"),
        ];
        for &(number, expected) in table {
            assert_eq!(text(number), expected, "{number:?}");
        }
    }

    #[test]
    fn every_kind_of_value_is_told_apart() {
        let cell = Value::cell(0x7F12_3456_7890 as *const u8);
        assert!(cell.is_cell() && !cell.is_number());
        assert_eq!(cell.as_cell::<u8>() as usize, 0x7F12_3456_7890);
        for odd in [
            Value::NIL,
            Value::FALSE,
            Value::TRUE,
            Value::UNDEFINED,
            Value::ERROR,
        ] {
            assert!(!odd.is_cell() && !odd.is_number());
        }
        for number in [
            0.0,
            -0.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::from_bits(0xFFF8_0000_0000_0000),
        ] {
            assert!(Value::number(number).is_number() && !Value::number(number).is_cell());
        }
        assert_eq!(Value::boolean(true), Value::TRUE);
        assert_eq!(Value::boolean(false), Value::FALSE);
    }

    #[test]
    fn equality_is_clox_s() {
        let nan = Value::number(f64::NAN);
        assert!(!nan.equals(nan));
        assert!(Value::number(0.0).equals(Value::number(-0.0)));
        assert!(!Value::NIL.equals(Value::FALSE));
        assert!(!Value::number(0.0).equals(Value::FALSE));
    }
}
