//! Rows over a random graph: full markings, and pauses while it is changed.

use benches::paired::Spread;
use benches::peers::claims::{Alternated, Piece, Wanted, alternate};
use benches::peers::process::{Server, go_cycles, run};
use benches::peers::results;
use benches::peers::workshop::Program;
use gc_test_harness::lab::baselines::mark::CELL;
use gc_test_harness::lab::concurrent;

use crate::bench::{Bench, LIMIT, OURS, ours, settle, warm};

/// One marker over the whole graph.
pub fn mark_row(bench: &mut Bench) {
    for &mib in bench.pick(&[64, 256, 1024][..], &[64][..], &[1][..]) {
        let work = format!("full mark {mib} MiB, one marker");
        let objects = (u64::from(mib) << 20) / CELL as u64;
        let [bdwgc, exact] = bench.workshop.bdwgc("mark");
        let peers = vec![
            bdwgc,
            exact,
            bench.workshop.go("mark").with("GOMAXPROCS", "1"),
            bench
                .workshop
                .java("Mark")
                .named("Java, SerialGC's System.gc()"),
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
        let p50 = |name: &str| rates.spread(name, |rate| rate / 1e6).map_or(0.0, |s| s.p50);
        for name in rates.names() {
            println!("  {name:<40}{:>8.2}", p50(name));
        }
        for name in rates.names().iter().skip(1) {
            let wanted = match name.as_str() {
                "bdwgc" if mib == 1024 => Wanted::AtLeast(4.0),
                "Go" if mib == 1024 => Wanted::AtLeast(3.0),
                _ => Wanted::Nothing,
            };
            let figures = format!("{:.1} M/s, {:.1} M/s", p50(OURS), p50(name));
            let ratio = rates.ratio(OURS, name, |rate| *rate);
            bench.claim(&work, name, ratio, wanted, figures, turns);
        }
        drop(rates);
        limit_of_marking(bench, &work, mib, objects);
    }
}

/// Turns of one process: nanoseconds of our marking and of the limit program's over the same graph;
/// with several markers, the same of one after it.
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

/// Objects in so many nanoseconds, as a table says it.
fn rates(objects: u64, turns: &[Vec<f64>], columns: [usize; 2]) -> String {
    let rates = columns.map(|column| {
        let rates: Vec<f64> = turns
            .iter()
            .map(|turn| objects as f64 * 1e3 / turn[column])
            .collect();
        Spread::of(&rates).p50
    });
    format!("{:.1} M/s, {:.1} M/s", rates[0], rates[1])
}

/// The limit program over the same graph.
fn limit_of_marking(bench: &mut Bench, work: &str, mib: u32, objects: u64) {
    let turns = turns_of_marking(mib, 1);
    let figures = rates(objects, &turns, [0, 1]);
    let ratios: Vec<f64> = turns.iter().map(|turn| turn[1] / turn[0]).collect();
    let ratio = Some(Spread::of(&ratios));
    bench.claim(
        work,
        LIMIT,
        ratio,
        Wanted::AtLeast(0.6),
        figures,
        ratios.len(),
    );
}

/// Two markers over the whole graph, beside one.
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
        let figures = rates(objects, &turns, [0, 2]);
        let ratio = Some(Spread::of(&speedups));
        bench.claim(
            &work,
            "one",
            ratio,
            Wanted::AtLeast(1.7),
            figures,
            turns.len(),
        );
        bench.claim(
            &format!("{work}: times as fast as one, over the same of"),
            LIMIT,
            Some(Spread::of(&of_limits)),
            Wanted::AtLeast(0.9),
            rates(objects, &turns, [1, 3]),
            turns.len(),
        );
    }
}

/// What the tables beside the cells take. It is counted, not measured, so one run of each is
/// enough.
pub fn memory_row(bench: &mut Bench) {
    let mib = bench.pick(256, 64, 1);
    for (what, work) in [("graph", "mark json"), ("cache under churn", "churn json")] {
        let ran = run(ours(work).command(&[mib, 1]), false);
        let ran = ran.unwrap_or_else(|why| panic!("{OURS}: {why}"));
        let json = parsed(&ran.stdout).unwrap_or_else(|why| panic!("{OURS}: {why}"));
        let bytes = |key: &str| json[key].as_f64().unwrap_or(f64::NAN);
        let (reached, beside) = (bytes("reached_bytes"), bytes("beside_bytes"));
        bench.claim(
            &format!("{what} of {mib} MiB: tables beside the cells, in percent of"),
            "the heap",
            Some(Spread::of(&[100.0 * beside / reached])),
            Wanted::AtMost(3.0),
            format!(
                "{:.2} MiB, {:.0} MiB; mark queue at most {:.2} MiB",
                beside / 1048576.0,
                reached / 1048576.0,
                bytes("queue_peak_bytes") / 1048576.0
            ),
            1,
        );
    }
}

