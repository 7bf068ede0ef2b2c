//! Rows whose contenders are whole processes: binary trees, churn, fragmentation, Lox.

use benches::lox::{Heavy, PROGRAMS, path_of};
use benches::paired::Spread;
use benches::peers::claims::{Piece, Wanted, alternate};
use benches::peers::process::{Used, run, run_for};
use benches::peers::workshop::{Program, Workshop};
use gc_test_harness::lab::trees;

use crate::bench::{Bench, LIMIT, OURS, Scale, ours, print_used, warm};

/// Our contender with two mutators.
const OURS_TWICE: &str = "Urge, 2 mutators";

/// What the game must print.
fn game(depth: u32) -> String {
    let lines = trees::answers(depth);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// One mutator beside all peers and the limit program.
pub fn trees_row(bench: &mut Bench) {
    let depth = bench.pick(20, 16, 8);
    let mut contenders = vec![
        (OURS.to_owned(), ours("trees")),
        (LIMIT.to_owned(), ours("bare trees")),
    ];
    let [bdwgc, exact] = bench.workshop.bdwgc("trees");
    let peers = vec![
        bdwgc,
        exact,
        bench.workshop.mimalloc("trees"),
        bench.workshop.go("trees"),
        bench.workshop.java("Trees"),
    ];
    contenders.extend(bench.installed(peers));
    let most = bench.pick(512, 64, 8);
    let runs = bench.processes(contenders, &[depth, 1], &game(depth), most);
    let work = format!("binary trees {depth}");
    let time = |name: &str| match name {
        "bdwgc" | "Go" => Wanted::AtLeast(4.0),
        "mimalloc" | "Java, SerialGC" => Wanted::MoreThan(1.0),
        _ => Wanted::Nothing,
    };
    let memory = |name: &str| match name {
        "bdwgc" => Wanted::AtLeast(1.0),
        _ => Wanted::Nothing,
    };
    bench.time_and_memory(&work, &runs, &time, &memory);
}

/// The same program on two threads of one heap.
pub fn mutators_row(bench: &mut Bench) {
    let depth = bench.pick(20, 16, 8);
    let work = format!("binary trees {depth}, 2 mutators");
    let (one, two) = (ours("trees"), ours("trees"));
    let expected = game(depth);
    let [bdwgc, exact] = bench.workshop.bdwgc("trees");
    let peers = vec![
        bdwgc,
        exact,
        bench.workshop.mimalloc("trees"),
        bench.workshop.go("trees"),
        bench.workshop.java("Trees"),
    ];
    let peers = bench.installed(peers);
    let expected = &expected;
    let most = bench.pick(1024, 128, 8);
    let piece = |program: Program, threads: u32| {
        let piece = move || {
            warm(most)?;
            run_for(program.command(&[depth, threads]), expected)
        };
        Box::new(piece) as Piece<'_, Used>
    };
    let mut pieces = vec![
        (OURS.to_owned(), piece(one, 1)),
        (OURS_TWICE.to_owned(), piece(two, 2)),
    ];
    pieces.extend(
        peers
            .into_iter()
            .map(|(name, program)| (format!("{name}, 2 threads"), piece(program, 2))),
    );
    let turns = bench.turns(5);
    let runs = alternate(turns, bench.scale != Scale::Test, pieces);
    let runs = runs.unwrap_or_else(|why| panic!("{why}"));
    print_used(&runs);
    let p50 = |name: &str, of: fn(&Used) -> f64| runs.spread(name, of).map_or(0.0, |s| s.p50);
    let processor: fn(&Used) -> f64 = |used| used.processor_seconds;
    let seconds: fn(&Used) -> f64 = |used| used.seconds;
    bench.claim(
        &format!("{work}: processor time over twice one mutator's"),
        "itself",
        runs.compare(OURS_TWICE, OURS, |two, one| {
            two.processor_seconds / (2.0 * one.processor_seconds)
        }),
        Wanted::AtMost(1.2),
        format!(
            "{:.2} s, {:.2} s",
            p50(OURS_TWICE, processor),
            p50(OURS, processor)
        ),
        turns,
    );
    bench.claim(
        &format!("{work}: two runs in a row over both at once"),
        "itself",
        runs.compare(OURS_TWICE, OURS, |two, one| 2.0 * one.seconds / two.seconds),
        Wanted::AtLeast(1.4),
        format!(
            "{:.2} s, {:.2} s",
            p50(OURS, seconds),
            p50(OURS_TWICE, seconds)
        ),
        turns,
    );
    for name in runs
        .names()
        .iter()
        .filter(|name| name.ends_with("2 threads"))
    {
        let figures = format!(
            "{:.2} s, {:.2} s",
            p50(OURS_TWICE, seconds),
            p50(name, seconds)
        );
        let ratio = runs.ratio(name, OURS_TWICE, seconds);
        let work = format!("{work}: time");
        bench.claim(&work, name, ratio, Wanted::Nothing, figures, turns);
    }
}

/// What ours prints, and all others must. By a process of its own, as all work is: what this one
/// has resident counts as the peak of each of its children.
fn answer(ours: &Program, sizes: &[u32]) -> String {
    let ran = run(ours.command(sizes), false);
    ran.unwrap_or_else(|why| panic!("{OURS}: {why}")).stdout
}

/// A cache with replacement.
pub fn churn_row(bench: &mut Bench) {
    let (mib, rounds) = bench.pick((256, 20), (64, 10), (1, 3));
    let expected = answer(&ours("churn"), &[mib, rounds]);
    let mut contenders = vec![(OURS.to_owned(), ours("churn"))];
    let [bdwgc, exact] = bench.workshop.bdwgc("churn");
    let peers = vec![
        bdwgc,
        exact,
        bench.workshop.mimalloc("churn"),
        bench.workshop.go("churn"),
        bench.workshop.java("Churn"),
    ];
    contenders.extend(bench.installed(peers));
    let runs = bench.processes(contenders, &[mib, rounds], &expected, 4 * mib);
    let time = |name: &str| match name {
        "bdwgc" => Wanted::AtLeast(2.0),
        "Go" => Wanted::AtLeast(1.5),
        _ => Wanted::Nothing,
    };
    let work = format!("churn {mib} MiB");
    bench.time_and_memory(&work, &runs, &time, &|_| Wanted::Nothing);
}

/// Peak memory where sizes change.
pub fn fragment_row(bench: &mut Bench) {
    let mib = bench.pick(256, 64, 1);
    for (from, to) in [(64, 96), (96, 64)] {
        let expected = answer(&ours("fragment"), &[mib, from, to]);
        let mut contenders = vec![(OURS.to_owned(), ours("fragment"))];
        let peers = vec![bench.workshop.mimalloc("fragment")];
        contenders.extend(bench.installed(peers));
        let runs = bench.processes(contenders, &[mib, from, to], &expected, 2 * mib);
        let p50 = |name: &str| {
            runs.spread(name, |used| used.peak_mib)
                .map_or(0.0, |s| s.p50)
        };
        bench.claim(
            &format!(
                "{mib} MiB of {from} bytes, nine in ten dropped, then {to} bytes: peak memory over"
            ),
            "mimalloc",
            runs.ratio(OURS, "mimalloc", |used| used.peak_mib),
            Wanted::AtMost(1.3),
            format!("{:.0} MiB, {:.0} MiB", p50(OURS), p50("mimalloc")),
            runs.of(OURS).map_or(0, <[Used]>::len),
        );
    }
}

/// Lox programs that allocate, beside clox.
pub fn lox_row(bench: &mut Bench) {
    let clox = bench.installed(vec![Workshop::clox()]);
    let Some((clox_name, clox)) = clox.into_iter().next() else {
        return;
    };
    let programs = PROGRAMS
        .iter()
        .filter(|(_, heavy)| *heavy == Heavy::Allocation);
    let turns = bench.turns(9);
    // By turn: the sum of logarithms, and how many.
    let mut logs = vec![(0.0, 0); turns];
    for (name, _) in programs.take(bench.pick(usize::MAX, usize::MAX, 0)) {
        let path = path_of(name);
        let expected = std::fs::read_to_string(path.with_extension("out"));
        let expected = expected.expect("the program's .out");
        let expected = &expected;
        let piece = |program: Program| {
            let program = program.argument(&path);
            Box::new(move || run_for(program.command(&[]), expected)) as Piece<'_, Used>
        };
        let pieces = vec![
            (OURS.to_owned(), piece(ours("lox"))),
            (clox_name.clone(), piece(clox.clone())),
        ];
        let runs = alternate(turns, true, pieces).unwrap_or_else(|why| panic!("{why}"));
        let ratio = runs.ratio(&clox_name, OURS, |used| used.seconds);
        let p50 = |who: &str| runs.spread(who, |used| used.seconds).map_or(0.0, |s| s.p50);
        let figures = format!("{:.3} s, {:.3} s", p50(OURS), p50(&clox_name));
        if let (Some(ours), Some(theirs)) = (runs.of(OURS), runs.of(&clox_name)) {
            for ((log, count), (ours, theirs)) in logs.iter_mut().zip(ours.iter().zip(theirs)) {
                *log += (theirs.seconds / ours.seconds).ln();
                *count += 1;
            }
        }
        let work = format!("lox {name}, JIT: time");
        bench.claim(&work, &clox_name, ratio, Wanted::Nothing, figures, turns);
    }
    let means: Vec<f64> = logs
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(log, count)| f64::exp(log / f64::from(*count)))
        .collect();
    let ratio = (!means.is_empty()).then(|| Spread::of(&means));
    let work = "lox programs that allocate, JIT, geometric mean: time";
    bench.claim(
        work,
        &clox_name,
        ratio,
        Wanted::AtLeast(4.0),
        String::new(),
        turns,
    );
}
