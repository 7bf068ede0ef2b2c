//! The data files: a machine, and the last claim of each key that was measured on it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::claim::Claim;
use super::machine::Machine;

/// The claims of one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// The machine and its installed software.
    pub machine: Machine,
    /// The claims, in the order in which they were first measured.
    pub claims: Vec<Claim>,
}

/// The folder of the data files.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results")
}

impl Data {
    /// The data file of this machine.
    pub fn path(&self) -> PathBuf {
        folder().join(self.machine.file_name())
    }

    /// Replaces the claims with the same key, and adds the others.
    pub fn update(&mut self, claims: &[Claim]) {
        for claim in claims {
            match self.claims.iter_mut().find(|old| old.key() == claim.key()) {
                Some(old) => *old = claim.clone(),
                None => self.claims.push(claim.clone()),
            }
        }
    }

    fn json(&self) -> Value {
        let claims: Vec<Value> = self.claims.iter().map(Claim::json).collect();
        json!({ "machine": self.machine.json(), "claims": claims })
    }

    fn read(text: &str) -> Option<Data> {
        let value: Value = serde_json::from_str(text).ok()?;
        let claims = value.get("claims")?.as_array()?.iter().map(Claim::read);
        Some(Data {
            machine: Machine::read(value.get("machine")?)?,
            claims: claims.collect::<Option<_>>()?,
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A message with the path.
    pub fn write(&self) -> Result<(), String> {
        let path = self.path();
        let text = format!("{:#}\n", self.json());
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// The data of this machine: the claims of its file, if it has one, and the machine as it is now.
/// If `machine` has no peers, those of its file are kept.
///
/// # Errors
/// A message: the file is not a data file.
pub fn of(mut machine: Machine) -> Result<Data, String> {
    let known = read_all()?;
    let same = known
        .into_iter()
        .find(|data| data.machine.file_name() == machine.file_name());
    let mut claims = Vec::new();
    if let Some(same) = same {
        claims = same.claims;
        if machine.peers.is_empty() {
            machine.peers = same.machine.peers;
            machine.skipped = same.machine.skipped;
        }
    }
    Ok(Data { machine, claims })
}

/// All data files, in the order of their names.
///
/// # Errors
/// A message: a file cannot be read, or is not a data file.
pub fn read_all() -> Result<Vec<Data>, String> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text =
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Data::read(&text).ok_or_else(|| format!("{}: this is not a data file", path.display()))
    };
    paths.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::Spread;
    use crate::results::claim::{Beside, Favourable, Wanted};

    fn claim(work: &str, ratio: f64) -> Claim {
        Claim {
            work: work.to_owned(),
            measure: "time".to_owned(),
            beside: Beside::Peer("peer".to_owned()),
            figures: None,
            ratio: Spread::of(&[ratio]).into(),
            favourable: Favourable::Above,
            wanted: Wanted::Nothing,
            turns: 1,
            taken: "today".to_owned(),
        }
    }

    #[test]
    fn a_run_replaces_its_own_claims_and_no_others() {
        let mut data = Data {
            machine: Machine::default(),
            claims: vec![claim("one", 1.0), claim("two", 2.0)],
        };
        data.update(&[claim("two", 3.0), claim("three", 4.0)]);
        let expected = [claim("one", 1.0), claim("two", 3.0), claim("three", 4.0)];
        assert_eq!(data.claims, expected);
        let read = Data::read(&data.json().to_string());
        assert_eq!(read, Some(data));
    }
}
