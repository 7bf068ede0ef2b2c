//! The Twitch trace of the talk: many request handlers, and one green thread that decodes base64
//! for a long time without any call. Who waits, and for how long?

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use gc_core::Heap;

use super::stage::Stage;
use crate::kernels::loops::{base64_encode, base64_table, count_oracle};
use crate::lab::talk::{Gap, Handler, Service};
use crate::sched::{Channel, Green, Mode, Options, preemptions_here, sleep};

/// The sizes of the scene.
#[derive(Clone, Copy, Debug)]
pub struct Twitch {
    /// Request handlers.
    pub handlers: usize,
    /// The time between two requests to a handler.
    pub every: Duration,
    /// The least length of the decode.
    pub decode: Duration,
    /// The least number of preemptions of the decode, where there are any: the decode goes on
    /// until then.
    pub preemptions: u64,
    /// The time before the decode, and after it.
    pub margin: Duration,
    /// Workers.
    pub workers: usize,
    /// The slice.
    pub slice: Duration,
}

impl Default for Twitch {
    fn default() -> Twitch {
        Twitch {
            handlers: 48,
            every: Duration::from_millis(5),
            decode: Duration::from_millis(300),
            preemptions: 0,
            margin: Duration::from_millis(100),
            workers: 1,
            slice: Duration::from_millis(10),
        }
    }
}

/// Turns of the loop that serves a request: some microseconds.
const REQUEST: u64 = 2_000;

/// A request that was served: to which handler, when it was due, and when it was served.
struct Served(usize, Instant, Instant);

/// What the handlers see of the decode.
#[derive(Default)]
struct Watched {
    decoder: OnceLock<Arc<Green>>,
    /// The decode has begun, and has not ended.
    decodes: AtomicBool,
    /// See [`Service::served_during`] and [`Service::most_between`].
    served: AtomicU64,
    most_between: AtomicU64,
}

impl Watched {
    fn preemptions(&self) -> u64 {
        self.decoder.get().map_or(0, |green| green.preemptions())
    }

    /// A handler serves a request. `seen` has the preemptions of the decode, and those of the
    /// handler itself, at its last service: a handler that is preempted waits once more.
    fn note_service(&self, seen: &mut [u64; 2]) {
        let now = [self.preemptions(), preemptions_here()];
        let waits = 1 + now[1] - seen[1];
        let between = (now[0] - seen[0]).div_ceil(waits);
        *seen = now;
        self.most_between.fetch_max(between, Relaxed);
        self.served
            .fetch_add(u64::from(self.decodes.load(Relaxed)), Relaxed);
    }
}

/// Plays the scene.
///
/// # Errors
/// The system's refusal, or a wrong answer.
pub fn play(mode: Mode, sizes: &Twitch) -> Result<Service, String> {
    let stage = Stage::new(Heap::builder())?;
    let scheduler = stage.scheduler(Options {
        workers: sizes.workers,
        slice: sizes.slice,
        mode,
        ..Options::default()
    })?;
    // Made before the scene, since native code is not preempted.
    let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i ^ i >> 8) as u8).collect();
    let text = base64_encode(&bytes);
    let (table, decode) = (base64_table(), stage.loops.base64);
    let mut output = vec![0u8; bytes.len() + 3];
    let begun = Instant::now();
    let ms = move |at: Instant| at.duration_since(begun).as_secs_f64() * 1e3;
    let slice_ms = sizes.slice.as_secs_f64() * 1e3;
    let over = Arc::new(AtomicBool::new(false));
    let service = Arc::new(Mutex::new(Service {
        slice_ms,
        handlers: vec![Handler::default(); sizes.handlers],
        ..Service::default()
    }));

    let served = Channel::<Served>::new(256);
    scheduler.spawn({
        let (served, service) = (served.clone(), service.clone());
        move || {
            while let Some(Served(number, due, at)) = served.receive() {
                let mut service = service.lock().unwrap_or_else(PoisonError::into_inner);
                let handler = &mut service.handlers[number];
                let waited = at.duration_since(due).as_secs_f64() * 1e3;
                handler.served += 1;
                handler.longest_ms = handler.longest_ms.max(waited);
                if waited > slice_ms {
                    let start_ms = ms(due);
                    handler.gaps.push(Gap {
                        start_ms,
                        length_ms: waited,
                    });
                }
            }
        }
    })?;
    let watched = Arc::new(Watched::default());
    let running = Arc::new(AtomicU64::new(sizes.handlers as u64));
    for number in 0..sizes.handlers {
        let (served, over, running) = (served.clone(), over.clone(), running.clone());
        let (count, every) = (stage.loops.count, sizes.every);
        let watched = watched.clone();
        scheduler.spawn(move || {
            let mut seen = [0; 2];
            // The requests to the handlers come one after the other.
            let mut due = Instant::now() + every * (number as u32) / 48;
            while !over.load(Relaxed) {
                sleep(due.saturating_duration_since(Instant::now()));
                let answer = count(number as u64, REQUEST);
                assert_eq!(answer, count_oracle(number as u64, REQUEST));
                let now = Instant::now();
                watched.note_service(&mut seen);
                if served.send(Served(number, due, now)).is_err() {
                    break;
                }
                due = (due + every).max(now);
            }
            if running.fetch_sub(1, Relaxed) == 1 {
                served.close();
            }
        })?;
    }
    let (times, sizes) = (service.clone(), *sizes);
    let wanted = match mode {
        Mode::Async => sizes.preemptions,
        Mode::Cooperative => 0,
    };
    let seen = watched.clone();
    let decoder = scheduler.spawn(move || {
        sleep(sizes.margin);
        let start = Instant::now();
        seen.decodes.store(true, Relaxed);
        while start.elapsed() < sizes.decode || preemptions_here() < wanted {
            // SAFETY: the text's length is a multiple of 4, and the output has room for it.
            let written = unsafe {
                decode(
                    text.as_ptr(),
                    text.len(),
                    output.as_mut_ptr(),
                    table.as_ptr(),
                )
            };
            assert_eq!(written, bytes.len());
        }
        let end = Instant::now();
        seen.decodes.store(false, Relaxed);
        assert!(output[..bytes.len()] == bytes[..], "a wrong decode");
        let mut service = times.lock().unwrap_or_else(PoisonError::into_inner);
        service.decode_ms = (ms(start), ms(end));
        drop(service);
        sleep(sizes.margin);
        over.store(true, Relaxed);
    })?;
    // The decode begins after its margin; a handler that comes before this finds none.
    let _ = watched.decoder.set(decoder);
    scheduler.wait()?;
    let mut service = service
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    service.end_ms = ms(Instant::now());
    service.preemptions = watched.preemptions();
    service.served_during = watched.served.load(Relaxed);
    service.most_between = watched.most_between.load(Relaxed);
    Ok(service)
}
