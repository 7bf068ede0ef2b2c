//! Makes `RESULTS.md` from the data: one page that a newcomer can read in two minutes.

use std::fmt::Write;

use super::claim::{Beside, Claim, Ratio, figure};
use super::data::Data;
use super::machine::Machine;

/// The page's beginning.
const HEAD: &str = "\
<!-- `cargo bench -p benches --bench peers` writes this page and its plots, whole, from the data
files in `results/`. -->

# Results

Urge beside other collectors and allocators, as whole processes that take turns on one machine. A
ratio says how many times as good as the other Urge is: above 1, Urge takes less time or less
memory, or marks more. It is the median over the turns. The rows in which a peer is better than
Urge stand first. The *limit* is a program that does the least that the work needs; of a pause, the
least that a stop by signal takes.

## Machine

";

/// The text behind the table of peers.
const PLOTS: &str = "
*Binary trees* is the benchmarks game's program at depth 20. *Churn* is a cache whose values are
replaced. *Full mark* marks a random graph of 32-byte cells, in million cells a second. A *changing
graph* is collected while a program replaces its edges and allocates; its pauses are the longest of
each cycle. *Memory touched before* means `URGE_PRE_TOUCH`. bdwgc runs as it is installed, and with
*exact sizes*: interior pointers count on stacks only, as Urge has it.

![How many times as long as Urge each contender takes](results/time.svg)

![The longest pause of a cycle, by the size of the graph](results/pauses.svg)

## Goals

";

/// The page's end.
const COMMAND: &str = "
## Command

```
cargo bench -p benches --bench peers
```

It takes half an hour on a quiet machine. It measures, writes the machine's data file and makes
this page; `cargo run -p benches --bin results` makes the page alone. A peer that is not installed
is left out; [contenders](src/contenders/mod.rs) says what each needs.
[Experiments](../docs/experiments.md) says what was tried, and what it brought.
";

/// The key of a table's row: a work, and the quantity that is measured.
type Key<'a> = (&'a str, &'a str);

/// The claims of one work and measure on one machine.
struct Cell<'a> {
    claims: Vec<&'a Claim>,
}

impl<'a> Cell<'a> {
    fn of(data: &'a Data, key: Key<'_>) -> Cell<'a> {
        let same = |claim: &&Claim| (claim.work.as_str(), claim.measure.as_str()) == key;
        Cell {
            claims: data.claims.iter().filter(same).collect(),
        }
    }

    fn peers(&self) -> Vec<&'a Claim> {
        let is_peer = |claim: &&Claim| matches!(claim.beside, Beside::Peer(_));
        let mut peers: Vec<&Claim> = self.claims.iter().copied().filter(is_peer).collect();
        peers.sort_by(|a, b| a.advantage().total_cmp(&b.advantage()));
        peers
    }

    fn limits(&self) -> Vec<&'a Claim> {
        let is_limit = |claim: &&Claim| matches!(claim.beside, Beside::Limit(_));
        self.claims.iter().copied().filter(is_limit).collect()
    }

    fn ours(&self) -> String {
        let of = |claim: &&Claim| {
            let (ours, _, unit) = claim.figures.as_ref()?;
            Some(figure(*ours, unit))
        };
        self.claims.iter().find_map(of).unwrap_or_default()
    }

    fn others(claims: &[&Claim]) -> String {
        let other = |claim: &&Claim| {
            let name = claim.beside.name();
            let figure = match &claim.figures {
                Some((_, theirs, unit)) => format!(" {}", figure(*theirs, unit)),
                None => String::new(),
            };
            format!("{name}{figure} ({})", ratio(claim.advantage()))
        };
        let others: Vec<String> = claims.iter().map(other).collect();
        others.join("; ")
    }

    fn least(&self) -> Option<f64> {
        self.peers().first().map(|claim| claim.advantage())
    }
}

/// A ratio, with two decimal places if it is small.
fn ratio(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.1}")
    }
}

/// The rows of all machines, each once, in the order in which they were first measured.
fn keys<'a>(all: &'a [Data], wanted: impl Fn(&Claim) -> bool) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for claim in all.iter().flat_map(|data| &data.claims) {
        let key = (claim.work.as_str(), claim.measure.as_str());
        if wanted(claim) && !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The rows of the table of peers. Rows in which a peer is better than Urge come first.
pub(super) fn rows(all: &[Data]) -> Vec<Key<'_>> {
    let mut rows = keys(all, |claim| !matches!(claim.beside, Beside::Itself(_)));
    let least = |key: &Key<'_>| {
        let ratios = all.iter().filter_map(|data| Cell::of(data, *key).least());
        ratios.fold(f64::INFINITY, f64::min).min(1.0)
    };
    rows.sort_by(|a, b| least(a).total_cmp(&least(b)));
    rows
}

/// A table cell with one line for each machine that has the row.
fn stacked(all: &[Data], key: Key<'_>, text: impl Fn(&Cell<'_>) -> String) -> String {
    let cells: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(at, data)| {
            let cell = Cell::of(data, key);
            let text = if cell.claims.is_empty() {
                "-".to_owned()
            } else {
                text(&cell)
            };
            if all.len() > 1 {
                format!("{}: {text}", letter(at))
            } else {
                text
            }
        })
        .collect();
    cells.join("<br>")
}

/// The name of a machine in the tables, if there are several machines.
pub(super) fn letter(at: usize) -> char {
    char::from(b'A' + u8::try_from(at % 26).unwrap_or_default())
}

