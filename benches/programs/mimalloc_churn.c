/* A cache with replacement with mimalloc, each value freed when it is replaced: MIB ROUNDS. cc -O3 mimalloc_churn.c -lmimalloc */
#include <mimalloc.h>

#define NEW_TABLE(bytes) mi_malloc(bytes)
#define NEW_ENTRY() mi_malloc(sizeof(Entry))
#define NEW_VALUE(bytes) mi_malloc(bytes)
#define DROP_ENTRY(entry) (mi_free((entry)->value), mi_free(entry))
#include "churn.h"

int main(int argc, char **argv) {
    return churn_main(argc, argv);
}
