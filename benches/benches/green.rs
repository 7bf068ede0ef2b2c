//! Measures switches between green threads beside Go's: a yield, and a preemption with its resume.
//!
//! `cargo bench -p benches --bench green`. The contenders alternate in blocks, and each ratio is
//! the median of the blocks' ratios. It should be at most 1.5. A preemption's cost is the processor
//! time that a loop loses by it: signal, injected call, switch, queue, and the way back. Without Go
//! (`URGE_GO`, or `go` on the path) only Urge's figures are printed.

use benches::Mode;
use benches::contenders::process;
use benches::contenders::workshop::Workshop;
use gc_test_harness::lab::green::measure_costs;

fn main() {
    let mode = Mode::from_args();
    if mode == Mode::List {
        return println!("green: bench");
    }
    let times: u32 = mode.pick(20_000, 50);
    let workshop = Workshop::new();
    // The program calls a function of Go's runtime that the linker hides otherwise.
    let mut go = workshop.go_with("switches", "-checklinkname=0").program;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..mode.pick(9, 1) {
        let costs = measure_costs(u64::from(times) * 10, u64::from(times));
        let costs = costs.unwrap_or_else(|e| panic!("the costs were not measured: {e}"));
        ours.push([costs.yield_ns, costs.preempt_ns]);
        let ran = go.as_ref().map_err(Clone::clone);
        let ran = ran.and_then(|go| process::run(go.command(&[times]), false));
        match ran.and_then(|ran| parse(&ran.stdout)) {
            Ok(figures) => theirs.push(figures),
            Err(why) => go = Err(why),
        }
    }
    if let Err(why) = &go {
        println!("skipped: Go ({why})");
        theirs.clear();
    }
    for (at, what) in ["yield", "preempt and resume"].into_iter().enumerate() {
        let mine = median(ours.iter().map(|figures| figures[at]));
        print!("{what:<20} Urge {mine:>8.0} ns");
        if !theirs.is_empty() {
            let go = median(theirs.iter().map(|figures| figures[at]));
            let pairs = ours.iter().zip(&theirs);
            let ratio = median(pairs.map(|(ours, theirs)| ours[at] / theirs[at]));
            print!("   Go {go:>8.0} ns   ratio {ratio:.2}");
        }
        println!();
    }
}

/// The two figures that the Go program prints.
fn parse(stdout: &str) -> Result<[f64; 2], String> {
    let figures: Result<Vec<f64>, _> = stdout.split_whitespace().map(str::parse).collect();
    let figures = figures.map_err(|e| e.to_string())?;
    figures
        .try_into()
        .map_err(|_| format!("not two figures: {stdout:?}"))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
