/* A cache with replacement for C peers: see gclab churn. The includer says what the macros NEW_TABLE(bytes) and
 * NEW_ENTRY() (zeroed or not, scanned), NEW_VALUE(bytes) (not scanned) and DROP_ENTRY(entry) are, and calls churn_main. */
#include "work.h"

typedef struct Entry {
    unsigned char *value;
    uint64_t key, bytes;
} Entry;

static unsigned char pattern[4096];

/* 16 to 4096 bytes: each of the eight doublings equally often. */
static uint64_t draw_bytes(void) {
    uint64_t base = UINT64_C(16) << below(8);
    return base + below(base + 1);
}

static Entry *put(uint64_t key) {
    uint64_t bytes = draw_bytes();
    unsigned char *value = needed(NEW_VALUE(bytes));
    memcpy(value, pattern, bytes);
    memcpy(value, &key, sizeof key);
    Entry *entry = needed(NEW_ENTRY());
    entry->value = value;
    entry->key = key;
    entry->bytes = bytes;
    return entry;
}

/* What an entry adds to the sum that all peers print; a wrong value ends the program. */
static uint64_t look(const Entry *entry) {
    uint64_t key;
    memcpy(&key, entry->value, sizeof key);
    unsigned char last = entry->value[entry->bytes - 1];
    if (key != entry->key || last != pattern[entry->bytes - 1]) {
        fputs("wrong answer: a value is not what was put into the cache\n", stderr);
        exit(1);
    }
    return key + entry->bytes + last;
}

/* MIB ROUNDS: so many MiB of values live, each replaced so many times on the average. */
static int churn_main(int argc, char **argv) {
    uint64_t mib = argument(argc, argv, 1, 1), rounds = argument(argc, argv, 2, 1);
    uint64_t entries = (mib << 20) / 765, sum = 0;
    for (int i = 0; i < 4096; i++)
        pattern[i] = i * 31 + 7;
    Entry **table = needed(NEW_TABLE(entries * sizeof *table));
    for (uint64_t slot = 0; slot < entries; slot++)
        table[slot] = put(slot);
    for (uint64_t turn = 0; turn < rounds * entries; turn++) {
        Entry **slot = &table[below(entries)];
        sum += look(*slot);
        DROP_ENTRY(*slot);
        *slot = put(entries + turn);
        sum += look(table[below(entries)]);
    }
    printf("%llu entries, %llu replacements, sum %llu\n", (unsigned long long)entries,
           (unsigned long long)(rounds * entries), (unsigned long long)sum);
    return 0;
}
