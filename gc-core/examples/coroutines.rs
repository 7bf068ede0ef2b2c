//! Generators: functions that give one value at a time and run on stacks of their own.
//!
//! A generator is an ordinary function with loops, calls and local variables. It gives a value by
//! suspending itself, and its frames stay on its stack until it is resumed. Here the generators use
//! the fast tier: bare pointers in registers and on their stacks. A suspended stack is a root, so
//! collections keep what the pointers lead to. Values are handed over through a field of a cell,
//! since the collector does not scan other memory.
//!
//! `cargo run -p gc-core --example coroutines`

use gc_core::coroutine::{Resumed, Stack, StackError, StackPool, suspend};
use gc_core::{AllocError, Field, Gc, Heap, Mutator, Root, Trace};
use std::error::Error;

/// A binary tree, ordered by key.
#[derive(Trace, Default)]
struct Tree {
    key: u64,
    less: Field<Tree>,
    more: Field<Tree>,
}

/// The place through which a generator hands a tree over.
#[derive(Trace, Default)]
struct Given {
    tree: Field<Tree>,
}

/// A running generator.
struct Generator {
    stack: Stack,
    given: Root<Given>,
}

/// What a generator's function uses: its mutator, and where it puts values.
struct Giver<'m> {
    mutator: &'m Mutator,
    given: Gc<Given>,
}

impl Giver<'_> {
    /// Gives a value, and returns when the next one is wanted.
    ///
    /// # Safety
    /// The tree is alive.
    unsafe fn give(&self, tree: Gc<Tree>) {
        // SAFETY: the generator's root keeps the cell, and the caller's pointer the tree.
        unsafe { self.given.tree.set_gc(self.mutator, Some(tree)) };
        suspend().expect("a generator runs on a stack of its own");
    }
}

impl Generator {
    /// Starts a generator. `body` runs when the first value is wanted.
    ///
    /// # Safety
    /// `body` keeps the rules of `Gc`.
    unsafe fn start(
        mutator: &Mutator,
        pool: &StackPool,
        body: impl FnOnce(&Giver<'_>) + 'static,
    ) -> Result<Generator, Box<dyn Error>> {
        let heap = mutator.heap();
        let stack = heap.stack(pool.take()?)?;
        // SAFETY: the root keeps the cell.
        let given = unsafe {
            let given = mutator.alloc_gc(Given::default())?;
            heap.root_gc(given)
        };
        let own = given.clone();
        mutator.start(&stack, move |mutator| {
            // SAFETY: `own` keeps the cell until the generator ends.
            let given = unsafe { mutator.with_scope(|s| own.get(s).as_gc()) };
            body(&Giver { mutator, given });
        })?;
        Ok(Generator { stack, given })
    }

    /// The next value; `None`: the generator has ended.
    ///
    /// # Safety
    /// The caller keeps the rules of `Gc`.
    unsafe fn next(&self, mutator: &Mutator) -> Result<Option<Gc<Tree>>, StackError> {
        if mutator.resume(&self.stack)? == Resumed::Finished {
            return Ok(None);
        }
        // SAFETY: forwarded.
        Ok(unsafe { mutator.with_scope(|s| self.given.get(s).as_gc().tree.take_gc(mutator)) })
    }
}

/// Gives the trees of a tree in the order of their keys. A recursive function needs no change to be
/// a generator.
///
/// # Safety
/// The tree is alive.
unsafe fn in_order(giver: &Giver<'_>, tree: Option<Gc<Tree>>) {
    let Some(tree) = tree else { return };
    // SAFETY: `tree` is on this stack, which is a root whenever it is suspended.
    unsafe {
        in_order(giver, tree.less.get_gc());
        giver.give(tree);
        in_order(giver, tree.more.get_gc());
    }
}

/// Inserts a key.
///
/// # Safety
/// The caller keeps the rules of `Gc`.
unsafe fn insert(mutator: &Mutator, at: &Field<Tree>, key: u64) -> Result<(), AllocError> {
    // SAFETY: the root of the tree keeps each node that is visited.
    unsafe {
        match at.get_gc() {
            Some(tree) if key < tree.key => insert(mutator, &tree.less, key),
            Some(tree) => insert(mutator, &tree.more, key),
            None => {
                let tree = mutator.alloc_gc(Tree {
                    key,
                    ..Tree::default()
                })?;
                at.set_gc(mutator, Some(tree));
                Ok(())
            }
        }
    }
}

/// Makes a tree of keys that depend on `seed`, and a generator of its nodes.
fn trees(
    mutator: &Mutator,
    pool: &StackPool,
    seed: u64,
    keys: u64,
) -> Result<Generator, Box<dyn Error>> {
    // SAFETY: the pointers stay on this stack, and on the generator's.
    unsafe {
        let top = mutator.alloc_gc(Given::default())?;
        for i in 0..keys {
            let key = (seed + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            insert(mutator, &top.tree, key)?;
        }
        Generator::start(mutator, pool, move |giver| {
            // The closure lies on the generator's stack, where the collector finds `top`.
            in_order(giver, top.tree.get_gc());
        })
    }
}

/// Reads all generators in turn, each of which is resumed when its last value was the least.
///
/// # Safety
/// The caller keeps the rules of `Gc`.
unsafe fn merge(mutator: &Mutator, from: &[Generator]) -> Result<(u64, u64), StackError> {
    // An array on the stack is scanned. A `Vec` is not.
    const MOST: usize = 8;
    let mut heads = [None; MOST];
    // SAFETY: forwarded, here and below.
    unsafe {
        for (head, generator) in heads.iter_mut().zip(from) {
            *head = generator.next(mutator)?;
        }
        let (mut count, mut last) = (0, 0);
        loop {
            let least = (0..MOST).filter_map(|i| Some((heads[i]?.key, i))).min();
            let Some((key, i)) = least else {
                return Ok((count, last));
            };
            assert!(key >= last, "{key} comes after {last}");
            (count, last) = (count + 1, key);
            heads[i] = from[i].next(mutator)?;
            if count % 1000 == 0 {
                mutator.collect(); // the generators are suspended, each deep in its tree
            }
        }
    }
}

/// Merges the keys of eight trees, each read by a generator, with collections in between.
pub fn main() -> Result<(), Box<dyn Error>> {
    const KEYS: u64 = 1500;
    let heap = Heap::builder().build()?;
    let mutator = heap.attach()?;
    let pool = StackPool::new(64 << 10);
    let generators: Result<Vec<_>, _> = (0..8)
        .map(|i| trees(&mutator, &pool, i * KEYS, KEYS))
        .collect();
    let generators = generators?;
    // SAFETY: `merge` keeps its pointers on the stack.
    let (count, last) = unsafe { merge(&mutator, &generators) }?;
    assert_eq!(count, 8 * KEYS);
    println!("{count} keys in order, the greatest is {last}");
    println!("{} collections meanwhile", heap.stats().collections);
    Ok(())
}
