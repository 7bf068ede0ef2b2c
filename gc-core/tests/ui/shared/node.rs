// The cell that many of these tests are about.
#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    value: u64,
}
