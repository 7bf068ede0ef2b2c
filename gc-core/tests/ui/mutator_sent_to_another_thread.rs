//! A mutator cannot be sent to another thread: each thread attaches itself.
use gc_core::Mutator;

fn is_send<T: Send>() {}

fn main() {
    is_send::<Mutator>();
}
