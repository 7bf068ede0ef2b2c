/* A cache with replacement over bdwgc: MIB ROUNDS. cc -O3 bdwgc_churn.c -lgc */
#include "bdwgc.h"

#define NEW_TABLE(bytes) GC_MALLOC(bytes)
#define NEW_ENTRY() GC_MALLOC(sizeof(Entry))
#define NEW_VALUE(bytes) GC_MALLOC_ATOMIC(bytes)
#define DROP_ENTRY(entry) ((void)(entry))
#include "churn.h"

int main(int argc, char **argv) {
    start_bdwgc();
    return churn_main(argc, argv);
}
