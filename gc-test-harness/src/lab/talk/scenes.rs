//! The figures of the scheduler's scenes: each is played with cooperative green threads, and with
//! green threads that signals preempt.

use serde_json::{Value, json};

use super::figures::Stops;

/// One scene's figures in both modes. `None`: the mode was not played.
#[derive(Clone, Debug)]
pub struct Both<T> {
    /// Green threads that yield at calls only.
    pub cooperative: Option<T>,
    /// Green threads that are preempted at any instruction.
    pub preempted: Option<T>,
}

impl<T> Both<T> {
    /// The played modes, with their names.
    pub fn played(&self) -> impl Iterator<Item = (&'static str, &T)> {
        let both = [
            ("cooperative", &self.cooperative),
            ("async", &self.preempted),
        ];
        both.into_iter()
            .filter_map(|(name, played)| Some((name, played.as_ref()?)))
    }

    fn json(&self, of: impl Fn(&T) -> Value) -> Value {
        let played = self.played();
        let object = played.map(|(name, played)| (name.to_owned(), of(played)));
        Value::Object(object.collect())
    }
}

impl<T> Default for Both<T> {
    fn default() -> Both<T> {
        Both {
            cooperative: None,
            preempted: None,
        }
    }
}

/// All scenes.
#[derive(Clone, Debug, Default)]
pub struct Scenes {
    /// The Twitch trace: request handlers beside one long decode.
    pub service: Both<Service>,
    /// Green threads that contend for a spinlock.
    pub spinlock: Both<SpinlockScene>,
    /// Stops of all workers, each of which runs a loop.
    pub stop_the_world: Both<Stops>,
    /// Thousands of green threads that compute while the heap is collected.
    pub many: Both<Vec<ManyRun>>,
    /// Costs of switches between green threads.
    pub costs: Vec<SwitchCost>,
    /// Why there are no costs in Go.
    pub no_go: Option<String>,
}

/// The handlers' service during one decode. Times are in milliseconds from the scene's start.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// A green thread's slice.
    pub slice_ms: f64,
    /// The decode's start and end.
    pub decode_ms: (f64, f64),
    /// The scene's end.
    pub end_ms: f64,
    /// How often the decode was preempted.
    pub preemptions: u64,
    /// Requests that were served between the decode's start and end.
    pub served_during: u64,
    /// The most preemptions of the decode between two services of one handler, for each time that
    /// the handler waited for a worker.
    pub most_between: u64,
    /// One for each handler.
    pub handlers: Vec<Handler>,
}

/// One handler's service.
#[derive(Clone, Debug, Default)]
pub struct Handler {
    /// Requests that it has served.
    pub served: u64,
    /// The times in which a request waited for it for longer than a slice.
    pub gaps: Vec<Gap>,
    /// Its longest wait, also if that is no gap.
    pub longest_ms: f64,
}

/// A time without service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    /// Its start.
    pub start_ms: f64,
    /// Its length.
    pub length_ms: f64,
}

impl Service {
    /// The longest wait of all handlers.
    pub fn longest_ms(&self) -> f64 {
        let longest = self.handlers.iter().map(|handler| handler.longest_ms);
        longest.fold(0.0, f64::max)
    }

    /// Requests that all handlers have served.
    pub fn served(&self) -> u64 {
        self.handlers.iter().map(|handler| handler.served).sum()
    }

    /// The decode's length.
    pub fn decode_length_ms(&self) -> f64 {
        self.decode_ms.1 - self.decode_ms.0
    }

    fn json(&self) -> Value {
        let gaps = self.handlers.iter().map(|handler| {
            let gaps = handler.gaps.iter();
            gaps.map(|gap| json!([gap.start_ms, gap.length_ms]))
                .collect::<Vec<_>>()
        });
        json!({
            "slice_ms": self.slice_ms,
            "decode_ms": self.decode_length_ms(),
            "longest_gap_ms": self.longest_ms(),
            "decode_preemptions": self.preemptions,
            "served_during_decode": self.served_during,
            "most_preemptions_between_services": self.most_between,
            "handlers": self.handlers.len(),
            "requests_served": self.served(),
            "gaps_ms": gaps.collect::<Vec<_>>(),
        })
    }
}

/// The end of the spinlock's scene.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpinlockScene {
    /// Whether the monitor found that no green thread could go on.
    pub deadlocked: bool,
    /// The time until the threads ended, or until the monitor gave up.
    pub after_ms: f64,
    /// Preemptions until then.
    pub preemptions: u64,
}

/// A run of many green threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ManyRun {
    /// The collector's setting: `concurrent` or `stop the world`.
    pub collector: &'static str,
    /// Green threads.
    pub threads: u64,
    /// Answers that were right.
    pub right: u64,
    /// All answers.
    pub answers: u64,
    /// Collections during the run.
    pub collections: u64,
    /// Stops of the storm during the run.
    pub storm_stops: u64,
    /// Preemptions during the run.
    pub preemptions: u64,
    /// Those in loops that store references.
    pub preempted_stores: u64,
    /// The run's length.
    pub seconds: f64,
}

/// The cost of one switch, beside Go's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwitchCost {
    /// `yield` or `preempt and resume`.
    pub what: &'static str,
    /// Nanoseconds here.
    pub here_ns: f64,
    /// Nanoseconds in Go, if Go was there.
    pub go_ns: Option<f64>,
}

impl Scenes {
    /// The object of all scenes.
    pub fn json(&self) -> Value {
        let many = |runs: &Vec<ManyRun>| {
            let runs = runs.iter().map(|run| {
                json!({
                    "collector": run.collector, "threads": run.threads, "right": run.right,
                    "answers": run.answers, "collections": run.collections,
                    "storm_stops": run.storm_stops, "preemptions": run.preemptions,
                    "preempted_in_loops_that_store": run.preempted_stores,
                    "seconds": run.seconds,
                })
            });
            Value::from(runs.collect::<Vec<_>>())
        };
        let costs = self
            .costs
            .iter()
            .map(|cost| json!({ "what": cost.what, "here_ns": cost.here_ns, "go_ns": cost.go_ns }));
        json!({
            "service": self.service.json(Service::json),
            "spinlock": self.spinlock.json(|scene| json!({
                "deadlocked": scene.deadlocked, "after_ms": scene.after_ms,
                "preemptions": scene.preemptions,
            })),
            "stop_the_world": self.stop_the_world.json(|stops| json!({
                "stop_us": stops.quantiles().map(|quantiles| quantiles.json()),
                "stops": stops.times.len(),
                "not_stopped_within_1_s": stops.missed,
            })),
            "many": self.many.json(many),
            "costs": costs.collect::<Vec<_>>(),
            "no_go": self.no_go,
        })
    }
}
