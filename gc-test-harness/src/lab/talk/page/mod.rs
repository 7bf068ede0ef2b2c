//! The page of `gclab talk --html FILE`: one HTML file that needs no other file and no network.

mod html;
mod plots;
mod story;

use html::{Cell, Row, element, escaped, heading, paragraph, table};
use plots::{FULL, HALF, NARROW, Width, is_ours, percent, time};

use super::{Both, Claim, Scenes, Service, Spinlock, StrategyFigures, Talk};
use crate::report::grouped;

/// The page of these figures.
///
/// What a run has not measured is not shown, or is said to be missing.
pub fn page(talk: &Talk, scenes: &Scenes) -> String {
    let mut body = heading(1, "Pardon the interruption, run live");
    body += &element("p", &[("class", "lead")], escaped(story::LEAD));
    body += &story::STORY.iter().map(paragraph).collect::<String>();
    let how = format!(
        "Measured by gclab talk in {:.0} s, on a machine that runs {} threads at once.",
        talk.seconds, talk.processors
    );
    body += &element("p", &[("class", "note")], escaped(how));
    if talk.quick {
        body += &element("p", &[("class", "trial")], escaped(story::TRIAL));
    }
    body += &strategies(talk);
    body += &distributions(talk);
    body += &slow_downs(talk);
    body += &claims(&talk.claims);
    body += &scheduler(scenes);
    let head = [
        "<meta charset=\"utf-8\"/>\n",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n",
        "<link rel=\"icon\" href=\"data:,\"/>\n",
        "<title>Pardon the interruption, run live</title>\n",
    ];
    let style = element("style", &[], include_str!("style.css"));
    let html = element("head", &[], head.concat() + &style) + &element("body", &[], body);
    format!(
        "<!DOCTYPE html>\n{}",
        element("html", &[("lang", "en")], html)
    )
}

const MISSING: &str = "\u{2013}";

fn strategies(talk: &Talk) -> String {
    let columns = [
        "strategy",
        "the talk says",
        "slow-down, mean",
        "worst kernel",
        "code bytes",
        "metadata / code byte",
        "stop min",
        "stop p50",
        "stop p99",
        "stop max",
        "dead kept",
        "roots missed",
        "spinlock",
    ];
    let rows: Vec<Row> = talk.strategies.iter().map(strategy_row).collect();
    heading(2, "The strategies") + &paragraph(story::TABLE) + &table(&columns, &rows)
}

fn strategy_row(figures: &StrategyFigures) -> Row {
    let strategy = figures.strategy;
    let mut cells = vec![Cell::prose(story::talk_says(strategy))];
    cells.push(match figures.mean_ratio() {
        Some(ratio) => Cell::number(percent((ratio - 1.0) * 100.0)),
        None => Cell::number(MISSING),
    });
    cells.push(match figures.worst() {
        Some((kernel, slow)) => Cell::number(percent(slow.percent())).under(kernel.name()),
        None => Cell::number(MISSING),
    });
    let code = figures.code_bytes();
    cells.push(Cell::number(grouped(code)));
    let metadata = figures.metadata_bytes() as f64 / code.max(1) as f64;
    cells.push(Cell::number(format!("{metadata:.2}")));
    cells.extend(stop_cells(figures));
    let judged: Vec<_> = figures
        .kernels
        .iter()
        .filter_map(|kernel| kernel.precision)
        .collect();
    let sum = |of: fn(&super::Precision) -> u64| judged.iter().map(of).sum::<u64>();
    let stops = format!("in {} stops", grouped(sum(|p| p.stops)));
    for (count, is_bad) in [
        (sum(|p| p.dead_kept), false),
        (sum(|p| p.roots_missed), true),
    ] {
        let cell = Cell::number(grouped(count));
        cells.push(match judged.is_empty() {
            true => Cell::number(MISSING),
            false if is_bad && count > 0 => cell.judged(false).under(&stops),
            false => cell.under(&stops),
        });
    }
    cells.push(match figures.spinlock {
        None => Cell::text(MISSING),
        Some(end) => Cell::text(end).judged(end == Spinlock::Ends),
    });
    Row {
        head: Cell::text(strategy).under(strategy.source()),
        cells,
        ours: is_ours(strategy),
    }
}

