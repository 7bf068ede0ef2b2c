// The benchmarks game's binary trees in Go: DEPTH [GOROUTINES], see gclab trees. The collector uses all processors.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

type node struct{ left, right *node }

func tree(depth int) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{tree(depth - 1), tree(depth - 1)}
}

func (n *node) count() int {
	if n.left == nil {
		return 1
	}
	return 1 + n.left.count() + n.right.count()
}

func program(deepest int) string {
	var out strings.Builder
	fmt.Fprintf(&out, "stretch tree of depth %d\t check: %d\n", deepest+1, tree(deepest+1).count())
	longLived := tree(deepest)
	for depth := 4; depth <= deepest; depth += 2 {
		trees, check := 1<<(deepest-depth+4), 0
		for range trees {
			check += tree(depth).count()
		}
		fmt.Fprintf(&out, "%d\t trees of depth %d\t check: %d\n", trees, depth, check)
	}
	fmt.Fprintf(&out, "long lived tree of depth %d\t check: %d\n", deepest, longLived.count())
	return out.String()
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
	deepest := max(argument(1, 10), 6)
	printed := make([]string, argument(2, 1))
	var all sync.WaitGroup
	for i := range printed {
		all.Go(func() { printed[i] = program(deepest) })
	}
	all.Wait()
	for _, lines := range printed {
		if lines != printed[0] {
			fmt.Fprintln(os.Stderr, "two goroutines counted differently")
			os.Exit(1)
		}
	}
	fmt.Print(printed[0])
}
