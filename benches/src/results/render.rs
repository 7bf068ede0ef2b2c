//! All files that are made of the data: their names and their contents.

use std::path::PathBuf;

use super::data::{self, Data};
use super::{page, plots};

/// Each file that is made of this data, and its text.
pub fn files(all: &[Data]) -> Vec<(PathBuf, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    vec![
        (root.join("RESULTS.md"), page::page(all)),
        (data::folder().join("time.svg"), plots::time(all)),
        (data::folder().join("pauses.svg"), plots::pauses(all)),
    ]
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
