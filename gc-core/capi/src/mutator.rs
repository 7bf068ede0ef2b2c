//! Attached threads: allocation, stores, weak words, finalizers, and the sections in which a thread
//! is not stopped or need not be.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use std::sync::Arc;

use gc_core::Mutator;

use crate::error::{Failure, code, run, urge_status};
use crate::heap::{OwnSite, heap_of, kind_of, urge_heap, urge_kind, urge_site};

/// Free cells of one site that a mutator owns. urge_new() reads and moves the cursor.
#[repr(C)]
pub struct urge_run {
    /// The next cell.
    pub cursor: usize,
    /// One past the last cell.
    pub limit: usize,
}

const _: () = {
    use gc_core::jit::Run;
    assert!(size_of::<urge_run>() == size_of::<Run>());
    assert!(core::mem::offset_of!(urge_run, cursor) == core::mem::offset_of!(Run, cursor));
    assert!(core::mem::offset_of!(urge_run, limit) == core::mem::offset_of!(Run, limit));
};

/// The running thread's attachment to a heap. Only this thread may use it.
#[repr(C)]
pub struct urge_mutator {
    /// One run for each site. The address is constant while the thread is attached.
    pub runs: *mut urge_run,
}

/// A mutator as this crate has it. C sees its first member.
#[repr(C)]
struct Attached {
    seen: urge_mutator,
    owner: usize,
    mutator: Mutator,
    // After the mutator: the heap goes last.
    heap: Arc<urge_heap>,
}

fn me() -> usize {
    // SAFETY: no arguments, no memory.
    unsafe { libc::pthread_self() as usize }
}

/// # Safety
/// `mutator` is NULL, or came from `urge_attach` and was not detached.
unsafe fn attached<'m>(mutator: *const urge_mutator) -> Result<&'m Attached, Failure> {
    // SAFETY: by the contract; the allocation is an `Attached`.
    match unsafe { mutator.cast::<Attached>().as_ref() } {
        None => Err(Failure::invalid("the mutator is NULL")),
        Some(m) if m.owner != me() => Err(Failure::invalid("the mutator is another thread's")),
        Some(m) => Ok(m),
    }
}

/// # Safety
/// As [`attached`].
pub(crate) unsafe fn mutator_of<'m>(mutator: *const urge_mutator) -> Result<&'m Mutator, Failure> {
    // SAFETY: forwarded.
    Ok(&unsafe { attached(mutator)? }.mutator)
}

/// As [`mutator_of`], where a thread in a blocking section is an error.
///
/// # Safety
/// As [`attached`].
unsafe fn running<'m>(mutator: *const urge_mutator) -> Result<&'m Attached, Failure> {
    // SAFETY: forwarded.
    let attached = unsafe { attached(mutator)? };
    if attached.mutator.thread().is_blocking() {
        return Err(Failure::new(
            urge_status::State,
            "the thread is inside urge_blocking(), where it must not use the heap",
        ));
    }
    Ok(attached)
}

/// Attaches the running thread to the heap, and writes its mutator into `*out`. From then on the
/// thread may be stopped, its stack is scanned, and it must not wait outside of urge_blocking() for
/// what another attached thread does inside urge_no_preempt(). urge_detach() ends it; so does the
/// end of the thread, but then the mutator's memory and its share in the heap stay. A thread may
/// attach to several heaps, to each once.
///
/// Errors: URGE_STATUS_STATE if the thread is attached to this heap, or the system refuses a
/// resource; URGE_STATUS_INVALID for null.
///
/// # Safety
/// `heap` is NULL or alive; `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_attach(
    heap: *const urge_heap,
    out: *mut *mut urge_mutator,
) -> urge_status {
    code("urge_attach", || {
        // SAFETY: by the contract.
        let owner = unsafe { heap_of(heap)? };
        if out.is_null() {
            return Err(Failure::invalid("`out` is NULL"));
        }
        let mutator = owner
            .heap
            .attach()
            .map_err(|e| Failure::new(urge_status::State, e))?;
        // SAFETY: the heap is alive, and came from `Arc::into_raw`.
        let heap = unsafe {
            Arc::increment_strong_count(heap);
            Arc::from_raw(heap)
        };
        let attached = Box::new(Attached {
            seen: urge_mutator {
                runs: mutator.runs().cast(),
            },
            owner: me(),
            mutator,
            heap,
        });
        // SAFETY: writable, by the contract.
        unsafe { out.write(Box::into_raw(attached).cast()) };
        Ok(())
    })
}

