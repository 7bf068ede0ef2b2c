//! Heaps, their options, kinds, sites, and figures.

use core::ffi::{CStr, c_char};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gc_core::raw::{Encoding, Kind, KindId, Site};
use gc_core::{Heap, Stress, Young};

use crate::error::{Failure, code, run, urge_status};

/// How a heap is built. urge_options_init() sets the defaults. The environment variables that Urge
/// reads override them.
#[repr(C)]
pub struct urge_options {
    /// The growth between collections, in percent of the bytes that are alive. UINT32_MAX: default.
    pub gc_percent: u32,
    /// The number of marking threads; 0: the pacer decides.
    pub markers: u32,
    /// The most bytes of cells; 0: no limit.
    pub hard_limit: u64,
    /// The bytes above which collections come earlier; 0: no limit.
    pub memory_limit: u64,
    /// Bytes of addresses that the heap takes; 0: default.
    pub reserve: u64,
    /// Bytes that the system backs at once.
    pub pre_touch: u64,
    /// Milliseconds without allocation after which the heap collects; 0: never; UINT64_MAX:
    /// default.
    pub idle_milliseconds: u64,
    /// Collects after so many allocations, for tests; 0: not.
    pub collect_every: u64,
    /// Whether each collection prints a line.
    pub trace: bool,
    /// Whether each collection marks twice and compares, to find lost cells.
    pub verify: bool,
    /// Whether freed cells are overwritten.
    pub poison: bool,
    /// Whether an address one past a cell's end keeps the cell.
    pub past_the_end: bool,
    /// Whether marking stops the program.
    pub stop_the_world: bool,
    /// Whether the memory limit is the container's.
    pub memory_limit_from_cgroup: bool,
    /// Whether no signals are used: then a stop waits until each thread calls the heap.
    pub no_signals: bool,
    /// Whether no collection is young.
    pub no_young_collections: bool,
    /// Whether each phase of a collection is kept open for long, for tests.
    pub stress_phases: bool,
    /// Whether a collection follows the other without a pause, for tests.
    pub stress_continuous: bool,
    /// The encodings of conservative words; NULL: plain addresses. Read by urge_heap_new() only.
    pub encodings: *const urge_encoding,
    /// The number of `encodings`, at most 8.
    pub encodings_len: usize,
}

/// The form of a word that is an edge: `(word & mask) == value`, and `word & keep` is the address.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct urge_encoding {
    /// The bits that are compared with `value`.
    pub mask: usize,
    /// The value of the masked bits in an edge.
    pub value: usize,
    /// The bits of an edge that make up its address.
    pub keep: usize,
}

/// An encoding of C, or plain addresses for null.
///
/// # Safety
/// `encoding` is null or readable.
pub(crate) unsafe fn encoding(encoding: *const urge_encoding) -> Encoding {
    // SAFETY: forwarded.
    match unsafe { encoding.as_ref() } {
        None => Encoding::RAW,
        Some(e) => Encoding::nan_box(e.mask, e.value, e.keep),
    }
}

/// A heap. Any thread may use it.
pub struct urge_heap {
    pub(crate) heap: Heap,
    // Kinds and sites live as long as the heap. The lock is taken only to make one.
    kinds: Mutex<Vec<Box<urge_kind>>>,
    sites: Mutex<Vec<Box<OwnSite>>>,
}

/// A kind of cells of one heap. Any thread may use it while the heap lives.
pub struct urge_kind {
    pub(crate) heap: *const urge_heap,
    pub(crate) id: KindId,
}

// SAFETY: the address of the heap is only compared.
unsafe impl Send for urge_kind {}

/// A kind and a size of cells. Any thread may use it while the heap lives.
#[repr(C)]
pub struct urge_site {
    /// The index of the site's run in `urge_mutator::runs`.
    pub index: u32,
    /// The bytes of a cell.
    pub size: u32,
}

/// A site as this crate has it. C sees its first member.
#[repr(C)]
pub(crate) struct OwnSite {
    seen: urge_site,
    pub(crate) heap: *const urge_heap,
    pub(crate) site: Site,
}

