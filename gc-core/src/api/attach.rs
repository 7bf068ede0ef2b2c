//! How a thread attaches to a heap, and how it detaches: by its [`Mutator`]'s drop, or at its end.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use core::time::Duration;

use crate::alloc::LocalAllocator;
use crate::api::heap::Heap;
use crate::api::mutator::Mutator;
use crate::collector;
use crate::fault::{Fault, planted, protected};
use crate::memory::MapError;
use crate::mutator::handles::Handles;
use crate::mutator::record::Context;
use crate::mutator::shared::Attached;
use crate::weak::IDLE;

/// Why a thread could not attach.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// It is attached already, or the system refused what a stop needs.
    Thread(gc_preempt::AttachError),
    /// The system refused memory for its runs.
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
    /// Attaches the running thread, which may then allocate until the result is dropped. It does so
    /// on its own stack: a stop waits for a thread that is on another one (a coroutine's) until it
    /// is back.
    ///
    /// # Errors
    /// [`AttachError`]: the thread is attached to this heap already, or the system refused what it
    /// needs.
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
        // SAFETY: the context is freed only after the thread has detached, by `drop`; where that
        // never comes, at the thread's end, it is leaked and may be used for as long as the thread
        // lives.
        let attached = unsafe { heap.world().attach_with(context.cast(), HOOKS) };
        match attached {
            Ok(thread) => {
                // SAFETY: made above. Other threads (the collector) read it, but not the part that
                // is set here.
                let context = unsafe { NonNull::new_unchecked(context) };
                // SAFETY: as above.
                let record = unsafe { context.as_ref() };
                record.attach(thread);
                // A collector changes the flag in a stop only, so it does not change here. Relaxed:
                // the stop orders it.
                record.thread().no_preempt(|| {
                    // SAFETY: no arguments, no memory.
                    let owner = unsafe { libc::pthread_self() } as usize;
                    let context = context.as_ptr().cast_const();
                    // With more than a million mutators, a child's spans of the last ones are never
                    // used again.
                    if let Ok(at) = record
                        .shared
                        .contexts
                        .lock()
                        .add(Attached::new(owner, context))
                    {
                        record.place.set(at);
                    }
                    // A thread that attaches inside `blocking` of another heap is held by a stop
                    // without being waited for: marking may begin between the two lines. SeqCst:
                    // the collector changes the heap's flag first and the records' then, so what is
                    // stored here is right, or the second look finds it wrong.
                    loop {
                        let marking = record.shared.marking.load(Ordering::SeqCst);
                        if planted(Fault::AttachOnce) {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        let mode = if planted(Fault::AttachedUnmarked) {
                            IDLE
                        } else {
                            marking
                        };
                        record.marking.store(mode, Ordering::SeqCst);
                        if record.shared.marking.load(Ordering::SeqCst) == marking
                            || planted(Fault::AttachOnce)
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

    /// The mutator that this thread has dropped where it could not detach, if it can now.
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
                // SAFETY: this thread's own record, which is freed after it was taken out of the
                // slab.
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

/// Gives back what a mutator has: its runs and its log.
fn retire(context: &Context) {
    // SAFETY: on its own thread, which is not stopped in it.
    context
        .thread()
        .no_preempt(|| unsafe { give_back(context) });
}

/// Takes a record out of the heap's.
fn strike_off(context: &Context) {
    context
        .shared
        .contexts
        .lock()
        .take(context.place.replace(usize::MAX));
}

/// # Safety
/// On the mutator's own thread inside `no_preempt`, or with the registry lock held after the thread
/// has ended.
unsafe fn give_back(context: &Context) {
    strike_off(context);
    // The collector does not meet the record any more. A scope that is open still is one of a
    // thread that has ended inside it.
    context.handles.retire(|word| context.log(word));
    context.local.retire(&context.shared.space);
    if !planted(Fault::LogKeptAtDetach) {
        context.flush_log();
    }
}

/// What becomes of a mutator's record where its [`Mutator`] is not dropped, and where it has been
/// set aside.
const HOOKS: gc_preempt::MutatorHooks = gc_preempt::MutatorHooks {
    at_exit,
    gone,
    back: Some(collector::back),
};

/// A thread has ended without running any destructor. What it had logged was overwritten in the
/// snapshot of a cycle under way, so it must not be lost.
///
/// # Safety
/// `data` is the context of a mutator whose thread has ended, with the registry lock held.
unsafe fn gone(data: *mut ()) {
    // SAFETY: by the contract; contexts of threads that end so are never freed.
    unsafe { give_back(&*data.cast::<Context>()) };
}

/// The end of a thread whose [`Mutator`] was leaked.
///
/// # Safety
/// `data` is the context of the calling thread, still attached.
unsafe fn at_exit(data: *mut ()) {
    // SAFETY: by the contract; contexts of leaked mutators are never freed.
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
            // It cannot wait for the registry here. It stays attached until the thread attaches to
            // the heap again, or ends.
            // SAFETY: taken once: this is the drop, and what follows does not use it.
            let heap = unsafe { ManuallyDrop::take(&mut self.heap) };
            self.record().left.set(Some(heap.keep()));
            return;
        }
        if blocking && planted(Fault::BlockingStaysAttached) {
            return;
        }
        if !gone && !blocking {
            retire(record);
        } else if blocking {
            // The collector meets the record no more when it has no thread.
            gc_preempt::no_preempt_here(|| strike_off(record));
        }
        // SAFETY: the thread's registration goes first, so that no collector has the context when
        // it is freed; the heap's handle last, since it may be the last one.
        unsafe {
            let mut context = Box::from_raw(self.context.as_ptr());
            let thread = context.detach();
            if gone {
                // A thread-local that is dropped after the one that detached this thread: its
                // record may be another thread's by now.
                core::mem::forget(thread);
            } else if let Some(thread) = thread {
                if blocking {
                    // A stop takes this thread for stopped already: what it reads changes only
                    // where no stop is.
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
