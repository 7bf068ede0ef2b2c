//! Fuzz cases with threads: real threads hold arbitrary words in all places of a thread, while the
//! heaps stop and scan them.
//!
//! A collection must keep exactly the cells that the words name, so no stale word may be in a
//! scanned place. Collections scan the stacks and registers of mutators only. The fuzzer's own
//! thread is not a mutator, so it keeps addresses freely. The workers are mutators. They have
//! addresses of cells only in jobs, and wipe their stacks and registers after each job. While they
//! wait for the next job, they are in `blocking`, where registers are not scanned, in frames that
//! never had an address.
//!
//! Collections may come at any time, because some heaps collect continuously. A root callback
//! reports all cells of a heap's model, except during a check: from before the collection whose
//! result is compared until the comparison is done. The threads change nothing during a check. (In
//! the cases of `mutate`, graphs change while the collector marks.)

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use gc_core::raw::{Encoding, RawRoot, RootCallback, RootRange};
use gc_core::{Heap, Mutator};

use super::choices::Choices;
use super::counts::{Counts, message};
use super::model::{BOXED, Model, Shape, TAGGED, encodings};
use crate::kernels::image::{
    ARGUMENT_WORDS, FRAME_WORDS, Hold, Image, SAVED_WORDS, SLOTS, wipe_registers,
};

/// Worker threads: more than processors, so that some stops meet threads that are not running.
const WORKERS: usize = 3;
/// Words of a root range, and words that a root callback reports.
const ROOT_WORDS: usize = 16;
/// The most cells that a heap may have at a check.
const MOST_CELLS: usize = 1 << 16;

type Outcome = Result<(), String>;
type Job = Box<dyn FnOnce(&mut Own) -> Outcome + Send>;

/// A worker's own state: its mutator in each heap.
#[derive(Default)]
struct Own {
    places: Vec<Option<(RootRange, Mutator)>>,
}

struct Worker {
    jobs: Sender<Job>,
    outcomes: Receiver<Outcome>,
}

impl Worker {
    fn start(number: usize) -> std::io::Result<Worker> {
        let (jobs, to_do) = channel::<Job>();
        let (done, outcomes) = channel();
        std::thread::Builder::new()
            .name(format!("fuzz {number}"))
            .spawn(move || serve(&to_do, &done))?;
        Ok(Worker { jobs, outcomes })
    }

    fn begin(&self, job: impl FnOnce(&mut Own) -> Outcome + Send + 'static) {
        self.jobs
            .send(Box::new(job))
            .expect("a worker waits for jobs until the pool is dropped");
    }

    fn end(&self) -> Outcome {
        self.outcomes.recv().expect("a worker answers every job")
    }

    fn run(&self, job: impl FnOnce(&mut Own) -> Outcome + Send + 'static) -> Outcome {
        self.begin(job);
        self.end()
    }
}

fn serve(jobs: &Receiver<Job>, done: &Sender<Outcome>) {
    let mut own = Own::default();
    while let Ok(job) = gc_preempt::blocking_here(|| jobs.recv()) {
        let outcome = perform(job, &mut own);
        wipe();
        if done.send(outcome).is_err() {
            return;
        }
    }
}

#[inline(never)]
fn perform(job: Job, own: &mut Own) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| job(own))).unwrap_or_else(|panic| Err(message(&panic)))
}

/// Clears the stack below this frame, and registers. Jobs have left words there, and a stop may
/// come before the thread waits for the next job.
#[inline(never)]
fn wipe() {
    let mut words = [0usize; 16 << 10];
    std::hint::black_box(&mut words);
    wipe_registers();
}

/// Words that the collector reads in a stopped world.
#[derive(Default)]
struct Words([AtomicUsize; ROOT_WORDS]);

impl Words {
    fn fill(&self, mut word: impl FnMut() -> usize) {
        // Relaxed, as below: a reader has since received a message from the writer, or has stopped
        // the world.
        self.0
            .iter()
            .for_each(|w| w.store(word(), Ordering::Relaxed));
    }

    fn get(&self) -> [usize; ROOT_WORDS] {
        self.0.each_ref().map(|w| w.load(Ordering::Relaxed))
    }
}

