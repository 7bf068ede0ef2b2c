//! Makes the plots from the data. They are SVG that uses no font of the system, so the same data
//! makes the same bytes.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::claim::{Beside, Claim};
use super::data::Data;
use super::page::{letter, rows};

/// The width of a machine's part of a plot, in pixels.
const WIDTH: u32 = 760;
/// The height of a row of the plot of times, in pixels.
const ROW: u32 = 22;
/// The height of the plot of pauses, in pixels.
const PAUSES: u32 = 320;
/// The height in pixels above the rows, for the machine's name, and below them, for the axis.
const MARGIN: u32 = 40;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The message of an error in drawing, which does not occur.
const DRAWN: &str = "drawing into a string does not fail";

/// A contender's colour, the same in all plots.
fn colour(name: &str) -> RGBColor {
    match name {
        "Urge" => RGBColor(0, 0, 0),
        "limit program" | "signal floor" => RGBColor(150, 150, 150),
        "mimalloc" => RGBColor(200, 120, 0),
        "Go" => RGBColor(0, 140, 200),
        "Java, SerialGC" => RGBColor(190, 0, 60),
        "clox" => RGBColor(90, 60, 170),
        "bdwgc" => RGBColor(0, 130, 60),
        _ => RGBColor(120, 190, 120),
    }
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// An SVG with a part for each machine, side by side.
fn parts(all: &[Data], height: u32, draw: impl Fn(&Area<'_>, &Data)) -> String {
    let mut text = String::new();
    let machines = u32::try_from(all.len().max(1)).unwrap_or(1);
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH * machines, height));
        let root = root.into_drawing_area();
        root.fill(&WHITE).expect(DRAWN);
        let areas = root.split_evenly((1, machines as usize));
        for (at, (area, data)) in areas.iter().zip(all).enumerate() {
            let letter = (all.len() > 1).then(|| format!("{}: ", letter(at)));
            let name = letter.unwrap_or_default() + &data.machine.processor;
            area.draw_text(&name, &font(13), (8, 6)).expect(DRAWN);
            draw(area, data);
        }
        root.present().expect(DRAWN);
    }
    text
}

/// Draws the contenders' names, each in its colour, in one line.
fn legend(area: &Area<'_>, names: &[&str], y: i32) {
    let mut x = 14;
    for name in names {
        let mark = Circle::new((x, y + 6), 5, colour(name).filled());
        area.draw(&mark).expect(DRAWN);
        area.draw_text(name, &font(12), (x + 9, y)).expect(DRAWN);
        x += 28 + 7 * i32::try_from(name.len()).unwrap_or(0);
    }
}

/// The claims about the time of one work, or about its marking.
fn times<'a>(data: &'a Data, work: &str, measure: &str) -> Vec<&'a Claim> {
    let same = |claim: &&Claim| {
        claim.work == work
            && claim.measure == measure
            && ["time", "marking"].contains(&measure)
            && !matches!(claim.beside, Beside::Itself(_))
    };
    data.claims.iter().filter(same).collect()
}

