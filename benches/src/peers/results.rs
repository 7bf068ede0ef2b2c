//! The peers' section of `RESULTS.md`: lines that a run replaces, by work and peer, and the machine
//! that it ran on.

use std::path::PathBuf;
use std::process::Command;

use super::claims::Claim;
use crate::paired::Spread;

/// What the section begins with.
const BEGIN: &str = "<!-- peers: `cargo bench -p benches --bench peers` replaces the lines that it has measured -->";
/// What it ends with.
const END: &str = "<!-- end of peers -->";
const HEAD: &str = "| work | beside | ratio: min, **median**, p99, max | wanted | | medians | taken |\n|---|---|---|---|---|---|---|";

/// Where the results are.
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("RESULTS.md")
}

/// A claim as a line of the table.
pub fn line(claim: &Claim, taken: &str) -> String {
    let Spread {
        min, p50, p99, max, ..
    } = claim.ratio;
    let verdict = match claim.verdict() {
        "reached" => "**reached**",
        other => other,
    };
    format!(
        "| {} | {} | {min:.2} **{p50:.2}** {p99:.2} {max:.2} | {} | {verdict} | {} | {taken}, {} turns |",
        claim.work, claim.beside, claim.wanted, claim.figures, claim.turns
    )
}

/// What says which line a line replaces: its first two columns.
fn key(line: &str) -> Option<(&str, &str)> {
    let mut columns = line.strip_prefix('|')?.split('|').map(str::trim);
    Some((columns.next()?, columns.next()?))
}

/// The whole text with these lines in its section, which is put at the end where there is none.
pub fn updated(text: &str, machine: &str, lines: &[String]) -> String {
    let (before, section, after) = match (text.find(BEGIN), text.find(END)) {
        (Some(from), Some(to)) if from < to => (
            text[..from].trim_end(),
            &text[from + BEGIN.len()..to],
            text[to + END.len()..].trim(),
        ),
        _ => (text.trim_end(), "", ""),
    };
    let mut table: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !HEAD.starts_with(line))
        .collect();
    for line in lines {
        match table.iter_mut().find(|old| key(old) == key(line)) {
            Some(old) => *old = line,
            None => table.push(line),
        }
    }
    let mut all = format!(
        "{before}\n\n{BEGIN}\n## Peers\n\n{machine}\n\n{HEAD}\n{}\n{END}\n",
        table.join("\n")
    );
    if !after.is_empty() {
        all.push_str(&format!("\n{after}\n"));
    }
    all
}

/// Replaces these claims' lines in `RESULTS.md`.
///
/// # Errors
/// The system's.
pub fn write(machine: &str, claims: &[Claim]) -> std::io::Result<()> {
    let taken = format!("{}, load {}", today(), load());
    let lines: Vec<String> = claims.iter().map(|claim| line(claim, &taken)).collect();
    let text = std::fs::read_to_string(path())?;
    std::fs::write(path(), updated(&text, machine, &lines))
}

fn first_line(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output();
    let printed = output.map(|output| output.stdout).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    printed.lines().next().unwrap_or_default().trim().to_owned()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The date and time, UTC.
fn today() -> String {
    first_line("date", &["-u", "+%Y-%m-%d %H:%M"])
}

/// The system's load of the last minute.
pub fn load() -> String {
    let load = file("/proc/loadavg");
    load.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// MiB of memory that programs could still have.
pub fn available_mib() -> u64 {
    let memory = file("/proc/meminfo");
    let line = memory
        .lines()
        .find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() >> 10
}

/// The machine and the peers, in sentences.
pub fn machine(versions: &[String], skipped: &[String]) -> String {
    let cpu = file("/proc/cpuinfo");
    let of = |key: &str| {
        let line = cpu.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("", |(_, value)| value.trim()).to_owned()
    };
    let memory = file("/proc/meminfo");
    let kib = memory.split_whitespace().nth(1).unwrap_or_default();
    let gib = kib.parse::<u64>().unwrap_or_default() >> 20;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let huge = file("/sys/kernel/mm/transparent_hugepage/enabled");
    let huge = huge.split(['[', ']']).nth(1).unwrap_or("none").to_owned();
    let mut text = format!(
        "{cores} processors, {} (family {}, model {}), {gib} GiB, {}, transparent huge pages: {huge}. {}.\n{}.",
        of("model name"),
        of("cpu family"),
        of("model\t"),
        first_line("uname", &["-sr"]),
        first_line("rustc", &["--version"]),
        versions.join("; ")
    );
    if !skipped.is_empty() {
        text.push_str(&format!(" Not there, and skipped: {}.", skipped.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::claims::Wanted;

    fn claim(work: &str, ratio: f64) -> String {
        let claim = Claim {
            work: work.to_owned(),
            beside: "peer".to_owned(),
            ratio: Spread::of(&[ratio]),
            wanted: Wanted::AtLeast(2.0),
            figures: "1 s, 2 s".to_owned(),
            turns: 1,
        };
        line(&claim, "today")
    }

    #[test]
    fn a_run_replaces_its_own_lines_and_no_others() {
        let first = updated(
            "# Results\n\nText.\n",
            "a machine",
            &[claim("one", 1.0), claim("two", 2.0)],
        );
        assert!(
            first.starts_with("# Results\n\nText.\n\n<!-- peers"),
            "{first}"
        );
        let text = format!("{first}\n## More\n");
        let second = updated(
            &text,
            "a machine",
            &[claim("two", 3.0), claim("three", 4.0)],
        );
        let lines: Vec<&str> = second.lines().filter(|l| l.ends_with("turns |")).collect();
        assert_eq!(
            lines,
            [claim("one", 1.0), claim("two", 3.0), claim("three", 4.0)]
        );
        assert!(
            second.ends_with("<!-- end of peers -->\n\n## More\n"),
            "{second}"
        );
        assert_eq!(updated(&second, "a machine", &[]), second);
    }
}
