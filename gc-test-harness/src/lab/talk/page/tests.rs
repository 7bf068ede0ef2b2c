//! The page of made-up figures: it is one file, well-formed, and names everything.

use hdrhistogram::Histogram;

use super::super::*;
use super::{page, tells_of};
use crate::kernels::talk::{Kernel, Strategy};

fn stops(center: f64, count: u64, missed: u64) -> Stops {
    let mut times = Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("bounds");
    for at in 0..count {
        // A right-skewed distribution around `center` nanoseconds.
        let turn = (at as f64 * 0.618).fract();
        let time = center * (0.6 + turn) * (1.0 + 4.0 * turn.powi(24));
        times.saturating_record(time as u64);
    }
    Stops { times, missed }
}

/// Figures of about the right size, which were not measured.
fn made_up() -> (Talk, Scenes) {
    let strategy = |(at, strategy): (usize, Strategy)| {
        let percent = [0.0, 0.1, 1.2, 7.8, 4.1, 0.1, 0.2, 0.0][at % 8];
        let kernels = Kernel::ALL.into_iter().enumerate().map(|(number, kernel)| {
            let ratio = 1.0 + percent / 100.0 * (0.4 + 0.15 * number as f64);
            let polls_only = matches!(strategy, Strategy::Cooperative | Strategy::Prologue);
            KernelFigures {
                kernel,
                slow_down: (strategy != Strategy::Unstopped).then_some(SlowDown {
                    ratio,
                    low: ratio - 0.004,
                    high: ratio + 0.003,
                    pairs: 41,
                }),
                code_bytes: 200 + 17 * number as u64,
                metadata_bytes: 40,
                stops: match strategy {
                    Strategy::Unstopped => stops(1.0, 0, 0),
                    _ if polls_only && number % 3 > 0 => stops(1.0, 0, 20),
                    Strategy::Step => stops(4e5, 200, 0),
                    Strategy::BackEdge | Strategy::BackEdgeFault => stops(2e3, 200, 0),
                    _ => stops(9e3, 200, 0),
                },
                precision: (number % 4 == 3).then_some(Precision {
                    stops: 200,
                    dead_kept: 3,
                    dead_kept_most: 1,
                    stops_with_dead: 3,
                    roots_missed: u64::from(strategy == Strategy::Maps),
                }),
                everywhere: None,
            }
        });
        StrategyFigures {
            strategy,
            kernels: kernels.collect(),
            spinlock: Some(match strategy.signals() {
                true => Spinlock::Ends,
                false => Spinlock::Deadlocks,
            }),
        }
    };
    let talk = Talk {
        strategies: Strategy::ALL
            .into_iter()
            .enumerate()
            .map(strategy)
            .collect(),
        claims: vec![Claim {
            claim: "a poll on each back edge costs <8 %> & more",
            talk: 7.8,
            here: Some(4.0),
            unit: "percent",
            reproduced: Some(false),
            reason: "The poll is a load that the processor runs beside the rest.".to_owned(),
        }],
        processors: 2,
        quick: true,
        seconds: 61.0,
    };
    let service = |gaps: &[(f64, f64)], every: f64| Service {
        slice_ms: 10.0,
        decode_ms: (100.0, 480.0),
        end_ms: 600.0,
        handlers: (0..48)
            .map(|number| Handler {
                served: 300 + number,
                gaps: gaps
                    .iter()
                    .map(|&(start, length)| Gap {
                        start_ms: start + every * number as f64,
                        length_ms: length,
                    })
                    .collect(),
                longest_ms: gaps.iter().map(|gap| gap.1).fold(0.0, f64::max),
            })
            .collect(),
        ..Service::default()
    };
    let many = |right| {
        ["concurrent", "stop the world"].map(|collector| ManyRun {
            collector,
            threads: 10_000,
            right,
            answers: 10_000,
            collections: 31,
            storm_stops: 900,
            preemptions: 2_400,
            preempted_stores: 310,
            seconds: 1.5,
        })
    };
    let scenes = Scenes {
        service: Both {
            cooperative: Some(service(&[(100.0, 378.0)], 0.05)),
            preempted: Some(service(&[(110.0, 10.2), (240.0, 11.0), (330.0, 10.4)], 1.3)),
        },
        spinlock: Both {
            cooperative: Some(SpinlockScene {
                deadlocked: true,
                after_ms: 1000.0,
                preemptions: 0,
            }),
            preempted: Some(SpinlockScene {
                deadlocked: false,
                after_ms: 31.0,
                preemptions: 3,
            }),
        },
        stop_the_world: Both {
            cooperative: Some(stops(1.0, 0, 5)),
            preempted: Some(stops(11e3, 500, 0)),
        },
        many: Both {
            cooperative: None,
            preempted: Some(many(10_000).into()),
        },
        costs: vec![SwitchCost {
            what: "preempt and resume",
            here_ns: 2900.0,
            go_ns: Some(2400.0),
        }],
        no_go: None,
    };
    (talk, scenes)
}

