//! What was measured, as data and as a page.
//!
//! `benches/results/` has a data file for each machine, which the peers' bench writes ([`data`]).
//! `RESULTS.md` and its plots are made of these files and of nothing else ([`page`], [`plots`]):
//! `cargo run -p benches --bin results` makes them anew, and a test compares the two.

pub mod claim;
pub mod data;
pub mod machine;
pub mod page;
pub mod plots;
pub mod render;
