// Full markings of a random graph in Go: see gclab mark, and peers.rs for what is read and written. GOMAXPROCS=1 marks
// with one marker. The time is that of runtime.GC(), whose sweep of a heap where all is alive is a small part.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
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
		start := time.Now()
		runtime.GC()
		fmt.Println(time.Since(start).Nanoseconds())
	}
	runtime.KeepAlive(table)
}
