//! Interned strings: one cell for each content, found through a weak table.
//!
//! The table is a weak cell of pairs (hash, string) with open addressing and linear probing. The
//! collector overwrites the reference to a dead string with [`INTERN_CLEARED`]. Such an entry does
//! not end a search, and the next new string whose search passes it reuses it. A string's bytes are
//! read only after a weak load: a bare load may return a string that the collector is about to
//! free. When three quarters of the entries are in use, cleared ones included, a new table replaces
//! the old one. Its size fits the strings that are alive.

use super::cells::OutOfMemory;
use super::isolate::Vm;
use super::object::{INTERN_CLEARED, InternEntry, Interned, STRING_BYTES, Str};
use super::value::Value;

/// Entries of a new isolate's table.
const FIRST_CAPACITY: usize = 64;

/// The length in bytes up to which a concatenation is built outside the heap first. Most strings
/// that a program builds again and again are short and in the table already, so no cell is needed.
const SCRATCH: usize = 512;

/// Hash of a string's bytes, eight at a time. Like clox's hash, it does not resist chosen keys.
pub fn hash(bytes: &[u8]) -> u32 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks_exact gives 8 bytes"));
        state = (state ^ word).wrapping_mul(MULTIPLIER).rotate_left(29);
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    state = (state ^ u64::from_le_bytes(last)).wrapping_mul(MULTIPLIER);
    (state >> 32) as u32 ^ state as u32
}

