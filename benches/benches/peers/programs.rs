//! Rows whose contenders are whole processes: binary trees, churn, fragmentation, Lox.

use benches::contenders::alternate::{Piece, alternate};
use benches::contenders::process::{Used, run, run_for};
use benches::contenders::workshop::{Program, Workshop};
use benches::lox::{Heavy, PROGRAMS, path_of};
use benches::paired::Spread;
use benches::results::claim::{Beside, Favourable, Wanted};
use gc_test_harness::lab::trees;

use crate::bench::{Bench, LIMIT, OURS, Row, Scale, ours, p50, print_used, warm};

/// The name of Urge with two mutators.
const OURS_TWICE: &str = "Urge, 2 mutators";

/// The output of the benchmarks game's program at this depth.
fn game(depth: u32) -> String {
    let lines = trees::answers(depth);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The peers, for a work that all of them have a program for.
fn peers(bench: &mut Bench, work: &str, class: &str) -> Vec<(String, Program)> {
    let [bdwgc, exact] = bench.workshop.bdwgc(work);
    let peers = vec![
        bdwgc,
        exact,
        bench.workshop.mimalloc(work),
        bench.workshop.go(work),
        bench.workshop.java(class),
    ];
    bench.installed(peers)
}

/// The row `trees`: one mutator, compared with all peers and the limit program.
pub fn trees_row(bench: &mut Bench) {
    let depth = bench.pick(20, 16, 8);
    let mut contenders = vec![
        (OURS.to_owned(), ours("trees")),
        (LIMIT.to_owned(), ours("bare trees")),
    ];
    contenders.extend(peers(bench, "trees", "Trees"));
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

/// The row `mutators`: the same program on two threads over one heap.
pub fn mutators_row(bench: &mut Bench) {
    let depth = bench.pick(20, 16, 8);
    let work = format!("binary trees {depth}, 2 mutators");
    let (one, two) = (ours("trees"), ours("trees"));
    let expected = game(depth);
    let peers = peers(bench, "trees", "Trees");
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
    let names: Vec<String> = peers.iter().map(|(name, _)| name.clone()).collect();
    pieces.extend(
        peers
            .into_iter()
            .map(|(name, program)| (name, piece(program, 2))),
    );
    let turns = bench.turns(5);
    let runs = alternate(turns, bench.scale != Scale::Test, pieces);
    let runs = runs.unwrap_or_else(|why| panic!("{why}"));
    print_used(&runs);
    let processor = |used: &Used| used.processor_seconds;
    let seconds = |used: &Used| used.seconds;
    let (one, two) = (
        p50(&runs, OURS, processor),
        p50(&runs, OURS_TWICE, processor),
    );
    bench.claim(
        Row {
            work: &work,
            measure: "processor time over twice one mutator's",
            beside: Beside::Itself("one mutator".to_owned()),
            figures: Some((two, one, "s")),
            favourable: Favourable::Below,
            wanted: Wanted::AtMost(1.2),
        },
        runs.compare(OURS_TWICE, OURS, |two, one| {
            two.processor_seconds / (2.0 * one.processor_seconds)
        }),
        turns,
    );
    let (one, two) = (p50(&runs, OURS, seconds), p50(&runs, OURS_TWICE, seconds));
    bench.claim(
        Row {
            work: &work,
            measure: "two runs in a row over both at once",
            beside: Beside::Itself("one mutator".to_owned()),
            figures: Some((two, one, "s")),
            favourable: Favourable::Above,
            wanted: Wanted::AtLeast(1.4),
        },
        runs.compare(OURS_TWICE, OURS, |two, one| 2.0 * one.seconds / two.seconds),
        turns,
    );
    for name in names {
        let row = Row {
            work: &work,
            measure: "time",
            beside: Beside::Peer(name.clone()),
            figures: Some((two, p50(&runs, &name, seconds), "s")),
            favourable: Favourable::Above,
            wanted: Wanted::Nothing,
        };
        bench.claim(row, runs.ratio(&name, OURS_TWICE, seconds), turns);
    }
}

/// The output of Urge's contender, which all others must print. The work runs in a process of its
/// own, since the bench's own resident memory would count in the peak of each of its children.
fn answer(ours: &Program, sizes: &[u32]) -> String {
    let ran = run(ours.command(sizes), false);
    ran.unwrap_or_else(|why| panic!("{OURS}: {why}")).stdout
}

/// The row `churn`: a cache with replacement.
pub fn churn_row(bench: &mut Bench) {
    let (mib, rounds) = bench.pick((256, 20), (64, 10), (1, 3));
    let expected = answer(&ours("churn"), &[mib, rounds]);
    let mut contenders = vec![(OURS.to_owned(), ours("churn"))];
    contenders.extend(peers(bench, "churn", "Churn"));
    let runs = bench.processes(contenders, &[mib, rounds], &expected, 4 * mib);
    let time = |name: &str| match name {
        "bdwgc" => Wanted::AtLeast(2.0),
        "Go" => Wanted::AtLeast(1.5),
        _ => Wanted::Nothing,
    };
    let work = format!("churn {mib} MiB");
    bench.time_and_memory(&work, &runs, &time, &|_| Wanted::Nothing);
}

/// The row `fragment`: peak memory when object sizes change.
pub fn fragment_row(bench: &mut Bench) {
    let mib = bench.pick(256, 64, 1);
    for (from, to) in [(64, 96), (96, 64)] {
        let expected = answer(&ours("fragment"), &[mib, from, to]);
        let mut contenders = vec![(OURS.to_owned(), ours("fragment"))];
        let peers = vec![bench.workshop.mimalloc("fragment")];
        contenders.extend(bench.installed(peers));
        let runs = bench.processes(contenders, &[mib, from, to], &expected, 2 * mib);
        let peak = |used: &Used| used.peak_mib;
        let row = Row {
            work: &format!("{mib} MiB of {from} bytes, nine in ten dropped, then {to} bytes"),
            measure: "peak memory",
            beside: Beside::Peer("mimalloc".to_owned()),
            figures: Some((p50(&runs, OURS, peak), p50(&runs, "mimalloc", peak), "MiB")),
            favourable: Favourable::Below,
            wanted: Wanted::AtMost(1.3),
        };
        let turns = runs.of(OURS).map_or(0, <[Used]>::len);
        bench.claim(row, runs.ratio(OURS, "mimalloc", peak), turns);
    }
}

/// The row `lox`: Lox programs that allocate, compared with clox.
pub fn lox_row(bench: &mut Bench) {
    let clox = bench.installed(vec![Workshop::clox()]);
    let Some((clox_name, clox)) = clox.into_iter().next() else {
        return;
    };
    let programs = PROGRAMS
        .iter()
        .filter(|(_, heavy)| *heavy == Heavy::Allocation);
    let turns = bench.turns(9);
    // For each turn: the sum of the ratios' logarithms, and their number.
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
        let seconds = |used: &Used| used.seconds;
        if let (Some(ours), Some(theirs)) = (runs.of(OURS), runs.of(&clox_name)) {
            for ((log, count), (ours, theirs)) in logs.iter_mut().zip(ours.iter().zip(theirs)) {
                *log += (theirs.seconds / ours.seconds).ln();
                *count += 1;
            }
        }
        let row = Row {
            work: &format!("lox {name}, JIT"),
            measure: "time",
            beside: Beside::Peer(clox_name.clone()),
            figures: Some((
                p50(&runs, OURS, seconds),
                p50(&runs, &clox_name, seconds),
                "s",
            )),
            favourable: Favourable::Above,
            wanted: Wanted::Nothing,
        };
        bench.claim(row, runs.ratio(&clox_name, OURS, seconds), turns);
    }
    let means: Vec<f64> = logs
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(log, count)| f64::exp(log / f64::from(*count)))
        .collect();
    let row = Row {
        work: "lox programs that allocate, JIT, geometric mean",
        measure: "time",
        beside: Beside::Peer(clox_name),
        figures: None,
        favourable: Favourable::Above,
        wanted: Wanted::AtLeast(4.0),
    };
    bench.claim(row, (!means.is_empty()).then(|| Spread::of(&means)), turns);
}
