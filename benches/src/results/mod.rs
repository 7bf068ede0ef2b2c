//! The results of measurements, as data and as a page.
//!
//! `benches/results/` has a data file for each machine, which the peers' bench writes ([`data`]).
//! `RESULTS.md` and its plots are made from these files only ([`page`], [`plots`]). `cargo run -p
//! benches --bin results` makes them again, and a test checks that they agree with the data.

pub mod claim;
pub mod data;
pub mod machine;
pub mod page;
pub mod plots;
pub mod render;
