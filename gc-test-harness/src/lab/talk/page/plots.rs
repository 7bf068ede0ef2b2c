//! The page's plots, as SVG that lies inside of the page.
//!
//! Each plot is drawn for two widths, and the page's style shows one of them, so that text keeps
//! its size. Each colour stands for a role: the page's style replaces it by the role's colour in
//! light and in dark.

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::{Service, Stops, StrategyFigures};
use crate::kernels::talk::Strategy;

/// Text and axes.
pub const INK: RGBColor = RGBColor(0x1B, 0x1F, 0x24);
/// Text of less weight.
pub const MUTED: RGBColor = RGBColor(0x57, 0x60, 0x6A);
/// Lines of a grid.
pub const GRID: RGBColor = RGBColor(0xD8, 0xDE, 0xE4);
/// What is compared.
pub const BAR: RGBColor = RGBColor(0x76, 0x7F, 0x8A);
/// Urge's strategy.
pub const OURS: RGBColor = RGBColor(0x0B, 0x5C, 0xAD);
/// What went wrong.
pub const WRONG: RGBColor = RGBColor(0xB3, 0x26, 0x1E);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The message of an error in drawing, which does not occur.
const DRAWN: &str = "drawing into a string does not fail";

/// A plot's width in pixels: that of a wide page's column, and that of a narrow page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    /// Pixels.
    pub pixels: u32,
    /// The class of the page's style that shows it.
    pub class: &'static str,
}

/// The width of a narrow page.
pub const NARROW: Width = Width {
    pixels: 340,
    class: "narrow",
};
/// Half of a wide page.
pub const HALF: Width = Width {
    pixels: 540,
    class: "wide",
};
/// A wide page.
pub const FULL: Width = Width {
    pixels: 1100,
    class: "wide",
};

/// An SVG element. `label` says to those who do not see it what it shows.
fn svg(width: Width, height: u32, label: &str, draw: impl Fn(&Area<'_>)) -> String {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (width.pixels, height)).into_drawing_area();
        draw(&area);
        area.present().expect(DRAWN);
    }
    let begin = text.find("<svg ").unwrap_or(0);
    let element = text[begin..].replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    let class = width.class;
    let head = format!("<svg class=\"{class}\" role=\"img\" aria-label=\"{label}\" ");
    element.replacen("<svg ", &head, 1)
}

/// How a text is written.
struct Hand {
    size: i32,
    colour: RGBColor,
    at: HPos,
}

fn style(size: i32, colour: RGBColor, at: HPos) -> Hand {
    Hand { size, colour, at }
}

fn write(area: &Area<'_>, text: &str, hand: &Hand, x: f64, y: f64) {
    let style = TextStyle::from(("sans-serif", hand.size).into_font()).color(&hand.colour);
    let style = style.pos(Pos::new(hand.at, VPos::Center));
    let place = (x.round() as i32, y.round() as i32);
    area.draw_text(text, &style, place).expect(DRAWN);
}

fn line(area: &Area<'_>, from: (f64, f64), to: (f64, f64), style: impl Into<ShapeStyle>) {
    let ends = [from, to].map(|(x, y)| (x.round() as i32, y.round() as i32));
    area.draw(&PathElement::new(ends.to_vec(), style))
        .expect(DRAWN);
}

fn fill(area: &Area<'_>, from: (f64, f64), to: (f64, f64), colour: RGBColor) {
    let [(x, y), (right, low)] = [from, to].map(|(x, y)| (x.round() as i32, y.round() as i32));
    // A rectangle without width would not be seen.
    let corners = [(x, y), (right.max(x + 1), low.max(y + 1))];
    area.draw(&Rectangle::new(corners, colour.filled()))
        .expect(DRAWN);
}

/// A time in nanoseconds, for people.
pub fn time(nanos: f64) -> String {
    let (value, unit) = match nanos {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "\u{b5}s"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {unit}")
}

/// Percent with its sign; 0 has none.
pub fn percent(value: f64) -> String {
    match value.abs() < 0.05 {
        true => "0.0 %".to_owned(),
        false => format!("{value:+.1} %"),
    }
}

/// The decades of the axis of times to stop, in nanoseconds: 100 ns to 1 s.
const DECADES: std::ops::Range<i32> = 2..9;
/// Bars for each decade.
const BINS: i32 = 10;

/// Counts for each bar of the axis.
fn bins(times: &Histogram<u64>) -> Vec<u64> {
    let mut counts = vec![0; (DECADES.len() as i32 * BINS) as usize];
    let last = counts.len() - 1;
    for value in times.iter_recorded() {
        let decades = (value.value_iterated_to().max(1) as f64).log10() - f64::from(DECADES.start);
        let at = (decades * f64::from(BINS)).max(0.0) as usize;
        counts[at.min(last)] += value.count_at_value();
    }
    counts
}

/// A row of a plot of times to stop.
pub struct Row<'a> {
    /// What stopped.
    pub name: &'a str,
    /// The times.
    pub stops: &'a Stops,
    /// Whether it is Urge's.
    pub ours: bool,
}

