#ifndef URGE_H
#define URGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The C interface of Urge. tests/header.rs makes this file from src/; do not edit it.

// What a call did. Any value but `URGE_STATUS_OK` has a message: urge_last_error().
typedef enum urge_status {
  // The call did its work.
  URGE_STATUS_OK = 0,
  // An argument is null, out of range, of another heap, or of another thread.
  URGE_STATUS_INVALID = 1,
  // No memory: the heap's limit, its address range, or the system.
  URGE_STATUS_NO_MEMORY = 2,
  // A table of the heap is full.
  URGE_STATUS_TABLE_FULL = 3,
  // The call cannot be made here: inside `no_preempt` or `blocking`, or the thread is attached.
  URGE_STATUS_STATE = 4,
  // The call panicked, which is a fault of its caller or of Urge. The heap may be used further.
  URGE_STATUS_PANIC = 5,
} urge_status;

// The shape of a kind's cells.
typedef enum urge_shape {
  // No edges.
  URGE_SHAPE_LEAF = 0,
  // No edges, and a new cell is not cleared.
  URGE_SHAPE_LEAF_UNINIT = 1,
  // Edges at the words of `words`.
  URGE_SHAPE_WORDS = 2,
  // Each word from `first_word` on is an edge.
  URGE_SHAPE_ARRAY = 3,
  // Each word may be an edge, in one of the heap's conservative encodings.
  URGE_SHAPE_CONSERVATIVE = 4,
  // Each word from `first_word` on is a weak word.
  URGE_SHAPE_WEAK = 5,
  // Pairs of a key and a value from `first_word` on.
  URGE_SHAPE_EPHEMERON = 6,
} urge_shape;

// A registered callback of roots.
typedef struct urge_callback urge_callback;

// A heap. Any thread may use it.
typedef struct urge_heap urge_heap;

// A kind of cells of one heap. Any thread may use it while the heap lives.
typedef struct urge_kind urge_kind;

// A declared range of roots.
typedef struct urge_range urge_range;

// A root: it keeps one cell and its heap alive. Any thread may use it, also one that is not
// attached.
typedef struct urge_root urge_root;

// What a callback reports its roots to. It ends with the call.
typedef struct urge_visitor urge_visitor;

// The form of a word that is an edge: `(word & mask) == value`, and `word & keep` is the address.
typedef struct urge_encoding {
  // The bits that are compared with `value`.
  size_t mask;
  // The value of the masked bits in an edge.
  size_t value;
  // The bits of an edge that make up its address.
  size_t keep;
} urge_encoding;

// How a heap is built. urge_options_init() sets the defaults. The environment variables that Urge
// reads override them.
typedef struct urge_options {
  // The growth between collections, in percent of the bytes that are alive. UINT32_MAX: default.
  uint32_t gc_percent;
  // The number of marking threads; 0: the pacer decides.
  uint32_t markers;
  // The most bytes of cells; 0: no limit.
  uint64_t hard_limit;
  // The bytes above which collections come earlier; 0: no limit.
  uint64_t memory_limit;
  // Bytes of addresses that the heap takes; 0: default.
  uint64_t reserve;
  // Bytes that the system backs at once.
  uint64_t pre_touch;
  // Milliseconds without allocation after which the heap collects; 0: never; UINT64_MAX:
  // default.
  uint64_t idle_milliseconds;
  // Collects after so many allocations, for tests; 0: not.
  uint64_t collect_every;
  // Whether each collection prints a line.
  bool trace;
  // Whether each collection marks twice and compares, to find lost cells.
  bool verify;
  // Whether freed cells are overwritten.
  bool poison;
  // Whether an address one past a cell's end keeps the cell.
  bool past_the_end;
  // Whether marking stops the program.
  bool stop_the_world;
  // Whether the memory limit is the container's.
  bool memory_limit_from_cgroup;
  // Whether no signals are used: then a stop waits until each thread calls the heap.
  bool no_signals;
  // Whether no collection is young.
  bool no_young_collections;
  // Whether each phase of a collection is kept open for long, for tests.
  bool stress_phases;
  // Whether a collection follows the other without a pause, for tests.
  bool stress_continuous;
  // The encodings of conservative words; NULL: plain addresses. Read by urge_heap_new() only.
  const struct urge_encoding *encodings;
  // The number of `encodings`, at most 8.
  size_t encodings_len;
} urge_options;

// The description of a kind. A zeroed one is a leaf without a name.
typedef struct urge_kind_spec {
  // The name in messages; may be NULL. The heap copies it.
  const char *name;
  // One value of urge_shape.
  uint32_t shape;
  // The first word that is an edge, of arrays, weak cells and ephemerons.
  uint32_t first_word;
  // The numbers of the words that are edges, of URGE_SHAPE_WORDS. The heap copies them.
  const uint32_t *words;
  // The number of `words`.
  size_t words_len;
  // The form of the edges; NULL: plain addresses. The heap copies it.
  const struct urge_encoding *encoding;
  // What a weak word, or the key of a pair, is set to when its target dies.
  size_t cleared;
  // Whether a cell's edges never change after the cell was published.
  bool immutable;
  // Whether weak words are cleared when their target is freed, after its finalizer ran.
  bool is_long;
} urge_kind_spec;

