//! Judges the scan of a kernel's frame at every instruction, by the oracle of `lab/oracle.rs`.
//!
//! The inputs are the smallest ones: a list of four nodes, and a table of two entries into which
//! two nodes are stored. What a map names at an instruction depends neither on the machine's speed
//! nor on chance. A scan word by word also finds what native code has left in registers.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::figures::Everywhere;
use super::stage::{Player, Stage, TalkError};
use crate::kernels::codegen::Code;
use crate::kernels::talk::{Kernel, Strategy};
use crate::lab::oracle::{Instruction, Judgement, Program, Scan, judge};

/// The part of an input that makes it the smallest one.
const SMALLEST: u64 = u64::MAX;
/// The entries of the table that the kernel uses, and its rounds.
const ENTRIES: usize = 2;
const ROUNDS: u64 = 2;

/// How a stop by this strategy scans the innermost frame of the kernel. `None`: it does not stop.
pub fn scan_of(strategy: Strategy) -> Option<Scan> {
    match strategy {
        Strategy::Unstopped => None,
        Strategy::Cooperative | Strategy::Prologue | Strategy::BackEdge => Some(Scan::Calls),
        Strategy::BackEdgeFault => Some(Scan::Marks),
        Strategy::Step => Some(Scan::Points),
        Strategy::Maps => Some(Scan::Maps),
        Strategy::Async => Some(Scan::Words),
    }
}

/// The instructions of one run of a kernel that holds references.
///
/// # Errors
/// The refusal of Cranelift, of the system or of the heap.
pub fn run(kernel: Kernel, strategy: Strategy) -> Result<Vec<Instruction>, TalkError> {
    let stage = Stage::new(kernel, strategy)?;
    stage.on_this_thread(SMALLEST, |player| {
        if kernel == Kernel::Stores {
            player.work.input.words[1..3].copy_from_slice(&[ENTRIES as u64, ROUNDS]);
        }
        Ok(judge(&*Played::new(player)))
    })
}

/// The judgement of a strategy's scans at every instruction at which it stops the kernel. `None`:
/// there is none, or the kernel holds no references.
///
/// # Errors
/// As for [`run`].
pub fn judgement(kernel: Kernel, strategy: Strategy) -> Result<Option<Everywhere>, TalkError> {
    let scan = scan_of(strategy).filter(|_| kernel.holds_references());
    let Some(scan) = scan else { return Ok(None) };
    let sum = Judgement::of(&run(kernel, strategy)?, scan);
    Ok((sum.stops > 0).then(|| Everywhere {
        executed: sum.stops,
        executed_wrong: sum.stops_with_missed,
        wrong: sum.wrong.iter().map(|&(_, offset)| offset).collect(),
        dead_kept: sum.dead,
    }))
}

/// A kernel as the oracle's program. Its cells are the list's nodes; or the table, the node that it
/// names at first, and the nodes that the kernel has made.
struct Played<'a, 'p> {
    stage: &'p Stage,
    player: RefCell<&'a mut Player<'p>>,
    slot: *mut usize,
    /// What the slot names at first.
    root: usize,
    nodes: Vec<usize>,
    /// The words of each node at first.
    first: Vec<[usize; 2]>,
    table: usize,
    /// A table of nodes that are ruined, for a slot that is.
    pits: Vec<usize>,
    pit: [usize; 2],
}

/// A word that is no node's value.
const RUINED: usize = 0xbad_0bad;

impl<'a, 'p> Played<'a, 'p> {
    fn new(player: &'a mut Player<'p>) -> Box<Self> {
        let slot = player.work.input.words[0] as *mut usize;
        let table = player.work.table;
        let mut nodes = player.work.nodes.clone();
        // SAFETY: the work's slot, and its table if it has one.
        let root = unsafe {
            if table != 0 {
                nodes = vec![(table as *const usize).read()];
            }
            slot.read()
        };
        // SAFETY: live nodes of two words.
        let first = nodes
            .iter()
            .map(|&node| unsafe { (node as *const [usize; 2]).read() });
        let mut played = Box::new(Played {
            stage: player.stage,
            first: first.collect(),
            player: RefCell::new(player),
            slot,
            root,
            nodes,
            table,
            pits: Vec::new(),
            pit: [0, RUINED],
        });
        let pit = (&raw const played.pit) as usize;
        played.pits = vec![pit; ENTRIES];
        played
    }

