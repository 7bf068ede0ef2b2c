//! The files that are made from the data: their names and their contents.

use std::path::PathBuf;

use super::claim::Claim;
use super::data::{self, Data};
use super::machine::Machine;
use super::{page, plots};

/// The variable that makes the other benches add their figures to this machine's data file.
const RECORD: &str = "URGE_RESULTS";

/// The path and the text of each file that is made from this data.
pub fn files(all: &[Data]) -> Vec<(PathBuf, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    vec![
        (root.join("RESULTS.md"), page::page(all)),
        (data::folder().join("time.svg"), plots::time(all)),
        (data::folder().join("pauses.svg"), plots::pauses(all)),
    ]
}

/// If `URGE_RESULTS` is set, adds a bench's claims to this machine's data file and makes the page
/// again.
///
/// # Errors
/// Those of `write`.
pub fn record(claims: &[Claim]) -> Result<(), String> {
    if std::env::var_os(RECORD).is_none() {
        return Ok(());
    }
    let mut data = data::of(Machine::here(Vec::new(), Vec::new()))?;
    data.update(claims);
    data.write()?;
    write().map(drop)
}

/// Makes the files from the data files, and returns their paths.
///
/// # Errors
/// A message: a data file is not valid, or a file cannot be written.
pub fn write() -> Result<Vec<PathBuf>, String> {
    let mut written = Vec::new();
    for (path, text) in files(&data::read_all()?) {
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}
