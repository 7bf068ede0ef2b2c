//! The temporary directory in which the peers' programs are built, and how they are built.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The name of bdwgc with the settings that are nearest to Urge's: interior pointers count on
/// stacks only, so an object takes no more bytes than requested. As bdwgc is installed, an object
/// takes one byte more, and 16 bytes become 32.
pub const EXACT_BDWGC: &str = "bdwgc, exact sizes";

/// A contender's command, without the sizes of its work.
#[derive(Clone, Debug)]
pub struct Program {
    command: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

impl Program {
    /// A command without arguments.
    pub fn new(command: impl Into<OsString>) -> Program {
        Program {
            command: command.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Adds an environment variable.
    pub fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Program {
        self.environment.push((name, value.into()));
        self
    }

    /// Adds an argument before the sizes.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Program {
        self.arguments.push(argument.into());
        self
    }

    /// The command for work of these sizes.
    pub fn command(&self, sizes: &[u32]) -> Command {
        let mut command = Command::new(&self.command);
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        command
            .args(&self.arguments)
            .args(sizes.iter().map(u32::to_string))
            .envs(environment);
        command
    }
}

/// A contender: its name, and its program or the reason why there is none.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name in tables.
    pub name: String,
    /// Its command, or a message.
    pub program: Result<Program, String>,
}

impl Peer {
    /// Adds an environment variable, if the contender has a program.
    pub fn with(mut self, name: &'static str, value: &str) -> Peer {
        self.program = self.program.map(|program| program.with(name, value));
        self
    }

    /// Changes the name.
    pub fn named(mut self, name: impl Into<String>) -> Peer {
        self.name = name.into();
        self
    }
}

/// Builds programs, each once, in a directory that is removed in the end.
pub struct Workshop {
    path: PathBuf,
    built: RefCell<BTreeMap<String, Result<(), String>>>,
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The command of a tool: the value of `variable`, or `otherwise` on the path.
fn tool(variable: &str, otherwise: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| otherwise.into())
}

/// The first line that a command prints, if it prints any.
fn says(command: &OsStr, argument: &str) -> Option<String> {
    let output = Command::new(command).arg(argument).output().ok()?;
    let printed = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let printed = String::from_utf8_lossy(&printed);
    let line = printed.lines().next()?.trim();
    output.status.success().then(|| line.to_owned())
}

impl Workshop {
    /// A workshop with a new directory in the system's temporary directory.
    ///
    /// # Panics
    /// If the directory cannot be made.
    pub fn new() -> Workshop {
        let path = std::env::temp_dir().join(format!("urge-peers-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|e| panic!("no directory to build the peers in, {path:?}: {e}"));
        Workshop {
            path,
            built: RefCell::default(),
        }
    }

    fn sources() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
    }

    /// Builds a source of `programs/`, or returns the reason why this fails.
    fn build(&self, compiler: &OsStr, source: &str, arguments: &[&str]) -> Result<(), String> {
        if let Some(known) = self.built.borrow().get(source) {
            return known.clone();
        }
        let mut command = Command::new(compiler);
        // Go must not download another release of itself, and must not look for a module around its
        // sources.
        command
            .current_dir(&self.path)
            .env("GOTOOLCHAIN", "local")
            .env("GO111MODULE", "off");
        for argument in arguments {
            if *argument == "SOURCE" {
                command.arg(Self::sources().join(source));
            } else {
                command.arg(argument);
            }
        }
        let result = match command.output() {
            Err(_) => Err(format!("no {}", compiler.display())),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let line = said.lines().find(|line| line.contains("error"));
                let line = line.or(said.lines().next()).unwrap_or("it says nothing");
                Err(format!("{} says: {line}", compiler.display()))
            }
        };
        let mut built = self.built.borrow_mut();
        built.insert(source.to_owned(), result.clone());
        result
    }

    /// A C program with its library.
    fn c(&self, name: &str, stem: &str, library: &str) -> Peer {
        let source = format!("{stem}.c");
        let include = format!("-I{}", Self::sources().display());
        let arguments = ["-O3", &include, "-o", stem, "SOURCE", library, "-lpthread"];
        let built = self.build(&tool("URGE_CC", "cc"), &source, &arguments);
        Peer {
            name: name.to_owned(),
            program: built.map(|()| Program::new(self.path.join(stem))),
        }
    }

    /// A program with bdwgc: as it is installed, and as [`EXACT_BDWGC`].
    pub fn bdwgc(&self, work: &str) -> [Peer; 2] {
        let peer = self.c("bdwgc", &format!("bdwgc_{work}"), "-lgc");
        let exact = peer.clone().with("URGE_BDWGC_INTERIOR", "0");
        [peer, exact.named(EXACT_BDWGC)]
    }

