//! Inline allocations as restart ranges.
//!
//! Between the load of a run's cursor and the store of the advanced cursor (the *window*), no stop
//! hook may run on this thread: if the hook allocated from the same run, it and the interrupted
//! code would get the same cell. So these few instructions are a restart range within the managed
//! code. Cranelift does not promise that they can be restarted, so the bytes of each compiled
//! window are decoded. The window is a restart range if and only if each instruction is one of
//! those below, no instruction writes a register that the window reads before it has written it
//! (the window's inputs), and only the last instruction writes memory: it stores the cursor. Any
//! other window is an unsafe range: a stop is deferred until the thread has left it.

use std::ops::Range;

/// The most bytes of a window. Five instructions with 32-bit displacements take less than half of
/// them.
pub(super) const WINDOW_MAX: usize = 96;

/// The effects of a decoded instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Decoded {
    length: usize,
    /// The registers that are read, one bit each.
    reads: u16,
    /// The registers that are written, one bit each.
    writes: u16,
    /// The base register of the address, if memory is read or written.
    base: Option<u8>,
    /// Whether the instruction writes memory.
    stores: bool,
}

/// Whether the window `code`, whose last instruction stores the cursor, can be restarted from any
/// of its instructions.
pub(super) fn can_restart(code: &[u8]) -> bool {
    let mut rest = code;
    let mut cursor_base = None;
    let (mut inputs, mut written) = (0, 0);
    loop {
        let Some(decoded) = decode(rest) else {
            return false;
        };
        // The first instruction loads the cursor.
        let base = match cursor_base {
            Some(base) => base,
            None => match decoded.base {
                Some(base) if !decoded.stores => base,
                _ => return false,
            },
        };
        cursor_base = Some(base);
        inputs |= decoded.reads & !written;
        written |= decoded.writes;
        if inputs & written != 0 {
            return false;
        }
        rest = &rest[decoded.length..];
        if decoded.stores || rest.is_empty() {
            return decoded.stores && rest.is_empty() && decoded.base == Some(base);
        }
    }
}

/// Decodes one instruction: `mov` between registers, from memory or to memory; `lea`; `add` and
/// `cmp` of registers or with an immediate; `ja`.
fn decode(code: &[u8]) -> Option<Decoded> {
    let (rex, at) = match code.first()? {
        rex @ 0x40..=0x4F => (*rex, 1),
        _ => (0, 0),
    };
    let opcode = *code.get(at)?;
    if opcode == 0x0F {
        return (*code.get(at + 1)? == 0x87 && code.len() >= at + 6).then_some(Decoded {
            length: at + 6,
            ..Decoded::default()
        });
    }
    let modrm = *code.get(at + 1)?;
    let (mode, low) = (modrm >> 6, modrm & 7);
    let register = (modrm >> 3 & 7) | (rex & 4) << 1;
    let operand = low | (rex & 1) << 3;
    // The cursor's address has no scaled index and is not relative to RIP.
    if mode != 3 && low == 4 || mode == 0 && low == 5 {
        return None;
    }
    let displacement = [0, 1, 4, 0][usize::from(mode)];
    let (register, target) = (1_u16 << register, 1_u16 << operand);
    let in_register = mode == 3;
    let extension = modrm >> 3 & 7;
    let (reads, writes, immediate) = match opcode {
        // mov r, r/m; lea
        0x8B | 0x8D => (target, register, 0),
        // mov r/m, r
        0x89 if in_register => (register, target, 0),
        0x89 => (register | target, 0, 0),
        // add r, r/m
        0x03 => (register | target, register, 0),
        // add r/m, r
        0x01 if in_register => (register | target, target, 0),
        // cmp
        0x39 | 0x3B => (register | target, 0, 0),
        // add r/m, immediate
        0x81 if in_register && extension == 0 => (target, target, 4),
        0x83 if in_register && extension == 0 => (target, target, 1),
        _ => return None,
    };
    let length = at + 2 + displacement + immediate;
    (code.len() >= length).then_some(Decoded {
        length,
        reads,
        writes,
        base: (!in_register && opcode != 0x8D).then_some(operand),
        stores: opcode == 0x89 && !in_register,
    })
}

/// The addresses of a window within a function's code.
pub(super) fn addresses(function: Range<usize>, window: &Range<u32>) -> Range<usize> {
    function.start + window.start as usize..function.start + window.end as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mov rdx,[rax+0x3b0]; mov rcx,[rax+0x3b8]; lea rdi,[rdx+0x20]; cmp rdi,rcx; ja; lea
    /// rcx,[rdx+0x20]; mov [rax+0x3b0],rcx
    const GOOD: &[u8] = &[
        0x48, 0x8B, 0x90, 0xB0, 3, 0, 0, 0x48, 0x8B, 0x88, 0xB8, 3, 0, 0, 0x48, 0x8D, 0x7A, 0x20,
        0x48, 0x3B, 0xF9, 0x0F, 0x87, 0xF6, 0, 0, 0, 0x48, 0x8D, 0x4A, 0x20, 0x48, 0x89, 0x88,
        0xB0, 3, 0, 0,
    ];

    #[test]
    fn what_cranelift_makes_can_be_begun_again() {
        assert!(can_restart(GOOD));
        assert!(GOOD.len() <= WINDOW_MAX);
    }

    #[test]
    fn a_window_that_loses_its_base_cannot() {
        let mut code = GOOD.to_vec();
        // mov rax,[rax+0x3b8]
        code[9] = 0x80;
        assert!(!can_restart(&code));
        // The same in the first instruction: mov rax,[rax+0x3b0]
        let mut code = GOOD.to_vec();
        code[2] = 0x80;
        assert!(!can_restart(&code));
    }

    #[test]
    fn a_window_that_changes_what_it_reads_cannot() {
        // add r9,rdx for the first lea, and mov rcx,r9 for the second: r9 comes from outside.
        let mut code = GOOD[..14].to_vec();
        code.extend([0x4C, 0x01, 0xD1, 0x49, 0x01, 0xD1]);
        code.extend(&GOOD[18..]);
        assert!(!can_restart(&code));
    }

    #[test]
    fn a_window_that_ends_otherwise_cannot() {
        for end in 0..GOOD.len() {
            assert!(!can_restart(&GOOD[..end]), "cut at {end}");
        }
        let mut code = GOOD.to_vec();
        // One more instruction behind the store.
        code.extend([0x48, 0x8B, 0xC8]);
        assert!(!can_restart(&code));
        // The last store has another base: mov [rbx+0x3b0],rcx
        let mut code = GOOD.to_vec();
        code[33] = 0x8B;
        assert!(!can_restart(&code));
    }

    #[test]
    fn what_is_not_known_cannot() {
        for opcode in [0xE8, 0xFF, 0xC3, 0xF0, 0xCC] {
            let mut code = GOOD.to_vec();
            code[15] = opcode;
            assert!(!can_restart(&code), "{opcode:x}");
        }
    }
}
