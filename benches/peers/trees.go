// The benchmarks game's binary trees in Go: see gclab trees. GOMAXPROCS as the machine has it; the collector uses it all.
package main

import (
	"fmt"
	"os"
	"strconv"
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

func main() {
	deepest := 10
	if len(os.Args) > 1 {
		deepest, _ = strconv.Atoi(os.Args[1])
	}
	deepest = max(deepest, 6)
	fmt.Printf("stretch tree of depth %d\t check: %d\n", deepest+1, tree(deepest+1).count())
	longLived := tree(deepest)
	for depth := 4; depth <= deepest; depth += 2 {
		trees, check := 1<<(deepest-depth+4), 0
		for range trees {
			check += tree(depth).count()
		}
		fmt.Printf("%d\t trees of depth %d\t check: %d\n", trees, depth, check)
	}
	fmt.Printf("long lived tree of depth %d\t check: %d\n", deepest, longLived.count())
}
