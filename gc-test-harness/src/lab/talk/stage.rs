//! One kernel under one strategy: its code, its heap, and the means to stop its thread.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gc_core::jit::CodeGuard;
use gc_core::raw::Encoding;
use gc_core::{Heap, Mutator};
use gc_preempt::{RootSink, StopError, StopReport, Stopped, StoppedMutator, WalkStats};

use crate::kernels::codegen::CodegenError;
use crate::kernels::interruption::{Interruption, interrupted, walk_by_maps};
use crate::kernels::step::{Answer, Standing, Stepped};
use crate::kernels::talk::control::{NO_LIMIT, POISON};
use crate::kernels::talk::maker::Run;
use crate::kernels::talk::{Cells, Control, Kernel, Made, PollPage, Strategy, Work, WorkError};

/// The reason why a kernel could not be measured.
#[derive(Debug)]
pub enum TalkError {
    /// The kernel could not be compiled or registered.
    Codegen(CodegenError),
    /// The system refused the poll page.
    Page(io::Error),
    /// The heap could not be built or stopped, or a thread could not be attached.
    Heap(String),
    /// The input could not be made.
    Work(WorkError),
    /// A kernel gave a wrong answer: a stop has changed what it computes.
    WrongAnswer {
        /// The kernel.
        kernel: Kernel,
        /// The strategy that stopped it.
        strategy: Strategy,
    },
}

impl fmt::Display for TalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TalkError::Codegen(e) => write!(f, "{e}"),
            TalkError::Page(e) => write!(f, "the poll page: {e}"),
            TalkError::Heap(why) => f.write_str(why),
            TalkError::Work(e) => write!(f, "{e}"),
            TalkError::WrongAnswer { kernel, strategy } => write!(
                f,
                "the kernel `{kernel}` gave a wrong answer under the strategy `{strategy}`: a stop changed what it computes"
            ),
        }
    }
}

impl std::error::Error for TalkError {}

impl TalkError {
    /// The refusal of a heap.
    pub fn heap(error: impl fmt::Display) -> TalkError {
        TalkError::Heap(error.to_string())
    }
}

impl From<CodegenError> for TalkError {
    fn from(e: CodegenError) -> TalkError {
        TalkError::Codegen(e)
    }
}

impl From<io::Error> for TalkError {
    fn from(e: io::Error) -> TalkError {
        TalkError::Page(e)
    }
}

impl From<WorkError> for TalkError {
    fn from(e: WorkError) -> TalkError {
        TalkError::Work(e)
    }
}

/// When the watchdog speaks, for strategies whose stops the bell ends.
const LATE: Duration = Duration::from_secs(60);
/// Threads that may run a kernel at once.
const THREADS: usize = 2;
/// The encoding of the references in the stack maps.
const ENCODING: u32 = 0;
/// The time for which a thread may step. A thread that is to stop within a second answers earlier,
/// or ends its pass.
const STEPS_FOR: Duration = Duration::from_secs(60);

/// A kernel that is ready to run and to be stopped.
pub struct Stage {
    /// The kernel.
    pub kernel: Kernel,
    /// The strategy that its code was compiled for, and that stops it.
    pub strategy: Strategy,
    /// Its code.
    pub made: Made,
    /// The words that its polls read.
    pub control: Control,
    /// Its heap, whose only mutator runs the kernel.
    pub heap: Heap,
    cells: Cells,
    page: PollPage,
    /// The kernel's thread has ended, perhaps by an error.
    left: AtomicBool,
    /// For [`Strategy::Step`]: one for each thread that may run the kernel.
    stepped: Vec<Stepped>,
    _guards: Vec<CodeGuard>,
}

impl Stage {
    /// Compiles the kernel, and registers it with a new heap that collects on request only.
    ///
    /// # Errors
    /// [`TalkError`]: the refusal of Cranelift, of the system or of the heap.
    pub fn new(kernel: Kernel, strategy: Strategy) -> Result<Stage, TalkError> {
        let made = kernel.compile(strategy)?;
        let heap = Heap::builder()
            .gc_percent(u32::MAX)
            .signals(strategy.signals());
        let heap = heap.build().map_err(TalkError::heap)?;
        if !strategy.stops_loops() {
            heap.world().set_watchdog(LATE);
        }
        let guards = made
            .code
            .iter()
            .map(|code| code.register_with(&heap, Encoding::RAW))
            .collect::<Result<_, _>>()?;
        let cells = Cells::new(&heap)?;
        let mut page = PollPage::new()?;
        if !made.poll_loads.is_empty() {
            // SAFETY: the addresses are those of the loads that the maker has marked, in code whose
            // threads are this heap's mutators.
            unsafe { page.register(made.poll_loads.clone())? };
        }
        let stepped = match strategy {
            Strategy::Step => (0..THREADS).map(|_| Stepped::new(&made.code)).collect(),
            _ => Vec::new(),
        };
        Ok(Stage {
            kernel,
            strategy,
            control: Control::new(cells.node, page.address()),
            made,
            heap,
            cells,
            page,
            left: AtomicBool::new(false),
            stepped,
            _guards: guards,
        })
    }

