//! Keeps the module that Urge is part of loaded until the process ends.
//!
//! The process holds addresses of that module for ever: the SIGURG handler, the destructor of a
//! thread-specific key, the fork handlers, the panic hook, unwind rules that are kept from one stop
//! to the next. None of them can be taken back safely: another handler may be installed over ours
//! and chain to it, and a thread may be inside any of them. So a host that loads a plugin with Urge
//! in it and calls `dlclose` later must not unmap the plugin. `RTLD_NODELETE` says that to the
//! loader.

use core::ffi::CStr;
use core::mem::MaybeUninit;
use std::io;

/// Pins the module, or says why that cannot be done. May be called again. Takes the loader's lock:
/// not under a lock of ours.
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
        // SAFETY: null, or a C string of this thread's that stays until its next call of the
        // loader.
        let why = unsafe {
            let why = libc::dlerror();
            (!why.is_null()).then(|| CStr::from_ptr(why).to_string_lossy().into_owned())
        };
        return Err(io::Error::other(why.unwrap_or_default()));
    }
    Ok(())
}

/// What the loader knows of the module at an address.
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