fn machine(machine: &Machine) -> String {
    let Machine {
        processor,
        processors,
        memory_gib,
        kernel,
        huge_pages,
        rustc,
        peers,
        skipped,
    } = machine;
    let mut text = format!(
        "{processors} processors, {processor}, {memory_gib} GiB, {kernel}, transparent huge pages: \
         {huge_pages}. {rustc}. Peers: {}.",
        peers.join("; ")
    );
    if !skipped.is_empty() {
        let _ = write!(text, " Not installed: {}.", skipped.join(", "));
    }
    text
}

fn taken(data: &Data) -> String {
    let dates = data
        .claims
        .iter()
        .filter_map(|claim| claim.taken.split([' ', ',']).next());
    let (first, last) = (dates.clone().min(), dates.max());
    match (first, last) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (Some(first), _) => first.to_owned(),
        _ => "never".to_owned(),
    }
}

fn peers_table(text: &mut String, all: &[Data]) {
    text.push_str(
        "| work | Urge | limit (ratio) | peers (ratio) | least ratio |\n|---|---|---|---|---|\n",
    );
    for key in rows(all) {
        let (work, measure) = key;
        let ours = stacked(all, key, |cell| cell.ours());
        let limit = stacked(all, key, |cell| match cell.limits() {
            limits if limits.is_empty() => "-".to_owned(),
            limits => Cell::others(&limits),
        });
        let peers = stacked(all, key, |cell| match cell.peers() {
            peers if peers.is_empty() => "-".to_owned(),
            peers => Cell::others(&peers),
        });
        let least = stacked(all, key, |cell| match cell.least() {
            Some(least) if least < 1.0 => format!("**{}**", ratio(least)),
            Some(least) => ratio(least),
            None => "-".to_owned(),
        });
        let _ = writeln!(
            text,
            "| {work}: {measure} | {ours} | {limit} | {peers} | {least} |"
        );
    }
}

fn goals(text: &mut String, all: &[Data]) {
    let claims = || all.iter().flat_map(|data| &data.claims);
    let judged = claims().filter(|claim| claim.is_reached().is_some());
    let missed: Vec<&Claim> = claims()
        .filter(|claim| claim.is_reached() == Some(false))
        .collect();
    let _ = write!(
        text,
        "{} of {} goals are reached.",
        judged.clone().count() - missed.len(),
        judged.count()
    );
    for claim in missed {
        let (work, measure, beside) = claim.key();
        let _ = write!(
            text,
            " Not reached: {work}, {measure}, beside {beside}: {}, wanted {}.",
            ratio(claim.ratio.p50),
            claim.wanted
        );
    }
    text.push_str(
        " Those of Urge alone:\n\n\
         | work | wanted | found: min, **median**, max |\n|---|---|---|\n",
    );
    let of_itself =
        |claim: &Claim| matches!(claim.beside, Beside::Itself(_)) && claim.is_reached().is_some();
    for key in keys(all, of_itself) {
        let wanted = all
            .iter()
            .flat_map(|data| Cell::of(data, key).claims)
            .next();
        let wanted = wanted.map(|claim| claim.wanted.to_string());
        let found = stacked(all, key, |cell| {
            let claim = cell.claims[0];
            let Ratio { min, p50, max, .. } = claim.ratio;
            format!("{min:.2} **{p50:.2}** {max:.2}")
        });
        let _ = writeln!(
            text,
            "| {}: {} | {} | {found} |",
            key.0,
            key.1,
            wanted.unwrap_or_default()
        );
    }
}

/// The page.
pub fn page(all: &[Data]) -> String {
    let mut text = String::from(HEAD);
    for (at, data) in all.iter().enumerate() {
        let name = if all.len() > 1 {
            format!("{}: ", letter(at))
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "- {name}{} Measured {}.",
            machine(&data.machine),
            taken(data)
        );
    }
    text.push_str("\n## Urge beside its peers\n\n");
    peers_table(&mut text, all);
    text.push_str(PLOTS);
    goals(&mut text, all);
    text.push_str(COMMAND);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::Spread;
    use crate::results::claim::{Favourable, Wanted};

    fn claim(work: &str, beside: &str, ratio: f64) -> Claim {
        Claim {
            work: work.to_owned(),
            measure: "time".to_owned(),
            beside: Beside::Peer(beside.to_owned()),
            figures: Some((2.0, 2.0 * ratio, "s".to_owned())),
            ratio: Spread::of(&[ratio]).into(),
            favourable: Favourable::Above,
            wanted: Wanted::Nothing,
            turns: 1,
            taken: "2026-11-28 19:17, load 1".to_owned(),
        }
    }

    #[test]
    fn what_is_slower_than_a_peer_stands_first() {
        let data = Data {
            machine: Machine::default(),
            claims: vec![
                claim("quick", "one", 2.0),
                claim("slow", "one", 3.0),
                claim("slow", "two", 0.5),
            ],
        };
        let page = page(&[data]);
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.contains(": time"))
            .collect();
        assert_eq!(
            rows,
            [
                "| slow: time | 2.00 s | - | two 1.00 s (0.50); one 6.00 s (3.00) | **0.50** |",
                "| quick: time | 2.00 s | - | one 4.00 s (2.00) | 2.00 |"
            ]
        );
    }

    #[test]
    fn two_machines_stand_side_by_side() {
        let on = |ratio| Data {
            machine: Machine::default(),
            claims: vec![claim("work", "one", ratio)],
        };
        let page = page(&[on(2.0), on(3.0)]);
        let row = page.lines().find(|line| line.contains(": time"));
        let expected = "| work: time | A: 2.00 s<br>B: 2.00 s | A: -<br>B: - \
                        | A: one 4.00 s (2.00)<br>B: one 6.00 s (3.00) | A: 2.00<br>B: 3.00 |";
        assert_eq!(row, Some(expected));
    }
}
