//! A heap's graph as a heap snapshot that Chromium's developer tools read (`.heapsnapshot`).
//!
//! The file is one JSON object. `nodes` and `edges` are flat arrays of numbers; the edges of a node
//! follow those of the node before it, and a node has the number of its edges. The first node is
//! the root. Its child "(GC roots)" has a child for each sort of roots, whose edges lead to cells.
//! Cells that no root reaches are left out. The numbers of nodes and edges stand before them, so
//! the writer walks the copy of the graph twice and holds some numbers for each cell.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use crate::api::capture::{Capture, InspectError, RootPlace, on_another_thread};
use crate::api::heap::Heap;

/// The fields of a node and of an edge.
const NODE_FIELDS: usize = 6;

/// Numbers of node types in [`META`].
const OBJECT: usize = 3;
const SYNTHETIC: usize = 9;

/// The number of the edge type `element` in [`META`].
const ELEMENT: usize = 1;

const META: &str = concat!(
    r#""meta":{"node_fields":["type","name","id","self_size","edge_count","detachedness"],"#,
    r#""node_types":[["hidden","array","string","object","code","closure","regexp","number","#,
    r#""native","synthetic","concatenated string","sliced string","symbol","bigint","#,
    r#""object shape"],"string","number","number","number","number"],"#,
    r#""edge_fields":["type","name_or_index","to_node"],"#,
    r#""edge_types":[["context","element","property","internal","hidden","shortcut","weak"],"#,
    r#""string_or_number","node"],"trace_function_info_fields":[],"trace_node_fields":[],"#,
    r#""sample_fields":[],"location_fields":[]}"#
);

/// The sorts of roots: the nodes from the third one on.
const SORTS: [&str; 5] = [
    "(Roots)",
    "(root ranges and callbacks)",
    "(suspended stacks)",
    "(handles)",
    "(stacks)",
];

/// Nodes before the first cell: the root, "(GC roots)", and the sorts.
const FIRST: usize = 2 + SORTS.len();

fn sort(place: RootPlace) -> usize {
    match place {
        RootPlace::Root => 0,
        RootPlace::Range => 1,
        RootPlace::Suspended(_) => 2,
        RootPlace::Handle(_) => 3,
        RootPlace::Stack(_) => 4,
    }
}

impl Heap {
    /// Writes the heap's graph in the format of Chromium's heap snapshots, with the usual ending
    /// `.heapsnapshot`. Chromium's developer tools open it in the Memory panel: they show the cells
    /// by kind, the path from a root to each (*Retainers*), and what would be freed with it
    /// (*Retained Size*). Cells that no root reaches are not written.
    ///
    /// The heap's graph is copied in a stop, and written while the program runs. The copy takes 24
    /// bytes for each cell and 8 for each edge, and the writer holds some numbers for each cell.
    ///
    /// ```
    /// let heap = gc_core::Heap::builder().build()?;
    /// let mut json = Vec::new();
    /// heap.snapshot(&mut json)?;
    /// assert!(json.starts_with(b"{\"snapshot\""));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The writer's error; or an [`InspectError`] as an [`io::Error`]: the caller holds a stop, or
    /// the system refuses memory.
    ///
    /// # Panics
    /// Inside [`no_preempt`](crate::Mutator::no_preempt).
    #[track_caller]
    pub fn snapshot(&self, writer: impl Write) -> io::Result<()> {
        let capture = on_another_thread(|| Capture::of(self, true));
        let capture = capture.map_err(|error: InspectError| io::Error::other(error))?;
        // The writer may wait.
        let mut out = BufWriter::with_capacity(64 << 10, writer);
        self.write_snapshot(&capture, &mut out)?;
        out.flush()
    }