/// The plot of times: each contender's time over Urge's, for each work.
pub fn time(all: &[Data]) -> String {
    let works: Vec<(&str, &str)> = rows(all)
        .into_iter()
        .filter(|(work, measure)| {
            all.iter()
                .any(|data| !times(data, work, measure).is_empty())
        })
        .collect();
    let count = u32::try_from(works.len()).unwrap_or(0);
    parts(all, count * ROW + 2 * MARGIN, |area, data| {
        // The axis is from half of Urge's time to 32 times its time, on a logarithmic scale.
        let (left, right) = (230.0, f64::from(WIDTH) - 30.0);
        let x = |ratio: f64| {
            let doublings = ratio.log2().clamp(-1.0, 5.0) + 1.0;
            (left + doublings / 6.0 * (right - left)) as i32
        };
        let top = MARGIN as i32;
        let bottom = top + (count * ROW) as i32;
        for doubling in -1..=5 {
            let ratio = f64::from(doubling).exp2();
            let colour = if doubling == 0 {
                BLACK
            } else {
                RGBColor(215, 215, 215)
            };
            let line = PathElement::new([(x(ratio), top), (x(ratio), bottom)], colour);
            area.draw(&line).expect(DRAWN);
            let name = format!("{ratio}");
            let place = (x(ratio) - 5, bottom + 4);
            area.draw_text(&name, &font(12), place).expect(DRAWN);
        }
        let axis = "times as long as Urge takes (left of 1: quicker than Urge)";
        area.draw_text(axis, &font(12), (left as i32 + 60, bottom + 20))
            .expect(DRAWN);
        let mut names: Vec<&str> = Vec::new();
        for (row, (work, measure)) in works.iter().enumerate() {
            let y = top + (row as u32 * ROW + ROW / 2) as i32;
            area.draw_text(work, &font(12), (8, y - 6)).expect(DRAWN);
            for claim in times(data, work, measure) {
                let name = claim.beside.name();
                let place = (x(claim.advantage()), y);
                // A limit program is a ring, which does not hide a peer.
                let is_limit = matches!(claim.beside, Beside::Limit(_));
                let style = if is_limit {
                    colour(name).stroke_width(2)
                } else {
                    colour(name).filled()
                };
                area.draw(&Circle::new(place, if is_limit { 7 } else { 5 }, style))
                    .expect(DRAWN);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        legend(area, &names, 22);
    })
}

/// The graph's MiB in a work's name: `changing graph of 64 MiB`.
fn mebibytes(work: &str) -> Option<f64> {
    let (_, rest) = work.strip_suffix(" MiB")?.rsplit_once(' ')?;
    rest.parse().ok()
}

/// The plot of pauses: the p99 of the cycles' longest pauses while a graph is changed, for each
/// contender and size of the graph.
pub fn pauses(all: &[Data]) -> String {
    parts(all, PAUSES, |area, data| {
        let mut lines: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
        let mut point = |name, x: f64, y: f64| {
            let line = match lines.iter_mut().find(|(other, _)| *other == name) {
                Some((_, line)) => line,
                None => {
                    lines.push((name, Vec::new()));
                    &mut lines.last_mut().expect("it was just pushed").1
                }
            };
            if !line.iter().any(|(other, _)| *other == x) {
                line.push((x, y));
            }
        };
        for claim in data
            .claims
            .iter()
            .filter(|claim| claim.measure == "pauses, p99")
        {
            if let (Some(size), Some((ours, theirs, _))) = (mebibytes(&claim.work), &claim.figures)
            {
                point("Urge", size, *ours);
                point(claim.beside.name(), size, *theirs);
            }
        }
        let points = || lines.iter().flat_map(|(_, line)| line);
        let last = points().fold(64.0, |most: f64, (x, _)| most.max(*x));
        let most = points().fold(100.0, |most: f64, (_, y)| most.max(*y));
        let inner = area.margin(44, 4, 4, 30);
        let mut chart = ChartBuilder::on(&inner)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((32.0..last * 1.5).log_scale().base(2.0), 0.0..most * 1.1)
            .expect(DRAWN);
        chart
            .configure_mesh()
            .x_desc("MiB of the graph that the program changes meanwhile")
            .y_desc("a cycle's longest pause, p99, microseconds")
            .x_label_formatter(&|size| format!("{size:.0}"))
            .y_label_formatter(&|micros| format!("{micros:.0}"))
            .light_line_style(WHITE)
            .label_style(font(12))
            .draw()
            .expect(DRAWN);
        for (name, line) in &lines {
            let colour = colour(name);
            let path = LineSeries::new(line.iter().copied(), colour.stroke_width(2));
            chart.draw_series(path).expect(DRAWN);
            let marks = line.iter().map(|at| Circle::new(*at, 4, colour.filled()));
            chart.draw_series(marks).expect(DRAWN);
        }
        let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
        legend(area, &names, 22);
    })
}
