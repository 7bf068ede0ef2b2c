//! A mutator is its thread's: each thread attaches for itself.
use gc_core::Mutator;

fn is_send<T: Send>() {}

fn main() {
    is_send::<Mutator>();
}