// SAFETY: the address of the heap is only compared.
unsafe impl Send for OwnSite {}

/// The shape of a kind's cells.
#[repr(C)]
#[derive(Clone, Copy)]
pub enum urge_shape {
    /// No edges.
    Leaf = 0,
    /// No edges, and a new cell is not cleared.
    LeafUninit = 1,
    /// Edges at the words of `words`.
    Words = 2,
    /// Each word from `first_word` on is an edge.
    Array = 3,
    /// Each word may be an edge, in one of the heap's conservative encodings.
    Conservative = 4,
    /// Each word from `first_word` on is a weak word.
    Weak = 5,
    /// Pairs of a key and a value from `first_word` on.
    Ephemeron = 6,
}

/// The description of a kind. A zeroed one is a leaf without a name.
#[repr(C)]
pub struct urge_kind_spec {
    /// The name in messages; may be NULL. The heap copies it.
    pub name: *const c_char,
    /// One value of urge_shape.
    pub shape: u32,
    /// The first word that is an edge, of arrays, weak cells and ephemerons.
    pub first_word: u32,
    /// The numbers of the words that are edges, of URGE_SHAPE_WORDS. The heap copies them.
    pub words: *const u32,
    /// The number of `words`.
    pub words_len: usize,
    /// The form of the edges; NULL: plain addresses. The heap copies it.
    pub encoding: *const urge_encoding,
    /// What a weak word, or the key of a pair, is set to when its target dies.
    pub cleared: usize,
    /// Whether a cell's edges never change after the cell was published.
    pub immutable: bool,
    /// Whether weak words are cleared when their target is freed, after its finalizer ran.
    pub is_long: bool,
}

/// The figures of a heap. Times are in nanoseconds.
#[repr(C)]
#[derive(Default)]
pub struct urge_stats {
    /// Collections that have ended.
    pub collections: u64,
    /// Young collections among them.
    pub young_collections: u64,
    /// Bytes of spans and large objects in use.
    pub used_bytes: u64,
    /// Bytes of the heap's tables.
    pub metadata_bytes: u64,
    /// Bytes that mutators were given since the heap was built.
    pub allocated_total: u64,
    /// The bytes at which the next collection begins.
    pub trigger_bytes: u64,
    /// Dead cells that wait for urge_next_finalizer().
    pub finalizers_waiting: u64,
    /// Cells that all collections have freed.
    pub cells_freed: u64,
    /// Cells alive after the last collection.
    pub last_cells_live: u64,
    /// Bytes of these cells.
    pub last_bytes_live: u64,
    /// The sum of all pauses.
    pub pause_total: u64,
    /// The longest pause.
    pub pause_max: u64,
    /// Processor time of the collector's threads.
    pub collector_cpu_total: u64,
}

/// Sets all options to their defaults. Does nothing for NULL.
///
/// # Safety
/// `options` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_options_init(options: *mut urge_options) {
    if options.is_null() {
        return;
    }
    // SAFETY: writable, by the contract; zero is a value of each member.
    unsafe {
        options.write(core::mem::zeroed());
        (*options).gc_percent = u32::MAX;
        (*options).idle_milliseconds = u64::MAX;
    }
}

