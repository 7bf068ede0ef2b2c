/* What the C peers share: the random numbers of gclab, a clock, and a program on several threads. */
#ifndef URGE_WORK_H
#define URGE_WORK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t random_state = UINT64_C(0x9e3779b97f4a7c15);

/* Marsaglia's xorshift64: a number below n, which is at most 2^32. */
static inline uint64_t below(uint64_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return ((random_state >> 32) * n) >> 32;
}

static inline long long now_nanos(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* The number that an argument says, or another where there is none. */
static inline long argument(int argc, char **argv, int at, long otherwise) {
    return argc > at ? atol(argv[at]) : otherwise;
}

static inline void *needed(void *memory) {
    if (!memory) {
        fputs("no memory left\n", stderr);
        exit(1);
    }
    return memory;
}

#endif