    /// The address of the node of this number, if it is allocated.
    fn node(&self, number: usize) -> Option<usize> {
        if let Some(&node) = self.nodes.get(number) {
            return Some(node);
        }
        let made = number - self.nodes.len();
        let control = &self.stage.control;
        // Relaxed: this thread writes them.
        (made < control.made.load(Ordering::Relaxed))
            .then(|| control.nodes[made].load(Ordering::Relaxed))
    }

    /// The number of a cell as a node; `None` for the table.
    fn number(&self, cell: usize) -> Option<usize> {
        cell.checked_sub(usize::from(self.table != 0))
    }

    fn count(&self) -> usize {
        match self.table {
            0 => self.nodes.len(),
            _ => 1 + self.nodes.len() + ROUNDS as usize,
        }
    }
}

impl Program for Played<'_, '_> {
    fn code(&self) -> &[Code] {
        &self.stage.made.code
    }

    fn reset(&self) {
        self.stage.control.made.store(0, Ordering::Relaxed);
        // SAFETY: the work's own slot, table and nodes, which only this thread uses.
        unsafe {
            self.slot.write(self.root);
            for (&node, words) in self.nodes.iter().zip(&self.first) {
                (node as *mut [usize; 2]).write(*words);
            }
            if self.table != 0 {
                (self.table as *mut [usize; ENTRIES]).write([self.nodes[0]; ENTRIES]);
            }
        }
    }

    fn run(&self) -> u64 {
        self.player.borrow_mut().answer(1)
    }

    fn cells(&self) -> Vec<Range<usize>> {
        let cell = |number| match self.number(number) {
            None => self.table..self.table + 8 * ENTRIES,
            Some(number) => self.node(number).map_or(0..0, |node| node..node + 16),
        };
        (0..self.count()).map(cell).collect()
    }

    fn roots(&self) -> Vec<usize> {
        // SAFETY: the work's own slot.
        vec![unsafe { self.slot.read() }]
    }

    fn words_of(&self, cell: usize) -> Vec<usize> {
        // SAFETY: the table, or a node that is allocated.
        unsafe {
            match self.number(cell) {
                None => (self.table as *const [usize; ENTRIES]).read().to_vec(),
                Some(number) => self
                    .node(number)
                    .map_or_else(Vec::new, |node| vec![(node as *const usize).read()]),
            }
        }
    }

    fn ruin(&self, cell: usize) {
        let pit = (&raw const self.pit) as usize;
        // SAFETY: the table, or a node that is allocated.
        unsafe {
            match self.number(cell) {
                None => (self.table as *mut [usize; ENTRIES]).write([pit; ENTRIES]),
                Some(number) => {
                    if let Some(node) = self.node(number) {
                        (node as *mut [usize; 2]).write(self.pit);
                    }
                }
            }
        }
    }

    fn ruin_root(&self, _: usize) {
        let pit = match self.table {
            0 => (&raw const self.pit) as usize,
            _ => self.pits.as_ptr() as usize,
        };
        // SAFETY: the work's own slot.
        unsafe { self.slot.write(pit) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code is the same for a stop at any instruction, by words and by maps, and for steps.
    #[test]
    fn only_maps_miss_references_and_only_around_calls() {
        let run = run(Kernel::Stores, Strategy::Async).unwrap();
        let of = |scan| Judgement::of(&run, scan);
        for scan in [Scan::Words, Scan::Points, Scan::Calls] {
            assert_eq!(of(scan).missed, 0, "{scan:?}");
        }
        let maps = of(Scan::Maps);
        assert!(maps.missed > 0 && maps.wrong.len() > 5, "{maps:?}");
        // A scan word by word reads all places of the map.
        assert!(maps.dead <= of(Scan::Words).dead);
    }

    #[test]
    fn the_map_of_a_poll_load_names_what_is_alive() {
        let judgement = judgement(Kernel::List, Strategy::BackEdgeFault).unwrap();
        let judgement = judgement.expect("the list is held in a loop");
        assert_eq!((judgement.executed, judgement.executed_wrong), (3, 0));
        assert_eq!(judgement.dead_kept, 0);
    }
}