fn parsed(stdout: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(stdout).map_err(|e| format!("{e}: {stdout:?}"))
}

/// What a run beside a changing graph tells.
#[derive(Clone, Copy, Debug, Default)]
struct Pauses {
    /// A cycle's longest pause.
    p50_us: f64,
    p99_us: f64,
    floor_p99_us: f64,
    /// What stops and help left of the worst window, and of the median.
    utilisation: [f64; 2],
    /// The program's progress in them.
    progress: [f64; 2],
    turns_per_s: f64,
}

fn our_pauses(mib: u32, cycles: u32, touched: bool) -> Result<Pauses, String> {
    let mut program = ours("concurrent");
    if touched {
        // All that it will use, but not all that there is.
        let most = results::available_mib() / 4 * 3;
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

/// What a graph that is changed takes at most, in times of its objects: the table and free cells
/// besides, what is born while it is marked, and what the heap grows by. 4.1 were seen at 1 GiB.
const PEAK: u32 = 5;

/// Urge, its heap's memory backed when it is built.
const TOUCHED: &str = "Urge, pre-touched";

/// Pauses and utilisation while the graph is changed.
///
/// A heap that grows takes page faults, which a stop waits for; on a virtual machine that gives
/// free memory back to its host each takes milliseconds. So Urge is measured both as it is and with
/// its memory touched beforehand.
pub fn pauses_row(bench: &mut Bench) {
    let peers = vec![bench.workshop.go("concurrent")];
    let peers = bench.installed(peers);
    let sizes = bench.pick(&[64, 1024, 4096][..], &[16, 64][..], &[1][..]);
    let mut first: Option<Alternated<Pauses>> = None;
    for &mib in sizes {
        // A cycle of the largest takes us ten seconds, and Go a minute. The p99 of fewer than a
        // hundred is their longest, and of more of them a longer one: Go makes as many, or fewer,
        // which favours it.
        let (cycles, cycles_of_go) = match bench.pick(mib, 16, 1) {
            1 => (5, 5),
            16 => (concurrent::CYCLES, concurrent::CYCLES),
            2048.. => (5, 3),
            1024.. => (10, 10),
            _ => (100, 100),
        };
        let work = format!("graph of {mib} MiB, changed while marked");
        if results::available_mib() < u64::from(mib * PEAK) {
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
            let of = |of: fn(&Pauses) -> f64| runs.spread(name, of).map_or(0.0, |s| s.p50);
            println!(
                "  {name:<20}{:>9.1}{:>9.1}{:>16.2}",
                of(|p| p.p50_us),
                of(|p| p.p99_us),
                of(|p| p.turns_per_s) / 1e6
            );
        }
        for name in [OURS, TOUCHED] {
            claim_pauses(bench, &work, name, &runs, first.as_ref(), turns);
        }
        first.get_or_insert(runs);
        bench.save();
    }
}

/// What `name`, one of Urge's ways, makes of a graph; `first` are the runs with the smallest one.
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
    let of = |of: fn(&Pauses) -> f64| runs.spread(name, of).map_or(0.0, |s| s.p50);
    let p99 = of(|pauses| pauses.p99_us);
    bench.claim(
        &format!("{work}: pauses' p99 over the floor's"),
        "signal floor",
        runs.spread(name, |pauses| pauses.p99_us / pauses.floor_p99_us),
        Wanted::AtMost(3.0),
        format!("{p99:.0} us, {:.0} us", of(|p| p.floor_p99_us)),
        turns,
    );
    if let Some(go) = runs.spread("Go", |pauses| pauses.p99_us) {
        bench.claim(
            &format!("{work}: pauses' p99"),
            "Go",
            runs.ratio("Go", name, |pauses| pauses.p99_us),
            Wanted::MoreThan(1.0),
            format!("{p99:.0} us, {:.0} us", go.p50),
            turns,
        );
    }
    for (at, part) in ["worst", "median"].into_iter().enumerate() {
        let wanted = [Wanted::AtLeast(0.6), Wanted::Nothing];
        bench.claim(
            &format!("{work}: {part} 10 ms window in a cycle, less stops and help"),
            "its length",
            runs.spread(name, |pauses| pauses.utilisation[at]),
            wanted[at],
            String::new(),
            turns,
        );
        bench.claim(
            &format!("{work}: {part} 10 ms window in a cycle, progress"),
            "itself between cycles",
            runs.spread(name, |pauses| pauses.progress[at]),
            Wanted::Nothing,
            String::new(),
            turns,
        );
    }
    if let Some(small) = first.and_then(|runs| runs.spread(name, |p| p.p50_us)) {
        let small = small.p50;
        bench.claim(
            &format!("{work}: longest pause of a cycle"),
            "itself in the smallest graph",
            runs.spread(name, |pauses| pauses.p50_us / small),
            Wanted::AtMost(1.5),
            format!("{:.0} us, {small:.0} us", of(|p| p.p50_us)),
            turns,
        );
    }
}
