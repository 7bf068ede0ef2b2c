//! `include/urge.h` is as old as the sources, and a C program that uses it works.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// FNV-1a of the sources that the header is made of.
fn hash() -> u64 {
    let files = [
        "cbindgen.toml",
        "src/error.rs",
        "src/heap.rs",
        "src/lib.rs",
        "src/mutator.rs",
        "src/roots.rs",
    ];
    files.iter().fold(0xcbf2_9ce4_8422_2325, |hash, file| {
        let bytes = std::fs::read(here().join(file)).expect("a source of the header");
        bytes.iter().fold(hash, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    })
}

/// With `URGE_WRITE_HEADER=1` in the environment this writes the header anew. It needs cbindgen
/// then (`cargo install cbindgen`).
#[test]
fn the_header_is_made_of_these_sources() {
    let path = here().join("include/urge.h");
    let last = format!("// Sources: {:016x}\n", hash());
    if std::env::var_os("URGE_WRITE_HEADER").is_some() {
        let made = Command::new("cbindgen").current_dir(here()).output();
        let made = made.expect("cbindgen runs");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut text = String::from_utf8(made.stdout).expect("UTF-8");
        write!(text, "\n{last}").expect("a string");
        std::fs::write(&path, text).expect("the header");
    }
    let text = std::fs::read_to_string(&path).expect("the header");
    assert!(
        text.ends_with(&last),
        "include/urge.h is stale: URGE_WRITE_HEADER=1 cargo test -p urge --test header"
    );
}

/// The folder with `liburge.a`: this test's own, or the one above.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let mut folders = test.ancestors().skip(1).take(2);
    let folder = folders.find(|folder| folder.join("liburge.a").exists());
    folder.expect("liburge.a beside this test").to_owned()
}

/// Compiles and links a C program, runs it, and returns what it printed; `None` without a compiler.
fn run(source: &Path, name: &str) -> Option<String> {
    let library = library();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let built = Command::new("cc")
        .args([
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pthread",
        ])
        .arg("-I")
        .arg(here().join("include"))
        .arg(source)
        .arg(library.join("liburge.a"))
        .args(["-ldl", "-lm", "-o"])
        .arg(&program)
        .output();
    let built = match built {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no C compiler (cc)");
            return None;
        }
        built => built.expect("cc runs"),
    };
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    let ran = Command::new(&program).output().expect("the program runs");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{:?}: {said}{error}", ran.status);
    Some(said)
}

#[test]
fn a_c_program_uses_the_interface() {
    if let Some(said) = run(&here().join("tests/interface.c"), "interface") {
        assert_eq!(said, "ok\n");
    }
}

#[test]
fn the_program_of_the_documentation_runs() {
    let text = std::fs::read_to_string(here().join("../../docs/c.md")).expect("docs/c.md");
    let (_, text) = text.split_once("```c\n").expect("the program");
    let (text, _) = text.split_once("```").expect("its end");
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("documented.c");
    std::fs::write(&source, text).expect("the source");
    if let Some(said) = run(&source, "documented") {
        assert_eq!(said, "");
    }
}