    /// Attaches the calling thread, makes an input of the size `1 / part`, and calls `act`.
    ///
    /// # Errors
    /// [`TalkError`]: of the attach, of the input, or of `act`.
    pub fn on_this_thread<R>(
        &self,
        part: u64,
        act: impl FnOnce(&mut Player<'_>) -> Result<R, TalkError>,
    ) -> Result<R, TalkError> {
        let mutator = self.heap.attach().map_err(TalkError::heap)?;
        let work = Work::new(self.kernel, &mutator, self.cells, part)?;
        // SAFETY: the mutator outlives the player, which alone runs the kernel.
        unsafe { self.control.belongs_to(&mutator) };
        act(&mut Player {
            stage: self,
            mutator: &mutator,
            work,
        })
    }

    /// The page that poll loads read.
    pub fn page(&self) -> &PollPage {
        &self.page
    }

    /// Whether the kernel runs: its thread has no poll before the kernel's own ones.
    pub fn plays(&self) -> bool {
        // Acquire: pairs with the Releases in `Player::answer`.
        self.control.caller.load(Ordering::Acquire) != 0
    }

    /// Waits until the kernel runs, or until its thread has left the stage.
    pub fn wait_until_it_plays(&self) {
        // Acquire: pairs with the Release in `leave`.
        while !self.plays() && !self.left.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }

    /// Says that a thread for the kernel is about to start.
    pub fn enter(&self) {
        // Relaxed: before the thread exists.
        self.left.store(false, Ordering::Relaxed);
    }

    /// Says that the kernel's thread has ended, so that no thread waits for it.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Ends the kernel after the pass that it is in.
    pub fn end_pass(&self) {
        // Relaxed: the kernel needs to see it at some time only.
        self.control.over.store(1, Ordering::Relaxed);
    }

    /// Tells the polls to call the runtime.
    fn raise(&self) -> io::Result<()> {
        // Relaxed: see `Control`.
        match self.strategy {
            Strategy::Prologue => self.control.limit.store(POISON, Ordering::Relaxed),
            Strategy::BackEdge => self.control.flag.store(1, Ordering::Relaxed),
            Strategy::BackEdgeFault => self.page.protect()?,
            _ => {}
        }
        Ok(())
    }

    /// Takes back what [`raise`](Stage::raise) has told.
    fn lower(&self) -> io::Result<()> {
        match self.strategy {
            Strategy::Prologue => self.control.limit.store(NO_LIMIT, Ordering::Relaxed),
            Strategy::BackEdge => self.control.flag.store(0, Ordering::Relaxed),
            Strategy::BackEdgeFault => self.page.unprotect()?,
            _ => {}
        }
        Ok(())
    }

    /// Stops the kernel's thread by the strategy, calls `during`, and resumes it. Gives the time to
    /// stop, which includes the time to raise what polls read, and the stop's report.
    ///
    /// # Errors
    /// The system's refusal, or that of the stop: the caller is a mutator, or holds a stop.
    pub fn stop<R>(
        &self,
        during: impl FnOnce(&Stopped<'_>) -> R,
    ) -> Result<(Duration, StopReport, R), TalkError> {
        let begun = Instant::now();
        loop {
            self.raise()?;
            let standing = self.stand();
            let raised = begun.elapsed();
            let stopped = self.heap.world().stop();
            let lowered = Lower(self);
            let stopped = stopped.map_err(|e: StopError| TalkError::heap(e))?;
            if self.strategy == Strategy::Step && self.is_between_points(&stopped) {
                // A thread has come back from native code since it was asked.
                drop((stopped, lowered, standing));
                continue;
            }
            let result = during(&stopped);
            drop(lowered);
            let report = stopped.resume();
            drop(standing);
            return Ok((raised + report.time_to_stop, report, result));
        }
    }

    /// Steps the threads that run managed code to points.
    fn stand(&self) -> Vec<Standing<'_>> {
        let answers = self.stepped.iter().map(|one| one.stop(STEPS_FOR));
        let standing = answers.filter_map(|answer| match answer {
            Some(Answer::Stands(standing)) => Some(standing),
            _ => None,
        });
        standing.collect()
    }

    /// Whether a stop has interrupted the kernel where the table of points has no entry.
    fn is_between_points(&self, stopped: &Stopped<'_>) -> bool {
        stopped.mutators().any(|mutator| {
            interrupted(&self.made.code, &mutator).is_some_and(|(at, entry, frame)| {
                frame.points.exactly_at((at.pc - entry) as u32).is_none()
            })
        })
    }

    /// Walks a thread that [`stop`](Stage::stop) has stopped, as a stop by this strategy scans it:
    /// by an exact map of the innermost frame where the strategy has one.
    pub fn walk(&self, mutator: &StoppedMutator<'_>, sink: &mut dyn RootSink) -> WalkStats {
        let code = &self.made.code;
        match self.strategy {
            Strategy::Maps => walk_by_maps(code, mutator, ENCODING, sink),
            Strategy::Step => {
                // SAFETY: `stop` keeps the threads standing while its caller looks at them.
                let stands = self.stepped.iter().filter_map(|one| unsafe { one.stand() });
                let mut stands = stands.filter(|stand| stand.is_on(&mutator.stack()));
                match (stands.next(), interrupted(code, mutator)) {
                    (Some(stand), _) => stand.walk(mutator, ENCODING, sink),
                    (None, Some((at, entry, frame))) => {
                        let places = frame.points.at((at.pc - entry) as u32);
                        at.walk(frame, entry, places, mutator, ENCODING, sink)
                    }
                    (None, None) => mutator.walk(sink),
                }
            }
            Strategy::BackEdgeFault => {
                // SAFETY: the kernels that are judged run on one thread, which is stopped.
                let at = unsafe { self.page.interruption() };
                let function = |at: &Interruption| {
                    let function = code.iter().find(|code| at.is_in(&code.range()))?;
                    Some((function.range().start, function.exact.as_deref()?))
                };
                match at.as_ref().map(|at| (at, function(at))) {
                    Some((at, Some((entry, frame)))) => {
                        let places = frame.points.at((at.pc - entry) as u32);
                        at.walk(frame, entry, places, mutator, ENCODING, sink)
                    }
                    _ => mutator.walk(sink),
                }
            }
            _ => mutator.walk(sink),
        }
    }

    /// Runs a full collection, for whose stops the kernel's thread stops by the strategy.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn collect(&self) -> Result<(), TalkError> {
        self.raise()?;
        let standing = self.stand();
        let lowered = Lower(self);
        self.heap.collect();
        drop((lowered, standing));
        Ok(())
    }
}

