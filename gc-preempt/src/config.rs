//! How a world stops its threads: by signals or by polls, parked or injected.

/// What [`World::new`](crate::World::new) is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Stop running threads by SIGURG. Without it (`URGE_ASYNC=0`) they stop only where they poll:
    /// at the end of [`no_preempt`](crate::Mutator::no_preempt), in
    /// [`blocking`](crate::Mutator::blocking) and in [`poll`](crate::Mutator::poll). For finding
    /// faults by halving.
    pub signals: bool,
    /// Inject a call wherever that is possible instead of parking in the handler (`URGE_INJECT=1`),
    /// so that tests run both paths.
    pub inject: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            signals: true,
            inject: false,
        }
    }
}

impl Config {
    /// The default, changed by `URGE_ASYNC` and `URGE_INJECT` (each `0` or `1`).
    ///
    /// # Errors
    /// Names the variable whose value is neither.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(on) = switch("URGE_ASYNC")? {
            config.signals = on;
        }
        if let Some(on) = switch("URGE_INJECT")? {
            config.inject = on;
        }
        Ok(config)
    }
}

fn switch(name: &'static str) -> Result<Option<bool>, ConfigError> {
    match std::env::var(name) {
        Err(std::env::VarError::NotPresent) => Ok(None),
        Ok(v) if v.is_empty() => Ok(None),
        Ok(v) if v == "0" => Ok(Some(false)),
        Ok(v) if v == "1" => Ok(Some(true)),
        Ok(v) => Err(ConfigError { name, value: v }),
        Err(std::env::VarError::NotUnicode(v)) => Err(ConfigError {
            name,
            value: v.to_string_lossy().into_owned(),
        }),
    }
}

/// An environment variable with a value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The variable.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{}={:?} is not a switch: write 0 or 1, or leave it unset",
            self.name, self.value
        )
    }
}

impl std::error::Error for ConfigError {}
