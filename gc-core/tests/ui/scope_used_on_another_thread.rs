//! A scope stays on its thread: its handles are not locked.
use gc_core::Scope;

fn is_sync<T: Sync>() {}

fn main() {
    is_sync::<Scope<'_>>();
}
