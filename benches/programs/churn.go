// A cache with replacement in Go: MIB ROUNDS, see gclab churn.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
)

// 32 bytes.
type entry struct {
	value []byte
	key   uint64
}

var state uint64 = 0x9e3779b97f4a7c15

func below(n uint64) uint64 {
	state ^= state << 13
	state ^= state >> 7
	state ^= state << 17
	return ((state >> 32) * n) >> 32
}

var pattern [4096]byte

func put(key uint64) *entry {
	base := uint64(16) << below(8)
	value := make([]byte, base+below(base+1))
	copy(value, pattern[:])
	binary.LittleEndian.PutUint64(value, key)
	return &entry{value, key}
}

func look(e *entry) uint64 {
	key, last := binary.LittleEndian.Uint64(e.value), len(e.value)-1
	if key != e.key || e.value[last] != pattern[last] {
		fmt.Fprintln(os.Stderr, "wrong answer: a value is not what was put into the cache")
		os.Exit(1)
	}
	return key + uint64(len(e.value)) + uint64(e.value[last])
}

func argument(at int) uint64 {
	if len(os.Args) > at {
		if n, err := strconv.ParseUint(os.Args[at], 10, 32); err == nil {
			return n
		}
	}
	return 1
}

func main() {
	mib, rounds := argument(1), argument(2)
	entries, sum := (mib<<20)/765, uint64(0)
	for i := range pattern {
		pattern[i] = byte(i*31 + 7)
	}
	table := make([]*entry, entries)
	for slot := range table {
		table[slot] = put(uint64(slot))
	}
	for turn := range rounds * entries {
		slot := below(entries)
		sum += look(table[slot])
		table[slot] = put(entries + turn)
		sum += look(table[below(entries)])
	}
	fmt.Printf("%d entries, %d replacements, sum %d\n", entries, rounds*entries, sum)
}
