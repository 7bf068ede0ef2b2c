//! The items that another crate can use when this one is built as users build it: without the
//! features that the workspace's own tests turn on.
//!
//! Each file of `tests/users/` is a program of such a crate. The test writes the crate into cargo's
//! directory for tests, and checks it there.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use gc_preempt::StrictAllocator;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// Programs that must compile.
const ACCEPTED: &[&str] = &["public_names"];

/// Programs that must not compile, and the compiler's messages for each.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "internals",
        &[
            "error[E0603]: module `heap` is private",
            "error[E0603]: module `alloc` is private",
            "error[E0432]: unresolved imports `gc_core::Refill`, `gc_core::LocalAllocator`",
            "error[E0432]: unresolved import `gc_core::internals`",
        ],
    ),
    (
        "members_below_the_derive",
        &[
            "error[E0027]: pattern does not mention field `added_to_trace`",
            "error[E0027]: pattern does not mention field `1`",
            "error[E0027]: pattern does not mention field `added_to_generic`",
            "error[E0027]: pattern does not mention field `added_to_leaf`",
            "error[E0027]: pattern does not mention field `added_to_variant`",
            "error[E0004]: non-exhaustive patterns: `&Added::New(_)` not covered",
        ],
    ),
    (
        "members_retyped_below_the_derive",
        &[
            "the trait bound `gc_core::Field<Retyped>: ",
            "the trait bound `Vec<gc_core::Field<Boxed>>: ",
            "the trait bound `gc_core::Field<Retyped>: ",
        ],
    ),
];

/// Writes the user's crate, and returns its directory.
fn user_crate() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("users");
    let mut manifest = format!(
        "[package]\nname = \"user\"\nversion = \"0.0.0\"\nedition = \"2024\"\nautobins = false\n\
         [workspace]\n\
         [dependencies]\ngc-core = {{ path = {ours:?} }}\nbelow = {{ path = \"below\" }}\n\
         [profile.dev]\nopt-level = 1\ndebug = \"line-tables-only\"\n\
         [profile.dev.package.\"*\"]\nopt-level = 1\ndebug = false\n"
    );
    for name in ACCEPTED.iter().chain(REFUSED.iter().map(|(name, _)| name)) {
        let path = ours.join("tests/users").join(name).with_extension("rs");
        writeln!(manifest, "[[bin]]\nname = {name:?}\npath = {path:?}").unwrap();
    }
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("Cargo.toml"), manifest).unwrap();
    // A proc-macro crate: only such a crate can define an attribute macro.
    let below = root.join("below");
    std::fs::create_dir_all(&below).unwrap();
    let path = ours.join("tests/users/below.rs");
    let manifest = format!(
        "[package]\nname = \"below\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [lib]\nproc-macro = true\npath = {path:?}\n"
    );
    std::fs::write(below.join("Cargo.toml"), manifest).unwrap();
    // The lock file makes cargo use the versions that are on this machine.
    std::fs::copy(ours.join("../Cargo.lock"), root.join("Cargo.lock")).unwrap();
    root
}

/// True if the program compiles; and the compiler's messages.
fn check(root: &Path, name: &str) -> (bool, String) {
    let output = Command::new(env!("CARGO"))
        .args([
            "check",
            "--quiet",
            "--offline",
            "--color=never",
            "--bin",
            name,
        ])
        .current_dir(root)
        .env("CARGO_TARGET_DIR", root.join("target"))
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A user reaches the documented names, and none of the heap's private modules. A member that an
/// attribute macro adds or changes below a derive is refused by the compiler.
#[test]
fn users_reach_what_is_documented_and_none_of_the_heap_s_own_rooms() {
    let root = user_crate();
    for name in ACCEPTED {
        let (compiles, said) = check(&root, name);
        assert!(compiles, "{name}: {said}");
    }
    for (name, expected) in REFUSED {
        let (compiles, said) = check(&root, name);
        assert!(!compiles, "{name} compiles");
        for line in *expected {
            assert!(said.contains(line), "{name}: no {line:?} in\n{said}");
        }
    }
}