/// The four columns of times to stop. What did not stop is the longest time.
fn stop_cells(figures: &StrategyFigures) -> [Cell; 4] {
    let Some(stops) = figures.stops() else {
        return [(); 4].map(|()| Cell::number(MISSING));
    };
    let never = |cell: Cell| match stops.missed {
        0 => cell,
        missed => {
            let attempts = grouped(missed + stops.times.len());
            let missed = format!("{} of {attempts} did not stop within 1 s", grouped(missed));
            cell.judged(false).under(missed)
        }
    };
    match stops.quantiles() {
        Some(q) => {
            let [min, p50, p99, max] =
                [q.min, q.p50, q.p99, q.max].map(|micros| Cell::number(time(micros * 1e3)));
            let max = match stops.missed {
                0 => max,
                _ => never(Cell::number("> 1 s")),
            };
            [min, p50, p99, max]
        }
        None if stops.missed > 0 => [
            Cell::number(MISSING),
            Cell::number(MISSING),
            Cell::number(MISSING),
            never(Cell::number("> 1 s")),
        ],
        None => [(); 4].map(|()| Cell::number(MISSING)),
    }
}

/// The same plot for a wide and for a narrow page.
fn both_widths(wide: Width, draw: impl Fn(Width) -> String) -> String {
    draw(wide) + &draw(NARROW)
}

fn distributions(talk: &Talk) -> String {
    let all: Vec<_> = talk
        .strategies
        .iter()
        .filter_map(|figures| Some((figures.strategy, figures.stops()?)))
        .filter(|(_, stops)| !stops.times.is_empty() || stops.missed > 0)
        .collect();
    if all.is_empty() {
        return String::new();
    }
    let rows: Vec<plots::Row<'_>> = all
        .iter()
        .map(|(strategy, stops)| plots::Row {
            name: strategy.name(),
            stops,
            ours: is_ours(*strategy),
        })
        .collect();
    let plot = both_widths(FULL, |width| plots::distributions(&rows, width));
    heading(2, "Time to stop") + &paragraph(story::STOPS) + &element("figure", &[], plot)
}

fn slow_downs(talk: &Talk) -> String {
    let end = plots::slow_down_end(&talk.strategies);
    let panels: String = talk
        .strategies
        .iter()
        .filter(|figures| figures.mean_ratio().is_some())
        .map(|figures| {
            let mean = figures.mean_ratio().unwrap_or(1.0);
            let name = format!(
                "{}: {} on average",
                figures.strategy,
                percent((mean - 1.0) * 100.0)
            );
            let class = if is_ours(figures.strategy) {
                "ours"
            } else {
                ""
            };
            let plot = heading(3, name) + &plots::slow_downs(figures, end);
            element("figure", &[("class", class)], plot)
        })
        .collect();
    let grid = element("div", &[("class", "grid")], panels);
    heading(2, "Slow-down of each kernel") + &paragraph(story::SLOW_DOWNS) + &grid
}

fn claims(claims: &[Claim]) -> String {
    if claims.is_empty() {
        return String::new();
    }
    let figure = |value: f64, unit: &str| {
        let unit = unit.replacen("percent", "%", 1);
        let unit = match unit.strip_prefix("us") {
            Some(rest) => format!("\u{b5}s{rest}"),
            None => unit,
        };
        let digits = usize::from(value.abs() < 99.95 && value.fract() != 0.0);
        format!("{value:.digits$} {unit}")
    };
    let rows: Vec<Row> = claims
        .iter()
        .map(|claim| {
            let here = claim.here.map(|here| figure(here, claim.unit));
            let verdict = Cell::text(claim.verdict());
            Row {
                head: Cell::text(claim.claim),
                cells: vec![
                    Cell::number(figure(claim.talk, claim.unit)),
                    Cell::number(here.unwrap_or_else(|| MISSING.to_owned())),
                    match claim.reproduced {
                        Some(is_reproduced) => verdict.judged(is_reproduced),
                        None => verdict,
                    },
                    Cell::prose(&claim.reason),
                ],
                ours: false,
            }
        })
        .collect();
    let columns = ["claim", "the talk", "here", "verdict", "why"];
    let table = table(&columns, &rows);
    heading(2, "The talk\u{2019}s claims") + &element("div", &[("class", "claims")], table)
}

