//! The costs of the same switches in Go, where Go is there: the program of `benches` is built in
//! the system's temporary directory, and run once.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};

use super::costs::Costs;

const PROGRAM: &str = include_str!("../../../../benches/programs/switches.go");

/// Measures with the Go command that `URGE_GO` names, or `go` on the path.
///
/// # Errors
/// Why there are no figures: Go is not there, or its program was not built or has failed.
pub fn measure(preemptions: u64) -> Result<Costs, String> {
    let go = std::env::var_os("URGE_GO").unwrap_or_else(|| "go".into());
    measure_with(go, preemptions)
}

fn measure_with(go: OsString, preemptions: u64) -> Result<Costs, String> {
    let folder = std::env::temp_dir().join(format!("urge-go-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("no temporary folder: {e}"))?;
    let measured = build_and_run(&folder, &go, preemptions);
    let _ = std::fs::remove_dir_all(&folder);
    measured
}

fn build_and_run(folder: &Path, go: &OsString, preemptions: u64) -> Result<Costs, String> {
    std::fs::write(folder.join("switches.go"), PROGRAM).map_err(|e| e.to_string())?;
    let built = Command::new(go)
        // The program calls a function of Go's runtime that the linker hides otherwise.
        .args(["build", "-ldflags=-checklinkname=0", "-o", "switches"])
        .arg("switches.go")
        .current_dir(folder)
        // Go must not download another release of itself, nor look for a module around the program.
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "off")
        .output()
        .map_err(|e| format!("{} does not start: {e}", go.display()))?;
    succeeded("Go's build", &built)?;
    let ran = Command::new(folder.join("switches"))
        .arg(preemptions.to_string())
        .output()
        .map_err(|e| e.to_string())?;
    succeeded("the Go program", &ran)?;
    parse(&String::from_utf8_lossy(&ran.stdout))
}

fn succeeded(what: &str, output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let line = told.lines().next().unwrap_or("it says nothing");
    Err(format!("{what} has failed: {line}"))
}

/// The two figures that the program prints.
fn parse(printed: &str) -> Result<Costs, String> {
    let figures: Result<Vec<f64>, _> = printed.split_whitespace().map(str::parse).collect();
    match figures.as_deref() {
        Ok([yield_ns, preempt_ns]) => Ok(Costs {
            yield_ns: *yield_ns,
            preempt_ns: *preempt_ns,
        }),
        _ => Err(format!(
            "the Go program has not printed two figures: {printed:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_go_there_is_a_plain_reason() {
        let why = measure_with("/nowhere/go".into(), 1).map(drop);
        let why = why.expect_err("no such command");
        assert!(why.starts_with("/nowhere/go does not start: "), "{why}");
        // A command that is no Go.
        let why = measure_with("false".into(), 1).map(drop);
        assert_eq!(
            why,
            Err("Go's build has failed: it says nothing".to_owned())
        );
    }

    #[test]
    fn the_programs_figures_are_read() {
        let costs = parse("56.1 9300.5\n").expect("two figures");
        assert_eq!((costs.yield_ns, costs.preempt_ns), (56.1, 9300.5));
        assert!(parse("56.1").is_err() && parse("a b").is_err());
    }
}
