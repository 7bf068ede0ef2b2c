//! The codes that functions return, and the message of a thread's last error.

use core::cell::RefCell;
use core::ffi::c_char;
use core::fmt::{Display, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use gc_core::AllocError;

/// What a call did. Any value but `URGE_STATUS_OK` has a message: urge_last_error().
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum urge_status {
    /// The call did its work.
    Ok = 0,
    /// An argument is null, out of range, of another heap, or of another thread.
    Invalid = 1,
    /// No memory: the heap's limit, its address range, or the system.
    NoMemory = 2,
    /// A table of the heap is full.
    TableFull = 3,
    /// The call cannot be made here: inside `no_preempt` or `blocking`, or the thread is attached.
    State = 4,
    /// The call panicked, which is a fault of its caller or of Urge. The heap may be used further.
    Panic = 5,
}

/// A message in place. It takes no memory, because a thread that may not be stopped must not call
/// malloc.
pub(crate) struct Text {
    bytes: [u8; 256],
    used: usize,
}

impl Text {
    const fn new() -> Text {
        Text {
            bytes: [0; 256],
            used: 0,
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        // The last byte stays zero: it ends the string. A longer message is cut.
        let room = self.bytes.len() - 1 - self.used;
        let n = s.len().min(room);
        self.bytes[self.used..self.used + n].copy_from_slice(&s.as_bytes()[..n]);
        self.used += n;
        Ok(())
    }
}

/// A code and its message.
pub(crate) struct Failure(urge_status, Text);

impl Failure {
    pub(crate) fn new(status: urge_status, message: impl Display) -> Failure {
        let mut text = Text::new();
        let _ = write!(text, "{message}"); // `Text` never fails
        Failure(status, text)
    }

    pub(crate) fn invalid(message: impl Display) -> Failure {
        Failure::new(urge_status::Invalid, message)
    }
}

impl From<gc_core::TableFull> for Failure {
    fn from(error: gc_core::TableFull) -> Failure {
        Failure::new(urge_status::TableFull, error)
    }
}

impl From<AllocError> for Failure {
    fn from(error: AllocError) -> Failure {
        let status = match error {
            AllocError::Site(_) | AllocError::Kind(_) | AllocError::TooLarge { .. } => {
                urge_status::Invalid
            }
            AllocError::TableFull(_) => urge_status::TableFull,
            _ => urge_status::NoMemory,
        };
        Failure::new(status, error)
    }
}

struct Last {
    status: urge_status,
    text: Text,
}

thread_local! {
    // Constant and without a destructor, so that its first use takes no memory.
    static LAST: RefCell<Last> = const {
        RefCell::new(Last { status: urge_status::Ok, text: Text::new() })
    };
}

fn note(call: &str, status: urge_status, message: impl Display) {
    LAST.with_borrow_mut(|last| {
        last.status = status;
        last.text = Text::new();
        let _ = write!(last.text, "{call}: {message}"); // `Text` never fails
    });
}

/// Runs the body of the function `call`. No panic leaves it.
pub(crate) fn run<R>(call: &str, f: impl FnOnce() -> Result<R, Failure>) -> Result<R, urge_status> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure(status, text))) => {
            let message = core::str::from_utf8(&text.bytes[..text.used]).unwrap_or("an error");
            note(call, status, message);
            Err(status)
        }
        Err(payload) => {
            let message = payload.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
            note(call, urge_status::Panic, message.unwrap_or("a panic"));
            // A payload's own drop may panic; it is small, and stays.
            core::mem::forget(payload);
            Err(urge_status::Panic)
        }
    }
}

/// Does what [`run`] does, for functions that return a code alone.
pub(crate) fn code(call: &str, f: impl FnOnce() -> Result<(), Failure>) -> urge_status {
    run(call, f).err().unwrap_or(urge_status::Ok)
}

/// The message of this thread's last error: "call: what is wrong; what would cure it". Empty if
/// there was none. The thread's next error overwrites it. May be called anywhere.
#[unsafe(no_mangle)]
pub extern "C" fn urge_last_error() -> *const c_char {
    LAST.with(|last| last.as_ptr().cast::<Last>())
        .map_addr(|address| address + core::mem::offset_of!(Last, text.bytes))
        .cast()
}

/// The code of this thread's last error. A call that succeeds leaves it as it is. May be called
/// anywhere.
#[unsafe(no_mangle)]
pub extern "C" fn urge_last_status() -> urge_status {
    LAST.with_borrow(|last| last.status)
}