// A kind and a size of cells. Any thread may use it while the heap lives.
typedef struct urge_site {
  // The index of the site's run in `urge_mutator::runs`.
  uint32_t index;
  // The bytes of a cell.
  uint32_t size;
} urge_site;

// The figures of a heap. Times are in nanoseconds.
typedef struct urge_stats {
  // Collections that have ended.
  uint64_t collections;
  // Young collections among them.
  uint64_t young_collections;
  // Bytes of spans and large objects in use.
  uint64_t used_bytes;
  // Bytes of the heap's tables.
  uint64_t metadata_bytes;
  // Bytes that mutators were given since the heap was built.
  uint64_t allocated_total;
  // The bytes at which the next collection begins.
  uint64_t trigger_bytes;
  // Dead cells that wait for urge_next_finalizer().
  uint64_t finalizers_waiting;
  // Cells that all collections have freed.
  uint64_t cells_freed;
  // Cells alive after the last collection.
  uint64_t last_cells_live;
  // Bytes of these cells.
  uint64_t last_bytes_live;
  // The sum of all pauses.
  uint64_t pause_total;
  // The longest pause.
  uint64_t pause_max;
  // Processor time of the collector's threads.
  uint64_t collector_cpu_total;
} urge_stats;

// Free cells of one site that a mutator owns. urge_new() reads and moves the cursor.
typedef struct urge_run {
  // The next cell.
  size_t cursor;
  // One past the last cell.
  size_t limit;
} urge_run;

// The running thread's attachment to a heap. Only this thread may use it.
typedef struct urge_mutator {
  // One run for each site. The address is constant while the thread is attached.
  struct urge_run *runs;
} urge_mutator;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The message of this thread's last error: "call: what is wrong; what would cure it". Empty if
// there was none. The thread's next error overwrites it. May be called anywhere.
const char *urge_last_error(void);

// The code of this thread's last error. A call that succeeds leaves it as it is. May be called
// anywhere.
enum urge_status urge_last_status(void);

// Sets all options to their defaults. Does nothing for NULL.
//
// # Safety
// `options` is NULL or writable.
void urge_options_init(struct urge_options *options);

// Builds a heap into `*out`, which the caller owns and gives back to urge_heap_release(). NULL
// options are the defaults. Any thread may call it.
//
// Errors: URGE_STATUS_INVALID for a null `out` or more than 8 encodings; URGE_STATUS_NO_MEMORY
// where an option is out of range or the system refuses a resource: the message says which.
//
// # Safety
// `options` is NULL or was set by urge_options_init(); `out` is NULL or writable.
enum urge_status urge_heap_new(const struct urge_options *options, const struct urge_heap **out);

// Gives up the caller's ownership. The heap lives on while threads are attached to it. Does
// nothing for NULL. Not inside urge_no_preempt() or urge_blocking().
//
// # Safety
// `heap` is NULL or came from urge_heap_new() and was not released. No thread uses it or its kinds
// and sites afterwards, except through a mutator that is attached.
void urge_heap_release(const struct urge_heap *heap);

// Registers a kind. Returns it, or NULL. It lives as long as the heap. Any thread may call it,
// not inside urge_no_preempt(): it takes memory from malloc.
//
// Errors: URGE_STATUS_INVALID for an unknown shape, null `words`, or a description that no cell
// can have.
//
// # Safety
// `heap` is NULL or alive; `spec` is NULL, or its pointers are NULL or readable.
const struct urge_kind *urge_kind_new(const struct urge_heap *heap,
                                      const struct urge_kind_spec *spec);

// Returns the site of `kind` for cells of `bytes`, or NULL. It lives as long as the heap. Call it
// once for each pair and keep the result: each call takes memory. Any thread may call it, not
// inside urge_no_preempt().
//
// Errors: URGE_STATUS_INVALID if the cells would be large objects, or too small for their edges.
//
// # Safety
// `heap` and `kind` are NULL or alive.
const struct urge_site *urge_site_new(const struct urge_heap *heap,
                                      const struct urge_kind *kind,
                                      size_t bytes);

// Writes the heap's figures into `*out`. Any thread may call it, not inside urge_no_preempt().
//
// # Safety
// `heap` is NULL or alive; `out` is NULL or writable.
enum urge_status urge_heap_stats(const struct urge_heap *heap, struct urge_stats *out);

