//! Judges what a stop's scan of a kernel's thread finds: live cells that it missed, and dead cells
//! that it kept.
//!
//! Only words count that the kernel's frames and registers hold, and those below them on the stack
//! (the frames of a poll). The frames of the Rust code that called the kernel are the same for all
//! strategies.
//!
//! # The list
//! The kernel walks a list, and no node is live for it once it has left the node. The oracle has to
//! know where the kernel was, without a look at its registers. So the stop adds a large number to
//! the value of each node, and ends the pass: the pass's sum then tells how many values the kernel
//! read after the stop. These nodes, at the list's end, were live. The node before them was live if
//! the kernel had read its value, but not yet its reference; it counts neither way. A scan that
//! names a node keeps all nodes behind it.
//!
//! # The stores
//! The table is live all the time, with all nodes that it names. The node that was allocated last
//! may be live without a name. Every other node that the kernel has allocated is dead.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use gc_preempt::{RootSink, Stopped};

use super::figures::Precision;
use super::stage::{Player, Stage, TalkError};
use crate::kernels::talk::Kernel;
use crate::kernels::talk::control::MADE;
use crate::kernels::talk::work::TABLE;
use crate::lab::random::Random;

/// What a stop adds to each value: more than all values of a list together.
const ADDED: u64 = 1 << 40;
/// The part of an input: a pass takes long enough that most stops meet it.
const PART: u64 = 4;
/// The times from a pass's begin to the stop, at random.
const BEFORE_NANOS: usize = 150_000;
/// Room for the cells that one scan names. A thread has fewer registers and frame slots.
const NAMED: usize = 256;
/// Bytes of a node, and their alignment.
const NODE: usize = 16;

/// Stops the kernel `wanted` times and judges the scans. `None`: the kernel holds no references.
///
/// # Errors
/// The refusal of the system or of the heap.
pub fn judge(stage: &Stage, wanted: u32) -> Result<Option<Precision>, TalkError> {
    if !stage.kernel.holds_references() {
        return Ok(None);
    }
    let (to_player, orders) = mpsc::channel::<()>();
    let (to_judge, answers) = mpsc::channel::<Trial>();
    let mut sum = Precision::default();
    stage.enter();
    std::thread::scope(|scope| {
        let player = scope.spawn(move || {
            let played = stage.on_this_thread(PART, |player| play(player, &orders, &to_judge));
            stage.leave();
            drop(to_judge);
            played
        });
        let judged = rounds(stage, wanted, &to_player, &answers, &mut sum);
        drop(to_player);
        let played = player.join();
        played.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        judged
    })?;
    Ok(Some(sum))
}

/// A message of the kernel's thread.
enum Trial {
    /// The memory that the judge needs, before the first pass.
    Memory(Memory),
    /// The answer of a pass.
    Answer(u64),
}

/// The cells of a kernel.
#[derive(Default)]
struct Memory {
    /// The list's nodes in the order of the walk.
    nodes: Vec<usize>,
    /// The same, ordered by address, with their places in the walk.
    places: Vec<(usize, usize)>,
    table: usize,
    expected: u64,
}

fn play(
    player: &mut Player<'_>,
    orders: &mpsc::Receiver<()>,
    answers: &mpsc::Sender<Trial>,
) -> Result<(), TalkError> {
    let nodes = player.work.nodes.clone();
    let mut places: Vec<_> = nodes.iter().copied().zip(0..).collect();
    places.sort_unstable();
    let memory = Memory {
        nodes,
        places,
        table: player.work.table,
        expected: player.work.expected,
    };
    let _ = answers.send(Trial::Memory(memory));
    let mutator = player.mutator;
    while mutator.blocking(|| orders.recv()).is_ok() {
        let answer = player.until_ended();
        for &node in &player.work.nodes {
            // SAFETY: the list's nodes are live by the work's root, and the stop that changed the
            // values is over.
            unsafe { *value_of(node) %= ADDED };
        }
        if player.stage.kernel == Kernel::Stores {
            player.check(answer)?;
            mutator.collect();
        }
        mutator.blocking(|| {
            let _ = answers.send(Trial::Answer(answer));
        });
    }
    Ok(())
}

fn value_of(node: usize) -> *mut u64 {
    (node + 8) as *mut u64
}

fn rounds(
    stage: &Stage,
    wanted: u32,
    orders: &mpsc::Sender<()>,
    answers: &mpsc::Receiver<Trial>,
    sum: &mut Precision,
) -> Result<(), TalkError> {
    let Ok(Trial::Memory(memory)) = answers.recv() else {
        return Ok(()); // the thread has failed, and says why
    };
    let mut random = Random::default();
    for _ in 0..wanted {
        if orders.send(()).is_err() {
            return Ok(());
        }
        stage.wait_until_it_plays();
        std::thread::sleep(Duration::from_nanos(random.below(BEFORE_NANOS) as u64));
        let mut sink = Sink::new(stage);
        let (_, _, stores) = stage.stop(|stopped| {
            scan(stage, stopped, &mut sink);
            for &node in &memory.nodes {
                // SAFETY: the node is live by the work's root, and its only mutator is stopped.
                unsafe { *value_of(node) += ADDED };
            }
            stage.end_pass();
            (memory.table != 0).then(|| judge_stores(stage, &memory, &sink))
        })?;
        let Ok(Trial::Answer(answer)) = answers.recv() else {
            return Ok(());
        };
        let found = match stores {
            Some(found) => Some(found),
            None => judge_list(&memory, &sink, answer),
        };
        if let Some(Found { dead, missed }) = found {
            sum.stops += 1;
            sum.dead_kept += dead;
            sum.dead_kept_most = sum.dead_kept_most.max(dead);
            sum.stops_with_dead += u64::from(dead > 0);
            sum.roots_missed += missed;
        }
    }
    Ok(())
}

