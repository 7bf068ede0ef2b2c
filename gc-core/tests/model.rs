//! Random safe code against a model of it. Cells that are reachable in the model are there and
//! whole, and a weak reference is null only if its target is unreachable.
//!
//! Three threads make nested scopes, edges, roots and weak references, and collect at times, while
//! a fourth one collects all the time. `URGE_SEED=n` repeats a run.

mod common;

use gc_core::{Field, Heap, Local, Mutator, Root, Scope, Trace, Weak};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const EDGES: usize = 3;
/// The most scopes that are open inside each other.
const DEPTH: usize = 5;

#[derive(Trace, Default)]
struct Node {
    edges: [Field<Node>; EDGES],
    id: usize,
    complement: usize,
}

/// A small generator (Marsaglia's xorshift), so that a seed determines a thread's steps.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// One thread's model of its part of the heap.
struct Model<'m> {
    mutator: &'m Mutator,
    random: Random,
    edges: Vec<[Option<usize>; EDGES]>,
    roots: Vec<(Root<Node>, usize)>,
    weak: Vec<(Root<Weak<Node>>, usize)>,
}

type Handle<'s> = (Local<'s, Node>, usize);

impl Model<'_> {
    /// Takes `steps` random steps inside `scope`, with the handles of the scopes around it.
    fn play(&mut self, scope: &Scope<'_>, around: &[Handle<'_>], depth: usize, steps: usize) {
        let mut handles: Vec<Handle<'_>> = around.to_vec();
        for _ in 0..steps {
            // Where the machine has no processor for the collecting thread, no other collection
            // falls into these steps.
            if self.random.below(200) == 0 {
                self.mutator.collect();
            }
            match self.random.below(20) {
                0..=5 => self.make(scope, &mut handles),
                6..=10 if !handles.is_empty() => self.link(scope, &handles),
                11..=14 if !handles.is_empty() => {
                    let (node, id) = handles[self.random.below(handles.len())];
                    let edge = self.random.below(EDGES);
                    let found = node.edges[edge].get(scope);
                    assert_eq!(
                        found.map(|n| n.id),
                        self.edges[id][edge],
                        "edge {edge} of {id}"
                    );
                    handles.extend(found.map(|n| (n, n.id)));
                }
                15 if !handles.is_empty() => {
                    let (node, id) = handles[self.random.below(handles.len())];
                    self.roots.push((scope.mutator().heap().root(&node), id));
                }
                16 if !self.roots.is_empty() => {
                    let at = self.random.below(self.roots.len());
                    let (root, id) = self.roots.swap_remove(at);
                    handles.push((root.get(scope), id));
                }
                17 if !handles.is_empty() => {
                    let (node, id) = handles[self.random.below(handles.len())];
                    let weak = scope.alloc_weak(&node).unwrap();
                    self.weak.push((scope.mutator().heap().root(&weak), id));
                }
                18 if !self.weak.is_empty() => {
                    let at = self.random.below(self.weak.len());
                    let (weak, id) = self.weak.swap_remove(at);
                    match weak.upgrade(scope) {
                        Some(node) => {
                            assert_eq!(node.id, id);
                            handles.push((node, id));
                        }
                        None => assert!(
                            !self.reachable(&handles).contains(&id),
                            "{id} is reachable, and its weak reference is null"
                        ),
                    }
                }
                _ if depth < DEPTH => {
                    let steps = self.random.below(60);
                    let mutator = self.mutator;
                    mutator.with_scope(|inner| self.play(inner, &handles, depth + 1, steps));
                }
                _ => self.check(scope, &handles),
            }
            // Handles of this scope may be forgotten. Their cells live until the scope ends.
            if handles.len() > around.len() + 40 {
                handles.truncate(around.len() + 10);
            }
            self.roots.truncate(30);
            self.weak.truncate(30);
        }
        self.check(scope, &handles);
    }

    fn make<'s: 'h, 'h>(&mut self, scope: &Scope<'s>, handles: &mut Vec<Handle<'h>>) {
        let id = self.edges.len();
        self.edges.push([None; EDGES]);
        let node = Node {
            id,
            complement: !id,
            ..Node::default()
        };
        handles.push((scope.alloc(node).unwrap(), id));
    }

    fn link(&mut self, scope: &Scope<'_>, handles: &[Handle<'_>]) {
        let (from, id) = handles[self.random.below(handles.len())];
        let (to, target) = handles[self.random.below(handles.len())];
        let edge = self.random.below(EDGES);
        if self.random.below(8) == 0 {
            from.edges[edge].clear(scope);
            self.edges[id][edge] = None;
        } else {
            from.edges[edge].set(scope, &to);
            self.edges[id][edge] = Some(target);
        }
    }

    fn reachable(&self, handles: &[Handle<'_>]) -> HashSet<usize> {
        let mut seen = HashSet::new();
        let mut left: Vec<usize> = handles.iter().map(|(_, id)| *id).collect();
        left.extend(self.roots.iter().map(|(_, id)| *id));
        while let Some(id) = left.pop() {
            if seen.insert(id) {
                left.extend(self.edges[id].iter().flatten());
            }
        }
        seen
    }

    /// Walks all reachable nodes, in the heap and in the model, and compares them.
    fn check(&self, scope: &Scope<'_>, handles: &[Handle<'_>]) {
        scope.mutator().with_scope(|inner| {
            let mut seen = HashSet::new();
            let mut left: Vec<Local<'_, Node>> =
                handles.iter().map(|(n, _)| inner.hold(n)).collect();
            left.extend(self.roots.iter().map(|(root, _)| root.get(inner)));
            while let Some(node) = left.pop() {
                assert_eq!(node.complement, !node.id, "a node has been overwritten");
                if seen.insert(node.id) {
                    for (edge, field) in node.edges.iter().enumerate() {
                        let next = field.get(inner);
                        assert_eq!(next.map(|n| n.id), self.edges[node.id][edge]);
                        left.extend(next);
                    }
                }
            }
            assert_eq!(seen, self.reachable(handles));
        });
    }
}

/// Random safe code finds what its model has. With `handles-unscanned` planted, it does not.
#[test]
fn random_safe_code_finds_what_its_model_has() {
    common::hazard(
        "random_safe_code_finds_what_its_model_has",
        "handles-unscanned",
        || {
            let seed = std::env::var("URGE_SEED").ok().and_then(|s| s.parse().ok());
            let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
            eprintln!("URGE_SEED={seed}");
            let heap = Heap::builder().reserve(1 << 30).build().unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|threads| {
                let players = [1, 2, 3].map(|number| {
                    let heap = &heap;
                    threads.spawn(move || {
                        let mutator = heap.attach().unwrap();
                        let mut model = Model {
                            mutator: &mutator,
                            random: Random(
                                (seed << 8 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
                            ),
                            edges: Vec::new(),
                            roots: Vec::new(),
                            weak: Vec::new(),
                        };
                        for _ in 0..40 {
                            mutator.with_scope(|s| model.play(s, &[], 0, 100));
                        }
                    })
                });
                threads.spawn(|| {
                    while !done.load(Relaxed) {
                        heap.collect();
                        // Without a pause, the threads would be stopped again while they are
                        // parked, and hardly run.
                        std::thread::sleep(std::time::Duration::from_micros(200));
                    }
                });
                let ended = players.map(|p| p.join());
                done.store(true, Relaxed);
                assert!(ended.iter().all(|e| e.is_ok()));
            });
            assert!(heap.stats().collections > 10);
        },
    );
}
