// Costs of switches between goroutines: Gosched, and an asynchronous preemption.
//
// Prints two numbers, nanoseconds each. The second needs `-ldflags=-checklinkname=0`: it calls the
// runtime's own request to preempt a P.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

//go:linkname preemptone runtime.preemptone
func preemptone(pp unsafe.Pointer) bool

//go:linkname allp runtime.allp
var allp []unsafe.Pointer

//go:linkname procPin runtime.procPin
func procPin() int

//go:linkname procUnpin runtime.procUnpin
func procUnpin()

func count(seed, rounds uint64) uint64 {
	for ; rounds != 0; rounds-- {
		seed = seed*747796405 + rounds
	}
	return seed
}

var sink atomic.Uint64

// cpu is the time that the running thread has had a processor.
func cpu() time.Duration {
	var now syscall.Timespec
	const thread = 3 // CLOCK_THREAD_CPUTIME_ID
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, thread, uintptr(unsafe.Pointer(&now)), 0)
	return time.Duration(now.Nano())
}

// yields measures two goroutines on one P that yield to each other.
func yields(times int) float64 {
	runtime.GOMAXPROCS(1)
	var wait sync.WaitGroup
	begun := time.Now()
	for i := 0; i < 2; i++ {
		wait.Add(1)
		go func() {
			for i := 0; i < times; i++ {
				runtime.Gosched()
			}
			wait.Done()
		}()
	}
	wait.Wait()
	return float64(time.Since(begun).Nanoseconds()) / float64(2*times)
}

// preemptions measures what a loop loses by each preemption.
func preemptions(times int) float64 {
	runtime.GOMAXPROCS(2)
	const turns = 50_000_000
	sink.Add(count(1, turns/10))
	begun := cpu()
	sink.Add(count(1, turns))
	alone := cpu() - begun
	var lost atomic.Int64
	var started, done atomic.Bool
	var wait sync.WaitGroup
	wait.Add(1)
	go func() {
		var sum time.Duration
		started.Store(true)
		for !done.Load() {
			begun := cpu()
			sink.Add(count(1, turns))
			sum += cpu() - begun - alone
		}
		lost.Store(int64(sum))
		wait.Done()
	}()
	for !started.Load() {
	}
	own := procPin()
	other := allp[1-own]
	tick := (*uint32)(unsafe.Add(other, 16)) // schedtick
	counted := 0
	for counted < times {
		last := atomic.LoadUint32(tick)
		preemptone(other)
		asked := time.Now()
		for atomic.LoadUint32(tick) == last && time.Since(asked) < time.Millisecond {
		}
		if atomic.LoadUint32(tick) != last {
			counted++
		}
	}
	done.Store(true)
	procUnpin()
	wait.Wait()
	return float64(lost.Load()) / float64(counted)
}

func main() {
	debug.SetGCPercent(-1)
	times, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	fmt.Println(yields(10*times), preemptions(times))
}