// Attaches the running thread to the heap, and writes its mutator into `*out`. From then on the
// thread may be stopped, its stack is scanned, and it must not wait outside of urge_blocking() for
// what another attached thread does inside urge_no_preempt(). urge_detach() ends it; so does the
// end of the thread, but then the mutator's memory and its share in the heap stay. A thread may
// attach to several heaps, to each once.
//
// Errors: URGE_STATUS_STATE if the thread is attached to this heap, or the system refuses a
// resource; URGE_STATUS_INVALID for null.
//
// # Safety
// `heap` is NULL or alive; `out` is NULL or writable.
enum urge_status urge_attach(const struct urge_heap *heap, struct urge_mutator **out);

// Detaches the thread. The mutator is gone after it. Does nothing for NULL.
//
// Errors: URGE_STATUS_STATE inside urge_no_preempt() or urge_blocking(); URGE_STATUS_INVALID on
// another thread. The mutator stays.
//
// # Safety
// `mutator` is NULL, or came from urge_attach() and was not detached.
enum urge_status urge_detach(struct urge_mutator *mutator);

// Allocates a cell of `site`: zeroed, unless the kind's cells are not cleared. NULL is an error.
// The cell lives while a register, a stack of an attached thread, a root, or a live cell leads to
// it. urge_new() is the same, inline. The call may collect and wait, except inside
// urge_no_preempt(), where it fails at the heap's limit.
//
// Errors: URGE_STATUS_NO_MEMORY; URGE_STATUS_INVALID for null, another heap's site, or another
// thread's mutator; URGE_STATUS_STATE inside urge_blocking().
//
// # Safety
// `mutator` is NULL or attached; `site` is NULL or of a heap that is alive.
void *urge_alloc_at(struct urge_mutator *mutator, const struct urge_site *site);

// Allocates a cell of `kind` with `bytes` bytes, which may be a large object. It is slower than
// urge_alloc_at(), whose rules and errors it has. URGE_STATUS_INVALID also stands for a size that
// no heap can have.
//
// # Safety
// `mutator` is NULL or attached; `kind` is NULL or of a heap that is alive.
void *urge_alloc(struct urge_mutator *mutator, const struct urge_kind *kind, size_t bytes);

// Stores `value` into the word `slot` of a published cell, through the write barrier. Each change
// of an edge needs it, except the first stores into a new cell, and stores into stacks and root
// ranges. The barrier is a call: a test of its flag in the compiler's code would leave a place
// between test and store in which a collection may begin, and the store would lose a cell.
//
// The arguments are not checked: the call is as fast as it can be.
//
// # Safety
// `mutator` is this thread's and not inside urge_blocking(); `slot` is an aligned word of a live
// cell.
void urge_write(struct urge_mutator *mutator, size_t *slot, size_t value);

// Loads a weak word, or the key of an ephemeron's pair. A cell that it gives lives while
// the caller's stack or another root holds it. The arguments are not checked.
//
// # Safety
// As urge_write().
size_t urge_load_weak(struct urge_mutator *mutator, const size_t *slot);

// Changes a pair of a published ephemeron. The thread holds both targets strongly. Errors:
// URGE_STATUS_INVALID for null, URGE_STATUS_STATE inside urge_blocking().
//
// # Safety
// `mutator` is NULL or attached; `pair` is NULL, or the key's word in a live cell of an ephemeron
// kind.
enum urge_status urge_write_pair(struct urge_mutator *mutator,
                                 size_t *pair,
                                 size_t key,
                                 size_t value);

// Registers a finalizer: once the cell is dead, urge_next_finalizer() gives it and `token`.
// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null; URGE_STATUS_STATE inside
// urge_blocking().
//
// # Safety
// `mutator` is NULL or attached; `cell` is NULL or the first byte of a live cell.
enum urge_status urge_register_finalizer(struct urge_mutator *mutator, void *cell, size_t token);

// Takes the next dead cell with a finalizer, and writes its token into `*token` unless that is
// NULL. Returns NULL if none waits, or for an error: urge_last_status() does not change if none
// waits. The caller may use the cell, and may allocate and collect.
//
// # Safety
// `mutator` is NULL or attached; `token` is NULL or writable.
void *urge_next_finalizer(struct urge_mutator *mutator, size_t *token);

// Runs a full collection and waits for it. Errors: URGE_STATUS_STATE inside urge_no_preempt() or
// urge_blocking(); URGE_STATUS_INVALID for null or another thread's mutator.
//
// # Safety
// `mutator` is NULL or attached.
enum urge_status urge_collect(struct urge_mutator *mutator);

// Calls `f` with `data`. No stop waits for the thread meanwhile, and no signal comes. `f` may wait
// and call anything but this interface; it must not read or write cells, and must return (neither
// longjmp nor an exception leaves it). The cells that the thread's stack leads to stay alive.
//
// Errors, without a call of `f`: URGE_STATUS_STATE inside urge_no_preempt(), URGE_STATUS_INVALID.
//
// # Safety
// `mutator` is NULL or attached; `f` keeps the rules above.
enum urge_status urge_blocking(struct urge_mutator *mutator, void (*f)(void *data), void *data);

