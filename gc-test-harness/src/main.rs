//! gclab
fn main() {}