/// A mutator of one heap, as the fuzzer's thread has it.
struct Place {
    worker: usize,
    range: Arc<RootArray>,
    encoding: Encoding,
}

/// The words of a root range, and their end.
#[derive(Default)]
struct RootArray {
    words: Words,
    limit: AtomicUsize,
}

/// Cells that are kept between two checks.
struct Anchor {
    count: AtomicUsize,
    words: Box<[AtomicUsize]>,
}

impl Anchor {
    fn new() -> Anchor {
        Anchor {
            count: AtomicUsize::new(0),
            words: (0..MOST_CELLS).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// Keeps one more cell. The caller is a mutator inside `no_preempt`, or other roots keep the
    /// cell.
    fn add(&self, cell: usize) {
        // Relaxed, here and below: additions follow each other under the model's lock.
        let at = self.count.load(Ordering::Relaxed);
        if let Some(word) = self.words.get(at) {
            word.store(cell, Ordering::Relaxed);
            // Release: pairs with the Acquire load in `get`, so that the word is visible.
            self.count.store(at + 1, Ordering::Release);
        }
    }

    /// Keeps no cell from the next collection on.
    fn clear(&self) {
        // Release: pairs with the Acquire load in `get`.
        self.count.store(0, Ordering::Release);
    }

    fn get(&self) -> &[AtomicUsize] {
        // Acquire: pairs with the Release stores in `add` and `clear`.
        &self.words[..self.count.load(Ordering::Acquire)]
    }
}

/// A heap and its model.
struct Subject {
    // The fields are dropped in this order: the guards before the heap.
    roots: Vec<(usize, RawRoot)>,
    _callbacks: [RootCallback; 2],
    reported: Arc<Words>,
    anchor: Arc<Anchor>,
    places: Vec<Place>,
    model: Arc<Mutex<Model>>,
    heap: Heap,
}

/// The number of reported words that are edges of [`BOXED`]. The other words may be anything.
const REPORTED_EXACT: usize = 6;

impl Subject {
    fn new(choices: &mut Choices<'_>) -> Result<Subject, String> {
        let mut list = encodings(choices);
        let past_the_end = choices.one_in(2);
        let heap = Heap::builder()
            .reserve(64 << 20)
            .gc_percent(u32::MAX)
            .conservative(&list)
            .past_the_end(past_the_end)
            .stress(gc_core::Stress {
                phases: choices.one_in(2),
                continuous: choices.one_in(4),
                ..gc_core::Stress::default()
            })
            .build()
            .map_err(|e| e.to_string())?;
        // A heap always tries plain addresses, too.
        if !list.contains(&Encoding::RAW) {
            list.push(Encoding::RAW);
        }
        let mut shapes = Vec::new();
        for shape in Shape::all() {
            shapes.push((heap.kind(shape.kind()).map_err(|e| e.to_string())?, shape));
        }
        let reported = Arc::new(Words::default());
        let words = reported.clone();
        // SAFETY: the callback reads atomics and reports them.
        let callback = unsafe {
            heap.add_root_callback(move |visitor| {
                let words = words.get();
                let (exact, any) = words.split_at(REPORTED_EXACT);
                visitor.words(exact, BOXED);
                visitor.conservative(any);
            })
            .expect("room for a callback")
        };
        let anchor = Arc::new(Anchor::new());
        let anchored = anchor.clone();
        // SAFETY: the callback reads atomics and reports them. The fuzzer's own thread may change
        // the anchor during a collection; it does so only where the outcome is the same.
        let keeps = unsafe {
            heap.add_root_callback(move |visitor| {
                for word in anchored.get() {
                    visitor.word(word.load(Ordering::Relaxed), Encoding::RAW);
                }
            })
            .expect("room for a callback")
        };
        let model = Model {
            range: heap.reserved(),
            encodings: list,
            past_the_end,
            shapes,
            objects: Default::default(),
            dead: Vec::new(),
        };
        Ok(Subject {
            roots: Vec::new(),
            _callbacks: [callback, keeps],
            reported,
            anchor,
            places: Vec::new(),
            model: Arc::new(Mutex::new(model)),
            heap,
        })
    }

    fn model(&self) -> std::sync::MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The image that a worker holds.
struct Held {
    how: Hold,
    image: *mut Image,
}

/// The worker threads.
pub struct Pool {
    workers: Vec<Worker>,
}

impl Pool {
    /// Starts the workers.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn new() -> std::io::Result<Pool> {
        Ok(Pool {
            workers: (0..WORKERS).map(Worker::start).collect::<Result<_, _>>()?,
        })
    }

    /// Runs one case.
    ///
    /// # Errors
    /// The first wrong answer. The pool must not be used after an error, because workers may hold
    /// images forever.
    pub fn check(&self, choices: &mut Choices<'_>) -> Result<Counts, String> {
        let mut counts = Counts {
            cases: 1,
            ..Counts::default()
        };
        let mut subjects = Vec::new();
        for _ in 0..1 + choices.below(3) {
            subjects.push(Subject::new(choices)?);
        }
        for worker in &self.workers {
            let heaps = subjects.len();
            worker.run(move |own| {
                own.places.resize_with(heaps, || None);
                Ok(())
            })?;
        }
        for (at, subject) in subjects.iter_mut().enumerate() {
            for worker in 0..WORKERS {
                if worker == at % WORKERS || choices.one_in(2) {
                    subject
                        .places
                        .push(self.attach(worker, at, &subject.heap, choices)?);
                }
            }
        }
        let others = mapped();
        for _ in 0..1 + choices.below(3) {
            self.step(&mut subjects, choices, &others, &mut counts)?;
        }
        for worker in &self.workers {
            worker.run(|own| {
                own.places.clear();
                Ok(())
            })?;
        }
        Ok(counts)
    }

    fn attach(
        &self,
        worker: usize,
        at: usize,
        heap: &Heap,
        choices: &mut Choices<'_>,
    ) -> Result<Place, String> {
        let encoding = [Encoding::RAW, TAGGED, BOXED][choices.below(3)];
        let range = Arc::new(RootArray::default());
        let (heap, shared) = (heap.clone(), range.clone());
        self.workers[worker].run(move |own| {
            let mutator = heap.attach().map_err(|e| e.to_string())?;
            let words = shared.words.0.as_ptr_range();
            // Relaxed, as for all these words: the message at the job's end orders them.
            shared.limit.store(words.end as usize, Ordering::Relaxed);
            // SAFETY: words and limit belong to this case, and the fuzzer's own reference keeps
            // them for longer than the guard lives.
            let guard = unsafe {
                mutator
                    .root_range(words.start.cast(), &raw const shared.limit, encoding)
                    .expect("room for a range")
            };
            own.places[at] = Some((guard, mutator));
            Ok(())
        })?;
        Ok(Place {
            worker,
            range,
            encoding,
        })
    }

    fn step(
        &self,
        subjects: &mut [Subject],
        choices: &mut Choices<'_>,
        others: &[Range<usize>],
        counts: &mut Counts,
    ) -> Result<(), String> {
        for (at, subject) in subjects.iter_mut().enumerate() {
            self.fill(subject, at, choices, others, counts)?;
        }
        let mut held: Vec<Option<Held>> = (0..WORKERS).map(|_| None).collect();
        for (worker, held) in held.iter_mut().enumerate() {
            if choices.one_in(4) {
                continue;
            }
            let how = [Hold::Native, Hold::Managed, Hold::Called][choices.below(3)];
            let image = draw(subjects, choices, others);
            let image = Box::into_raw(image);
            counts.words += (32 * 8 + 16 + 16 + 2 * FRAME_WORDS + 32) as u64;
            *held = Some(Held { how, image });
            let address = image as usize;
            self.workers[worker].begin(move |_| {
                // SAFETY: the worker has the image until the image is released and the job has
                // ended.
                unsafe { how.hold(address as *mut Image) };
                Ok(())
            });
            // SAFETY: the image lives until it is dropped below.
            while !unsafe { Image::is_held(image) } {
                std::hint::spin_loop();
            }
        }
        let mut outcome = Ok(());
        for subject in subjects.iter_mut() {
            outcome = outcome.and_then(|()| collect(subject, &held, counts));
        }
        // Images are released after a wrong answer, too, so that a later message is about the wrong
        // answer and not about a thread that spins.
        for (worker, held) in held.into_iter().enumerate() {
            let Some(held) = held else { continue };
            // SAFETY: the image is held, and it lives until it is dropped here, after the job has
            // ended.
            let image = unsafe {
                let before = ((*held.image).stack, (*held.image).red_zone);
                Image::release(held.image);
                self.workers[worker].end()?;
                let image = Box::from_raw(held.image);
                if outcome.is_ok() && (image.stack, image.red_zone) != before {
                    outcome = Err(format!(
                        "a stopped thread's stack was changed ({:?})",
                        held.how
                    ));
                }
                image
            };
            if outcome.is_ok() && image.after != image.registers {
                outcome = Err(format!(
                    "a stopped thread's registers were changed ({:?}): {:x?} became {:x?}",
                    held.how, image.registers, image.after
                ));
            }
        }
        outcome
    }

    /// Lets the heap's mutators allocate and write, and chooses the heap's roots.
    fn fill(
        &self,
        subject: &mut Subject,
        at: usize,
        choices: &mut Choices<'_>,
        others: &[Range<usize>],
        counts: &mut Counts,
    ) -> Result<(), String> {
        for place in &subject.places {
            let (model, anchor) = (subject.model.clone(), subject.anchor.clone());
            let seed = choices.word();
            let (count, others) = (choices.below(64), others.to_vec());
            let made = Arc::new(AtomicUsize::new(0));
            let total = made.clone();
            self.workers[place.worker].run(move |own| {
                let Some((_, mutator)) = &own.places[at] else {
                    return Ok(());
                };
                let mut model = model.lock().unwrap_or_else(PoisonError::into_inner);
                let mut choices = Choices::Seeded(seed as u64);
                for _ in 0..count {
                    let cell = model.allocate(&mut choices, &others, &mut |kind, bytes| {
                        mutator.no_preempt(|| {
                            // SAFETY: the anchor keeps the cell before a collection can begin. The
                            // model says how large the kind's cells must be.
                            let cell = unsafe { mutator.alloc_raw(kind, bytes) }.ok()?;
                            anchor.add(cell.as_ptr() as usize);
                            Some(cell.as_ptr() as usize)
                        })
                    })?;
                    // Relaxed: the message at the job's end orders the count.
                    total.fetch_add(usize::from(cell.is_some()), Ordering::Relaxed);
                }
                for _ in 0..choices.below(8) {
                    let Some(base) = model.pick(&mut choices) else {
                        break;
                    };
                    let word = choices.below(model.objects[&base].size / 8);
                    let value = model.content(&mut choices, base, word, &others, false);
                    // SAFETY: a word of a living cell.
                    unsafe { mutator.write((base + word * 8) as *mut usize, value) };
                    model.note(base, word, value);
                }
                Ok(())
            })?;
            counts.objects += made.load(Ordering::Relaxed) as u64;
        }
        let model = subject.model.lock().unwrap_or_else(PoisonError::into_inner);
        for place in &subject.places {
            let words = if choices.one_in(2) {
                0
            } else {
                choices.below(ROOT_WORDS + 1)
            };
            place.range.words.fill(|| model.any(choices, others));
            let end = &raw const place.range.words.0[0] as usize + 8 * words;
            place.range.limit.store(end, Ordering::Relaxed);
        }
        let quiet = choices.one_in(2);
        subject
            .reported
            .fill(|| if quiet { 0 } else { model.any(choices, others) });
        subject.roots.retain(|_| !choices.one_in(3));
        for _ in 0..choices.below(4) {
            let Some(base) = model.pick(choices) else {
                break;
            };
            let cell = NonNull::new(base as *mut u8).expect("a cell's address");
            // SAFETY: a living cell of this heap, which the anchor keeps.
            if let Ok(root) = unsafe { subject.heap.root_raw(cell) } {
                subject.roots.push((base, root));
            }
        }
        Ok(())
    }
}

/// Chooses words for all places of a thread. Most words are zero, because otherwise all cells would
/// be alive.
fn draw(subjects: &[Subject], choices: &mut Choices<'_>, others: &[Range<usize>]) -> Box<Image> {
    let models: Vec<_> = subjects.iter().map(Subject::model).collect();
    let density = 1 + choices.below(40);
    let mut word = || {
        if !choices.one_in(density) {
            return 0;
        }
        models[choices.below(models.len())].any(choices, others)
    };
    let mut image = Image::new();
    let Image {
        registers,
        stack,
        red_zone,
        below,
        caller,
        ..
    } = &mut *image;
    for part in [
        registers.vectors.as_flattened_mut(),
        &mut registers.gpr,
        &mut registers.mmx,
        &mut registers.masks,
        stack,
        red_zone,
        below,
        caller,
    ] {
        part.fill_with(&mut word);
    }
    image.trim();
    image
}

/// Collects one heap while the images are held, and compares the result with the model.
fn collect(
    subject: &mut Subject,
    held: &[Option<Held>],
    counts: &mut Counts,
) -> Result<(), String> {
    let mut model = subject.model.lock().unwrap_or_else(PoisonError::into_inner);
    let mut roots = BTreeSet::new();
    for place in &subject.places {
        let words = place.range.words.get();
        let end = place.range.limit.load(Ordering::Relaxed);
        let count = (end - &raw const place.range.words.0[0] as usize) / 8;
        roots.extend(
            words[..count]
                .iter()
                .filter_map(|word| model.exact(*word, place.encoding)),
        );
        let Some(Held { how, image }) = &held[place.worker] else {
            continue;
        };
        // SAFETY: the image is held, so its thread only reads it until it is released.
        let image = unsafe { &**image };
        for word in image
            .register_words()
            .chain(image.stack)
            .chain(image.red_zone)
        {
            model.named(word, &mut roots);
        }
        if *how == Hold::Called {
            let (low, high) = (
                &image.caller[..ARGUMENT_WORDS],
                &image.caller[FRAME_WORDS - SAVED_WORDS..],
            );
            for word in low.iter().chain(high) {
                model.named(*word, &mut roots);
            }
            roots.extend(
                SLOTS
                    .iter()
                    .filter_map(|slot| model.exact(image.caller[*slot], Encoding::RAW)),
            );
        }
    }
    let reported = subject.reported.get();
    let (exact, any) = reported.split_at(REPORTED_EXACT);
    roots.extend(exact.iter().filter_map(|word| model.exact(*word, BOXED)));
    for word in any {
        model.named(*word, &mut roots);
    }
    roots.extend(subject.roots.iter().map(|(base, _)| *base));

    let live = model.reachable(&roots);
    counts.kept += live.len() as u64;
    counts.freed += (model.objects.len() - live.len()) as u64;
    subject.anchor.clear();
    subject.heap.collect();
    counts.collections += 1;
    model.collected(&live);

    let mut overflow = false;
    // Tails are read before cells: a mutator that enters `blocking` may give runs back between the
    // two.
    let mut spare = Vec::with_capacity(MOST_CELLS);
    let all = subject.heap.for_each_unallocated(|cell| {
        overflow |= spare.len() == MOST_CELLS;
        if !overflow {
            spare.push(cell);
        }
    });
    all.map_err(|e| e.to_string())?;
    if overflow {
        return Err(format!("more than {MOST_CELLS} cells wait in runs"));
    }
    let mut cells = Vec::with_capacity(MOST_CELLS);
    let all = subject.heap.for_each_cell(|cell| {
        overflow |= cells.len() == MOST_CELLS;
        if !overflow {
            cells.push((cell.base, cell.size));
        }
    });
    all.map_err(|e| e.to_string())?;
    if overflow {
        return Err(format!("more than {MOST_CELLS} cells are allocated"));
    }
    model.check_cells(&cells, &spare.into_iter().collect())?;
    // The cells that were found are kept until the images are released.
    model
        .objects
        .keys()
        .for_each(|base| subject.anchor.add(*base));
    // SAFETY: the cells were found allocated above, and all threads that could write to them wait.
    unsafe { model.check_contents() }
}

/// The mapped ranges of this process: side tables, stacks, code and others.
fn mapped() -> Vec<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let parse = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    maps.lines().filter_map(parse).collect()
}
