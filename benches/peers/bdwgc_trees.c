/* The benchmarks game's binary trees over bdwgc: see gclab trees. cc -O3 bdwgc_trees.c -lgc */
#include <gc.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct Node {
    struct Node *left, *right;
} Node;

static Node *tree(int depth) {
    Node *left = NULL, *right = NULL;
    if (depth > 0) {
        left = tree(depth - 1);
        right = tree(depth - 1);
    }
    Node *node = GC_MALLOC(sizeof *node);
    if (!node) {
        fputs("no memory left\n", stderr);
        exit(1);
    }
    node->left = left;
    node->right = right;
    return node;
}

static long count(const Node *node) {
    return node->left ? 1 + count(node->left) + count(node->right) : 1;
}

int main(int argc, char **argv) {
    int deepest = argc > 1 ? atoi(argv[1]) : 10;
    if (deepest < 6)
        deepest = 6;
    /* As Urge: inside addresses count on stacks only, so that 16 bytes are 16. */
    GC_set_all_interior_pointers(0);
    GC_INIT();
    printf("stretch tree of depth %d\t check: %ld\n", deepest + 1, count(tree(deepest + 1)));
    Node *long_lived = tree(deepest);
    for (int depth = 4; depth <= deepest; depth += 2) {
        long trees = 1L << (deepest - depth + 4), check = 0;
        for (long i = 0; i < trees; i++)
            check += count(tree(depth));
        printf("%ld\t trees of depth %d\t check: %ld\n", trees, depth, check);
    }
    printf("long lived tree of depth %d\t check: %ld\n", deepest, count(long_lived));
    return 0;
}
