// Go's runtime as a neighbour: goroutines whose loops Go itself preempts by SIGURG.
package main

import "C"
import (
	"runtime"
	"sync/atomic"
)

var rounds, wrong atomic.Int64

// Sums squares in a loop without calls, which Go can preempt only by its signal.
func sum(n int) float64 {
	s := 0.0
	for i := 1; i <= n; i++ {
		s += float64(i) * float64(i)
	}
	return s
}

const turns = 1_000_000

var kept [64][]byte

//export GuestStart
func GuestStart() {
	wanted := sum(turns)
	go func() {
		for i := 0; ; i++ {
			kept[i%len(kept)] = make([]byte, 64<<10)
			if sum(turns) != wanted {
				wrong.Add(1)
			}
			rounds.Add(1)
		}
	}()
	go func() {
		for {
			runtime.GC()
			rounds.Add(1)
		}
	}()
}

// GuestCompute is called by threads of the host's.
//
//export GuestCompute
func GuestCompute() C.double { return C.double(sum(10_000)) }

//export GuestRounds
func GuestRounds() C.longlong {
	if wrong.Load() != 0 {
		return -1
	}
	return C.longlong(rounds.Load())
}

func main() {}
