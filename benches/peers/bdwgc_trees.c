/* The benchmarks game's binary trees over bdwgc: DEPTH [THREADS]. It marks with as many threads as there are processors.
 * cc -O3 bdwgc_trees.c -lgc -lpthread */
#define GC_THREADS
#include <gc.h>

#define NEW_NODE() GC_MALLOC(sizeof(Node))
#define DROP(tree) ((void)(tree))
#include "trees.h"

int main(int argc, char **argv) {
    /* As Urge: inside addresses count on stacks only, so that 16 bytes are 16. */
    GC_set_all_interior_pointers(0);
    GC_INIT();
    return trees_main(argc, argv);
}