/// Detaches the thread. The mutator is gone after it. Does nothing for NULL.
///
/// Errors: URGE_STATUS_STATE inside urge_no_preempt() or urge_blocking(); URGE_STATUS_INVALID on
/// another thread. The mutator stays.
///
/// # Safety
/// `mutator` is NULL, or came from urge_attach() and was not detached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_detach(mutator: *mut urge_mutator) -> urge_status {
    code("urge_detach", || {
        if mutator.is_null() {
            return Ok(());
        }
        // SAFETY: by the contract.
        if unsafe { running(mutator)? }
            .mutator
            .thread()
            .in_no_preempt()
        {
            return Err(Failure::new(
                urge_status::State,
                "the thread is inside urge_no_preempt()",
            ));
        }
        // SAFETY: by the contract; made by `Box::into_raw`.
        drop(unsafe { Box::from_raw(mutator.cast::<Attached>()) });
        Ok(())
    })
}

/// Allocates a cell of `site`: zeroed, unless the kind's cells are not cleared. NULL is an error.
/// The cell lives while a register, a stack of an attached thread, a root, or a live cell leads to
/// it. urge_new() is the same, inline. The call may collect and wait, except inside
/// urge_no_preempt(), where it fails at the heap's limit.
///
/// Errors: URGE_STATUS_NO_MEMORY; URGE_STATUS_INVALID for null, another heap's site, or another
/// thread's mutator; URGE_STATUS_STATE inside urge_blocking().
///
/// # Safety
/// `mutator` is NULL or attached; `site` is NULL or of a heap that is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_alloc_at(
    mutator: *mut urge_mutator,
    site: *const urge_site,
) -> *mut c_void {
    run("urge_alloc_at", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        // SAFETY: by the contract; each site is an `OwnSite`.
        let site = match unsafe { site.cast::<OwnSite>().as_ref() } {
            None => return Err(Failure::invalid("the site is NULL")),
            Some(site) if site.heap != Arc::as_ptr(&attached.heap) => {
                return Err(Failure::invalid("the site is another heap's"));
            }
            Some(site) => site.site,
        };
        // SAFETY: the site is of this heap.
        Ok(unsafe { attached.mutator.alloc_at(site)? }.as_ptr().cast())
    })
    .unwrap_or(null_mut())
}

/// Allocates a cell of `kind` with `bytes` bytes, which may be a large object. It is slower than
/// urge_alloc_at(), whose rules and errors it has. URGE_STATUS_INVALID also stands for a size that
/// no heap can have.
///
/// # Safety
/// `mutator` is NULL or attached; `kind` is NULL or of a heap that is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_alloc(
    mutator: *mut urge_mutator,
    kind: *const urge_kind,
    bytes: usize,
) -> *mut c_void {
    run("urge_alloc", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        // SAFETY: by the contract.
        let kind = unsafe { kind_of(Arc::as_ptr(&attached.heap), kind)? };
        // SAFETY: the kind is of this heap.
        let cell = unsafe { attached.mutator.alloc_raw(kind, bytes)? };
        Ok(cell.as_ptr().cast())
    })
    .unwrap_or(null_mut())
}

/// Stores `value` into the word `slot` of a published cell, through the write barrier. Each change
/// of an edge needs it, except the first stores into a new cell, and stores into stacks and root
/// ranges. The barrier is a call: a test of its flag in the compiler's code would leave a place
/// between test and store in which a collection may begin, and the store would lose a cell.
///
/// The arguments are not checked: the call is as fast as it can be.
///
/// # Safety
/// `mutator` is this thread's and not inside urge_blocking(); `slot` is an aligned word of a live
/// cell.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_write(mutator: *mut urge_mutator, slot: *mut usize, value: usize) {
    // SAFETY: by the contract. The routine does not panic.
    unsafe { (*mutator.cast::<Attached>()).mutator.write(slot, value) }
}

/// Loads a weak word, or the key of an ephemeron's pair. A cell that it gives lives while
/// the caller's stack or another root holds it. The arguments are not checked.
///
/// # Safety
/// As urge_write().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_load_weak(mutator: *mut urge_mutator, slot: *const usize) -> usize {
    // SAFETY: by the contract.
    unsafe { (*mutator.cast::<Attached>()).mutator.load_weak(slot) }
}