/// Builds a heap into `*out`, which the caller owns and gives back to urge_heap_release(). NULL
/// options are the defaults. Any thread may call it.
///
/// Errors: URGE_STATUS_INVALID for a null `out` or more than 8 encodings; URGE_STATUS_NO_MEMORY
/// where an option is out of range or the system refuses a resource: the message says which.
///
/// # Safety
/// `options` is NULL or was set by urge_options_init(); `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_heap_new(
    options: *const urge_options,
    out: *mut *const urge_heap,
) -> urge_status {
    code("urge_heap_new", || {
        if out.is_null() {
            return Err(Failure::invalid("`out` is NULL"));
        }
        let mut builder = Heap::builder();
        // SAFETY: by the contract.
        if let Some(o) = unsafe { options.as_ref() } {
            builder = builder
                .trace(o.trace)
                .verify(o.verify)
                .poison(o.poison)
                .past_the_end(o.past_the_end)
                .stop_the_world(o.stop_the_world)
                .signals(!o.no_signals)
                .pre_touch(o.pre_touch)
                .stress(Stress {
                    collect_every: Some(o.collect_every).filter(|&n| n != 0),
                    phases: o.stress_phases,
                    continuous: o.stress_continuous,
                });
            if o.gc_percent != u32::MAX {
                builder = builder.gc_percent(o.gc_percent);
            }
            if o.markers != 0 {
                builder = builder.markers(o.markers);
            }
            if o.hard_limit != 0 {
                builder = builder.hard_limit(o.hard_limit);
            }
            if o.memory_limit != 0 {
                builder = builder.memory_limit(o.memory_limit);
            }
            if o.reserve != 0 {
                builder = builder.reserve(o.reserve);
            }
            if o.idle_milliseconds != u64::MAX {
                builder = builder.idle_collection(Duration::from_millis(o.idle_milliseconds));
            }
            if o.memory_limit_from_cgroup {
                builder = builder.memory_limit_from_cgroup();
            }
            if o.no_young_collections {
                builder = builder.young_collections(Young::Never);
            }
            if !o.encodings.is_null() {
                if o.encodings_len > 8 {
                    return Err(Failure::invalid("a heap has at most 8 encodings"));
                }
                // SAFETY: `encodings_len` readable encodings, by the contract.
                let all = unsafe { core::slice::from_raw_parts(o.encodings, o.encodings_len) };
                // SAFETY: a reference is readable.
                let all: Vec<_> = all.iter().map(|e| unsafe { encoding(e) }).collect();
                builder = builder.conservative(&all);
            }
        }
        let heap = builder
            .build()
            .map_err(|e| Failure::new(urge_status::NoMemory, e))?;
        let heap = Arc::new(urge_heap {
            heap,
            kinds: Mutex::default(),
            sites: Mutex::default(),
        });
        // SAFETY: writable, by the contract.
        unsafe { out.write(Arc::into_raw(heap)) };
        Ok(())
    })
}

/// Gives up the caller's ownership. The heap lives on while threads are attached to it. Does
/// nothing for NULL. Not inside urge_no_preempt() or urge_blocking().
///
/// # Safety
/// `heap` is NULL or came from urge_heap_new() and was not released. No thread uses it or its kinds
/// and sites afterwards, except through a mutator that is attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_heap_release(heap: *const urge_heap) {
    let _ = code("urge_heap_release", || {
        if !heap.is_null() {
            // SAFETY: by the contract.
            drop(unsafe { Arc::from_raw(heap) });
        }
        Ok(())
    });
}

/// # Safety
/// `heap` is NULL or alive.
pub(crate) unsafe fn heap_of<'h>(heap: *const urge_heap) -> Result<&'h urge_heap, Failure> {
    // SAFETY: by the contract.
    unsafe { heap.as_ref() }.ok_or_else(|| Failure::invalid("the heap is NULL"))
}

/// Registers a kind. Returns it, or NULL. It lives as long as the heap. Any thread may call it,
/// not inside urge_no_preempt(): it takes memory from malloc.
///
/// Errors: URGE_STATUS_INVALID for an unknown shape, null `words`, or a description that no cell
/// can have.
///
/// # Safety
/// `heap` is NULL or alive; `spec` is NULL, or its pointers are NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_kind_new(
    heap: *const urge_heap,
    spec: *const urge_kind_spec,
) -> *const urge_kind {
    run("urge_kind_new", || {
        // SAFETY: by the contract.
        let owner = unsafe { heap_of(heap)? };
        // SAFETY: by the contract.
        let spec = unsafe { spec.as_ref() }.ok_or_else(|| Failure::invalid("`spec` is NULL"))?;
        let name = if spec.name.is_null() {
            "cells".into()
        } else {
            // SAFETY: a string of C, by the contract.
            unsafe { CStr::from_ptr(spec.name) }.to_string_lossy()
        };
        // SAFETY: by the contract.
        let encoding = unsafe { encoding(spec.encoding) };
        let (first, cleared) = (spec.first_word, spec.cleared);
        let mut kind = match spec.shape {
            0 => Kind::leaf(name),
            1 => Kind::leaf_uninit(name),
            2 if spec.words.is_null() => return Err(Failure::invalid("`words` is NULL")),
            2 => {
                // SAFETY: `words_len` readable numbers, by the contract.
                let words = unsafe { core::slice::from_raw_parts(spec.words, spec.words_len) };
                Kind::words_at(name, words, encoding)
            }
            3 => Kind::array(name, first, encoding),
            4 => Kind::conservative(name),
            5 => Kind::weak(name, first, encoding, cleared),
            6 => Kind::ephemeron(name, first, encoding, cleared),
            n => return Err(Failure::invalid(format_args!("there is no shape {n}"))),
        };
        if spec.immutable {
            kind = kind.immutable();
        }
        if spec.is_long {
            kind = kind.long();
        }
        let id = owner.heap.kind(kind).map_err(Failure::invalid)?;
        let kind = Box::new(urge_kind { heap, id });
        let address: *const urge_kind = &raw const *kind;
        let mut kinds = owner.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.push(kind);
        Ok(address)
    })
    .unwrap_or(core::ptr::null())
}

