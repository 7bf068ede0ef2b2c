//! `gclab green`: scenes with green threads, each played with cooperative ones and with ones that
//! signals preempt.

mod costs;
mod go;
mod many;
mod spinlock;
mod stage;
mod stops;
mod twitch;

pub use costs::{Costs, measure as measure_costs};
pub use many::{Crowd, play as play_many};
pub use spinlock::play as play_spinlock;
pub use stage::Stage;
pub use stops::play as play_stops;
pub use twitch::{Twitch, play as play_twitch};

use std::fmt;

use serde_json::Value;

use super::talk::{Both, Scenes, SwitchCost};
use crate::sched::Mode;

/// A scene.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Scene {
    /// Request handlers beside one long base64 decode, on one worker.
    Twitch,
    /// Green threads that spin for a lock whose holder sleeps.
    Spinlock,
    /// Stops of workers that all run loops.
    Stops,
    /// Thousands of green threads that compute while the heap is collected and stopped.
    Many,
    /// Costs of switches.
    Costs,
}

/// The arguments of `gclab green`.
#[derive(clap::Args, Debug, Default)]
pub struct GreenArgs {
    /// The scene [default: all]
    scene: Option<Scene>,
    /// The mode [default: both]
    #[arg(long)]
    mode: Option<Mode>,
}

/// The scenes that were played.
pub struct Outcome(pub Scenes);

/// Plays the scenes.
///
/// # Errors
/// The system's refusal, or a wrong answer.
pub fn run(options: &GreenArgs) -> Result<Outcome, String> {
    let mut scenes = Scenes::default();
    let wants = |scene| options.scene.is_none_or(|wanted| wanted == scene);
    let modes = [Mode::Cooperative, Mode::Async];
    for mode in modes {
        if options.mode.is_some_and(|wanted| wanted != mode) {
            continue;
        }
        if wants(Scene::Twitch) {
            *of(&mut scenes.service, mode) = Some(play_twitch(mode, &Twitch::default())?);
        }
        if wants(Scene::Spinlock) {
            *of(&mut scenes.spinlock, mode) = Some(play_spinlock(mode, 2)?);
        }
        if wants(Scene::Stops) {
            *of(&mut scenes.stop_the_world, mode) = Some(play_stops(mode, 2)?);
        }
        if wants(Scene::Many) {
            let runs = ["concurrent", "stop the world"].map(|collector| {
                let crowd = Crowd::default();
                play_many(mode, collector, &crowd)
            });
            let runs = runs.into_iter().collect::<Result<Vec<_>, _>>()?;
            *of(&mut scenes.many, mode) = Some(runs);
        }
    }
    if wants(Scene::Costs) && options.mode != Some(Mode::Cooperative) {
        let preemptions = 20_000;
        let here = measure_costs(10 * preemptions, preemptions)?;
        let go = go::measure(preemptions);
        let cost = |what, of: fn(&Costs) -> f64| SwitchCost {
            what,
            here_ns: of(&here),
            go_ns: go.as_ref().ok().map(of),
        };
        scenes.costs = vec![
            cost("yield", |costs| costs.yield_ns),
            cost("preempt and resume", |costs| costs.preempt_ns),
        ];
        scenes.no_go = go.err();
    }
    Ok(Outcome(scenes))
}

fn of<T>(both: &mut Both<T>, mode: Mode) -> &mut Option<T> {
    match mode {
        Mode::Cooperative => &mut both.cooperative,
        Mode::Async => &mut both.preempted,
    }
}

impl Outcome {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        self.0.json()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scenes = &self.0;
        for (mode, service) in scenes.service.played() {
            writeln!(
                f,
                "twitch     {mode:<12} {} handlers beside a decode of {:.0} ms: {} requests, {} \
                 of them during the decode, longest gap {:.1} ms (slice {:.0} ms), at most {} \
                 preemptions of the decode between two services of a handler",
                service.handlers.len(),
                service.decode_length_ms(),
                service.served(),
                service.served_during,
                service.longest_ms(),
                service.slice_ms,
                service.most_between,
            )?;
        }
        for (mode, scene) in scenes.spinlock.played() {
            let end = if scene.deadlocked {
                "deadlocks: the monitor gives up"
            } else {
                "ends"
            };
            writeln!(
                f,
                "spinlock   {mode:<12} {end} after {:.0} ms, {} preemptions",
                scene.after_ms, scene.preemptions,
            )?;
        }
        for (mode, stops) in scenes.stop_the_world.played() {
            match stops.quantiles() {
                Some(times) => writeln!(
                    f,
                    "stops      {mode:<12} median {:.0} us, 99 % {:.0} us, most {:.0} us; {} did \
                     not stop within 1 s",
                    times.p50, times.p99, times.max, stops.missed,
                )?,
                None => writeln!(
                    f,
                    "stops      {mode:<12} none of {} stopped within 1 s",
                    stops.missed
                )?,
            }
        }
        for (mode, runs) in scenes.many.played() {
            for run in runs {
                writeln!(
                    f,
                    "many       {mode:<12} {} green threads, {}: {} of {} answers right, {} \
                     collections, {} stops of a storm, {} preemptions, {} of them in loops that \
                     store references, {:.1} s",
                    run.threads,
                    run.collector,
                    run.right,
                    run.answers,
                    run.collections,
                    run.storm_stops,
                    run.preemptions,
                    run.preempted_stores,
                    run.seconds,
                )?;
            }
        }
        for cost in &scenes.costs {
            write!(f, "costs      {:<20} {:.0} ns", cost.what, cost.here_ns)?;
            match (cost.go_ns, &scenes.no_go) {
                (Some(go), _) => writeln!(f, ", in Go {go:.0} ns: {:.2}", cost.here_ns / go)?,
                (None, Some(why)) => writeln!(f, " (not measured in Go: {why})")?,
                (None, None) => writeln!(f)?,
            }
        }
        Ok(())
    }
}
