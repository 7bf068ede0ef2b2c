//! Panics in a stopped world end the process with a message.
//!
//! A panic on the thread that holds a stop must not go its usual way: formatting its message may
//! call malloc, the standard hook takes the lock of standard error, and unwinding calls malloc. A
//! stopped thread may hold any of these locks. Two mechanisms end such a panic:
//!
//! * Our panic hook aborts, with the panic's message. It is put on top of the host's hook when a
//!   world is made, and when a world is stopped first.
//! * A hook that the host sets later runs before ours, and the message is formatted before any
//!   hook. A panic may wait there for a lock that a parked thread holds. So a thread that is parked
//!   for long signals the stopper (`stopper::ask`), and the stopper's handler aborts if the stopper
//!   panics.

use core::fmt::Write;
use core::sync::atomic::{AtomicPtr, Ordering};
use std::panic::PanicHookInfo;
use std::sync::{Mutex, PoisonError};

use crate::registry::in_no_preempt_here;
use crate::stopper::holds_a_stop;
use crate::text::Text;

/// The address of the hook that was installed last, or null.
static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Puts the panic hook that aborts in a stopped world before the host's hook. Allocates; takes the
/// lock of the hook.
///
/// A hook that another thread sets between `take_hook` and `set_hook` is lost. So a world does this
/// when it is made and when it is stopped first, not in each stop.
pub(crate) fn put_panic_hook_on_top() {
    if std::thread::panicking() || in_no_preempt_here() {
        return;
    }
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let top = std::panic::take_hook();
    let address = core::ptr::from_ref(&*top).cast::<()>().cast_mut();
    // Relaxed: under `ONE_AT_A_TIME`.
    let last = HOOK.load(Ordering::Relaxed);
    if address == last || seam::leaves_hook_below(last) {
        std::panic::set_hook(top);
    } else {
        let ours: Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync> = Box::new(move |info| {
            if !holds_a_stop() {
                return top(info);
            }
            abort_with(Some(info));
        });
        HOOK.store(
            core::ptr::from_ref(&*ours).cast::<()>().cast_mut(),
            Ordering::Relaxed,
        );
        std::panic::set_hook(ours);
    }
    drop(one);
}

fn abort_with(info: Option<&PanicHookInfo<'_>>) -> ! {
    let mut t = Text::new();
    let _ = t.write_str("urge: panic while the world is stopped");
    match info {
        Some(info) => {
            if let Some(at) = info.location() {
                let _ = write!(t, ", at {at}");
            }
            if let Some(message) = info.payload_as_str() {
                let _ = write!(t, ": {message}");
            }
        }
        None => {
            let _ = t.write_str(
                ": its message, or a panic hook that was set after the world was first stopped, waits for a lock that a stopped thread holds",
            );
        }
    }
    let _ = t.write_str("\n");
    t.print();
    std::process::abort();
}

/// Aborts if the calling thread panics in the stop that it holds. In the handler.
pub(crate) fn abort_if_panicking() {
    // `panicking` reads a counter and a thread-local that needs no initialisation.
    if holds_a_stop() && std::thread::panicking() {
        abort_with(None);
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    /// Leaves the hook where it was put first.
    pub(super) fn leaves_hook_below(last: *mut ()) -> bool {
        !last.is_null() && Fault::HookBelow.planted()
    }
}
