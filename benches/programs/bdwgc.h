/* bdwgc as it is installed, or as near to Urge as it can be set: URGE_BDWGC_INTERIOR=0 has inside addresses count on stacks
 * only, so that an object needs no byte more than was asked for, and 16 bytes are 16 instead of 32. */
#include <gc.h>
#include <stdlib.h>

static void start_bdwgc(void) {
    const char *interior = getenv("URGE_BDWGC_INTERIOR");
    if (interior)
        GC_set_all_interior_pointers(atoi(interior));
    GC_INIT();
}