/// The distributions of times to stop on a logarithmic axis, with marks at p50 and p99.
pub fn distributions(rows: &[Row<'_>], width: Width) -> String {
    let is_narrow = width.pixels < 500;
    // In a narrow plot, the names stand above the rows.
    let (left, above) = if is_narrow {
        (10.0, 18.0)
    } else {
        (130.0, 4.0)
    };
    let right = f64::from(width.pixels) - if is_narrow { 14.0 } else { 170.0 };
    let (bars, top) = (30.0, 20.0);
    let row_height = above + bars + 8.0;
    let bottom = top + row_height * rows.len() as f64;
    let decades = f64::from(DECADES.end - DECADES.start);
    let x = |nanos: f64| {
        let decade = nanos.max(1.0).log10() - f64::from(DECADES.start);
        left + (decade / decades).clamp(0.0, 1.0) * (right - left)
    };
    let label = "Distributions of the time to stop, one row for each strategy";
    svg(width, bottom as u32 + 30, label, |area| {
        for decade in DECADES.start..=DECADES.end {
            let nanos = 10_f64.powi(decade);
            line(area, (x(nanos), top), (x(nanos), bottom), GRID);
            let name = time(nanos).replace(".0", "");
            let is_shown = !is_narrow || decade % 2 == 1;
            if is_shown {
                let text = style(14, MUTED, HPos::Center);
                write(area, &name, &text, x(nanos), bottom + 12.0);
            }
        }
        for (at, row) in rows.iter().enumerate() {
            let base = top + row_height * (at as f64 + 1.0) - 8.0;
            let name = style(16, if row.ours { OURS } else { INK }, HPos::Left);
            let name_y = if is_narrow {
                base - bars - 9.0
            } else {
                base - bars / 2.0
            };
            write(
                area,
                row.name,
                &name,
                if is_narrow { left } else { 4.0 },
                name_y,
            );
            line(area, (left, base), (right, base), GRID);
            let colour = if row.ours { OURS } else { BAR };
            let counts = bins(&row.stops.times);
            let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
            let step = (right - left) / counts.len() as f64;
            for (bin, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                let height = (count as f64 / most * bars).max(2.0);
                let from = left + step * bin as f64;
                fill(
                    area,
                    (from, base - height),
                    (from + step - 0.6, base),
                    colour,
                );
            }
            let quantiles = [0.5, 0.99].map(|q| row.stops.times.value_at_quantile(q) as f64);
            let said = if row.stops.times.is_empty() {
                String::new()
            } else {
                for quantile in quantiles {
                    let at = x(quantile);
                    line(
                        area,
                        (at, base - bars - 2.0),
                        (at, base + 3.0),
                        INK.stroke_width(2),
                    );
                }
                quantiles.map(time).join(" / ")
            };
            let (said_x, said_at, said_y) = match is_narrow {
                true => (
                    f64::from(width.pixels) - 4.0,
                    HPos::Right,
                    base - bars - 9.0,
                ),
                false => (right + 12.0, HPos::Left, base - bars / 2.0 - 8.0),
            };
            if !said.is_empty() {
                write(area, &said, &style(14, MUTED, said_at), said_x, said_y);
            }
            if row.stops.missed > 0 {
                let attempts = row.stops.missed + row.stops.times.len();
                let none = format!("{} of {attempts}", row.stops.missed);
                let text = if is_narrow {
                    none
                } else {
                    format!("{none} never stopped")
                };
                let y = base - bars / 2.0 + 9.0;
                let (at, side) = match is_narrow {
                    true => (right - 8.0, HPos::Right),
                    false => (right + 12.0, HPos::Left),
                };
                fill(area, (right - 3.0, base - bars), (right + 1.0, base), WRONG);
                write(area, &text, &style(14, WRONG, side), at, y);
            }
        }
    })
}

/// The slow-down of each kernel with one strategy, with its confidence interval. `most` is the
/// axis's end in percent, the same for all strategies.
pub fn slow_downs(figures: &StrategyFigures, most: f64) -> String {
    let width = Width {
        pixels: 340,
        class: "panel",
    };
    let (left, right) = (104.0, f64::from(width.pixels) - 68.0);
    let (top, row) = (6.0, 20.0);
    let least = -most / 6.0;
    let x =
        |percent: f64| left + ((percent - least) / (most - least)).clamp(0.0, 1.0) * (right - left);
    let bottom = top + row * figures.kernels.len() as f64;
    let label = format!("Slow-down of each kernel with {}", figures.strategy);
    svg(width, bottom as u32 + 4, &label, |area| {
        line(area, (x(0.0), top), (x(0.0), bottom), MUTED);
        for (at, figures) in figures.kernels.iter().enumerate() {
            let y = top + row * (at as f64 + 0.5);
            let name = style(14, INK, HPos::Right);
            write(area, figures.kernel.name(), &name, left - 8.0, y);
            let Some(slow) = figures.slow_down else {
                continue;
            };
            let percent = slow.percent();
            let is_slower = slow.is_certain() && percent > 0.0;
            let colour = if is_slower { WRONG } else { BAR };
            let ends = [x(percent.min(0.0)), x(percent.max(0.0))];
            fill(area, (ends[0], y - 6.0), (ends[1], y + 6.0), colour);
            let [low, high] = [slow.low, slow.high].map(|end| x((end - 1.0) * 100.0));
            line(area, (low, y), (high, y), INK.stroke_width(1));
            for end in [low, high] {
                line(area, (end, y - 3.0), (end, y + 3.0), INK);
            }
            let text = style(14, if is_slower { WRONG } else { MUTED }, HPos::Right);
            let said = self::percent(percent);
            write(area, &said, &text, f64::from(width.pixels) - 2.0, y);
        }
    })
}

/// The axis's end for [`slow_downs`], in percent: the largest slow-down of all, rounded up.
pub fn slow_down_end(all: &[StrategyFigures]) -> f64 {
    let ratios = all.iter().flat_map(|strategy| &strategy.kernels);
    let most = ratios
        .filter_map(|kernel| Some(kernel.slow_down?.percent()))
        .fold(5.0, f64::max);
    (most / 5.0).ceil() * 5.0
}

/// The timeline of one mode: a row for each handler, with the times without service. `end_ms` is
/// the axis's end, the same for both modes.
pub fn timeline(service: &Service, ours: bool, end_ms: f64, width: Width) -> String {
    let (left, right) = (6.0, f64::from(width.pixels) - 6.0);
    let (top, row) = (24.0, 5.0);
    let bottom = top + row * service.handlers.len() as f64;
    let x = |ms: f64| left + (ms / end_ms.max(1e-9)).clamp(0.0, 1.0) * (right - left);
    let label = format!(
        "Times without service of {} request handlers; the longest is {:.1} ms",
        service.handlers.len(),
        service.longest_ms()
    );
    svg(width, bottom as u32 + 26, &label, |area| {
        let (from, to) = service.decode_ms;
        fill(area, (x(from), top - 16.0), (x(to), top - 12.0), BAR);
        let text = style(14, MUTED, HPos::Left);
        write(area, "the decode runs", &text, x(from), top - 5.0);
        for y in [top, bottom] {
            line(area, (left, y), (right, y), GRID);
        }
        let colour = if ours { OURS } else { WRONG };
        for (at, handler) in service.handlers.iter().enumerate() {
            let y = top + row * at as f64;
            for gap in &handler.gaps {
                let end = gap.start_ms + gap.length_ms;
                fill(
                    area,
                    (x(gap.start_ms), y + 0.5),
                    (x(end), y + row - 0.5),
                    colour,
                );
            }
        }
        let step = axis_step(end_ms, width);
        let mut ms = 0.0;
        while ms <= end_ms {
            let at = match ms {
                0.0 => HPos::Left,
                _ if ms + step > end_ms => HPos::Right,
                _ => HPos::Center,
            };
            line(area, (x(ms), bottom), (x(ms), bottom + 4.0), MUTED);
            let said = format!("{ms:.0} ms");
            write(area, &said, &style(14, MUTED, at), x(ms), bottom + 14.0);
            ms += step;
        }
    })
}

/// A round distance of an axis's marks.
fn axis_step(end: f64, width: Width) -> f64 {
    let most = f64::from(width.pixels) / 90.0;
    let rough = (end / most).max(1e-6);
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0];
    let factor = factor.into_iter().find(|factor| factor * power >= rough);
    (factor.unwrap_or(10.0) * power).max(1.0)
}

/// Whether a strategy is Urge's.
pub fn is_ours(strategy: Strategy) -> bool {
    strategy == Strategy::Async
}
