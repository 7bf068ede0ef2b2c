// Full markings of a random graph in Go: MIB; see gclab mark, and src/contenders/process.rs for what is read and written.
// GOMAXPROCS=1 marks with one marker. What is told is the processor time of marking alone, as the runtime accounts for
// it: sweeping, which runtime.GC() does as well, is left out.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
)

type object struct {
	edges   [2]*object
	payload [2]uint64
}

var state uint64 = 0x9e3779b97f4a7c15

func below(n uint64) uint64 {
	state ^= state << 13
	state ^= state >> 7
	state ^= state << 17
	return ((state >> 32) * n) >> 32
}

// Seconds that all markings so far took.
func marking() float64 {
	sum, samples := 0.0, []metrics.Sample{
		{Name: "/cpu/classes/gc/mark/assist:cpu-seconds"},
		{Name: "/cpu/classes/gc/mark/dedicated:cpu-seconds"},
		{Name: "/cpu/classes/gc/mark/idle:cpu-seconds"},
	}
	metrics.Read(samples)
	for _, sample := range samples {
		sum += sample.Value.Float64()
	}
	return sum
}

func main() {
	mib := 1
	if len(os.Args) > 1 {
		mib, _ = strconv.Atoi(os.Args[1])
	}
	debug.SetGCPercent(-1)
	table := make([]*object, mib<<20/32)
	for n := range table {
		o := &object{}
		if n > 0 {
			o.edges = [2]*object{table[below(uint64(n))], table[below(uint64(n))]}
		}
		table[n] = o
	}
	fmt.Printf("ready %d\n", len(table))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		before := marking()
		runtime.GC()
		fmt.Println(int64((marking() - before) * 1e9))
	}
	runtime.KeepAlive(table)
}