/// Returns the site of `kind` for cells of `bytes`, or NULL. It lives as long as the heap. Call it
/// once for each pair and keep the result: each call takes memory. Any thread may call it, not
/// inside urge_no_preempt().
///
/// Errors: URGE_STATUS_INVALID if the cells would be large objects, or too small for their edges.
///
/// # Safety
/// `heap` and `kind` are NULL or alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_site_new(
    heap: *const urge_heap,
    kind: *const urge_kind,
    bytes: usize,
) -> *const urge_site {
    run("urge_site_new", || {
        // SAFETY: by the contract.
        let (owner, id) = unsafe { (heap_of(heap)?, kind_of(heap, kind)?) };
        let site = owner.heap.site(id, bytes).map_err(Failure::invalid)?;
        let seen = urge_site {
            index: site.index() as u32,
            size: site.size() as u32,
        };
        let site = Box::new(OwnSite { seen, heap, site });
        let address = (&raw const *site).cast::<urge_site>();
        let mut sites = owner.sites.lock().unwrap_or_else(PoisonError::into_inner);
        sites.push(site);
        Ok(address)
    })
    .unwrap_or(core::ptr::null())
}

/// # Safety
/// `kind` is NULL or alive.
pub(crate) unsafe fn kind_of(
    heap: *const urge_heap,
    kind: *const urge_kind,
) -> Result<KindId, Failure> {
    // SAFETY: by the contract.
    match unsafe { kind.as_ref() } {
        None => Err(Failure::invalid("the kind is NULL")),
        Some(kind) if kind.heap != heap => Err(Failure::invalid("the kind is another heap's")),
        Some(kind) => Ok(kind.id),
    }
}

/// Writes the heap's figures into `*out`. Any thread may call it, not inside urge_no_preempt().
///
/// # Safety
/// `heap` is NULL or alive; `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn urge_heap_stats(
    heap: *const urge_heap,
    out: *mut urge_stats,
) -> urge_status {
    code("urge_heap_stats", || {
        // SAFETY: by the contract.
        let heap = unsafe { heap_of(heap)? };
        if out.is_null() {
            return Err(Failure::invalid("`out` is NULL"));
        }
        let s = heap.heap.stats();
        let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let stats = urge_stats {
            collections: s.collections,
            young_collections: s.young_collections,
            used_bytes: s.used_bytes,
            metadata_bytes: s.metadata_bytes,
            allocated_total: s.allocated_total,
            trigger_bytes: s.trigger_bytes,
            finalizers_waiting: s.finalizers_waiting,
            cells_freed: s.cells_freed,
            last_cells_live: s.last.cells_live,
            last_bytes_live: s.last.bytes_live,
            pause_total: nanoseconds(s.pause_total),
            pause_max: s.stops.pause.max(),
            collector_cpu_total: nanoseconds(s.collector_cpu_total),
        };
        // SAFETY: writable, by the contract.
        unsafe { out.write(stats) };
        Ok(())
    })
}
