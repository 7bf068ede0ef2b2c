//! The build script refuses a target that Urge does not support, with a message that gives the
//! reason.

#[path = "../build.rs"]
#[allow(dead_code)] // its `main` is cargo's
mod build_script;

use build_script::refusal;

#[test]
fn targets_that_lack_what_urge_needs_are_refused_with_a_sentence() {
    assert_eq!(refusal("x86_64", "linux", "gnu"), None);
    let musl = refusal("x86_64", "linux", "musl").unwrap();
    assert!(musl.contains("needs glibc, not musl"), "{musl}");
    for (architecture, system, libc) in [
        ("aarch64", "linux", "gnu"),
        ("x86_64", "windows", "msvc"),
        ("x86_64", "freebsd", ""),
    ] {
        let why = refusal(architecture, system, libc).unwrap();
        assert!(
            why.contains(&format!("not on {system} on {architecture}")),
            "{why}"
        );
    }
}

/// The build script is asked in the way in which cargo asks it.
#[test]
fn the_build_script_ends_a_build_for_musl() {
    let folder = std::env::temp_dir().join(format!("urge-build-script-{}", std::process::id()));
    let script = folder.join("script");
    std::fs::create_dir(&folder).unwrap();
    let built = std::process::Command::new("rustc")
        .args(["--edition", "2024", "-o"])
        .arg(&script)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs"))
        .status();
    assert!(built.unwrap().success());
    let says = |libc: &str| {
        let output = std::process::Command::new(&script)
            .env("CARGO_CFG_TARGET_ARCH", "x86_64")
            .env("CARGO_CFG_TARGET_OS", "linux")
            .env("CARGO_CFG_TARGET_ENV", libc)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(says("musl").contains("cargo::error=Urge needs glibc"));
    assert!(!says("gnu").contains("cargo::error"));
    std::fs::remove_dir_all(&folder).unwrap();
}
