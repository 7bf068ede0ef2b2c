// The C interface, as a C program uses it. It prints "ok", or the line of the first check that
// fails.
#include "urge.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(x)                                                                                  \
  do {                                                                                            \
    if (!(x)) {                                                                                   \
      printf("line %d: %s; last error: %s\n", __LINE__, #x, urge_last_error());                    \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

typedef struct pair {
  struct pair *next;
  uintptr_t value;
} pair;

static urge_heap const *heap;
static urge_kind const *pairs;
static urge_site const *pair_site;
static uintptr_t reported;

static void report(urge_visitor *visitor, void *data) {
  urge_visit(visitor, *(uintptr_t *)data, NULL);
}
static void count(void *data) { ++*(int *)data; }

typedef struct {
  urge_mutator *m;
  urge_status collect, detach, blocking;
  void *cell;
} inside;
static void use_inside(void *data) {
  inside *in = data;
  in->collect = urge_collect(in->m);
  in->detach = urge_detach(in->m);
  in->blocking = urge_blocking(in->m, count, &in->detach);
}
static void allocate_inside(void *data) {
  inside *in = data;
  in->cell = urge_alloc(in->m, pairs, 16);
  in->collect = urge_last_status();
}

// A list of n pairs whose sum is n (n + 1) / 2; the stack leads to the first.
static pair *list(urge_mutator *m, uintptr_t n) {
  pair *first = NULL;
  for (uintptr_t i = 1; i <= n; i++) {
    pair *p = urge_new(m, pair_site);
    CHECK(p && !p->next && !p->value);
    p->value = i;
    p->next = first;
    first = p;
  }
  return first;
}
static uintptr_t sum(pair *p) {
  uintptr_t s = 0;
  for (; p; p = p->next) s += p->value;
  return s;
}

static void *other_thread(void *data) {
  urge_mutator *m, *mains = data;
  CHECK(urge_collect(mains) == URGE_STATUS_INVALID);
  CHECK(strstr(urge_last_error(), "another thread"));
  CHECK(urge_attach(heap, &m) == URGE_STATUS_OK);
  pair *p = list(m, 1000);
  CHECK(urge_collect(m) == URGE_STATUS_OK);
  CHECK(sum(p) == 500500);
  return NULL; // without urge_detach()
}

static void wait_for(void *data) { pthread_join(*(pthread_t *)data, NULL); }

int main(void) {
  urge_options options;
  urge_options_init(&options);
  options.hard_limit = 64 << 20;
  CHECK(urge_heap_new(&options, NULL) == URGE_STATUS_INVALID);
  CHECK(strncmp(urge_last_error(), "urge_heap_new: ", 15) == 0);
  options.reserve = 1;
  CHECK(urge_heap_new(&options, &heap) == URGE_STATUS_NO_MEMORY);
  options.reserve = 0;
  CHECK(urge_heap_new(&options, &heap) == URGE_STATUS_OK);

  uint32_t edges[] = {0};
  urge_kind_spec spec = {.name = "pair", .shape = URGE_SHAPE_WORDS, .words = edges, .words_len = 1};
  pairs = urge_kind_new(heap, &spec);
  CHECK(pairs);
  spec.shape = 99;
  CHECK(!urge_kind_new(heap, &spec) && urge_last_status() == URGE_STATUS_INVALID);
  CHECK(!urge_kind_new(NULL, &spec) && !urge_kind_new(heap, NULL));
  pair_site = urge_site_new(heap, pairs, sizeof(pair));
  CHECK(pair_site && pair_site->size == sizeof(pair));
  CHECK(!urge_site_new(heap, pairs, 1 << 20));
  CHECK(!urge_site_new(heap, NULL, 16));

  urge_mutator *m, *again;
  CHECK(urge_attach(heap, &m) == URGE_STATUS_OK);
  CHECK(urge_attach(heap, &again) == URGE_STATUS_STATE);
  CHECK(urge_attach(NULL, &again) == URGE_STATUS_INVALID);
  CHECK(!urge_alloc(m, pairs, SIZE_MAX) && !urge_alloc(m, pairs, (size_t)1 << 60));
  CHECK(!urge_alloc(NULL, pairs, 16) && !urge_alloc(m, NULL, 16) && !urge_alloc_at(m, NULL));
  CHECK(urge_alloc(m, pairs, 100000)); // a large object

  // Roots: a list that only a root leads to, one in a range, one that a callback reports.
  urge_root *root = urge_root_new(heap, list(m, 100));
  static uintptr_t stack[4];
  static uintptr_t limit;
  stack[0] = (uintptr_t)list(m, 200);
  limit = (uintptr_t)(stack + 1);
  urge_range *range = urge_range_new(m, stack, &limit, NULL);
  reported = (uintptr_t)list(m, 300);
  urge_callback *callback = urge_callback_new(heap, report, &reported);
  CHECK(root && range && callback);
  CHECK(!urge_range_new(m, NULL, &limit, NULL) && !urge_callback_new(heap, NULL, NULL));
  for (int i = 0; i < 3; i++) {
    list(m, 5000);
    CHECK(urge_collect(m) == URGE_STATUS_OK);
  }
  CHECK(sum(urge_root_get(root)) == 5050);
  CHECK(sum((pair *)stack[0]) == 20100);
  CHECK(sum((pair *)reported) == 45150);

  // The barrier.
  pair *head = urge_root_get(root);
  urge_write(m, (uintptr_t *)&head->next, 0);
  CHECK(sum(head) == 100);

  // Weak words: the target stays while the root holds it.
  urge_kind_spec weak_spec = {.name = "weak", .shape = URGE_SHAPE_WEAK};
  uintptr_t *weak = urge_alloc(m, urge_kind_new(heap, &weak_spec), 16);
  CHECK(weak);
  urge_write(m, weak, (uintptr_t)head);
  CHECK(urge_collect(m) == URGE_STATUS_OK);
  CHECK(urge_load_weak(m, weak) == (uintptr_t)head);

  // Finalizers: of many dead cells, stale words keep a few at most.
  for (int i = 0; i < 100; i++) {
    CHECK(urge_register_finalizer(m, list(m, 1), 7) == URGE_STATUS_OK);
  }
  CHECK(urge_register_finalizer(m, NULL, 7) == URGE_STATUS_INVALID);
  CHECK(urge_collect(m) == URGE_STATUS_OK);
  int finalized = 0;
  uintptr_t token = 0;
  for (pair *p; (p = urge_next_finalizer(m, &token)); finalized++) {
    CHECK(p->value == 1 && token == 7);
  }
  CHECK(finalized > 50);

  // Sections.
  int calls = 0;
  CHECK(urge_no_preempt(m, count, &calls) == URGE_STATUS_OK);
  CHECK(urge_blocking(m, count, &calls) == URGE_STATUS_OK && calls == 2);
  CHECK(urge_blocking(m, NULL, NULL) == URGE_STATUS_INVALID);
  inside in = {.m = m};
  CHECK(urge_no_preempt(m, use_inside, &in) == URGE_STATUS_OK);
  CHECK(in.collect == URGE_STATUS_STATE && in.detach == URGE_STATUS_STATE);
  CHECK(in.blocking == URGE_STATUS_STATE);
  CHECK(urge_blocking(m, allocate_inside, &in) == URGE_STATUS_OK);
  CHECK(!in.cell && in.collect == URGE_STATUS_STATE);

  // Threads that end without a word, while this one waits.
  for (int i = 0; i < 8; i++) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, other_thread, m) == 0);
    CHECK(urge_blocking(m, wait_for, &thread) == URGE_STATUS_OK);
  }
  CHECK(urge_collect(m) == URGE_STATUS_OK);

  // Out of memory is an error, and the heap goes on.
  pair *kept = NULL, *p;
  while ((p = urge_alloc(m, pairs, 32768))) {
    p->next = kept;
    kept = p;
  }
  CHECK(urge_last_status() == URGE_STATUS_NO_MEMORY);
  kept = p = NULL;
  CHECK(urge_collect(m) == URGE_STATUS_OK);

  urge_stats stats;
  CHECK(urge_heap_stats(heap, NULL) == URGE_STATUS_INVALID);
  CHECK(urge_heap_stats(heap, &stats) == URGE_STATUS_OK);
  CHECK(stats.collections >= 7 && stats.allocated_total > 64 << 20 && stats.pause_max > 0);

  urge_root_free(root);
  urge_range_free(range);
  urge_callback_free(callback);
  urge_root_free(NULL);
  CHECK(urge_detach(m) == URGE_STATUS_OK);
  CHECK(urge_detach(NULL) == URGE_STATUS_OK);
  urge_heap_release(heap);
  puts("ok");
  return 0;
}