/// Demands that each element is closed in the order of its opening, and gives all start tags.
fn start_tags(page: &str) -> Vec<String> {
    let mut open: Vec<&str> = Vec::new();
    let mut tags = Vec::new();
    let mut rest = page
        .strip_prefix("<!DOCTYPE html>")
        .expect("a document type");
    while let Some(begin) = rest.find('<') {
        assert!(
            !rest[..begin].contains('>'),
            "a bare `>`: {}",
            &rest[..begin]
        );
        let end = begin + rest[begin..].find('>').expect("a tag's end");
        let tag = &rest[begin + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        tags.push(tag.to_owned());
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a name"));
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    tags
}

#[test]
fn the_page_is_one_well_formed_file_that_asks_for_no_other() {
    let (talk, scenes) = made_up();
    let page = page(&talk, &scenes);
    let tags = start_tags(&page);
    for tag in &tags {
        let name = tag.split_whitespace().next().expect("a name");
        assert!(
            !["script", "img", "iframe", "object"].contains(&name),
            "<{tag}>"
        );
        for asks in [" src=", "http:", "https:", "//"] {
            assert!(!tag.contains(asks), "<{tag}>");
        }
        assert!(
            !tag.contains(" href=") || tag.contains(" href=\"data:"),
            "<{tag}>"
        );
    }
    let lower = page.to_lowercase();
    for asks in ["@import", "url(", "http://", "https://", "@font-face"] {
        assert!(!lower.contains(asks), "{asks}");
    }
    if let Some(path) = std::env::var_os("GCLAB_SAMPLE_PAGE") {
        std::fs::write(path, page).expect("writes");
    }
}

#[test]
fn the_page_names_each_strategy_each_kernel_and_each_scene() {
    let (talk, scenes) = made_up();
    let page = page(&talk, &scenes);
    for strategy in Strategy::ALL {
        assert!(tells_of(&page, strategy), "{strategy}");
    }
    let kernels = Kernel::ALL.map(Kernel::name);
    let others = [
        "the longest gap is 378.0 ms",
        "deadlocks, told after 1000 ms",
    ];
    let also = [
        "did not stop within 1 s",
        "every answer right",
        "not played",
    ];
    let escaped = ["&lt;8 %&gt; &amp; more"];
    for said in kernels.iter().chain(&others).chain(&also).chain(&escaped) {
        assert!(page.contains(said), "{said}");
    }
}

#[test]
fn what_was_not_measured_is_left_out() {
    let (talk, _) = made_up();
    let whole = page(&talk, &Scenes::default());
    start_tags(&whole);
    assert!(!whole.contains("The scheduler"));
    let empty = Talk {
        strategies: Vec::new(),
        claims: Vec::new(),
        quick: false,
        ..talk
    };
    start_tags(&page(&empty, &Scenes::default()));
}

#[test]
fn the_page_says_why_there_are_no_figures_of_go() {
    let (talk, mut scenes) = made_up();
    scenes.costs[0].go_ns = None;
    scenes.no_go = Some("go does not start".to_owned());
    let page = page(&talk, &scenes);
    start_tags(&page);
    assert!(page.contains("There are no figures of Go: go does not start."));
}
