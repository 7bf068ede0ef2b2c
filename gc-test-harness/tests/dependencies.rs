//! Checks the rules of `deny.toml` with cargo alone: licences, sources, and one version of each
//! dependency of the library crates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use gc_preempt::StrictAllocator;
use serde_json::Value;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

fn root() -> &'static Path {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    harness.parent().expect("the repository")
}

/// The strings of the list `name = [...]` in `deny.toml`.
fn rule(name: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let begin = text.find(&format!("\n{name} = [")).expect("the list");
    let list = &text[begin..];
    let list = &list[..list.find(']').expect("its end")];
    list.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Cargo's metadata of the workspace, without the network. All features are included if this
/// machine has their crates.
fn metadata() -> Value {
    let ask = |more: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .args(more)
            .current_dir(root())
            .output()
            .expect("cargo runs");
        (output.status.success(), output)
    };
    let (is_complete, mut output) = ask(&["--all-features"]);
    if !is_complete {
        (_, output) = ask(&[]);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Whether these licences satisfy a licence expression. `AND` has a higher precedence than `OR`.
/// Nested parentheses are not supported.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    if let Some((before, rest)) = expression.split_once('(') {
        let (inner, after) = rest.split_once(')').unwrap_or((rest, ""));
        let inner = if is_allowed(inner, allowed) {
            "MIT"
        } else {
            "no"
        };
        return is_allowed(&format!("{before}{inner}{after}"), allowed);
    }
    let expression = expression.replace('/', " OR ");
    expression.split(" OR ").any(|choice| {
        let mut all = choice.split(" AND ").map(str::trim);
        all.all(|licence| allowed.contains(licence))
    })
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Zlib"].map(str::to_owned).into();
    for yes in [
        "MIT",
        "GPL-3.0 OR MIT",
        "Apache-2.0/MIT",
        "(MIT OR GPL-3.0) AND Zlib",
    ] {
        assert!(is_allowed(yes, &allowed), "{yes}");
    }
    for no in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(GPL-3.0 OR BSL-1.0) AND Zlib",
    ] {
        assert!(!is_allowed(no, &allowed), "{no}");
    }
}

#[test]
fn every_dependency_has_an_allowed_licence_and_an_allowed_source() {
    let metadata = metadata();
    let (licences, registries) = (rule("allow"), rule("allow-registry"));
    assert!(licences.contains("MIT"));
    let mut wrong = Vec::new();
    for package in list(&metadata, "packages") {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if !is_allowed(licence, &licences) {
            wrong.push(format!("{name}: licence {licence:?}"));
        }
        let registry = text(package, "source").trim_start_matches("registry+");
        if !package["source"].is_null() && !registries.contains(registry) {
            wrong.push(format!("{name}: source {registry:?}"));
        }
    }
    assert!(wrong.is_empty(), "against deny.toml: {wrong:#?}");
}

#[test]
fn library_crates_have_one_version_of_each_of_their_dependencies() {
    let metadata = metadata();
    let packages: BTreeMap<&str, &Value> = list(&metadata, "packages")
        .iter()
        .map(|package| (text(package, "id"), package))
        .collect();
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
        .iter()
        .map(|node| (text(node, "id"), node))
        .collect();
    let is_ours = |id: &&str| matches!(text(packages[*id], "name"), "gc-core" | "gc-preempt");
    let mut open: Vec<&str> = nodes.keys().copied().filter(|id| is_ours(id)).collect();
    assert_eq!(open.len(), 2);
    let mut reached: BTreeSet<&str> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        for dependency in list(nodes[id], "deps") {
            let kinds = list(dependency, "dep_kinds");
            let is_for_users = kinds.iter().any(|kind| kind["kind"].is_null());
            let to = text(dependency, "pkg");
            if is_for_users && reached.insert(to) {
                open.push(to);
            }
        }
    }
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for id in reached {
        let package = packages[id];
        versions
            .entry(text(package, "name"))
            .or_default()
            .insert(text(package, "version"));
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.is_empty(), "more than one version: {versions:?}");
}
