//! Lists of nodes of the safe tier.

use gc_core::{Field, Heap, Mutator, Trace};

#[derive(Trace, Default)]
pub struct Node {
    pub next: Field<Node>,
    pub value: u64,
}

pub fn node(value: u64) -> Node {
    Node {
        value,
        ..Node::default()
    }
}

pub fn heap() -> Heap {
    Heap::builder().reserve(1 << 30).build().unwrap()
}

/// Runs `f` in a scope on a new thread. No stale word of the caller's stack then keeps the cells
/// that `f` leaves behind.
pub fn apart<R: Send>(
    heap: &Heap,
    f: impl FnOnce(&gc_core::Scope<'_>) -> Result<R, gc_core::AllocError> + Send,
) -> R {
    std::thread::scope(|threads| {
        threads
            .spawn(|| heap.attach().unwrap().scope(f).unwrap())
            .join()
            .unwrap()
    })
}

/// Allocates enough cells that freed cells are used again.
pub fn churn(mutator: &Mutator) {
    mutator.collect();
    for _ in 0..20 {
        mutator
            .scope(|s| {
                for i in 0..1000 {
                    s.alloc(node(u64::MAX - i))?;
                }
                Ok(())
            })
            .unwrap();
    }
    mutator.collect();
}

pub fn message(panic: Box<dyn std::any::Any + Send>) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()))
        .unwrap_or_default()
}
