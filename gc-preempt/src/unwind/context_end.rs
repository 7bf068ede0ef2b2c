//! The outermost frame of a stack that `makecontext` was given.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The return address of a function that runs in a context of `makecontext`. 0: not known. No
/// unwind table says that the stack ends there: tables are searched for the address before it,
/// which belongs to no function.
static CONTEXT_END: AtomicUsize = AtomicUsize::new(0);

/// Is this the return address of the outermost frame of a stack that `makecontext` was given?
pub(crate) fn ends_a_context(pc: usize) -> bool {
    // Relaxed: written before the first stop.
    pc == CONTEXT_END.load(Ordering::Relaxed) && pc != 0
}

/// Makes a context, and stores its return address.
pub(super) fn look_at_a_context() {
    extern "C" fn never() {}
    unsafe extern "C" {
        fn getcontext(context: *mut libc::ucontext_t) -> c_int;
        fn makecontext(context: *mut libc::ucontext_t, f: extern "C" fn(), n: c_int, ...);
    }
    let mut stack = [0usize; 128];
    // SAFETY: zero is a valid ucontext_t, which `getcontext` fills. The context is never switched
    // to; `makecontext` writes some words at the end of its stack.
    let sp = unsafe {
        let mut context: libc::ucontext_t = std::mem::zeroed();
        if getcontext(&raw mut context) != 0 {
            return;
        }
        context.uc_stack.ss_sp = stack.as_mut_ptr().cast();
        context.uc_stack.ss_size = size_of_val(&stack);
        makecontext(&raw mut context, never, 0);
        context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    };
    let index = sp.wrapping_sub(stack.as_ptr() as usize) / 8;
    if let Some(back) = std::hint::black_box(&stack).get(index) {
        CONTEXT_END.store(*back, Ordering::Relaxed);
    }
}
