/* Full markings of a random graph by bdwgc's one marker: see gclab mark, and peers.rs for what is read and written.
 * cc -O3 bdwgc_mark.c -lgc */
#include <gc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct Object {
    struct Object *edges[2];
    uint64_t payload[2];
} Object;

static uint64_t state = UINT64_C(0x9e3779b97f4a7c15);

static uint64_t below(uint64_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((state >> 32) * n) >> 32;
}

static long long begun, nanos;

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* The marking alone: what the collector does before and after it is left out. */
static void GC_CALLBACK on_event(GC_EventType event) {
    if (event == GC_EVENT_MARK_START)
        begun = now();
    else if (event == GC_EVENT_MARK_END)
        nanos = now() - begun;
}

int main(int argc, char **argv) {
    uint64_t objects = ((uint64_t)(argc > 1 ? atoi(argv[1]) : 1) << 20) / sizeof(Object);
    setenv("GC_MARKERS", "1", 1);
    /* As Urge: inside addresses count on stacks only, so that 32 bytes are 32. */
    GC_set_all_interior_pointers(0);
    GC_INIT();
    GC_disable();
    Object **table = GC_MALLOC(objects * sizeof *table);
    for (uint64_t n = 0; table && n < objects; n++) {
        Object *object = GC_MALLOC(sizeof *object);
        if (!object) {
            table = NULL;
            break;
        }
        if (n > 0)
            for (int edge = 0; edge < 2; edge++)
                object->edges[edge] = table[below(n)];
        table[n] = object;
    }
    if (!table) {
        fputs("no memory left\n", stderr);
        return 1;
    }
    GC_enable();
    GC_set_on_collection_event(on_event);
    printf("ready %llu\n", (unsigned long long)objects);
    fflush(stdout);
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        GC_gcollect();
        printf("%lld\n", nanos);
        fflush(stdout);
    }
    /* The graph is needed until here. */
    return table[objects - 1] == NULL;
}
