//! A small stack machine on the raw tier: tagged words, pairs of 16 bytes, and a value stack that
//! is a root range.
//!
//! The machine's values are words: an odd word is a number, an even one a pair, and zero the empty
//! list. The stack is in malloc's memory, so the collector gets its addresses and the encoding of
//! its words. The rest of the interpreter does nothing for the collector.
//!
//! `cargo run -p gc-core --example interpreter`

use gc_core::raw::{Encoding, Kind, RootRange, Site};
use gc_core::{AllocError, Heap, Mutator};
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A word is an edge if it is even. The whole word is then the address.
const EDGE: Encoding = Encoding::nan_box(1, 0, !1);
const NIL: usize = 0;

fn number(n: i64) -> usize {
    (n << 1 | 1) as usize
}

fn as_number(word: usize) -> i64 {
    word as i64 >> 1
}

#[derive(Clone, Copy)]
enum Op {
    Push(i64),
    Nil,
    /// Pushes a copy of a slot of the frame.
    Load(usize),
    /// Pops into a slot of the frame.
    Store(usize),
    Add,
    Multiply,
    Less,
    Cons,
    Head,
    Tail,
    Jump(usize),
    JumpIfZero(usize),
    JumpIfNil(usize),
    Return,
}

/// A function: its code, and the most slots that its frame has at any time.
struct Function {
    code: Vec<Op>,
    slots: usize,
}

struct Machine<'m> {
    mutator: &'m Mutator,
    pair: Site,
    stack: Box<[AtomicUsize]>,
    /// The end of the deepest frame. It changes when a frame is entered or left, not with each
    /// push: a collection may come at any instruction, so the limit must be right at each. Slots
    /// above the present top are stale or zero, and do no harm.
    limit: Box<AtomicUsize>,
    range: Option<RootRange>,
}

impl<'m> Machine<'m> {
    fn new(heap: &Heap, mutator: &'m Mutator) -> Result<Self, Box<dyn Error>> {
        let kind = heap.kind(Kind::words_at("pair", &[0, 1], EDGE))?;
        let stack: Box<[AtomicUsize]> = (0..1024).map(|_| AtomicUsize::new(NIL)).collect();
        let limit = Box::new(AtomicUsize::new(stack.as_ptr() as usize));
        let mut machine = Machine {
            mutator,
            pair: heap.site(kind, 16)?,
            stack,
            limit,
            range: None,
        };
        let base = machine.stack.as_ptr().cast();
        // SAFETY: the stack and the limit are boxes that outlive the guard, which `drop` drops
        // first. The limit is always the end of a frame inside the stack.
        machine.range = Some(unsafe {
            mutator
                .root_range(base, &*machine.limit, EDGE)
                .expect("room for a range")
        });
        Ok(machine)
    }

    fn cons(&self, head: usize, tail: usize) -> Result<usize, AllocError> {
        // SAFETY: the cell goes into a stack slot, and is in a register or on this thread's stack
        // until then. Head and tail are rooted by the slots that they came from, since popping does
        // not clear them.
        let cell = unsafe { self.mutator.alloc_at(self.pair)? }
            .cast::<usize>()
            .as_ptr();
        // SAFETY: a new cell of two words, whose first stores need no barrier.
        unsafe {
            cell.write(head);
            cell.add(1).write(tail);
        }
        Ok(cell as usize)
    }