/// Changes a pair of a published ephemeron. The thread holds both targets strongly. Errors:
/// URGE_STATUS_INVALID for null, URGE_STATUS_STATE inside urge_blocking().
///
/// # Safety
/// `mutator` is NULL or attached; `pair` is NULL, or the key's word in a live cell of an ephemeron
/// kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_write_pair(
    mutator: *mut urge_mutator,
    pair: *mut usize,
    key: usize,
    value: usize,
) -> urge_status {
    code("urge_write_pair", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        if pair.is_null() {
            return Err(Failure::invalid("`pair` is NULL"));
        }
        // SAFETY: by the contract.
        unsafe { attached.mutator.write_pair(pair, key, value) };
        Ok(())
    })
}

/// Registers a finalizer: once the cell is dead, urge_next_finalizer() gives it and `token`.
/// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null; URGE_STATUS_STATE inside
/// urge_blocking().
///
/// # Safety
/// `mutator` is NULL or attached; `cell` is NULL or the first byte of a live cell.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_register_finalizer(
    mutator: *mut urge_mutator,
    cell: *mut c_void,
    token: usize,
) -> urge_status {
    code("urge_register_finalizer", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        let cell = NonNull::new(cell.cast()).ok_or_else(|| Failure::invalid("`cell` is NULL"))?;
        // SAFETY: by the contract.
        unsafe { attached.mutator.register_finalizer(cell, token)? };
        Ok(())
    })
}

/// Takes the next dead cell with a finalizer, and writes its token into `*token` unless that is
/// NULL. Returns NULL if none waits, or for an error: urge_last_status() does not change if none
/// waits. The caller may use the cell, and may allocate and collect.
///
/// # Safety
/// `mutator` is NULL or attached; `token` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_next_finalizer(
    mutator: *mut urge_mutator,
    token: *mut usize,
) -> *mut c_void {
    run("urge_next_finalizer", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        let Some((cell, found)) = attached.mutator.next_finalizer() else {
            return Ok(null_mut());
        };
        if !token.is_null() {
            // SAFETY: writable, by the contract.
            unsafe { token.write(found) };
        }
        Ok(cell.as_ptr().cast())
    })
    .unwrap_or(null_mut())
}

/// Runs a full collection and waits for it. Errors: URGE_STATUS_STATE inside urge_no_preempt() or
/// urge_blocking(); URGE_STATUS_INVALID for null or another thread's mutator.
///
/// # Safety
/// `mutator` is NULL or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_collect(mutator: *mut urge_mutator) -> urge_status {
    code("urge_collect", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        match attached.mutator.try_collect() {
            Ok(_) => Ok(()),
            Err(e) => Err(Failure::new(urge_status::State, e)),
        }
    })
}

/// Calls `f` with `data`. No stop waits for the thread meanwhile, and no signal comes. `f` may wait
/// and call anything but this interface; it must not read or write cells, and must return (neither
/// longjmp nor an exception leaves it). The cells that the thread's stack leads to stay alive.
///
/// Errors, without a call of `f`: URGE_STATUS_STATE inside urge_no_preempt(), URGE_STATUS_INVALID.
///
/// # Safety
/// `mutator` is NULL or attached; `f` keeps the rules above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_blocking(
    mutator: *mut urge_mutator,
    f: Option<unsafe extern "C" fn(data: *mut c_void)>,
    data: *mut c_void,
) -> urge_status {
    code("urge_blocking", || {
        // SAFETY: by the contract.
        let attached = unsafe { attached(mutator)? };
        let f = f.ok_or_else(|| Failure::invalid("`f` is NULL"))?;
        if attached.mutator.thread().in_no_preempt() {
            return Err(Failure::new(
                urge_status::State,
                "the thread is inside urge_no_preempt()",
            ));
        }
        // SAFETY: by the contract.
        attached.mutator.blocking(|| unsafe { f(data) });
        Ok(())
    })
}

/// Calls `f` with `data`. The thread is not stopped meanwhile: a stop waits for the end of `f`, so
/// it must be short. `f` must not call malloc, must not take a lock that another thread holds
/// outside of such a section, and must return.
///
/// Errors, without a call of `f`: URGE_STATUS_STATE inside urge_blocking(), URGE_STATUS_INVALID.
///
/// # Safety
/// `mutator` is NULL or attached; `f` keeps the rules above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_no_preempt(
    mutator: *mut urge_mutator,
    f: Option<unsafe extern "C" fn(data: *mut c_void)>,
    data: *mut c_void,
) -> urge_status {
    code("urge_no_preempt", || {
        // SAFETY: by the contract.
        let attached = unsafe { running(mutator)? };
        let f = f.ok_or_else(|| Failure::invalid("`f` is NULL"))?;
        // SAFETY: by the contract.
        attached.mutator.no_preempt(|| unsafe { f(data) });
        Ok(())
    })
}
