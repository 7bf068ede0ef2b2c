/* Fill with one size, free nine in ten at random, fill with another: MIB FROM TO, see gclab fragment.
 * cc -O3 mimalloc_fragment.c -lmimalloc */
#include <mimalloc.h>

#include "work.h"

/* The first and the last word of an object hold its number. */
static void fill(uint64_t **table, uint64_t count, uint64_t bytes) {
    for (uint64_t n = 0; n < count; n++) {
        uint64_t *object = needed(mi_malloc(bytes));
        memset(object, 0, bytes);
        object[0] = n;
        object[bytes / 8 - 1] = n;
        table[n] = object;
    }
}

static uint64_t sum(uint64_t **table, uint64_t count, uint64_t bytes) {
    uint64_t all = 0;
    for (uint64_t n = 0; n < count; n++)
        if (table[n])
            all += table[n][0] + table[n][bytes / 8 - 1];
    return all;
}

int main(int argc, char **argv) {
    uint64_t mib = argument(argc, argv, 1, 1), from = argument(argc, argv, 2, 64), to = argument(argc, argv, 3, 96);
    uint64_t before = (mib << 20) / from, freed = 0;
    uint64_t **table = needed(mi_calloc(before, sizeof *table));
    fill(table, before, from);
    for (uint64_t n = 0; n < before; n++)
        if (below(10) != 0) {
            mi_free(table[n]);
            table[n] = NULL;
            freed++;
        }
    uint64_t after = freed * from / to;
    uint64_t **others = needed(mi_calloc(after, sizeof *others));
    fill(others, after, to);
    printf("%llu objects of %llu bytes, %llu freed, %llu of %llu bytes, sum %llu\n", (unsigned long long)before,
           (unsigned long long)from, (unsigned long long)freed, (unsigned long long)after, (unsigned long long)to,
           (unsigned long long)(sum(table, before, from) + sum(others, after, to)));
    return 0;
}
