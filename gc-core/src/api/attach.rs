//! How a thread attaches to a heap, and how it detaches: when its [`Mutator`] is dropped, or when
//! the thread ends.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::alloc::LocalAllocator;
use crate::api::heap::Heap;
use crate::api::mutator::Mutator;
use crate::collector;
use crate::fault::protected;
use crate::memory::MapError;
use crate::mutator::handles::Handles;
use crate::mutator::record::Context;
use crate::mutator::shared::Attached;

/// A thread could not attach to a heap.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The thread is attached already, or the system refused a resource that stops need.
    Thread(gc_preempt::AttachError),
    /// The system refused memory for the thread's runs.
    Map(MapError),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(e) => e.fmt(f),
            Self::Map(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for AttachError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Thread(error) => Some(error),
            Self::Map(error) => Some(error),
        }
    }
}

impl Heap {
    /// Attaches the running thread to the heap until the result is dropped. The thread must run on
    /// its own stack. On a [stack](crate::coroutine) of a heap's this is an error. A thread may
    /// attach to several heaps.
    ///
    /// # Errors
    /// [`AttachError`]: the thread is attached to this heap already, or the system refused a
    /// resource.
    pub fn attach(&self) -> Result<Mutator, AttachError> {
        Mutator::attach(self)
    }
}

impl Mutator {
    pub(crate) fn attach(heap: &Heap) -> Result<Self, AttachError> {
        if gc_preempt::holds_a_stop() {
            return Err(AttachError::Thread(gc_preempt::AttachError::HoldsAStop));
        }
        let shared = heap.shared_arc().clone();
        let context = Context::new(
            shared,
            LocalAllocator::new().map_err(AttachError::Map)?,
            Handles::new().map_err(AttachError::Map)?,
        );
        let runs = context.runs();
        let context = Box::into_raw(context);
        // SAFETY: the record is freed by `drop` only, after the thread has detached. If the mutator
        // is never dropped, the record is leaked.
        let attached = unsafe { heap.world().attach_with(context.cast(), HOOKS) };
        match attached {
            Ok(thread) => {
                // SAFETY: made above. The collector reads the record, but not the part that is set
                // here.
                let context = unsafe { NonNull::new_unchecked(context) };
                // SAFETY: as above.
                let record = unsafe { context.as_ref() };
                record.attach(thread);
                // A collector changes the record's flag in a stop only, so it does not change here.
                // Relaxed: the stop orders it.
                record.thread().no_preempt(|| {
                    // SAFETY: no arguments, no memory.
                    let owner = unsafe { libc::pthread_self() } as usize;
                    let context = context.as_ptr().cast_const();
                    // If the table is full (a million mutators), the child of a fork never reuses
                    // the spans of this mutator.
                    if let Ok(at) = record
                        .shared
                        .contexts
                        .lock()
                        .add(Attached::new(owner, context))
                    {
                        record.place.set(at);
                    }
                    // A stop does not wait for a thread that attaches inside `blocking` of another
                    // heap, so marking may begin between the load and the store. SeqCst pairs with
                    // the collector's SeqCst: it changes the heap's flag first and the records'
                    // flags after it. So either the stored flag is right, or the second load finds
                    // it wrong.
                    loop {
                        let marking = record.shared.marking.load(Ordering::SeqCst);
                        seam::hold();
                        record.marking.store(seam::flag(marking), Ordering::SeqCst);
                        if record.shared.marking.load(Ordering::SeqCst) == marking
                            || !seam::looks_again()
                        {
                            break;
                        }
                    }
                });
                Ok(Self {
                    runs,
                    context,
                    heap: ManuallyDrop::new(heap.clone()),
                    failure: Cell::new(None),
                    _on_its_thread: PhantomData,
                })
            }
            Err(error) => {
                // SAFETY: made above, and no other code has it.
                drop(unsafe { Box::from_raw(context) });
                if matches!(error, gc_preempt::AttachError::AlreadyAttached)
                    && let Some(left) = Self::left_behind(heap)
                {
                    drop(left);
                    return Self::attach(heap);
                }
                Err(AttachError::Thread(error))
            }
        }
    }

    /// The mutator that this thread dropped inside `no_preempt` and that can detach now.
    fn left_behind(heap: &Heap) -> Option<Self> {
        if gc_preempt::in_no_preempt_here() {
            return None;
        }
        // SAFETY: no arguments, no memory.
        let me = unsafe { libc::pthread_self() } as usize;
        let (context, heap) = protected(|| {
            let mut contexts = heap.shared().contexts.lock();
            let mut from = 0;
            while let Some((at, attached)) = contexts.next(from) {
                from = at + 1;
                if attached.owner != me {
                    continue;
                }
                // SAFETY: this thread's own record, which is freed only after it has been removed
                // from the slab.
                if let Some(heap) = unsafe { attached.context().left.take() } {
                    return Some((NonNull::new(attached.as_ptr().cast_mut())?, heap));
                }
            }
            None
        })?;
        // SAFETY: as above.
        let runs = unsafe { context.as_ref() }.runs();
        Some(Self {
            runs,
            context,
            heap: ManuallyDrop::new(Heap::kept(heap)?),
            failure: Cell::new(None),
            _on_its_thread: PhantomData,
        })
    }
}

