/* The benchmarks game's binary trees with mimalloc, each tree freed by hand: DEPTH [THREADS]. cc -O3 mimalloc_trees.c -lmimalloc -lpthread */
#include <mimalloc.h>

#define NEW_NODE() mi_malloc(sizeof(Node))
#define DROP(tree) drop(tree)
struct Node;
static void drop(struct Node *node);
#include "trees.h"

static void drop(Node *node) {
    if (node->left) {
        drop(node->left);
        drop(node->right);
    }
    mi_free(node);
}

int main(int argc, char **argv) {
    return trees_main(argc, argv);
}
