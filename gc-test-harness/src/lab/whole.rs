//! `gclab talk` as a whole: the strategies' figures, the scheduler's scenes, and the page of both.

use std::fmt;

use serde_json::Value;

use super::green::{self, GreenArgs};
use super::talk::{self, Options, Scenes, Talk, page::page};

/// All figures of a run.
pub struct Whole {
    /// The strategies.
    pub talk: Talk,
    /// The scheduler's scenes, if they were played.
    pub scenes: Option<green::Outcome>,
}

/// Measures the strategies, and with `scenes` plays the scheduler's scenes. `progress` gets a line
/// before each part.
///
/// # Errors
/// The refusal of Cranelift, of the system or of a heap, or a wrong answer.
pub fn run(
    options: &Options,
    scenes: bool,
    mut progress: impl FnMut(&str),
) -> Result<Whole, String> {
    let talk = talk::measure(options, &mut progress).map_err(|error| error.to_string())?;
    let scenes = match scenes {
        true => {
            progress("the scheduler's scenes");
            Some(green::run(&GreenArgs::default())?)
        }
        false => None,
    };
    Ok(Whole { talk, scenes })
}

impl Whole {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        let mut object = self.talk.json();
        if let Some(scenes) = &self.scenes {
            object["scenes"] = scenes.json();
        }
        object
    }

    /// The page, as HTML.
    pub fn page(&self) -> String {
        let none = Scenes::default();
        page(&self.talk, self.scenes.as_ref().map_or(&none, |s| &s.0))
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.talk.fmt(f)?;
        match &self.scenes {
            Some(scenes) => write!(f, "\nThe scheduler's scenes\n{scenes}"),
            None => Ok(()),
        }
    }
}
