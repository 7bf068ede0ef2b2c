// The node type of most of these programs.
#[derive(Trace, Default)]
struct Node {
    next: Field<Node>,
    value: u64,
}
