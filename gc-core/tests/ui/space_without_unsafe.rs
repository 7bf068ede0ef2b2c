//! With the feature `internals`, the heap's own modules are reached by an unsafe function only.
use gc_core::internals::{Space, SpaceConfig};
use gc_core::raw::Cell;
use gc_core::internals::{MarkQueue, Marker, WeakWork};
use gc_core::raw::Kind;

fn main() {
    let space = Space::bare(SpaceConfig::default()).unwrap();
    let kind = space.add_kind(Kind::leaf("leaf")).unwrap();
    let queue = MarkQueue::new(&space, 1000).unwrap();
    let weak = WeakWork::new(&space).unwrap();
    Marker::new(&space, &queue, &weak).cell(Cell { base: 1 << 45, size: 16, kind });
}
