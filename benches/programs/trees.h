/* The benchmarks game's binary trees for C peers: see gclab trees. The includer says what the macros NEW_NODE() and
 * DROP(tree) are, includes what makes pthread_create its own, and calls trees_main. */
#include <pthread.h>

#include "work.h"

typedef struct Node {
    struct Node *left, *right;
} Node;

static Node *tree(int depth) {
    Node *left = NULL, *right = NULL;
    if (depth > 0) {
        left = tree(depth - 1);
        right = tree(depth - 1);
    }
    Node *node = needed(NEW_NODE());
    node->left = left;
    node->right = right;
    return node;
}

static long count(const Node *node) {
    return node->left ? 1 + count(node->left) + count(node->right) : 1;
}

static long count_and_drop(Node *node) {
    long nodes = count(node);
    DROP(node);
    return nodes;
}

static int deepest;

/* The program, once; what it prints is left in a buffer of 4096 characters. */
static void *program(void *buffer) {
    char *out = buffer, *end = out + 4096;
    out += snprintf(out, end - out, "stretch tree of depth %d\t check: %ld\n", deepest + 1, count_and_drop(tree(deepest + 1)));
    Node *long_lived = tree(deepest);
    for (int depth = 4; depth <= deepest; depth += 2) {
        long trees = 1L << (deepest - depth + 4), check = 0;
        for (long i = 0; i < trees; i++)
            check += count_and_drop(tree(depth));
        out += snprintf(out, end - out, "%ld\t trees of depth %d\t check: %ld\n", trees, depth, check);
    }
    snprintf(out, end - out, "long lived tree of depth %d\t check: %ld\n", deepest, count_and_drop(long_lived));
    return NULL;
}

/* DEPTH [THREADS]: each thread runs the whole program; what all of them must have printed is printed once. */
static int trees_main(int argc, char **argv) {
    static char buffers[64][4096];
    static pthread_t threads[64];
    long others = argument(argc, argv, 2, 1) - 1;
    deepest = argument(argc, argv, 1, 10);
    if (deepest < 6)
        deepest = 6;
    if (others < 0 || others >= 64) {
        fputs("1 to 64 threads\n", stderr);
        return 64;
    }
    for (long i = 1; i <= others; i++)
        if (pthread_create(&threads[i], NULL, program, buffers[i])) {
            fputs("no thread left\n", stderr);
            return 1;
        }
    program(buffers[0]);
    for (long i = 1; i <= others; i++) {
        pthread_join(threads[i], NULL);
        if (strcmp(buffers[i], buffers[0])) {
            fputs("two threads counted differently\n", stderr);
            return 1;
        }
    }
    fputs(buffers[0], stdout);
    return 0;
}