    fn write_snapshot(&self, capture: &Capture, out: &mut impl Write) -> io::Result<()> {
        let mut roots: [Vec<usize>; SORTS.len()] = Default::default();
        for (place, cell) in capture.roots() {
            roots[sort(place)].push(cell);
        }
        for cells in &mut roots {
            cells.sort_unstable();
            cells.dedup();
        }
        let (nodes, cells) = reached(capture, &roots);
        let edges_of = |cell: usize| capture.edges(cell).count();
        let reached = || (0..capture.len()).filter(|cell| nodes[*cell] != 0);
        let of_roots: usize = roots.iter().map(Vec::len).sum();
        let edges = 1 + SORTS.len() + of_roots + reached().map(edges_of).sum::<usize>();
        write!(
            out,
            "{{\"snapshot\":{{{META},\"node_count\":{}",
            FIRST + cells
        )?;
        writeln!(out, ",\"edge_count\":{edges},\"trace_function_count\":0}},")?;

        let mut strings = vec![String::new(), "(GC roots)".into()];
        strings.extend(SORTS.map(String::from));
        let mut names = BTreeMap::new();
        write!(out, "\"nodes\":[{SYNTHETIC},0,1,0,1,0")?;
        write!(out, ",\n{SYNTHETIC},1,3,0,{},0", SORTS.len())?;
        for (at, cells) in roots.iter().enumerate() {
            let id = 2 * (at + 2) + 1;
            write!(out, ",\n{SYNTHETIC},{},{id},0,{},0", at + 2, cells.len())?;
        }
        let start = self.reserved().start;
        for cell in reached() {
            let kind = capture.kind(cell);
            let name = *names.entry(kind).or_insert_with(|| {
                strings.push(self.kind_name_of(kind));
                strings.len() - 1
            });
            // A cell that lives on has the same number in the next snapshot. The tools read numbers
            // of 32 bits.
            let id = (capture.base(cell) - start) / 8 + 2 * FIRST + 1;
            let id = if id < 1 << 32 {
                id
            } else {
                2 * (FIRST + cell) + 1
            };
            let size = capture.size(cell).min(u32::MAX as usize);
            let edges = edges_of(cell);
            write!(out, ",\n{OBJECT},{name},{id},{size},{edges},0")?;
        }

        let to = |node: usize| node * NODE_FIELDS;
        write!(out, "],\n\"edges\":[{ELEMENT},0,{}", to(1))?;
        for at in 0..SORTS.len() {
            write!(out, ",\n{ELEMENT},{at},{}", to(at + 2))?;
        }
        let cells = roots.iter().map(|cells| cells.as_slice());
        for cells in cells {
            for (at, cell) in cells.iter().enumerate() {
                write!(out, ",\n{ELEMENT},{at},{}", to(nodes[*cell]))?;
            }
        }
        for cell in reached() {
            for (at, target) in capture.edges(cell).enumerate() {
                write!(out, ",\n{ELEMENT},{at},{}", to(nodes[target]))?;
            }
        }
        out.write_all(b"],\n\"trace_function_infos\":[],\"trace_tree\":[],\"samples\":[],")?;
        out.write_all(b"\"locations\":[],\n\"strings\":[")?;
        for (at, string) in strings.iter().enumerate() {
            out.write_all(if at == 0 { b"" } else { b",\n" })?;
            write_string(string, out)?;
        }
        out.write_all(b"]}\n")
    }
}

/// The node of each cell that the roots reach, 0 for the others, and their number.
fn reached(capture: &Capture, roots: &[Vec<usize>]) -> (Vec<usize>, usize) {
    let mut nodes = vec![0; capture.len()];
    let mut left: Vec<usize> = roots.iter().flatten().copied().collect();
    for cell in &left {
        nodes[*cell] = 1;
    }
    while let Some(cell) = left.pop() {
        for target in capture.edges(cell) {
            if nodes[target] == 0 {
                nodes[target] = 1;
                left.push(target);
            }
        }
    }
    let mut count = 0;
    for node in &mut nodes {
        if *node != 0 {
            *node = FIRST + count;
            count += 1;
        }
    }
    (nodes, count)
}

fn write_string(string: &str, out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\"")?;
    for c in string.chars() {
        match c {
            '"' | '\\' => write!(out, "\\{c}")?,
            c if c < ' ' => write!(out, "\\u{:04x}", c as u32)?,
            c => write!(out, "{c}")?,
        }
    }
    out.write_all(b"\"")
}
