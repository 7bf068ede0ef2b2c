//! All files that are made of the data: their names and their contents.

use std::path::PathBuf;

use super::claim::Claim;
use super::data::{self, Data};
use super::machine::Machine;
use super::{page, plots};

/// Set, the benches other than the peers' enter their figures into this machine's data file, too.
const RECORD: &str = "URGE_RESULTS";

/// Each file that is made of this data, and its text.
pub fn files(all: &[Data]) -> Vec<(PathBuf, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    vec![
        (root.join("RESULTS.md"), page::page(all)),
        (data::folder().join("time.svg"), plots::time(all)),
        (data::folder().join("pauses.svg"), plots::pauses(all)),
    ]
}

/// Enters claims of a bench into this machine's data file and makes the page anew, if
/// `URGE_RESULTS` is set.
///
/// # Errors
/// As for `write`.
pub fn record(claims: &[Claim]) -> Result<(), String> {
    if std::env::var_os(RECORD).is_none() {
        return Ok(());
    }
    let mut data = data::of(Machine::here(Vec::new(), Vec::new()))?;
    data.update(claims);
    data.write()?;
    write().map(drop)
}

/// Makes them of the data files; gives their paths.
///
/// # Errors
/// A sentence: a data file is not as it should be, or a file cannot be written.
pub fn write() -> Result<Vec<PathBuf>, String> {
    let mut written = Vec::new();
    for (path, text) in files(&data::read_all()?) {
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}
