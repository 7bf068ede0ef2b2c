//! The names of the documentation, by their documented paths: a kind with a trace function, the
//! items for machine code, and the items that reports give.
use gc_core::jit::Run;
use gc_core::raw::{Cell, Encoding, Kind, MAX_SMALL, Site, TraceFn, Tracer};
use gc_core::{Heap, jit};

unsafe fn trace(cell: *const u8, size: usize, tracer: &mut Tracer<'_>) {
    let cell = cell as usize;
    // SAFETY: the words of the cell.
    unsafe { tracer.edges(cell..cell + size, Encoding::RAW) };
}

fn main() {
    let heap = Heap::builder().build().unwrap();
    let own: TraceFn = trace;
    // SAFETY: the function reports every word.
    let kind = heap.kind(unsafe { Kind::traced("own", own) }).unwrap();
    let site: Site = heap.site(kind, MAX_SMALL).unwrap();
    let mutator = heap.attach().unwrap();
    // SAFETY: the mutator's own array, which has a run for each site.
    let run: Run = unsafe { mutator.runs().add(site.index()).read() };
    let context: *const gc_core::jit::Context = mutator.context();
    println!("{run:?} {context:p} {}", jit::CONTEXT_MARKING + jit::store_address());
    mutator.blocking(|| heap.for_each_cell(|_: Cell| ()).is_ok());
}