    /// A program with mimalloc.
    pub fn mimalloc(&self, work: &str) -> Peer {
        self.c("mimalloc", &format!("mimalloc_{work}"), "-lmimalloc")
    }

    /// A Go program, at GOGC=100.
    pub fn go(&self, work: &str) -> Peer {
        self.go_with(work, "")
    }

    /// [`go`](Self::go) with flags for Go's linker.
    pub fn go_with(&self, work: &str, flags: &str) -> Peer {
        let output = format!("{work}-go");
        let flags = format!("-ldflags={flags}");
        let arguments = ["build", &flags, "-o", &output, "SOURCE"];
        let source = format!("{work}.go");
        let built = self.build(&tool("URGE_GO", "go"), &source, &arguments);
        Peer {
            name: "Go".to_owned(),
            program: built.map(|()| Program::new(self.path.join(output)).with("GOGC", "100")),
        }
    }

    /// A Java program, with the serial collector.
    pub fn java(&self, class: &str) -> Peer {
        let arguments = ["-d", ".", "SOURCE"];
        let source = format!("{class}.java");
        let built = self.build(&tool("URGE_JAVAC", "javac"), &source, &arguments);
        let program = |()| {
            Program::new(tool("URGE_JAVA", "java"))
                .argument("-XX:+UseSerialGC")
                .argument("-cp")
                .argument(&self.path)
                .argument(class)
        };
        Peer {
            name: "Java, SerialGC".to_owned(),
            program: built.map(program),
        }
    }

    /// clox, the C implementation of Lox.
    pub fn clox() -> Peer {
        let program = std::env::var_os("URGE_CLOX").map(Program::new);
        Peer {
            name: "clox".to_owned(),
            program: program.ok_or_else(|| "URGE_CLOX is not set".to_owned()),
        }
    }

    /// The versions that the installed peers report.
    pub fn versions(&self) -> Vec<String> {
        let cc = tool("URGE_CC", "cc");
        let mut versions: Vec<String> = [
            says(&tool("URGE_GO", "go"), "version"),
            says(&tool("URGE_JAVA", "java"), "-version"),
            says(&cc, "--version"),
        ]
        .into_iter()
        .flatten()
        .collect();
        for (name, source) in [
            (
                "bdwgc",
                "#include <gc.h>\nURGE GC_VERSION_MAJOR GC_VERSION_MINOR GC_VERSION_MICRO\n",
            ),
            (
                "mimalloc",
                "#include <mimalloc.h>\nURGE MI_MALLOC_VERSION\n",
            ),
        ] {
            let file = self.path.join(format!("{name}-version.c"));
            let preprocessed = std::fs::write(&file, source).ok().and_then(|()| {
                let output = Command::new(&cc).arg("-E").arg(&file).output().ok()?;
                String::from_utf8(output.stdout).ok()
            });
            let numbers = preprocessed.and_then(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix("URGE "))?;
                Some(line.split_whitespace().collect::<Vec<_>>().join("."))
            });
            versions.extend(numbers.map(|numbers| format!("{name} {numbers}")));
        }
        versions
    }
}

impl Default for Workshop {
    fn default() -> Workshop {
        Workshop::new()
    }
}

/// Splits off the peers that cannot run, prints their names and the reasons, and returns their
/// names.
pub fn installed(peers: Vec<Peer>) -> (Vec<(String, Program)>, Vec<String>) {
    let (mut there, mut skipped) = (Vec::new(), Vec::new());
    for Peer { name, program } in peers {
        match program {
            Ok(program) => there.push((name, program)),
            Err(why) => {
                println!("{name}: not installed ({why}), skipped");
                skipped.push(name);
            }
        }
    }
    (there, skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_installed_is_named_with_the_reason() {
        let workshop = Workshop::new();
        let nowhere = OsStr::new("/nowhere/at/all/cc");
        let built = workshop.build(nowhere, "bdwgc_trees.c", &["SOURCE"]);
        assert_eq!(built, Err("no /nowhere/at/all/cc".to_owned()));
        let peers = vec![
            Peer {
                name: "one".to_owned(),
                program: Ok(Program::new("one")),
            },
            Peer {
                name: "other".to_owned(),
                program: built.map(|()| Program::new("other")),
            },
        ];
        let (there, skipped) = installed(peers);
        assert_eq!((there.len(), skipped), (1, vec!["other".to_owned()]));
    }
}
