//! Code that depends on the processor.

#[cfg(not(all(
    target_arch = "x86_64",
    target_os = "linux",
    target_env = "gnu",
    target_pointer_width = "64"
)))]
compile_error!(
    "Urge runs on Linux on x86-64 with glibc only: a port is two files in gc-preempt/src/arch and another park.rs"
);

#[cfg(target_arch = "x86_64")]
pub(crate) mod switch;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;
