/* Full markings of a random graph by bdwgc's one marker: MIB; see gclab mark, and src/contenders/process.rs for what is read and written.
 * cc -O3 bdwgc_mark.c -lgc */
#include "bdwgc.h"

#include "work.h"

typedef struct Object {
    struct Object *edges[2];
    uint64_t payload[2];
} Object;

static long long begun, nanos;

/* The marking alone: what the collector does before and after it is left out. */
static void GC_CALLBACK on_event(GC_EventType event) {
    if (event == GC_EVENT_MARK_START)
        begun = now_nanos();
    else if (event == GC_EVENT_MARK_END)
        nanos = now_nanos() - begun;
}

int main(int argc, char **argv) {
    uint64_t objects = ((uint64_t)argument(argc, argv, 1, 1) << 20) / sizeof(Object);
    setenv("GC_MARKERS", "1", 1);
    start_bdwgc();
    GC_disable();
    Object **table = needed(GC_MALLOC(objects * sizeof *table));
    for (uint64_t n = 0; n < objects; n++) {
        Object *object = needed(GC_MALLOC(sizeof *object));
        if (n > 0)
            for (int edge = 0; edge < 2; edge++)
                object->edges[edge] = table[below(n)];
        table[n] = object;
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
