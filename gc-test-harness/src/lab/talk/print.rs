//! The figures as text.

use std::fmt;

use super::figures::{Claim, Precision, StrategyFigures, Talk};
use crate::kernels::talk::Kernel;

impl fmt::Display for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Six ways to interrupt a loop, on {} processors, in {:.0} s{}",
            self.processors,
            self.seconds,
            if self.quick {
                " (a trial: run without --quick for figures)"
            } else {
                ""
            }
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<15}{:<15}{:>9}{:>9} {:<11}{:>8}{:>7}{:>9}{:>9}{:>9}{:>9}{:>8}{:>10}{:>7}  spinlock",
            "strategy",
            "as in",
            "slower",
            "worst",
            "with",
            "code B",
            "maps",
            "stop min",
            "p50",
            "p99",
            "max us",
            "missed",
            "dead/stop",
            "roots",
        )?;
        for figures in &self.strategies {
            writeln!(f, "{}", Line(figures))?;
        }
        writeln!(
            f,
            "  slower: geometric mean of the kernels, against no preemption; maps: bytes a byte of \
             code;\n  missed: kernels not stopped within 1 s; dead/stop: dead cells that a scan \
             kept; roots: live cells that scans missed"
        )?;
        writeln!(f)?;
        self.slow_downs(f)?;
        writeln!(f)?;
        self.everywhere(f)?;
        writeln!(f)?;
        writeln!(f, "The talk's claims")?;
        for claim in &self.claims {
            write!(f, "{}", Verdict(claim))?;
        }
        Ok(())
    }
}

impl Talk {
    /// The judgement of scans at every instruction.
    fn everywhere(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Scans at each instruction of a short run at which a strategy stops"
        )?;
        for figures in &self.strategies {
            for kernel in &figures.kernels {
                if let Some(all) = &kernel.everywhere {
                    writeln!(
                        f,
                        "{:<15}{:<11}{:>5} executed, a root missed at {:>3} ({} places in the \
                         code), {:>4} dead cells kept",
                        figures.strategy.name(),
                        kernel.kernel.name(),
                        all.executed,
                        all.executed_wrong,
                        all.wrong.len(),
                        all.dead_kept
                    )?;
                }
            }
        }
        Ok(())
    }

    /// The slow-down of each kernel under each strategy.
    fn slow_downs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.strategies.iter();
        let rows: Vec<_> = all.filter(|row| row.mean_ratio().is_some()).collect();
        write!(f, "{:<15}", "slower by")?;
        let kernels: Vec<Kernel> = rows.first().map_or_else(Vec::new, |row| {
            row.kernels.iter().map(|kernel| kernel.kernel).collect()
        });
        for kernel in &kernels {
            write!(f, "{:>11}", kernel.name())?;
        }
        writeln!(f)?;
        for row in rows {
            write!(f, "{:<15}", row.strategy.name())?;
            for kernel in &row.kernels {
                let cell = kernel.slow_down.map_or_else(String::new, |slow| {
                    let sure = if slow.is_certain() { "" } else { "~" };
                    format!("{sure}{:.1} %", slow.percent())
                });
                write!(f, "{cell:>11}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "  ~: the 95 % interval of the median holds 0")
    }
}

/// A strategy's line of the table.
struct Line<'a>(&'a StrategyFigures);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.0;
        let percent = |ratio: Option<f64>| {
            ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.1} %", (r - 1.0) * 100.0))
        };
        let worst = figures.worst();
        write!(
            f,
            "{:<15}{:<15}{:>9}{:>9} {:<11}{:>8}{:>7.2}",
            figures.strategy.name(),
            figures.strategy.source(),
            percent(figures.mean_ratio()),
            percent(worst.map(|(_, slow)| slow.ratio)),
            worst.map_or("-", |(kernel, _)| kernel.name()),
            figures.code_bytes(),
            figures.metadata_bytes() as f64 / figures.code_bytes().max(1) as f64,
        )?;
        let stops = figures.stops();
        match stops.as_ref().and_then(|stops| stops.quantiles()) {
            Some(times) => {
                for time in [times.min, times.p50, times.p99, times.max] {
                    write!(f, "{time:>9.1}")?;
                }
            }
            None => write!(f, "{:>36}", "-")?,
        }
        let missed = stops.map_or(0, |stops| stops.missed);
        write!(f, "{:>8}", format!("{missed}/{}", figures.kernels.len()))?;
        let judged = figures.kernels.iter().filter_map(|kernel| kernel.precision);
        let judged: Vec<Precision> = judged.collect();
        if judged.is_empty() {
            write!(f, "{:>10}{:>7}", "-", "-")?;
        } else {
            let stops: u64 = judged.iter().map(|p| p.stops).sum();
            let dead: u64 = judged.iter().map(|p| p.dead_kept).sum();
            let roots: u64 = judged.iter().map(|p| p.roots_missed).sum();
            write!(f, "{:>10.2}{roots:>7}", dead as f64 / stops.max(1) as f64)?;
        }
        match figures.spinlock {
            Some(end) => write!(f, "  {end}"),
            None => write!(f, "  -"),
        }
    }
}

/// A claim's lines.
struct Verdict<'a>(&'a Claim);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claim = self.0;
        write!(f, "  {:<13} {}", claim.verdict(), claim.claim)?;
        if let Some(here) = claim.here {
            write!(f, ": here {here:.1} {}", claim.unit)?;
        }
        writeln!(f)?;
        if claim.here.is_some() && !claim.reason.is_empty() {
            writeln!(f, "                {}", claim.reason)?;
        }
        Ok(())
    }
}
