//! Roots that C declares: single cells, ranges of words, and callbacks.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::AtomicUsize;

use gc_core::raw::{RawRoot, RootCallback, RootRange, RootVisitor};

use crate::error::{Failure, code, run, urge_status};
use crate::heap::{encoding, heap_of, urge_encoding, urge_heap};
use crate::mutator::{mutator_of, urge_mutator};

/// A root: it keeps one cell and its heap alive. Any thread may use it, also one that is not
/// attached.
pub struct urge_root(RawRoot);

/// A declared range of roots.
pub struct urge_range {
    _declared: RootRange,
}

/// A registered callback of roots.
pub struct urge_callback {
    _registered: RootCallback,
}

/// What a callback reports its roots to. It ends with the call.
pub struct urge_visitor {
    _private: u8,
}

/// Makes a root of `cell`, which the caller owns and gives back to urge_root_free(). NULL is an
/// error. Not inside urge_no_preempt(): it takes memory from malloc.
///
/// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null.
///
/// # Safety
/// `heap` is NULL or alive; `cell` is NULL or the first byte of a live cell of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_root_new(
    heap: *const urge_heap,
    cell: *mut c_void,
) -> *mut urge_root {
    run("urge_root_new", || {
        // SAFETY: by the contract.
        let heap = unsafe { heap_of(heap)? };
        let cell = NonNull::new(cell.cast()).ok_or_else(|| Failure::invalid("`cell` is NULL"))?;
        // SAFETY: by the contract.
        let root = unsafe { heap.heap.root_raw(cell)? };
        Ok(Box::into_raw(Box::new(urge_root(root))))
    })
    .unwrap_or(null_mut())
}

/// The root's cell, or NULL if it holds none.
///
/// # Safety
/// `root` is NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_root_get(root: *const urge_root) -> *mut c_void {
    // SAFETY: by the contract. To read a root cannot fail.
    let cell = unsafe { root.as_ref() }.and_then(|root| root.0.get());
    cell.map_or(null_mut(), |cell| cell.as_ptr().cast())
}

/// Makes the root hold another cell, or none for NULL.
///
/// # Safety
/// `root` is NULL or alive; `cell` is NULL or the first byte of a live cell of its heap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_root_set(root: *const urge_root, cell: *mut c_void) -> urge_status {
    code("urge_root_set", || {
        // SAFETY: by the contract.
        let root = unsafe { root.as_ref() }.ok_or_else(|| Failure::invalid("`root` is NULL"))?;
        // SAFETY: by the contract.
        unsafe { root.0.set(NonNull::new(cell.cast())) };
        Ok(())
    })
}

/// Frees a root. Does nothing for NULL. Not inside urge_no_preempt().
///
/// # Safety
/// `root` is NULL, or came from urge_root_new() and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_root_free(root: *mut urge_root) {
    let _ = code("urge_root_free", || {
        if !root.is_null() {
            // SAFETY: by the contract; made by `Box::into_raw`.
            drop(unsafe { Box::from_raw(root) });
        }
        Ok(())
    });
}

/// Declares the words from `base` up to the address in `*limit` as roots, such as an interpreter's
/// stack. Stores into them need no barrier. The collector reads `*limit` in a stop, so the word
/// must be stored before the limit moves over it. NULL is an error.
///
/// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null or an unaligned `base`.
///
/// # Safety
/// `mutator` is NULL or attached. Until urge_range_free(), `*limit` and all words below it are
/// readable at every instruction.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_range_new(
    mutator: *mut urge_mutator,
    base: *const usize,
    limit: *const usize,
    form: *const urge_encoding,
) -> *mut urge_range {
    run("urge_range_new", || {
        // SAFETY: by the contract.
        let mutator = unsafe { mutator_of(mutator)? };
        if base.is_null() || limit.is_null() || !base.is_aligned() || !limit.is_aligned() {
            return Err(Failure::invalid("`base` or `limit` is NULL or not aligned"));
        }
        // SAFETY: by the contract; an AtomicUsize has the layout of a usize.
        let declared =
            unsafe { mutator.root_range(base, limit.cast::<AtomicUsize>(), encoding(form))? };
        Ok(Box::into_raw(Box::new(urge_range {
            _declared: declared,
        })))
    })
    .unwrap_or(null_mut())
}

/// Ends a range. Does nothing for NULL. Not inside urge_no_preempt().
///
/// # Safety
/// `range` is NULL, or came from urge_range_new() and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_range_free(range: *mut urge_range) {
    let _ = code("urge_range_free", || {
        if !range.is_null() {
            // SAFETY: by the contract; made by `Box::into_raw`.
            drop(unsafe { Box::from_raw(range) });
        }
        Ok(())
    });
}

/// The data of a callback, which the collector's thread hands to it.
struct Data(*mut c_void);

// SAFETY: the caller of urge_callback_new() promises that the callback may use it on any thread.
unsafe impl Send for Data {}

impl Data {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Registers `f`, which reports roots by urge_visit() in every collection, until
/// urge_callback_free(). NULL is an error. Not inside urge_no_preempt().
///
/// `f` runs on the collector's thread while every mutator is stopped, at any instruction. It must
/// not call malloc, print, or take a lock, and must return. It may read only memory that mutators
/// change inside urge_no_preempt(). Of this interface it may call urge_visit() alone.
///
/// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null.
///
/// # Safety
/// `heap` is NULL or alive; `f` keeps the rules above, with `data`, on any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_callback_new(
    heap: *const urge_heap,
    f: Option<unsafe extern "C" fn(visitor: *mut urge_visitor, data: *mut c_void)>,
    data: *mut c_void,
) -> *mut urge_callback {
    run("urge_callback_new", || {
        // SAFETY: by the contract.
        let heap = unsafe { heap_of(heap)? };
        let f = f.ok_or_else(|| Failure::invalid("`f` is NULL"))?;
        let data = Data(data);
        // SAFETY: by the contract.
        let registered = unsafe {
            heap.heap.add_root_callback(move |visitor| {
                let visitor: *mut RootVisitor<'_> = visitor;
                f(visitor.cast(), data.get());
            })?
        };
        Ok(Box::into_raw(Box::new(urge_callback {
            _registered: registered,
        })))
    })
    .unwrap_or(null_mut())
}

/// Removes a callback. Does nothing for NULL. Not inside urge_no_preempt().
///
/// # Safety
/// `callback` is NULL, or came from urge_callback_new() and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_callback_free(callback: *mut urge_callback) {
    let _ = code("urge_callback_free", || {
        if !callback.is_null() {
            // SAFETY: by the contract; made by `Box::into_raw`.
            drop(unsafe { Box::from_raw(callback) });
        }
        Ok(())
    });
}

/// Reports one word as a root, in the form `form` (NULL: a plain address). Inside a callback only.
///
/// # Safety
/// `visitor` is the one that the running callback was given; `form` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_visit(
    visitor: *mut urge_visitor,
    word: usize,
    form: *const urge_encoding,
) {
    // SAFETY: by the contract.
    unsafe { (*visitor.cast::<RootVisitor<'_>>()).word(word, encoding(form)) }
}
