#!/bin/sh
# Runs all benches and prints what they measure; wants a quiet machine and an hour. It writes this machine's
# data file, RESULTS.md and its plots on the way. URGE_CLOX=/path/to/clox (craftinginterpreters' c/,
# built with -O3 -DNDEBUG) adds the Lox peer; src/contenders/mod.rs says what the others need.
set -eu
cd "$(dirname "$0")/.."
export URGE_RESULTS=1
echo "## Machine"
date -u +%Y-%m-%d
grep -m1 'model name' /proc/cpuinfo
grep -m1 'cpu family' /proc/cpuinfo
grep -m1 '^model' /proc/cpuinfo
nproc
uname -sr
cat /sys/kernel/mm/transparent_hugepage/enabled
rustc --version
uptime
echo "## cargo bench -p benches"
cargo bench -q -p benches --benches -- --noplot
echo "## bdwgc as it is installed"
URGE_BENCH_INTERIOR=1 cargo bench -q -p benches --bench alloc -- --noplot alloc
echo "## gclab pause --json"
cargo build -q --release
for threads in 1 2 4 8 16; do
    target/release/gclab pause --threads "$threads" --json
done
echo "## instructions of an allocation"
# The loops' hot paths, as a disassembler shows them.
binary=$(cargo bench -q -p benches --bench alloc --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*alloc-[^"]*\)".*/\1/p')
objdump -d --no-show-raw-insn -M intel -C "$binary" |
    awk '/<alloc::(alloc_raw|alloc_at|limit)>:/ { shown = 45 } shown-- > 0'
uptime