fn scheduler(scenes: &Scenes) -> String {
    let mut out = String::new();
    let service = &scenes.service;
    if service.played().next().is_some() {
        out += &heading(3, "The Twitch trace");
        out += &paragraph(story::TWITCH);
        let ends = service.played().map(|(_, played)| played.end_ms);
        let end = ends.fold(1.0, f64::max);
        let charts = service.played().map(|(name, played)| {
            let longest = played.longest_ms();
            let title = format!("{name}: the longest gap is {longest:.1} ms");
            let ours = name == "async";
            let draw = |width| plots::timeline(played, ours, end, width);
            let class = if ours { "ours" } else { "" };
            let chart = heading(3, title) + &both_widths(HALF, draw);
            element("figure", &[("class", class)], chart)
        });
        out += &element("div", &[("class", "pair")], charts.collect::<String>());
    }
    let rows = scene_rows(scenes);
    if !rows.is_empty() {
        out += &table(&["scene", "cooperative", "async"], &rows);
    }
    if !scenes.costs.is_empty() {
        let rows: Vec<Row> = scenes
            .costs
            .iter()
            .map(|cost| Row {
                head: Cell::text(cost.what),
                cells: vec![
                    Cell::number(time(cost.here_ns)),
                    Cell::number(cost.go_ns.map_or_else(|| MISSING.to_owned(), time)),
                    Cell::number(cost.go_ns.map_or_else(
                        || MISSING.to_owned(),
                        |go| format!("{:.2}", cost.here_ns / go),
                    )),
                ],
                ours: false,
            })
            .collect();
        out += &table(
            &["switch of a green thread", "here", "Go", "here / Go"],
            &rows,
        );
        if let Some(why) = &scenes.no_go {
            out += &paragraph(format!("There are no figures of Go: {why}."));
        }
    }
    match out.is_empty() {
        true => out,
        false => heading(2, "The scheduler") + &paragraph(story::SCHEDULER) + &out,
    }
}

/// A row with a cell for each mode.
fn scene_row<T>(name: &str, what: &str, scene: &Both<T>, cell: impl Fn(&T) -> Cell) -> Option<Row> {
    scene.played().next()?;
    let sides = [&scene.cooperative, &scene.preempted];
    Some(Row {
        head: Cell::text(name).under(what),
        cells: sides
            .map(|side| {
                side.as_ref()
                    .map_or_else(|| Cell::text("not played"), &cell)
            })
            .into(),
        ours: false,
    })
}

fn scene_rows(scenes: &Scenes) -> Vec<Row> {
    let service = scene_row(
        "The Twitch trace",
        "longest gap in service",
        &scenes.service,
        |played: &Service| {
            let is_good = played.longest_ms() <= 2.0 * played.slice_ms;
            let sub = format!(
                "the decode takes {:.0} ms, a slice {:.0} ms; {} requests served",
                played.decode_length_ms(),
                played.slice_ms,
                grouped(played.served())
            );
            Cell::text(format!("{:.1} ms", played.longest_ms()))
                .judged(is_good)
                .under(sub)
        },
    );
    let spinlock = scene_row(
        "The spinlock",
        "two green threads, one lock",
        &scenes.spinlock,
        |end| {
            let cell = match end.deadlocked {
                true => Cell::text(format!("deadlocks, told after {:.0} ms", end.after_ms)),
                false => Cell::text(format!("ends after {:.0} ms", end.after_ms)),
            };
            let preemptions = format!("{} preemptions", grouped(end.preemptions));
            cell.judged(!end.deadlocked).under(preemptions)
        },
    );
    let world = scene_row(
        "Stop the world",
        "a loop in every worker",
        &scenes.stop_the_world,
        |stops| {
            let cell = match stops.quantiles() {
                Some(q) => {
                    let [p50, p99, max] = [q.p50, q.p99, q.max].map(|micros| time(micros * 1e3));
                    Cell::text(format!("p50 {p50}, p99 {p99}, longest {max}"))
                }
                None => Cell::text("did not stop within 1 s"),
            };
            let attempts = stops.missed + stops.times.len();
            let missed = format!("{} of {} did not stop within 1 s", stops.missed, attempts);
            cell.judged(stops.missed == 0).under(missed)
        },
    );
    let many = scene_row(
        "10,000 green threads",
        "collections and storms all along",
        &scenes.many,
        |runs| {
            let is_right = runs.iter().all(|run| run.right == run.answers);
            let said: Vec<String> = runs
                .iter()
                .map(|run| {
                    format!(
                        "{}: {} of {} answers of {} threads right, {} collections, {} preemptions",
                        run.collector,
                        grouped(run.right),
                        grouped(run.answers),
                        grouped(run.threads),
                        grouped(run.collections),
                        grouped(run.preemptions),
                    )
                })
                .collect();
            let cell = Cell::text(match is_right {
                true => "every answer right",
                false => "wrong answers",
            });
            said.iter().fold(cell.judged(is_right), Cell::under)
        },
    );
    [service, spinlock, world, many]
        .into_iter()
        .flatten()
        .collect()
}

/// Whether the page tells of a strategy.
#[cfg(test)]
fn tells_of(page: &str, strategy: crate::kernels::talk::Strategy) -> bool {
    page.contains(&format!("<th scope=\"row\">{strategy}<"))
}

#[cfg(test)]
mod tests;