impl Vm {
    /// The string with these bytes.
    pub(super) fn intern(&mut self, bytes: &[u8]) -> Result<Value, OutOfMemory> {
        let hash = hash(bytes);
        if let Some(string) = self.find(hash, bytes) {
            return Ok(string);
        }
        let string = self.make_string(bytes.len())?;
        // SAFETY: the cell was made for `bytes.len()` bytes.
        unsafe {
            (*string).hash = hash;
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                string.cast::<u8>().add(STRING_BYTES),
                bytes.len(),
            );
        }
        self.insert(string, hash)
    }

    /// `left + right`.
    pub(super) fn concatenate(&mut self, left: Value, right: Value) -> Result<Value, OutOfMemory> {
        // SAFETY: both are live strings, which the caller keeps alive.
        let (a, b) = unsafe { (Str::bytes(left.as_cell()), Str::bytes(right.as_cell())) };
        if a.is_empty() {
            return Ok(right);
        }
        if b.is_empty() {
            return Ok(left);
        }
        let length = a.len() + b.len();
        if length <= SCRATCH {
            let mut scratch = [0; SCRATCH];
            scratch[..a.len()].copy_from_slice(a);
            scratch[a.len()..length].copy_from_slice(b);
            return self.intern(&scratch[..length]);
        }
        let string = self.make_string(length)?;
        // SAFETY: the cell was made for `length` bytes, and no other code has it yet.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(string.cast::<u8>().add(STRING_BYTES), length)
        };
        bytes[..a.len()].copy_from_slice(a);
        bytes[a.len()..].copy_from_slice(b);
        let hash = hash(bytes);
        if let Some(known) = self.find(hash, bytes) {
            return Ok(known);
        }
        // SAFETY: as above.
        unsafe { (*string).hash = hash };
        self.insert(string, hash)
    }

    /// Makes the first table.
    pub(super) fn make_string_table(&mut self) -> Result<(), OutOfMemory> {
        let table = self.make_interned(FIRST_CAPACITY)?;
        self.roots.strings = Value::cell(table);
        Ok(())
    }

    /// The number of strings in the table, and the number of its entries.
    pub fn interned(&mut self) -> (usize, usize) {
        let table: *mut Interned = self.roots.strings.as_cell();
        // SAFETY: the isolate's table is a live cell.
        let capacity = unsafe { (*table).capacity } as usize;
        let living = (0..capacity)
            .filter(|&index| Self::peek(table, index).is_cell())
            .count();
        (living, capacity)
    }

    fn entry(table: *mut Interned, index: usize) -> *mut InternEntry {
        // SAFETY: callers keep `index` below the capacity.
        unsafe { table.add(1).cast::<InternEntry>().add(index) }
    }

    /// The content of an entry, only for comparison: the string may be dead.
    #[inline]
    fn peek(table: *mut Interned, index: usize) -> Value {
        // SAFETY: within a live table.
        unsafe { (&raw const (*Self::entry(table, index)).string).read_volatile() }
    }

    /// The string of an entry, by a weak load: it is alive while the caller holds it. `None` if the
    /// entry is free or cleared.
    #[inline]
    fn upgrade(&mut self, table: *mut Interned, index: usize) -> Option<Value> {
        let entry = Self::entry(table, index);
        // SAFETY: a boxed word of a live weak cell.
        let word =
            Value(unsafe { self.mutator.load_weak((&raw const (*entry).string).cast()) } as u64);
        word.is_cell().then_some(word)
    }

    /// The string with this content, if there is one.
    fn find(&mut self, hash: u32, bytes: &[u8]) -> Option<Value> {
        let table: *mut Interned = self.roots.strings.as_cell();
        // SAFETY: the isolate's table is a live cell.
        let mask = unsafe { (*table).capacity } as usize - 1;
        let mut index = hash as usize & mask;
        loop {
            let entry = Self::entry(table, index);
            // SAFETY: within the table. The bare load of the reference is compared with constants
            // only.
            let (entry_hash, word) =
                unsafe { ((*entry).hash, (&raw const (*entry).string).read_volatile()) };
            if word.0 == 0 {
                return None;
            }
            if entry_hash == u64::from(hash)
                && let Some(string) = self.upgrade(table, index)
            {
                // SAFETY: the weak load returned it, so it is alive.
                if unsafe { Str::bytes(string.as_cell()) } == bytes {
                    return Some(string);
                }
            }
            index = (index + 1) & mask;
        }
    }

    /// Enters a string with a content that is not in the table.
    fn insert(&mut self, string: *mut Str, hash: u32) -> Result<Value, OutOfMemory> {
        let mut table: *mut Interned = self.roots.strings.as_cell();
        // SAFETY: the isolate's table is a live cell.
        if unsafe { ((*table).used + 1) * 4 > (*table).capacity * 3 } {
            table = self.rebuild(table)?;
        }
        // The content is not in the table, so the first entry without a string can take it.
        // SAFETY: as above.
        let (mask, mut index) = unsafe { ((*table).capacity as usize - 1, hash as usize) };
        let entry = loop {
            index &= mask;
            let entry = Self::entry(table, index);
            // SAFETY: within the table; the word is compared with constants only.
            let word = unsafe { (&raw const (*entry).string).read_volatile() };
            if word.0 == 0 || word == INTERN_CLEARED {
                // SAFETY: as above.
                unsafe { (*table).used += u64::from(word.0 == 0) };
                break entry;
            }
            index += 1;
        };
        // SAFETY: a word of a live cell; the hash is no edge.
        unsafe {
            (*entry).hash = u64::from(hash);
            self.store(&raw mut (*entry).string, Value::cell(string));
        }
        Ok(Value::cell(string))
    }

    fn rebuild(&mut self, old: *mut Interned) -> Result<*mut Interned, OutOfMemory> {
        let (living, _) = self.interned();
        let capacity = ((living + 1) * 2).next_power_of_two().max(FIRST_CAPACITY);
        let table = self.make_interned(capacity)?;
        // SAFETY: the old table is alive, held by the roots until the last line.
        let old_capacity = unsafe { (*old).capacity } as usize;
        let mut used = 0;
        for from in 0..old_capacity {
            // No weak load: while the collector marks, weak loads would keep all strings of the
            // table alive.
            if !Self::peek(old, from).is_cell() {
                continue;
            }
            // SAFETY: within the old table.
            let hash = unsafe { (*Self::entry(old, from)).hash };
            let mut to = hash as usize & (capacity - 1);
            // SAFETY: within the new table, which only this function has. The collector may have
            // cleared some of its entries already.
            while unsafe { (*Self::entry(table, to)).string.0 } != 0 {
                to = (to + 1) & (capacity - 1);
            }
            let (to, from) = (Self::entry(table, to), Self::entry(old, from));
            // SAFETY: as above; these are weak words of two live tables, and the new table's is
            // null.
            unsafe {
                (*to).hash = hash;
                let (to, from) = (&raw mut (*to).string, &raw const (*from).string);
                self.mutator.copy_weak(to.cast(), from.cast(), 1);
            }
            used += 1;
        }
        // SAFETY: as above.
        unsafe { (*table).used = used };
        self.roots.strings = Value::cell(table);
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::hash;
    use std::collections::HashSet;

    #[test]
    fn similar_strings_hash_apart() {
        let mut seen = HashSet::new();
        for number in 0..10_000 {
            seen.insert(hash(format!("key{number}").as_bytes()));
        }
        for length in 0..40 {
            seen.insert(hash(&vec![0; length]));
        }
        assert!(seen.len() > 10_030, "{}", seen.len());
    }
}
