//! `gclab warm`: touches memory and gives it back, so that what is measured next does not wait for
//! its host's memory.
//!
//! A virtual machine whose kernel reports free pages (virtio-balloon's free page reporting) hands
//! them to its host some seconds after they were freed, and the first touch of one afterwards stops
//! the whole virtual processor until the host has found and cleared another (docs/experiments.md).
//! A program that grows pays for that, and so does every stop that meets such a touch. Where `warm`
//! prints the same time twice, the host had the memory.

use std::fmt;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use serde_json::{Value, json};

/// The most MiB that are touched.
pub const LARGEST: u32 = 1 << 20;

/// Bytes between two touches: the least page.
const PAGE: usize = 4096;

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// MiB touched.
    pub mib: u32,
    /// The first time.
    pub first: Duration,
    /// Once more, after they were given back.
    pub again: Duration,
}

/// Touches so many MiB and gives them back, twice.
///
/// # Errors
/// The system's: there is not so much.
pub fn warm(mib: u32) -> std::io::Result<Outcome> {
    Ok(Outcome {
        mib,
        first: touch(mib)?,
        again: touch(mib)?,
    })
}

fn touch(mib: u32) -> std::io::Result<Duration> {
    let mut memory = MmapMut::map_anon((mib as usize) << 20)?;
    // Without huge pages it takes longer.
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
