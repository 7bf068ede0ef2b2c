//! Rows over a random graph: full markings, metadata, and pauses while the graph is changed.

use benches::contenders::alternate::{Alternated, Piece, alternate};
use benches::contenders::process::{Server, go_cycles, run};
use benches::contenders::workshop::Program;
use benches::paired::Spread;
use benches::results::claim::{Beside, Favourable, Wanted};
use benches::results::machine::available_mib;
use gc_test_harness::lab::baselines::mark::CELL;
use gc_test_harness::lab::concurrent;

use crate::bench::{Bench, LIMIT, OURS, Row, ours, p50, settle, warm};

/// The row `mark`: one marker marks the whole graph.
pub fn mark_row(bench: &mut Bench) {
    for &mib in bench.pick(&[64, 256, 1024][..], &[64][..], &[1][..]) {
        let work = format!("full mark {mib} MiB, one marker");
        let objects = (u64::from(mib) << 20) / CELL as u64;
        let [bdwgc, exact] = bench.workshop.bdwgc("mark");
        let peers = vec![
            bdwgc,
            exact,
            bench.workshop.go("mark").with("GOMAXPROCS", "1"),
            // Java is measured by a full collection with `System.gc()`.
            bench.workshop.java("Mark"),
        ];
        let mut contenders = vec![(OURS.to_owned(), ours("mark"))];
        contenders.extend(bench.installed(peers));
        let mut pieces = Vec::new();
        for (name, program) in contenders {
            let server = warm(mib * 3).and_then(|()| Server::start(&program, mib, objects));
            match server {
                Ok(mut server) => {
                    let piece = move || Ok(objects as f64 / server.mark()?.as_secs_f64());
                    pieces.push((name, Box::new(piece) as Piece<'_, f64>));
                }
                Err(why) if name == OURS => panic!("{OURS}: {why}"),
                Err(why) => println!("{name}: {why}, skipped"),
            }
        }
        let turns = bench.turns(7);
        let rates = alternate(turns, true, pieces).unwrap_or_else(|why| panic!("{why}"));
        println!("{work}: million objects a second");
        let million = |rate: &f64| rate / 1e6;
        for name in rates.names() {
            println!("  {name:<40}{:>8.2}", p50(&rates, name, million));
        }
        for name in rates.names().iter().skip(1) {
            let row = Row {
                work: &work,
                measure: "marking",
                beside: Beside::Peer(name.clone()),
                figures: Some((
                    p50(&rates, OURS, million),
                    p50(&rates, name, million),
                    "M/s",
                )),
                favourable: Favourable::Above,
                wanted: match name.as_str() {
                    "bdwgc" if mib == 1024 => Wanted::AtLeast(4.0),
                    "Go" if mib == 1024 => Wanted::AtLeast(3.0),
                    _ => Wanted::Nothing,
                },
            };
            bench.claim(row, rates.ratio(OURS, name, |rate| *rate), turns);
        }
        drop(rates);
        limit_of_marking(bench, &work, mib, objects);
    }
}

/// The turns of one process: the nanoseconds of Urge's marking and of the limit program's over the
/// same graph. With several markers, the same of one marker follow.
fn turns_of_marking(mib: u32, markers: u32) -> Vec<Vec<f64>> {
    let ran = warm(mib * 4).and_then(|()| run(ours("limit").command(&[mib, markers]), false));
    let ran = ran.unwrap_or_else(|why| panic!("{OURS}: {why}"));
    let lines = ran.stdout.lines();
    let numbers = |line: &str| {
        line.split(' ')
            .map(|n| n.parse().unwrap_or(f64::NAN))
            .collect()
    };
    lines.map(numbers).collect()
}

/// The medians of two columns, in million objects per second.
fn rates(
    objects: u64,
    turns: &[Vec<f64>],
    columns: [usize; 2],
) -> Option<(f64, f64, &'static str)> {
    let rates = columns.map(|column| {
        let rates: Vec<f64> = turns
            .iter()
            .map(|turn| objects as f64 * 1e3 / turn[column])
            .collect();
        Spread::of(&rates).p50
    });
    Some((rates[0], rates[1], "M/s"))
}

/// Adds the claim beside the limit program over the same graph.
fn limit_of_marking(bench: &mut Bench, work: &str, mib: u32, objects: u64) {
    let turns = turns_of_marking(mib, 1);
    let ratios: Vec<f64> = turns.iter().map(|turn| turn[1] / turn[0]).collect();
    let row = Row {
        work,
        measure: "marking",
        beside: Beside::Limit(LIMIT.to_owned()),
        figures: rates(objects, &turns, [0, 1]),
        favourable: Favourable::Above,
        wanted: Wanted::AtLeast(0.6),
    };
    bench.claim(row, Some(Spread::of(&ratios)), ratios.len());
}

/// The row `markers`: two markers mark the whole graph, compared with one.
pub fn markers_row(bench: &mut Bench) {
    for &mib in bench.pick(&[64, 1024][..], &[64][..], &[1][..]) {
        let work = format!("full mark {mib} MiB, two markers");
        let objects = (u64::from(mib) << 20) / CELL as u64;
        let turns = turns_of_marking(mib, 2);
        let speedups: Vec<f64> = turns.iter().map(|turn| turn[2] / turn[0]).collect();
        let of_limits: Vec<f64> = turns
            .iter()
            .map(|turn| (turn[2] / turn[0]) / (turn[3] / turn[1]))
            .collect();
        for (measure, beside, ratios, columns, wanted) in [
            ("times as fast as one", "one marker", speedups, [0, 2], 1.7),
            (
                "times as fast as one, over the limit program's gain",
                "one marker and the limit program",
                of_limits,
                [1, 3],
                0.9,
            ),
        ] {
            let row = Row {
                work: &work,
                measure,
                beside: Beside::Itself(beside.to_owned()),
                figures: rates(objects, &turns, columns),
                favourable: Favourable::Above,
                wanted: Wanted::AtLeast(wanted),
            };
            bench.claim(row, Some(Spread::of(&ratios)), ratios.len());
        }
    }
}

/// The row `memory`: metadata bytes. They are counted, not measured, so one run of each work is
/// enough.
pub fn memory_row(bench: &mut Bench) {
    let mib = bench.pick(256, 64, 1);
    for (what, work) in [("graph", "mark json"), ("cache under churn", "churn json")] {
        let ran = run(ours(work).command(&[mib, 1]), false);
        let ran = ran.unwrap_or_else(|why| panic!("{OURS}: {why}"));
        let json = parsed(&ran.stdout).unwrap_or_else(|why| panic!("{OURS}: {why}"));
        let bytes = |key: &str| json[key].as_f64().unwrap_or(f64::NAN);
        let percent = 100.0 * bytes("metadata_bytes") / bytes("high_water_bytes");
        let row = Row {
            work: &format!("{what} of {mib} MiB"),
            measure: "metadata, in percent of the heap",
            beside: Beside::Itself("the heap".to_owned()),
            figures: Some((
                bytes("metadata_bytes") / 1048576.0,
                bytes("high_water_bytes") / 1048576.0,
                "MiB",
            )),
            favourable: Favourable::Below,
            wanted: Wanted::AtMost(3.0),
        };
        bench.claim(row, Some(Spread::of(&[percent])), 1);
    }
}

fn parsed(stdout: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(stdout).map_err(|e| format!("{e}: {stdout:?}"))
}

/// The figures of a run with a changing graph.
#[derive(Clone, Copy, Debug, Default)]
struct Pauses {
    /// Quantiles of the cycles' longest pauses, in microseconds.
    p50_us: f64,
    p99_us: f64,
    floor_p99_us: f64,
    /// The utilisation in the worst window and in the median window.
    utilisation: [f64; 2],
    /// The program's progress in these windows.
    progress: [f64; 2],
    turns_per_s: f64,
}

fn our_pauses(mib: u32, cycles: u32, touched: bool) -> Result<Pauses, String> {
    let mut program = ours("concurrent");
    if touched {
        // All memory that the process will use, but at most three quarters of the available memory.
        let most = available_mib() / 4 * 3;
        let touched = u64::from(mib * PEAK + 128).min(most);
        program = program.with("URGE_PRE_TOUCH", format!("{touched}M"));
    }
    let ran = run(program.command(&[mib, cycles]), false)?;
    let json = parsed(&ran.stdout)?;
    let of = |outer: &str, inner: &str| {
        let number = json[outer][inner].as_f64();
        number.ok_or_else(|| format!("{outer}.{inner} is missing in {json}"))
    };
    let both = |outer: &str| Ok::<_, String>([of(outer, "min")?, of(outer, "p50")?]);
    Ok(Pauses {
        p50_us: of("pause_us", "p50")?,
        p99_us: of("pause_us", "p99")?,
        floor_p99_us: of("floor_pause_us", "p99")?,
        utilisation: both("utilisation")?,
        progress: both("progress")?,
        turns_per_s: json["turns_per_s"].as_f64().unwrap_or_default(),
    })
}

fn go_pauses(program: &Program, mib: u32, cycles: u32) -> Result<Pauses, String> {
    let command = program.clone().with("GODEBUG", "gctrace=1");
    let ran = run(command.command(&[mib, cycles]), true)?;
    let longest: Vec<f64> = go_cycles(&ran.stderr)
        .iter()
        .map(|cycle| cycle.longest_us())
        .collect();
    if longest.len() < cycles as usize {
        return Err(format!("its trace tells of {} cycles", longest.len()));
    }
    let json = parsed(&ran.stdout)?;
    let spread = Spread::of(&longest);
    Ok(Pauses {
        p50_us: spread.p50,
        p99_us: spread.p99,
        turns_per_s: json["turns_per_s"].as_f64().unwrap_or_default(),
        ..Pauses::default()
    })
}

/// The most memory that a changing graph takes, in multiples of its objects: with the table, free
/// cells, cells that are allocated black, and the heap's growth.
const PEAK: u32 = 5;

/// The name of Urge with its heap's memory touched when the heap is built.
const TOUCHED: &str = "Urge, pre-touched";

/// The row `pauses`: pauses and utilisation while the graph is changed.
///
/// A heap that grows takes page faults, which a stop waits for. On a virtual machine that returns
/// free memory to its host, a page fault may take milliseconds. So Urge is measured as it is, and
/// with its memory touched beforehand.
pub fn pauses_row(bench: &mut Bench) {
    let peers = vec![bench.workshop.go("concurrent")];
    let peers = bench.installed(peers);
    let sizes = bench.pick(&[64, 1024, 4096][..], &[16, 64][..], &[1][..]);
    let mut first: Option<Alternated<Pauses>> = None;
    for &mib in sizes {
        // Cycles of the largest graph are long, so there are few. The p99 of fewer than a hundred
        // pauses is the longest pause, which grows with their number. So Go makes at most as many
        // cycles as Urge, which favours Go.
        let (cycles, cycles_of_go) = match bench.pick(mib, 16, 1) {
            1 => (5, 5),
            16 => (concurrent::CYCLES, concurrent::CYCLES),
            2048.. => (5, 3),
            1024.. => (10, 10),
            _ => (100, 100),
        };
        let work = format!("changing graph of {mib} MiB");
        if available_mib() < u64::from(mib * PEAK) {
            println!("{work}: it would not fit into memory, skipped");
            continue;
        }
        let turns = bench.turns(5);
        let scale = bench.scale;
        let mut pieces = Vec::new();
        for (name, touched) in [(OURS, false), (TOUCHED, true)] {
            let piece = move || {
                settle(scale);
                our_pauses(mib, cycles, touched)
            };
            pieces.push((name.to_owned(), Box::new(piece) as Piece<'_, Pauses>));
        }
        for (name, program) in &peers {
            let piece = move || {
                settle(scale);
                go_pauses(program, mib, cycles_of_go)
            };
            pieces.push((name.clone(), Box::new(piece)));
        }
        let runs = alternate(turns, false, pieces).unwrap_or_else(|why| panic!("{why}"));
        println!("{work}: a cycle's longest pause in us (medians of {turns} runs)");
        println!(
            "  {:<20}{:>9}{:>9}{:>16}",
            "", "p50", "p99", "M turns a second"
        );
        for name in runs.names() {
            println!(
                "  {name:<20}{:>9.1}{:>9.1}{:>16.2}",
                p50(&runs, name, |p| p.p50_us),
                p50(&runs, name, |p| p.p99_us),
                p50(&runs, name, |p| p.turns_per_s) / 1e6
            );
        }
        for name in [OURS, TOUCHED] {
            claim_pauses(bench, &work, name, &runs, first.as_ref(), turns);
        }
        first.get_or_insert(runs);
        bench.save();
    }
}

/// Adds the claims of the pauses of `name`, which is Urge with or without touched memory. `first`
/// are the runs with the smallest graph.
fn claim_pauses(
    bench: &mut Bench,
    work: &str,
    name: &str,
    runs: &Alternated<Pauses>,
    first: Option<&Alternated<Pauses>>,
    turns: usize,
) {
    let work = match name {
        OURS => work.to_owned(),
        _ => format!("{work}, memory touched before"),
    };
    let (p99, floor) = (
        p50(runs, name, |pauses| pauses.p99_us),
        p50(runs, name, |pauses| pauses.floor_p99_us),
    );
    let row = |measure, beside, figures, favourable, wanted| Row {
        work: &work,
        measure,
        beside,
        figures,
        favourable,
        wanted,
    };
    bench.claim(
        row(
            "pauses, p99",
            Beside::Limit("signal floor".to_owned()),
            Some((p99, floor, "us")),
            Favourable::Below,
            Wanted::AtMost(3.0),
        ),
        runs.spread(name, |pauses| pauses.p99_us / pauses.floor_p99_us),
        turns,
    );
    bench.claim(
        row(
            "pauses, p99",
            Beside::Peer("Go".to_owned()),
            Some((p99, p50(runs, "Go", |pauses| pauses.p99_us), "us")),
            Favourable::Above,
            Wanted::MoreThan(1.0),
        ),
        runs.ratio("Go", name, |pauses| pauses.p99_us),
        turns,
    );
    for (at, of_windows, of_progress, wanted) in [
        (
            0,
            "what stops and assists leave of the worst 10 ms",
            "progress in the worst 10 ms",
            Wanted::AtLeast(0.6),
        ),
        (
            1,
            "what stops and assists leave of the median 10 ms",
            "progress in the median 10 ms",
            Wanted::Nothing,
        ),
    ] {
        let cycle = Beside::Itself("10 ms without a cycle".to_owned());
        bench.claim(
            row(of_windows, cycle.clone(), None, Favourable::Above, wanted),
            runs.spread(name, |pauses| pauses.utilisation[at]),
            turns,
        );
        bench.claim(
            row(of_progress, cycle, None, Favourable::Above, Wanted::Nothing),
            runs.spread(name, |pauses| pauses.progress[at]),
            turns,
        );
    }
    if let Some(small) = first.and_then(|runs| runs.spread(name, |p| p.p50_us)) {
        let small = small.p50;
        bench.claim(
            row(
                "longest pause of a cycle, over that of the smallest graph",
                Beside::Itself("the smallest graph".to_owned()),
                Some((p50(runs, name, |p| p.p50_us), small, "us")),
                Favourable::Below,
                Wanted::AtMost(1.5),
            ),
            runs.spread(name, |pauses| pauses.p50_us / small),
            turns,
        );
    }
}