    fn run(&self, function: &Function) -> Result<usize, AllocError> {
        let end = self.stack[function.slots..].as_ptr() as usize;
        self.limit.store(end, Relaxed);
        let (mut pc, mut top) = (0, LOCALS);
        let slot = |at: usize| self.stack[at].load(Relaxed);
        let set = |at: usize, word: usize| self.stack[at].store(word, Relaxed);
        loop {
            pc += 1;
            match function.code[pc - 1] {
                Op::Push(n) => {
                    set(top, number(n));
                    top += 1;
                }
                Op::Nil => {
                    set(top, NIL);
                    top += 1;
                }
                Op::Load(at) => {
                    set(top, slot(at));
                    top += 1;
                }
                Op::Store(at) => {
                    top -= 1;
                    set(at, slot(top));
                }
                op @ (Op::Add | Op::Multiply | Op::Less) => {
                    top -= 1;
                    let (a, b) = (as_number(slot(top - 1)), as_number(slot(top)));
                    set(
                        top - 1,
                        number(match op {
                            Op::Add => a + b,
                            Op::Multiply => a * b,
                            _ => i64::from(a < b),
                        }),
                    );
                }
                Op::Cons => {
                    let pair = self.cons(slot(top - 2), slot(top - 1))?;
                    top -= 1;
                    set(top - 1, pair);
                }
                op @ (Op::Head | Op::Tail) => {
                    let pair = slot(top - 1) as *const usize;
                    let which = usize::from(matches!(op, Op::Tail));
                    // SAFETY: the program takes heads and tails of pairs only, and a pair in a slot
                    // is alive.
                    set(top - 1, unsafe { pair.add(which).read() });
                }
                Op::Jump(to) => pc = to,
                Op::JumpIfZero(to) => {
                    top -= 1;
                    if slot(top) == number(0) {
                        pc = to;
                    }
                }
                Op::JumpIfNil(to) => {
                    top -= 1;
                    if slot(top) == NIL {
                        pc = to;
                    }
                }
                Op::Return => {
                    self.limit.store(self.stack.as_ptr() as usize, Relaxed);
                    return Ok(slot(top - 1));
                }
            }
        }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.range = None;
    }
}

/// The number of the program's variables, which are slots 0 to 3.
const LOCALS: usize = 4;
const LENGTH: i64 = 1000;

/// A program that makes the list of `LENGTH` numbers, then a list of their squares, and adds these
/// up.
fn sum_of_squares() -> Function {
    use Op::{Add, Cons, Head, Jump, JumpIfNil, JumpIfZero, Less, Load, Multiply, Nil, Push};
    use Op::{Return, Store, Tail};
    let (list, squares, i) = (0, 1, 2);
    let code = vec![
        Nil,
        Store(list),
        Push(0),
        Store(i),
        Load(i), // 4: while i < LENGTH
        Push(LENGTH),
        Less,
        JumpIfZero(17),
        Push(1), //    i = i + 1; list = (i . list)
        Load(i),
        Add,
        Store(i),
        Load(i),
        Load(list),
        Cons,
        Store(list),
        Jump(4),
        Nil, // 17
        Store(squares),
        Load(list), // 19: while list
        JumpIfNil(32),
        Load(list), //    squares = (head * head . squares); list = tail
        Head,
        Load(list),
        Head,
        Multiply,
        Load(squares),
        Cons,
        Store(squares),
        Load(list),
        Tail,
        Jump(42),
        Push(0), // 32: sum
        Store(i),
        Load(squares), // 34: while squares
        JumpIfNil(44),
        Load(squares),
        Head,
        Load(i),
        Add,
        Store(i),
        Jump(46),
        Store(list), // 42: the end of the second loop's body
        Jump(19),
        Load(i), // 44
        Return,
        Load(squares), // 46: the end of the third loop's body
        Tail,
        Store(squares),
        Jump(34),
    ];
    Function {
        code,
        slots: LOCALS + 4,
    }
}

/// Runs the program 2000 times in a heap with room for a few runs.
pub fn main() -> Result<(), Box<dyn Error>> {
    let heap = Heap::builder().hard_limit(8 << 20).build()?;
    let mutator = heap.attach()?;
    let machine = Machine::new(&heap, &mutator)?;
    let program = sum_of_squares();
    let expected = (1..=LENGTH).map(|n| n * n).sum::<i64>();
    const RUNS: u64 = 2000;
    for _ in 0..RUNS {
        let sum = as_number(machine.run(&program)?);
        assert_eq!(sum, expected, "the collector took a pair that was in use");
    }
    let stats = heap.stats();
    println!("the sum of {LENGTH} squares is {expected}, {RUNS} times");
    println!(
        "{} pairs of 16 bytes, {} MiB in all, in a heap of at most 8 MiB: {} collections, {} cells alive after the last",
        RUNS * 2 * LENGTH as u64,
        stats.allocated_total >> 20,
        stats.collections,
        stats.last.cells_live
    );
    assert!(stats.collections > 0);
    Ok(())
}