// Calls `f` with `data`. The thread is not stopped meanwhile: a stop waits for the end of `f`, so
// it must be short. `f` must not call malloc, must not take a lock that another thread holds
// outside of such a section, and must return.
//
// Errors, without a call of `f`: URGE_STATUS_STATE inside urge_blocking(), URGE_STATUS_INVALID.
//
// # Safety
// `mutator` is NULL or attached; `f` keeps the rules above.
enum urge_status urge_no_preempt(struct urge_mutator *mutator, void (*f)(void *data), void *data);

// Makes a root of `cell`, which the caller owns and gives back to urge_root_free(). NULL is an
// error. Not inside urge_no_preempt(): it takes memory from malloc.
//
// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null.
//
// # Safety
// `heap` is NULL or alive; `cell` is NULL or the first byte of a live cell of it.
struct urge_root *urge_root_new(const struct urge_heap *heap, void *cell);

// The root's cell, or NULL if it holds none.
//
// # Safety
// `root` is NULL or alive.
void *urge_root_get(const struct urge_root *root);

// Makes the root hold another cell, or none for NULL.
//
// # Safety
// `root` is NULL or alive; `cell` is NULL or the first byte of a live cell of its heap.
enum urge_status urge_root_set(const struct urge_root *root, void *cell);

// Frees a root. Does nothing for NULL. Not inside urge_no_preempt().
//
// # Safety
// `root` is NULL, or came from urge_root_new() and was not freed.
void urge_root_free(struct urge_root *root);

// Declares the words from `base` up to the address in `*limit` as roots, such as an interpreter's
// stack. Stores into them need no barrier. The collector reads `*limit` in a stop, so the word
// must be stored before the limit moves over it. NULL is an error.
//
// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null or an unaligned `base`.
//
// # Safety
// `mutator` is NULL or attached. Until urge_range_free(), `*limit` and all words below it are
// readable at every instruction.
struct urge_range *urge_range_new(struct urge_mutator *mutator,
                                  const size_t *base,
                                  const size_t *limit,
                                  const struct urge_encoding *form);

// Ends a range. Does nothing for NULL. Not inside urge_no_preempt().
//
// # Safety
// `range` is NULL, or came from urge_range_new() and was not freed.
void urge_range_free(struct urge_range *range);

// Registers `f`, which reports roots by urge_visit() in every collection, until
// urge_callback_free(). NULL is an error. Not inside urge_no_preempt().
//
// `f` runs on the collector's thread while every mutator is stopped, at any instruction. It must
// not call malloc, print, or take a lock, and must return. It may read only memory that mutators
// change inside urge_no_preempt(). Of this interface it may call urge_visit() alone.
//
// Errors: URGE_STATUS_TABLE_FULL; URGE_STATUS_INVALID for null.
//
// # Safety
// `heap` is NULL or alive; `f` keeps the rules above, with `data`, on any thread.
struct urge_callback *urge_callback_new(const struct urge_heap *heap,
                                        void (*f)(struct urge_visitor *visitor, void *data),
                                        void *data);

// Removes a callback. Does nothing for NULL. Not inside urge_no_preempt().
//
// # Safety
// `callback` is NULL, or came from urge_callback_new() and was not freed.
void urge_callback_free(struct urge_callback *callback);

// Reports one word as a root, in the form `form` (NULL: a plain address). Inside a callback only.
//
// # Safety
// `visitor` is the one that the running callback was given; `form` is NULL or readable.
void urge_visit(struct urge_visitor *visitor, size_t word, const struct urge_encoding *form);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* URGE_H */

// The next cell of `site`, zeroed (unless the kind's cells are not cleared), or NULL. It moves the
// cursor of the mutator's run, and calls urge_alloc_at() when the run is used up: threads, errors
// and rules are those of urge_alloc_at(), except that the arguments are not checked.
//
// The cursor is stored before the first word of the cell: the empty assembly keeps the compiler
// from moving either store. A stop may come between any two instructions.
static inline void *urge_new(urge_mutator *mutator, const urge_site *site) {
  urge_run *run = &mutator->runs[site->index];
  uintptr_t cell = *(volatile uintptr_t *)&run->cursor;
  uintptr_t next = cell + site->size;
  if (__builtin_expect(next > *(volatile uintptr_t *)&run->limit, 0)) {
    return urge_alloc_at(mutator, site);
  }
  *(volatile uintptr_t *)&run->cursor = next;
  __asm__ volatile("" ::: "memory");
  return (void *)cell;
}

// Sources: 49ed991e6c24b135
