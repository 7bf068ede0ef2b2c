//! A pool of workers over one heap. Each worker attaches itself, and waits for its input inside
//! `blocking`.
//!
//! A collection stops every attached thread. It neither waits for a thread inside `blocking` nor
//! signals it, so the collector makes no system call of such a thread end in EINTR. Operations
//! outside of the heap that may take long (reads, locks, channels, sleeps) belong there.
//!
//! `cargo run -p gc-core --example worker_pool`

use gc_core::{Array, Bytes, Field, Heap, Mutator, Root, Scope, Trace};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const WORKERS: usize = 4;
const LINES: usize = 400;

/// A node of a binary search tree of words. All workers' trees are in one array; each worker
/// changes its own tree only, so no lock is needed.
#[derive(Trace)]
struct Word {
    text: Field<Bytes>,
    count: AtomicU64,
    less: Field<Word>,
    more: Field<Word>,
}

/// The trees of all workers, by the worker's number.
#[derive(Trace, Default)]
struct Results {
    trees: Field<Array<Word>>,
}

/// Counts one word in the tree at `at`.
fn count(s: &Scope<'_>, at: &Field<Word>, text: &str) -> Result<(), gc_core::AllocError> {
    let Some(word) = at.get(s) else {
        let word = s.alloc(Word {
            text: Field::null(),
            count: AtomicU64::new(1),
            less: Field::null(),
            more: Field::null(),
        })?;
        word.text.set(s, &s.alloc_bytes(text.as_bytes())?);
        at.set(s, &word); // the word is part of the tree from here on
        return Ok(());
    };
    let own = word.text.get(s);
    let own = own.as_ref().map_or(&b""[..], |bytes| bytes);
    match text.as_bytes().cmp(own) {
        std::cmp::Ordering::Less => count(s, &word.less, text),
        std::cmp::Ordering::Greater => count(s, &word.more, text),
        std::cmp::Ordering::Equal => {
            word.count.fetch_add(1, Relaxed);
            Ok(())
        }
    }
}

fn total(s: &Scope<'_>, at: &Field<Word>) -> (u64, u64) {
    let Some(word) = at.get(s) else {
        return (0, 0);
    };
    let (less, more) = (total(s, &word.less), total(s, &word.more));
    (
        less.0 + more.0 + 1,
        less.1 + more.1 + word.count.load(Relaxed),
    )
}

/// The work of one worker: reads lines until the other end is closed.
fn work(
    mutator: &Mutator,
    results: &Root<Results>,
    number: usize,
    input: UnixStream,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut input = BufReader::new(input);
    let mut line = String::new();
    loop {
        line.clear();
        if mutator.blocking(|| input.read_line(&mut line))? == 0 {
            return Ok(());
        }
        for text in line.split_whitespace() {
            // A scope for each word: the cells of a turn are garbage as soon as its scope has
            // ended.
            mutator.scope(|s| match results.trees.get(s) {
                Some(trees) => count(s, &trees[number], text),
                None => Ok(()),
            })?;
        }
    }
}

/// Sends lines to the workers through sockets, collects meanwhile, and adds up the counts.
pub fn main() -> Result<(), Box<dyn Error>> {
    let heap = Heap::builder().build()?;
    let results = heap.attach()?.scope(|s| {
        let results = s.alloc(Results::default())?;
        results.trees.set(s, &s.alloc_array(WORKERS)?);
        Ok(heap.root(&results))
    })?;
    let mut held = 0;
    std::thread::scope(|threads| -> Result<(), Box<dyn Error>> {
        let mut outputs = Vec::new();
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let (output, input) = UnixStream::pair()?;
            outputs.push(output);
            let (heap, results) = (&heap, &results);
            workers.push(threads.spawn(move || work(&heap.attach()?, results, number, input)));
        }
        // This thread is not attached, so it may wait anywhere.
        for line in 0..LINES {
            let text = format!("line {} of {LINES} goes round and round\n", line % 50);
            outputs[line % WORKERS].write_all(text.as_bytes())?;
            if line % 10 == 0 {
                heap.collect();
                held += u64::from(heap.stats().last.held);
            }
        }
        drop(outputs);
        for worker in workers {
            worker
                .join()
                .map_err(|_| "a worker panicked")?
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    })?;
    let mutator = heap.attach()?;
    let (different, all) = mutator.with_scope(|s| {
        let trees = results.trees.get(s);
        let each = trees
            .iter()
            .flat_map(|trees| trees.fields())
            .map(|tree| total(s, tree));
        each.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    println!("{WORKERS} workers counted {all} words, {different} different ones in their trees");
    println!(
        "{} collections; a worker was found inside blocking, and left alone, {held} times",
        heap.stats().collections
    );
    assert_eq!(all, LINES as u64 * 8);
    Ok(())
}