/// Gives back the mutator's runs and log, and removes its record from the heap.
fn retire(context: &Context) {
    // SAFETY: on the mutator's own thread, which is not stopped meanwhile.
    context
        .thread()
        .no_preempt(|| unsafe { give_back(context) });
}

/// Removes a record from the heap's table.
fn strike_off(context: &Context) {
    context
        .shared
        .contexts
        .lock()
        .take(context.place.replace(usize::MAX));
}

/// Removes the record, ends its open scopes, and gives back its runs and its log.
///
/// # Safety
/// On the mutator's own thread inside `no_preempt`, or with the registry lock held after the thread
/// has ended.
unsafe fn give_back(context: &Context) {
    strike_off(context);
    // The collector no longer finds the record. A scope that is still open belongs to a thread that
    // has ended inside it.
    context.handles.retire(|word| context.log(word));
    context.local.retire(&context.shared.space);
    if seam::gives_its_log() {
        context.flush_log();
    }
}

/// Hooks for a mutator whose [`Mutator`] is not dropped, and for one that returns after it was set
/// aside.
const HOOKS: gc_preempt::MutatorHooks = gc_preempt::MutatorHooks {
    at_exit,
    gone,
    back: Some(collector::back),
};

/// A thread has ended without running its destructors. Its log has words that were overwritten
/// while marking was on, which marking still needs.
///
/// # Safety
/// `data` is the record of a mutator whose thread has ended, and the registry lock is held.
unsafe fn gone(data: *mut ()) {
    // SAFETY: by the contract; the record of a thread that ends so is never freed.
    unsafe { give_back(&*data.cast::<Context>()) };
}

/// A thread ends whose [`Mutator`] was leaked.
///
/// # Safety
/// `data` is the record of the calling thread, which is still attached.
unsafe fn at_exit(data: *mut ()) {
    // SAFETY: by the contract; the record of a leaked mutator is never freed.
    let context = unsafe { &*data.cast::<Context>() };
    retire(context);
    context.gone.set(true);
}

impl Drop for Mutator {
    fn drop(&mut self) {
        let record = self.record();
        let gone = record.gone.get();
        let blocking = !gone && record.thread().is_blocking();
        if !gone && record.thread().in_no_preempt() {
            // The thread must not wait for the registry lock here. It stays attached until it
            // attaches to the heap again, or ends.
            // SAFETY: taken once, here: this is the drop, and the rest of it does not use the heap.
            let heap = unsafe { ManuallyDrop::take(&mut self.heap) };
            self.record().left.set(Some(heap.keep()));
            return;
        }
        if blocking && !seam::detaches_in_blocking() {
            return;
        }
        if !gone && !blocking {
            retire(record);
        } else if blocking {
            // The collector does not find the record any more once the record is out of the table.
            gc_preempt::no_preempt_here(|| strike_off(record));
        }
        // SAFETY: the thread detaches first, so no collector has the record when it is freed. The
        // heap's handle is dropped last, since it may be the last one.
        unsafe {
            let mut context = Box::from_raw(self.context.as_ptr());
            let thread = context.detach();
            if gone {
                // A thread-local that is dropped after the thread has detached: the thread's record
                // of `gc-preempt` may belong to another thread by now.
                core::mem::forget(thread);
            } else if let Some(thread) = thread {
                if blocking {
                    // A stop takes this thread for stopped already, so the data that stops read may
                    // change only while no stop is under way.
                    let section = || gc_preempt::no_preempt_here(|| give_back(&context));
                    thread.detach_after(section);
                } else {
                    drop(thread);
                }
            }
            drop(context);
            ManuallyDrop::drop(&mut self.heap);
        }
    }
}

mod seam {
    use crate::fault::Fault;
    use crate::weak::IDLE;

    /// The flag of a new record, where the heap's is `marking`.
    pub(super) fn flag(marking: u32) -> u32 {
        if Fault::AttachedUnmarked.planted() {
            IDLE
        } else {
            marking
        }
    }

    /// Loads the heap's flag a second time.
    pub(super) fn looks_again() -> bool {
        !Fault::AttachOnce.planted()
    }

    /// Not a planted fault: a collection begins between the load and the store.
    pub(super) fn hold() {
        if Fault::HeldAttach.planted() {
            gc_preempt::faults::hold();
        }
    }

    pub(super) fn gives_its_log() -> bool {
        !Fault::LogKeptAtDetach.planted()
    }

    pub(super) fn detaches_in_blocking() -> bool {
        !Fault::BlockingStaysAttached.planted()
    }
}
