//! Types of one layout share a kind, and so they share spans: many small types take no more memory
//! than one, and each cell is traced by its own edges.

mod common;

use common::hazard;
use gc_core::{Field, Heap, Leaf, Root, Scope, Trace};

#[derive(Leaf)]
struct Number<const N: usize>(u64);

/// A type of the size of `Second`, with its edge at another offset.
#[derive(Trace, Default)]
struct First<const N: usize> {
    edge: Field<Number<0>>,
    number: u64,
}

#[derive(Trace, Default)]
struct Second<const N: usize> {
    number: u64,
    edge: Field<Number<0>>,
}

/// Calls the macro `$do` with each number below forty.
macro_rules! forty {
    ($do:ident) => {
        forty!($do: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19
            20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39)
    };
    ($do:ident: $($n:literal)*) => { $($do!($n);)* };
}

fn heap() -> Heap {
    Heap::builder().reserve(1 << 30).build().unwrap()
}

/// The bytes of the spans that `fill` takes in a heap of its own.
fn taken(fill: impl FnOnce(&Scope<'_>)) -> u64 {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let before = heap.stats().used_bytes;
    mutator.with_scope(fill);
    heap.stats().used_bytes - before
}

/// Forty types of one layout take the spans of one type. With `kind-a-type` planted, each takes its
/// own.
#[test]
fn h92_forty_types_of_one_layout_take_the_spans_of_one() {
    let name = "h92_forty_types_of_one_layout_take_the_spans_of_one";
    hazard(name, "kind-a-type", || {
        let one = taken(|scope| {
            scope.alloc(Number::<0>(0)).unwrap();
        });
        assert!(one > 0);
        let leaves = taken(|scope| {
            macro_rules! alloc {
                ($n:literal) => {
                    scope.alloc(Number::<$n>($n)).unwrap()
                };
            }
            forty!(alloc);
        });
        assert_eq!(leaves, one);
        // All leaves share a kind, whatever their size. Cells of another size class have spans of
        // their own.
        let sizes = taken(|scope| {
            scope.alloc(Number::<0>(0)).unwrap();
            scope.alloc_bytes(&[1; 8]).unwrap();
            scope.alloc([0u8; 100]).unwrap();
            scope.alloc([0u64; 13]).unwrap();
        });
        assert_eq!(sizes, 2 * one);
        let edges = taken(|scope| {
            macro_rules! alloc {
                ($n:literal) => {
                    scope.alloc(First::<$n>::default()).unwrap();
                    scope.alloc(Second::<$n>::default()).unwrap()
                };
            }
            forty!(alloc);
        });
        assert_eq!(
            edges,
            2 * one,
            "types with other edge offsets share no span"
        );
    });
}

/// A cell with an edge, and with a number in the word where the other type has its edge.
trait Made: Trace + Sized + 'static {
    fn made(number: u64) -> Self;
    fn number(&self) -> u64;
    fn edge(&self) -> &Field<Number<0>>;
}

macro_rules! made {
    ($($cell:ident)*) => {$(
        impl<const N: usize> Made for $cell<N> {
            fn made(number: u64) -> Self {
                Self {
                    number,
                    ..Self::default()
                }
            }
            fn number(&self) -> u64 {
                self.number
            }
            fn edge(&self) -> &Field<Number<0>> {
                &self.edge
            }
        }
    )*};
}

made!(First Second);

/// A rooted cell that leads to a number to which nothing else leads.
fn leading<T: Made>(scope: &Scope<'_>, heap: &Heap, number: u64) -> Root<T> {
    let cell = scope.alloc(T::made(number)).unwrap();
    cell.edge()
        .set(scope, &scope.alloc(Number::<0>(!number)).unwrap());
    heap.root(&cell)
}

/// Checks two cells.
type Look = dyn Fn(&Scope<'_>);

fn look<T: Made>(scope: &Scope<'_>, root: &Root<T>, number: u64) {
    let cell = root.get(scope);
    assert_eq!(cell.number(), number);
    assert_eq!(cell.edge().get(scope).expect("it leads on").0, !number);
}

/// Cells of types with different edge offsets keep what they lead to, and number words are not
/// taken for edges.
#[test]
fn cells_of_a_shared_kind_are_traced_by_their_own_edges() {
    let heap = heap();
    let mutator = heap.attach().unwrap();
    let mut looks: Vec<Box<Look>> = Vec::new();
    for round in 0..100 {
        mutator.with_scope(|scope| {
            macro_rules! make {
                ($n:literal) => {
                    let number = round * 40 + $n;
                    let first = leading::<First<$n>>(scope, &heap, number);
                    let second = leading::<Second<$n>>(scope, &heap, number);
                    looks.push(Box::new(move |scope| {
                        look(scope, &first, number);
                        look(scope, &second, number);
                    }));
                };
            }
            forty!(make);
        });
    }
    for round in 0..3 {
        for _ in 0..100_000 {
            mutator.with_scope(|scope| {
                scope.alloc(Number::<1>(u64::MAX)).unwrap();
            });
        }
        mutator.collect();
        assert_eq!(
            heap.stats().last.cells_live,
            4 * looks.len() as u64,
            "round {round}"
        );
        mutator.with_scope(|scope| looks.iter().for_each(|look| look(scope)));
        // Half of the cells die.
        looks.truncate(looks.len() / 2);
    }
}
