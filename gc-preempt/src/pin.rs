//! Keeps the module that Urge is part of loaded until the process ends.
//!
//! The process keeps addresses of that module: the SIGURG handler, the destructors of
//! thread-specific keys, the fork handlers, the panic hook, and unwind rules that are cached from
//! one stop to the next. None of these can be removed safely: another handler may be installed over
//! ours and call it, and a thread may run any of them. So `dlclose` of a plugin with Urge in it
//! must not unmap the plugin. `RTLD_NODELETE` says that to the loader.

use core::ffi::CStr;
use core::mem::MaybeUninit;
use std::io;

/// Pins the module. May be called more than once. Takes the loader's lock, so no lock of this crate
/// may be held.
///
/// # Errors
/// The loader's message.
pub(crate) fn pin() -> io::Result<()> {
    if seam::leaves_unpinned() {
        return Ok(());
    }
    let here = pin as fn() -> io::Result<()> as usize;
    // A module that the loader does not know, and the executable, are never unloaded.
    let Some(ours) = module(here) else {
        return Ok(());
    };
    // SAFETY: `getauxval` only reads.
    let headers = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
    if module(headers).is_some_and(|executable| executable.dli_fbase == ours.dli_fbase) {
        return Ok(());
    }
    let how = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
    // SAFETY: the name is the one under which the loader knows a module that is loaded, since code
    // of it runs; with RTLD_NOLOAD nothing is loaded and no initialiser runs.
    if unsafe { libc::dlopen(ours.dli_fname, how) }.is_null() {
        // SAFETY: null, or a C string of this thread, valid until its next call of the loader.
        let why = unsafe {
            let why = libc::dlerror();
            (!why.is_null()).then(|| CStr::from_ptr(why).to_string_lossy().into_owned())
        };
        return Err(io::Error::other(why.unwrap_or_default()));
    }
    Ok(())
}

/// What the loader knows of the module at an address. `None`: there is no module.
fn module(address: usize) -> Option<libc::Dl_info> {
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: any address may be asked for; the call fills `info` if it returns something but zero.
    unsafe {
        (libc::dladdr(address as *const _, info.as_mut_ptr()) != 0).then(|| info.assume_init())
    }
}

/// What tests may break here.
mod seam {
    use crate::faults::Fault;

    pub(super) fn leaves_unpinned() -> bool {
        Fault::Unpinned.planted()
    }
}
