//! The page's sentences.

use crate::kernels::talk::Strategy;

pub const LEAD: &str = "A garbage collector must stop each thread, also one in a loop that calls \
    nothing. \u{201c}Pardon the Interruption: Loop Preemption in Go 1.14\u{201d} tells how Go got \
    there, by way of three false starts. Here are all of its strategies, built into one code \
    generator and measured on the same loops.";

pub const STORY: [&str; 4] = [
    "Go 1.0 stopped threads at calls into the runtime only. Go 1.2 added a check at each \
     function\u{2019}s entry, where the stack limit is compared anyway. A loop without calls still \
     ran for as long as it liked, and one such loop stalled the whole program.",
    "The first false start puts a poll on each back edge: a test of a flag, or a load from a page \
     that a stop protects. Each iteration pays for it. The second sends a signal and single-steps \
     the thread to the next place that has a map. The third sends a signal and has a map for every \
     instruction: large tables, which are hard to test.",
    "Go 1.14 sends a signal, and scans the innermost frame word by word, as it has no map. All \
     other frames stand at calls, and have maps. Loops pay nothing. Urge is a library that does \
     the same for any compiler.",
    "Word by word means that a number which looks like an address keeps a dead object alive. The \
     table says how often that happened, and whether any strategy missed a live one.",
];

pub const TRIAL: &str = "This was a short run (--quick). Its figures are a trial.";

pub const TABLE: &str = "Slow-downs are against the same kernel compiled without preemption, in \
    pairs of neighbouring blocks. Times to stop are from the request to the acknowledgement, over \
    all kernels.";

pub const STOPS: &str = "The axis is logarithmic. Strokes mark the median and the 99th percentile, \
    and the figures beside each row say them. Red: a stop that did not end within a second.";

pub const SLOW_DOWNS: &str = "All panels have the same axis. A whisker is the 95 % confidence \
    interval of the median. Red: slower than no preemption, with a certain sign.";

pub const SCHEDULER: &str = "Green threads on two workers. Cooperative ones yield when they call \
    the runtime. Async ones are also preempted by a signal at the end of their slice, wherever \
    they are.";

pub const TWITCH: &str = "Request handlers, and one massive base64 decode. Each row is a handler, \
    and each bar a time in which a request waited for it longer than a slice.";

/// What the talk says of a strategy.
pub fn talk_says(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Unstopped => "the reference",
        Strategy::Cooperative => "a tight loop stalls the program",
        Strategy::Prologue => "free, but loops without calls do not stop",
        Strategy::BackEdge => "about 8 % slower",
        Strategy::BackEdgeFault => "7.8 % slower, with a load for a poll",
        Strategy::Step => "needs a debugger\u{2019}s means",
        Strategy::Maps => "tables of 10 % of the binary, not testable",
        Strategy::Async => "no slow-down, stops within 25 \u{b5}s",
    }
}
