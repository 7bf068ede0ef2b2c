//! The heap's own rooms believe what they are told. With the feature that opens them to harnesses, the only door to them is unsafe.
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
