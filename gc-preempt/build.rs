//! Refuses targets that Urge does not run on, with one sentence, before the compiler finds what
//! they lack.

/// Why Urge does not run there. `None`: it does.
pub(crate) fn refusal(architecture: &str, system: &str, libc: &str) -> Option<String> {
    if (architecture, system) != ("x86_64", "linux") {
        return Some(format!(
            "Urge runs on Linux on x86-64 only, not on {system} on {architecture}: a port is two files in gc-preempt/src/arch and another park.rs"
        ));
    }
    (libc != "gnu").then(|| {
        format!(
            "Urge needs glibc, not {libc}: it finds unwind tables without a lock by glibc's _dl_find_object, and stacks by its __libc_stack_end; build for x86_64-unknown-linux-gnu"
        )
    })
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if let Some(why) = refusal(&target("ARCH"), &target("OS"), &target("ENV")) {
        println!("cargo::error={why}");
    }
}
