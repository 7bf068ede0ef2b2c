//! Messages that can be written while other threads are stopped.
//!
//! A stopped thread may hold any lock, also malloc's and standard error's. So text is formatted
//! into a fixed buffer and written with `write(2)`.

use core::fmt::{self, Write};

/// Text in a buffer of fixed size. Text beyond its end is dropped.
pub(crate) struct Text {
    bytes: [u8; 1024],
    len: usize,
}

impl Text {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; 1024],
            len: 0,
        }
    }

    /// What was written so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Writes the text to standard error, without a lock.
    pub(crate) fn print(&self) {
        // SAFETY: the bytes are initialised; a short or failed write loses a message, nothing else.
        unsafe { libc::write(2, self.bytes.as_ptr().cast(), self.len) };
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Ends the process with a message, without a lock.
pub(crate) fn die(why: &str) -> ! {
    let mut t = Text::new();
    let _ = writeln!(t, "urge: {why}");
    t.print();
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_not_overrun() {
        let mut t = Text::new();
        for _ in 0..300 {
            t.write_str("0123456789").unwrap();
        }
        assert_eq!(t.len, t.bytes.len());
    }
}
