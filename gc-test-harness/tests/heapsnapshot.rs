//! A heap snapshot keeps the rules of Chromium's format: the counts of nodes and edges, the edges
//! of each node in the order of nodes, and numbers that name strings and nodes.

use gc_core::raw::{Encoding, Kind};
use gc_core::{Field, Heap, Trace};
use serde_json::Value;

#[derive(Default, Trace)]
struct Node {
    next: Field<Node>,
    other: Field<Node>,
}

fn numbers(value: &Value) -> Vec<usize> {
    let numbers = value.as_array().expect("an array").iter();
    numbers
        .map(|n| n.as_u64().expect("a number") as usize)
        .collect()
}

#[test]
fn a_snapshot_is_as_the_format_demands_and_has_the_graph() {
    const LIST: usize = 1000;
    let heap = Heap::builder().build().unwrap();
    let m = heap.attach().unwrap();
    let odd = heap.kind(Kind::words_at("an \"odd\"\nname", &[0], Encoding::RAW));
    let odd = odd.unwrap();
    let root = m
        .scope(|s| {
            let head = s.alloc(Node::default())?;
            let mut last = head;
            for _ in 1..LIST {
                let next = s.alloc(Node::default())?;
                last.next.set(s, &next);
                next.other.set(s, &head);
                last = next;
            }
            Ok(heap.root(&head))
        })
        .unwrap();
    // SAFETY: the cell gets a root at once.
    let _odd = unsafe { m.root_raw(m.alloc_raw(odd, 16).unwrap()) }.unwrap();
    m.collect();
    let mut json = Vec::new();
    heap.snapshot(&mut json).unwrap();
    drop(root);
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let meta = &json["snapshot"]["meta"];
    let fields = |name: &str| meta[name].as_array().unwrap().len();
    let (a_node, an_edge) = (fields("node_fields"), fields("edge_fields"));
    let (nodes, edges) = (numbers(&json["nodes"]), numbers(&json["edges"]));
    let strings: Vec<&str> = json["strings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    assert_eq!(json["snapshot"]["node_count"], nodes.len() / a_node);
    assert_eq!(json["snapshot"]["edge_count"], edges.len() / an_edge);
    assert_eq!((nodes.len() % a_node, edges.len() % an_edge), (0, 0));
    assert_eq!(fields("node_types"), a_node);
    assert_eq!(fields("edge_types"), an_edge);
    let types = meta["node_types"][0].as_array().unwrap().len();
    let edge_types = meta["edge_types"][0].as_array().unwrap().len();
    let of_nodes: usize = nodes.chunks(a_node).map(|node| node[4]).sum();
    assert_eq!(of_nodes, edges.len() / an_edge);
    let mut ids: Vec<usize> = nodes.chunks(a_node).map(|node| node[2]).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), nodes.len() / a_node, "each node has its own id");
    for node in nodes.chunks(a_node) {
        assert!(node[0] < types && node[1] < strings.len());
        assert!(node[2] < 1 << 32 && node[3] < 1 << 32);
    }
    for edge in edges.chunks(an_edge) {
        assert!(edge[0] < edge_types);
        assert!(edge[2] < nodes.len() && edge[2] % a_node == 0);
    }
    // The edges of each node, and what the first node reaches.
    let mut first = 0;
    let targets: Vec<Vec<usize>> = nodes
        .chunks(a_node)
        .map(|node| {
            let edges = edges[first * an_edge..].chunks(an_edge).take(node[4]);
            first += node[4];
            edges.map(|edge| edge[2] / a_node).collect()
        })
        .collect();
    let mut reached = vec![false; targets.len()];
    let mut left = vec![0];
    while let Some(node) = left.pop() {
        if !std::mem::replace(&mut reached[node], true) {
            left.extend(&targets[node]);
        }
    }
    assert!(reached.iter().all(|reached| *reached));
    let name = |node: usize| strings[nodes[node * a_node + 1]];
    let of_list: Vec<usize> = (0..targets.len())
        .filter(|node| name(*node).contains("Node"))
        .collect();
    assert_eq!(of_list.len(), LIST);
    let out: usize = of_list.iter().map(|node| targets[*node].len()).sum();
    assert_eq!(out, 2 * (LIST - 1));
    assert_eq!((name(1), name(2)), ("(GC roots)", "(Roots)"));
    assert!(strings.contains(&"an \"odd\"\nname"));
}