/// The judgement of one scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    dead: u64,
    missed: u64,
}

/// `None`: the stop met the thread between two passes.
fn judge_list(memory: &Memory, sink: &Sink, answer: u64) -> Option<Found> {
    let length = memory.nodes.len();
    let late = (answer.wrapping_sub(memory.expected) / ADDED) as usize;
    let places = sink.named().iter().filter_map(|&cell| {
        let at = memory.places.binary_search_by_key(&cell, |&(node, _)| node);
        Some(memory.places[at.ok()?].1)
    });
    let first = places.min().unwrap_or(length);
    let live = length.checked_sub(late)?;
    (late < length).then(|| Found {
        dead: live.saturating_sub(1).saturating_sub(first) as u64,
        missed: u64::from(late > 0 && first > live),
    })
}

/// In the stopped world.
fn judge_stores(stage: &Stage, memory: &Memory, sink: &Sink) -> Found {
    let control = &stage.control;
    // Relaxed: the thread that writes them is stopped.
    let made = control.made.load(Ordering::Relaxed);
    let newest = made
        .checked_sub(1)
        .map(|at| control.nodes[at % MADE].load(Ordering::Relaxed));
    let is_live = |cell: usize| {
        // SAFETY: the table is live by the work's root, and its only mutator is stopped.
        let mut words =
            (0..TABLE as usize).map(|at| unsafe { (memory.table as *const usize).add(at).read() });
        Some(cell) == newest || words.any(|word| word == cell)
    };
    let is_node = |cell: usize| {
        let known = made.min(MADE);
        let mut nodes = control.nodes[..known].iter();
        nodes.any(|node| node.load(Ordering::Relaxed) == cell)
    };
    let dead = sink.named().iter();
    let dead = dead
        .filter(|&&cell| is_node(cell) && !is_live(cell))
        .count();
    Found {
        dead: dead as u64,
        missed: u64::from(!sink.has_named(memory.table)),
    }
}

fn scan(stage: &Stage, stopped: &Stopped<'_>, sink: &mut Sink) {
    for mutator in stopped.mutators() {
        sink.stack = mutator.stack();
        stage.walk(&mutator, sink);
    }
}

/// Gathers the cells that the words of the kernel's frames name. Its memory is allocated before the
/// stop.
struct Sink {
    /// The heap's addresses.
    heap: Range<usize>,
    stack: Range<usize>,
    /// The words of the thread's stack from here on are not the kernel's.
    caller: usize,
    cells: Vec<usize>,
}

impl Sink {
    fn new(stage: &Stage) -> Sink {
        Sink {
            heap: stage.heap.reserved(),
            stack: 0..0,
            // Relaxed: constant while the kernel runs.
            caller: stage.control.caller.load(Ordering::Relaxed),
            cells: Vec::with_capacity(NAMED),
        }
    }

    fn named(&self) -> &[usize] {
        &self.cells
    }

    fn has_named(&self, cell: usize) -> bool {
        self.cells.contains(&cell)
    }

    fn word(&mut self, at: usize) {
        if self.stack.contains(&at) && at >= self.caller {
            return;
        }
        // SAFETY: the walker reports words of the stopped thread's stack and registers.
        let word = unsafe { (at as *const usize).read_volatile() };
        let cell = word & !(NODE - 1);
        let is_new = self.heap.contains(&word) && !self.cells.contains(&cell);
        if is_new && self.cells.len() < NAMED {
            self.cells.push(cell);
        }
    }
}

impl RootSink for Sink {
    fn conservative(&mut self, words: Range<usize>) {
        for at in words.step_by(8) {
            self.word(at);
        }
    }

    fn exact(&mut self, slot: usize, _: u32) {
        self.word(slot);
    }

    fn derived(&mut self, base: usize, _: usize, _: u32) {
        self.word(base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of four nodes at the addresses 0x100, 0x110, ..., whose values are 1.
    fn memory() -> Memory {
        let nodes: Vec<usize> = (0..4).map(|at| 0x100 + NODE * at).collect();
        let places = nodes.iter().copied().zip(0..).collect();
        Memory {
            nodes,
            places,
            table: 0,
            expected: 4,
        }
    }

    fn named(cells: &[usize]) -> Sink {
        Sink {
            heap: 0x100..0x200,
            stack: 0..0,
            caller: 0,
            cells: cells.to_vec(),
        }
    }

    #[test]
    fn a_late_name_is_a_missed_root_and_an_early_name_keeps_dead_nodes() {
        let judge =
            |cells: &[usize], late: u64| judge_list(&memory(), &named(cells), 4 + late * ADDED);
        // Two values were read after the stop: the nodes at the places 2 and 3 were live.
        let found = |dead, missed| Some(Found { dead, missed });
        assert_eq!(judge(&[0x120], 2), found(0, 0));
        assert_eq!(judge(&[0x110], 2), found(0, 0));
        assert_eq!(judge(&[0x120, 0x100], 2), found(1, 0));
        assert_eq!(judge(&[0x130], 2), found(0, 1));
        assert_eq!(judge(&[], 2), found(0, 1));
        assert_eq!(judge(&[], 0), found(0, 0));
        assert_eq!(judge(&[0x100], 0), found(3, 0));
        assert_eq!(judge(&[], 4), None);
    }
}
