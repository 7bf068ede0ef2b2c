//! The ways to interrupt a loop that the talk "Pardon the Interruption" names.

use std::fmt;

use clap::ValueEnum;

/// A way to stop a thread that runs compiled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Strategy {
    /// Nothing stops the code. The reference of all comparisons.
    #[value(name = "none")]
    Unstopped,
    /// Go 1.0: the code stops only in calls into the runtime that may block or allocate.
    #[value(name = "cooperative")]
    Cooperative,
    /// Go 1.2: each function's entry compares the stack pointer with a limit, which a stop poisons.
    #[value(name = "prologue")]
    Prologue,
    /// Each back edge loads and tests a flag. The slow path is a call with a stack map.
    #[value(name = "backedge")]
    BackEdge,
    /// Each back edge loads from a page, which a stop makes inaccessible.
    #[value(name = "backedge-fault")]
    BackEdgeFault,
    /// A signal, and single steps to the next safe point that has a map.
    #[value(name = "step")]
    Step,
    /// A signal, and a map of registers and slots at each instruction.
    #[value(name = "maps")]
    Maps,
    /// Go 1.14 and Urge: a signal, and a conservative scan of the innermost frame.
    #[value(name = "async")]
    Async,
}

impl Strategy {
    /// All strategies, in the talk's order.
    pub const ALL: [Strategy; 8] = [
        Strategy::Unstopped,
        Strategy::Cooperative,
        Strategy::Prologue,
        Strategy::BackEdge,
        Strategy::BackEdgeFault,
        Strategy::Step,
        Strategy::Maps,
        Strategy::Async,
    ];

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Unstopped => "none",
            Strategy::Cooperative => "cooperative",
            Strategy::Prologue => "prologue",
            Strategy::BackEdge => "backedge",
            Strategy::BackEdgeFault => "backedge-fault",
            Strategy::Step => "step",
            Strategy::Maps => "maps",
            Strategy::Async => "async",
        }
    }

    /// Where the talk places the strategy.
    pub fn source(self) -> &'static str {
        match self {
            Strategy::Unstopped => "no preemption",
            Strategy::Cooperative => "Go 1.0",
            Strategy::Prologue => "Go 1.2",
            Strategy::BackEdge | Strategy::BackEdgeFault => "false start 1",
            Strategy::Step => "false start 2",
            Strategy::Maps => "false start 3",
            Strategy::Async => "Go 1.14, Urge",
        }
    }

    /// Whether a stop sends a signal. The threads of the other strategies stop at polls only.
    pub fn signals(self) -> bool {
        matches!(self, Strategy::Step | Strategy::Maps | Strategy::Async)
    }

    /// Whether a stop reaches every loop. The other strategies wait for calls.
    pub fn stops_loops(self) -> bool {
        !matches!(
            self,
            Strategy::Unstopped | Strategy::Cooperative | Strategy::Prologue
        )
    }

    /// Whether the compiled code is that of [`Strategy::Unstopped`], byte for byte.
    pub fn leaves_code_alone(self) -> bool {
        !matches!(
            self,
            Strategy::Prologue | Strategy::BackEdge | Strategy::BackEdgeFault
        )
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_all_names() {
        for strategy in Strategy::ALL {
            let value = strategy.to_possible_value().expect("no variant is skipped");
            assert_eq!(value.get_name(), strategy.name());
        }
        assert_eq!(Strategy::value_variants(), Strategy::ALL);
    }
}
