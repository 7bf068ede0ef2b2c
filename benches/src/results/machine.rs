//! The machine that a bench runs on, and its installed software.

use std::process::Command;

use serde_json::{Value, json};

/// A machine, as a data file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The processor's model, with family and model number.
    pub processor: String,
    /// The number of processors.
    pub processors: u64,
    /// The memory in GiB.
    pub memory_gib: u64,
    /// The kernel's version.
    pub kernel: String,
    /// The setting of transparent huge pages.
    pub huge_pages: String,
    /// The compiler's version.
    pub rustc: String,
    /// The peers' versions.
    pub peers: Vec<String>,
    /// Peers that are not installed.
    pub skipped: Vec<String>,
}

impl Machine {
    /// This machine, with these peers.
    pub fn here(peers: Vec<String>, skipped: Vec<String>) -> Machine {
        let cpu = file("/proc/cpuinfo");
        let of = |key: &str| {
            let line = cpu.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or("", |(_, value)| value.trim()).to_owned()
        };
        let memory = file("/proc/meminfo");
        let kib = memory.split_whitespace().nth(1).unwrap_or_default();
        let huge = file("/sys/kernel/mm/transparent_hugepage/enabled");
        Machine {
            processor: format!(
                "{} (family {}, model {})",
                of("model name"),
                of("cpu family"),
                of("model\t")
            ),
            processors: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_gib: kib.parse::<u64>().unwrap_or_default() >> 20,
            kernel: first_line("uname", &["-sr"]),
            huge_pages: huge.split(['[', ']']).nth(1).unwrap_or("none").to_owned(),
            rustc: first_line("rustc", &["--version"]),
            peers,
            skipped,
        }
    }

    /// The name of this machine's data file: the processor in lower case.
    pub fn file_name(&self) -> String {
        let mut name = String::new();
        for c in self.processor.chars() {
            if c.is_ascii_alphanumeric() {
                name.push(c.to_ascii_lowercase());
            } else if !name.ends_with('-') {
                name.push('-');
            }
        }
        format!("{}.json", name.trim_matches('-'))
    }

    /// The machine as an object of a data file.
    pub fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "processors": self.processors,
            "memory_gib": self.memory_gib,
            "kernel": self.kernel,
            "huge_pages": self.huge_pages,
            "rustc": self.rustc,
            "peers": self.peers,
            "skipped": self.skipped,
        })
    }

    /// Parses an object that [`json`](Machine::json) made.
    pub fn read(value: &Value) -> Option<Machine> {
        let text = |key: &str| Some(value.get(key)?.as_str()?.to_owned());
        let number = |key: &str| value.get(key)?.as_u64();
        let list = |key: &str| -> Option<Vec<String>> {
            let items = value.get(key)?.as_array()?.iter();
            items.map(|item| Some(item.as_str()?.to_owned())).collect()
        };
        Some(Machine {
            processor: text("processor")?,
            processors: number("processors")?,
            memory_gib: number("memory_gib")?,
            kernel: text("kernel")?,
            huge_pages: text("huge_pages")?,
            rustc: text("rustc")?,
            peers: list("peers")?,
            skipped: list("skipped")?,
        })
    }
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

/// The date and time in UTC, and the system's load.
pub fn now() -> String {
    let date = first_line("date", &["-u", "+%Y-%m-%d %H:%M"]);
    format!("{date}, load {}", load())
}

/// The system's load of the last minute.
pub fn load() -> String {
    let load = file("/proc/loadavg");
    load.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The available memory in MiB.
pub fn available_mib() -> u64 {
    let memory = file("/proc/meminfo");
    let line = memory
        .lines()
        .find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() >> 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_named_after_the_processor() {
        let machine = Machine {
            processor: "AMD EPYC (family 26, model 2)".to_owned(),
            ..Machine::default()
        };
        assert_eq!(machine.file_name(), "amd-epyc-family-26-model-2.json");
        assert_eq!(Machine::read(&machine.json()), Some(machine));
    }
}
