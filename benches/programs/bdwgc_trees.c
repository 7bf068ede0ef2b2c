/* The benchmarks game's binary trees over bdwgc: DEPTH [THREADS]. It marks with as many threads as there are processors.
 * cc -O3 bdwgc_trees.c -lgc -lpthread */
#define GC_THREADS
#include "bdwgc.h"

#define NEW_NODE() GC_MALLOC(sizeof(Node))
#define DROP(tree) ((void)(tree))
#include "trees.h"

int main(int argc, char **argv) {
    start_bdwgc();
    return trees_main(argc, argv);
}