/// Lowers what polls read when it is dropped.
struct Lower<'a>(&'a Stage);

impl Drop for Lower<'_> {
    fn drop(&mut self) {
        // A page that stays without access would stop its threads for ever, one fault after the
        // other.
        if self.0.lower().is_err() {
            std::process::abort();
        }
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("kernel", &self.kernel)
            .field("strategy", &self.strategy)
            .finish_non_exhaustive()
    }
}

/// A kernel on its thread.
pub struct Player<'a> {
    /// Its code, and the means to stop it.
    pub stage: &'a Stage,
    /// The thread's mutator.
    pub mutator: &'a Mutator,
    /// Its input.
    pub work: Work,
}

impl Player<'_> {
    /// Runs the kernel `passes` times, or until the pass in which the control's `over` is set.
    /// Gives the last pass's answer, which is not checked.
    pub fn answer(&mut self, passes: u64) -> u64 {
        self.answer_of(self.stage.made.run, passes)
    }

    /// Runs other code for the same kernel as [`answer`](Player::answer) does.
    pub fn answer_of(&mut self, run: Run, passes: u64) -> u64 {
        let control = &self.stage.control;
        let here = 0usize;
        let caller = std::hint::black_box(&raw const here) as usize;
        // Relaxed: this thread's code reads it.
        self.work.input.passes.store(passes, Ordering::Relaxed);
        // Release, here and below: pairs with the Acquire in `Stage::plays`.
        control.caller.store(caller, Ordering::Release);
        // Without one that is free, the thread is stopped as native code.
        let entered = self.stage.stepped.iter().find_map(Stepped::enter);
        // SAFETY: the control belongs to this thread, and the input is the kernel's.
        let answer = unsafe { run(control, &raw const *self.work.input) };
        drop(entered);
        control.caller.store(0, Ordering::Release);
        answer
    }

    /// Compares an answer with the right one.
    ///
    /// # Errors
    /// [`TalkError::WrongAnswer`].
    pub fn check(&mut self, answer: u64) -> Result<(), TalkError> {
        if self.work.is_right(self.stage.kernel, answer) {
            return Ok(());
        }
        Err(TalkError::WrongAnswer {
            kernel: self.stage.kernel,
            strategy: self.stage.strategy,
        })
    }

    /// Runs the kernel `passes` times, and checks the answer.
    ///
    /// # Errors
    /// [`TalkError::WrongAnswer`].
    pub fn run(&mut self, passes: u64) -> Result<(), TalkError> {
        let answer = self.answer(passes);
        self.check(answer)
    }

    /// Runs the kernel until [`Stage::end_pass`], and gives the answer.
    pub fn until_ended(&mut self) -> u64 {
        // Relaxed: the thread that ends the pass does so again until this thread has noticed.
        self.stage.control.over.store(0, Ordering::Relaxed);
        self.answer(u64::MAX)
    }
}
