//! How a world stops its threads: by signals or by polls, parked or injected.

/// How the threads of a [`World`](crate::World) are stopped. The default stops them by signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether running threads are stopped by SIGURG. With `false` (`URGE_ASYNC=0`) threads stop
    /// only at polls: at the end of [`no_preempt`](crate::Mutator::no_preempt), in
    /// [`blocking`](crate::Mutator::blocking) and in [`poll`](crate::Mutator::poll). A program that
    /// fails with `true` and works with `false` is stopped where it must not be.
    pub signals: bool,
    /// Whether the handler injects a call wherever that is possible, instead of parking
    /// (`URGE_INJECT=1`). Tests run both paths with it.
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
    /// The default settings, overridden by `URGE_ASYNC` and `URGE_INJECT` (each `0` or `1`).
    ///
    /// # Errors
    /// [`ConfigError`] names the variable whose value is neither `0` nor `1`.
    ///
    /// ```
    /// let world = gc_preempt::World::new(gc_preempt::Config::from_env()?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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

/// An environment variable that must be `0` or `1` has another value.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The name of the variable.
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
