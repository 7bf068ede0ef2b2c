// A random graph that a program changes while Go's collector marks it: MIB CYCLES; see gclab mark --concurrent. With
// GODEBUG=gctrace=1 the runtime tells each cycle's two pauses on stderr.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"time"
)

type object struct {
	edges   [2]*object
	payload [2]uint64
}

var state uint64 = 0x9e3779b97f4a7c15

func below(n int) int {
	state ^= state << 13
	state ^= state >> 7
	state ^= state << 17
	return int(((state >> 32) * uint64(n)) >> 32)
}

// Kept from the compiler's eyes: what is allocated and dropped must be allocated.
var last *object

func cycles() uint64 {
	sample := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

func argument(at, otherwise int) int {
	if len(os.Args) > at {
		if n, err := strconv.Atoi(os.Args[at]); err == nil {
			return n
		}
	}
	return otherwise
}

func main() {
	mib, wanted := argument(1, 1), uint64(argument(2, 20))
	table := make([]*object, mib<<20/32)
	for n := range table {
		o := &object{}
		if n > 0 {
			o.edges = [2]*object{table[below(n)], table[below(n)]}
		}
		table[n] = o
	}
	runtime.GC()
	fmt.Fprintln(os.Stderr, "ready")
	begun, before, turns := time.Now(), cycles(), 0
	for done := uint64(0); done < wanted; done = cycles() - before {
		for range 4096 {
			a, b := table[below(len(table))], table[below(len(table))]
			a.edges[turns&1] = b
			for range 8 {
				last = &object{edges: [2]*object{a, b}}
			}
			if turns%16 == 0 {
				slot := below(len(table))
				old := table[slot]
				last.edges = old.edges
				old.edges = [2]*object{}
				table[slot] = last
			}
			turns++
		}
	}
	seconds := time.Since(begun).Seconds()
	fmt.Printf("{\"turns_per_s\": %.0f, \"seconds\": %.3f}\n", float64(turns)/seconds, seconds)
	runtime.KeepAlive(table)
	time.Sleep(100 * time.Millisecond) // for the last cycle's line
}
