//! `gclab warm`: touches memory and frees it, so that the next measurement does not wait for the
//! host's memory.
//!
//! A virtual machine whose kernel reports free pages (virtio-balloon's free page reporting) returns
//! them to its host some seconds after they were freed. The next touch of such a page stops the
//! whole virtual processor until the host has found and cleared another page (docs/experiments.md).
//! A program that grows waits for that, and so does a stop whose thread is in such a touch. If
//! `warm` prints the same time twice, the host had the memory.

use std::fmt;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use serde_json::{Value, json};

/// The largest number of MiB that can be touched.
pub const LARGEST: u32 = 1 << 20;

/// Bytes between two touches: the smallest page size.
const PAGE: usize = 4096;

/// The times of both passes.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// MiB touched.
    pub mib: u32,
    /// The time of the first pass.
    pub first: Duration,
    /// The time of the second pass, after the memory of the first was freed.
    pub again: Duration,
}

/// Touches `mib` MiB and frees them, twice.
///
/// # Errors
/// The system does not have so much memory.
pub fn warm(mib: u32) -> std::io::Result<Outcome> {
    Ok(Outcome {
        mib,
        first: touch(mib)?,
        again: touch(mib)?,
    })
}

fn touch(mib: u32) -> std::io::Result<Duration> {
    let mut memory = MmapMut::map_anon((mib as usize) << 20)?;
    // The advice only makes it faster, so a refusal does not matter.
    let _ = memory.advise(Advice::HugePage);
    let begun = Instant::now();
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    Ok(begun.elapsed())
}

impl Outcome {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "mib": self.mib,
            "first_seconds": self.first.as_secs_f64(),
            "again_seconds": self.again.as_secs_f64(),
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (first, again) = (ms(self.first), ms(self.again));
        writeln!(
            f,
            "{} MiB touched in {first:.1} ms, and once more in {again:.1} ms",
            self.mib
        )
    }
}
