# The usual commands. Each is one that `.ci/run`, README.md or CONTRIBUTING.md has. The list of
# checks is `.ci/run`.

# Prints the recipes.
default:
    @just --list

# All checks, as a new machine runs them.
ci:
    .ci/run

# The tests of the workspace, or of one crate: `just test gc-core`.
test crate="":
    cargo test {{ if crate == "" { "--workspace" } else { "-p " + crate } }}

# Lints, as errors.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Formats all code.
fmt:
    cargo fmt --all

# The documentation of the library crates, opened in a browser.
doc:
    cargo doc --no-deps -p gc-core -p gc-preempt --open

# The demo.
demo:
    cargo run --release

# Runs a Lox program on the collector.
lox file *options:
    cargo run --release -- run {{ file }} {{ options }}

# Everything at once, until an answer is wrong.
soak seconds="60":
    cargo run --release -- soak --seconds {{ seconds }}

# One bench: alloc, barrier, barrier_free_loop, lox, peers, scan, stop_growth, stw_pause.
bench name:
    cargo bench -p benches --bench {{ name }}

# The rules for dependencies; wants cargo-deny.
deny:
    cargo deny --offline check licenses bans sources

# What a release would break since a commit or tag; wants cargo-semver-checks.
semver since:
    cargo semver-checks -p gc-core -p gc-preempt --baseline-rev {{ since }}

# The packages of the library crates, each built from its package.
package:
    cargo package --workspace --exclude gc-test-harness --exclude benches --exclude urge --target-dir "$(mktemp -d)"
