/* The benchmarks game's binary trees with mimalloc, each tree freed by hand: see gclab trees. cc -O3 mimalloc_trees.c -lmimalloc */
#include <mimalloc.h>
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
    Node *node = mi_malloc(sizeof *node);
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

static void drop(Node *node) {
    if (node->left) {
        drop(node->left);
        drop(node->right);
    }
    mi_free(node);
}

static long count_and_drop(Node *node) {
    long nodes = count(node);
    drop(node);
    return nodes;
}

int main(int argc, char **argv) {
    int deepest = argc > 1 ? atoi(argv[1]) : 10;
    if (deepest < 6)
        deepest = 6;
    printf("stretch tree of depth %d\t check: %ld\n", deepest + 1, count_and_drop(tree(deepest + 1)));
    Node *long_lived = tree(deepest);
    for (int depth = 4; depth <= deepest; depth += 2) {
        long trees = 1L << (deepest - depth + 4), check = 0;
        for (long i = 0; i < trees; i++)
            check += count_and_drop(tree(depth));
        printf("%ld\t trees of depth %d\t check: %ld\n", trees, depth, check);
    }
    printf("long lived tree of depth %d\t check: %ld\n", deepest, count_and_drop(long_lived));
    return 0;
}
