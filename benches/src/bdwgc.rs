//! The Boehm-Demers-Weiser collector as a peer. The benches load it at run time, so building and
//! testing do not need it.

use std::ffi::{CStr, c_int, c_void};

/// The message if the library is missing.
pub const MISSING: &str = "bdwgc: not installed (apt-get install libgc1), skipped";

/// The loaded and initialised library. It is never unloaded.
#[derive(Clone, Copy, Debug)]
pub struct Bdwgc {
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    collections: unsafe extern "C" fn() -> usize,
    interior: c_int,
}

impl Bdwgc {
    /// Loads and initialises the library, for the calling thread.
    ///
    /// As it is installed, every interior pointer keeps its object, also from the heap. For this,
    /// bdwgc adds a byte to each object, and 16 bytes become 32. `interior: false` sets Urge's
    /// default: interior pointers count on stacks and in registers only, and 16 bytes stay 16. The
    /// setting holds for the process.
    pub fn load(interior: bool) -> Option<Bdwgc> {
        // SAFETY: the functions have these signatures (gc.h) in every bdwgc with this soname, which
        // is version 7.2 or later.
        unsafe {
            let library = libc::dlopen(c"libgc.so.1".as_ptr(), libc::RTLD_NOW);
            if library.is_null() {
                return None;
            }
            let symbol = |name: &CStr| {
                let address = libc::dlsym(library, name.as_ptr());
                (!address.is_null()).then_some(address)
            };
            let set_interior = symbol(c"GC_set_all_interior_pointers")?;
            let set_interior =
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(set_interior);
            let init =
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(symbol(c"GC_init")?);
            let malloc = symbol(c"GC_malloc")?;
            let collections = symbol(c"GC_get_gc_no")?;
            set_interior(c_int::from(interior));
            init();
            Some(Bdwgc {
                malloc: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(usize) -> *mut c_void,
                >(malloc),
                collections: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> usize>(
                    collections,
                ),
                interior: c_int::from(interior),
            })
        }
    }

    /// `GC_malloc(bytes)`: zeroed memory.
    ///
    /// # Panics
    /// If there is no memory.
    #[inline(always)]
    pub fn malloc(self, bytes: usize) -> usize {
        // SAFETY: the library is initialised, and this is the thread that initialised it.
        let cell = unsafe { (self.malloc)(bytes) } as usize;
        assert!(cell != 0, "bdwgc has no memory left");
        cell
    }

    /// The number of collections so far.
    pub fn collections(self) -> usize {
        // SAFETY: the library is initialised.
        unsafe { (self.collections)() }
    }

    /// A description of the setting.
    pub fn setup(self) -> &'static str {
        if self.interior == 0 {
            "interior pointers from stacks only, 16 bytes an object"
        } else {
            "as installed: interior pointers from everywhere, 32 bytes an object"
        }
    }
}
