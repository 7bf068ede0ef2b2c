//! Every test in HAZARDS.md exists, and the code can plant every fault in HAZARDS.md.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gc_preempt::StrictAllocator;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folder: &Path, found: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
        let path: PathBuf = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&read(&path));
        }
    }
}

#[test]
fn every_hazard_is_listed_and_every_listed_test_and_fault_exists() {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = harness.parent().expect("the repository");
    let text = read(&harness.join("HAZARDS.md"));
    let mut code = String::new();
    for member in ["gc-preempt", "gc-core", "gc-test-harness"] {
        for folder in ["src", "tests"] {
            sources(&root.join(member).join(folder), &mut code);
        }
    }
    let mut listed = BTreeSet::new();
    for row in text.lines().filter(|line| line.starts_with("| H")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, number, _, _, tests, _] = cells[..] else {
            panic!("not four cells: {row}");
        };
        listed.insert(
            number
                .trim_start_matches('H')
                .parse::<u32>()
                .expect("a number"),
        );
        let mut named = 0;
        for word in tests.split([' ', ',', ';', '(', ')']) {
            if let Some((file, name)) = word.split_once("::") {
                let crates = ["gc-preempt", "gc-core", "gc-test-harness"];
                let files = crates.map(|c| root.join(c).join("tests").join(format!("{file}.rs")));
                // Two crates may have test files of the same name.
                let files: Vec<_> = files.iter().filter(|file| file.exists()).collect();
                assert!(!files.is_empty(), "{number}: no file for {word}");
                let wanted = match name.strip_suffix('*') {
                    Some(prefix) => format!("fn {prefix}"),
                    None => format!("fn {name}()"),
                };
                let has_test = files.iter().any(|file| read(file).contains(&wanted));
                assert!(has_test, "{number}: no test {word}");
                named += 1;
            }
        }
        assert!(
            named > 0 || tests.contains("open"),
            "{number} has no test: {tests}"
        );
        for fault in tests
            .split('`')
            .skip(1)
            .step_by(2)
            .flat_map(|f| f.split(','))
        {
            // The compiler rejects an unused variant of a crate's enum of faults, so a listed
            // variant is planted.
            let listed = format!(" = \"{fault}\",");
            let planted = format!("planted(\"{fault}\")");
            assert!(
                code.contains(&listed) || code.contains(&planted),
                "{number}: no test plants {fault}"
            );
        }
    }
    let first: BTreeSet<u32> = (1..=36).collect();
    assert!(listed.is_superset(&first));
}

/// The names in a text that begin with `URGE_` and have `quote` on both sides.
fn variables(text: &str, quote: char) -> Vec<String> {
    let names = text.split(quote).filter(|word| {
        let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
        word.strip_prefix("URGE_")
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_name))
    });
    names.map(str::to_owned).collect()
}

#[test]
fn every_variable_is_listed_once_and_is_one_that_the_sources_read() {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = harness.parent().expect("the repository");
    let mut code = String::new();
    for member in ["gc-preempt", "gc-core", "gc-test-harness", "benches"] {
        for folder in ["src", "tests", "benches"] {
            let folder = root.join(member).join(folder);
            if folder.exists() {
                sources(&folder, &mut code);
            }
        }
    }
    let read_by_sources: BTreeSet<String> = variables(&code, '"').into_iter().collect();
    let page = read(&root.join("docs").join("debugging.md"));
    let list = page.split("## All environment variables").nth(1);
    let list = list.expect("the list").split("\n## ").next().unwrap_or("");
    let rows = list.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.map(|row| row.split(" |").next().unwrap_or(""));
    let listed: Vec<String> = names
        .flat_map(|names| variables(&format!("`{names}"), '`'))
        .collect();
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), once.len(), "one is listed twice: {listed:?}");
    assert_eq!(once, read_by_sources);
}
