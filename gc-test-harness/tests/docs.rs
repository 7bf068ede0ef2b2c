//! Each link of the repository's pages has a target, and each file and identifier that a page names
//! exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gc_preempt::StrictAllocator;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// Files that a page asks its reader to write.
const TO_WRITE: [&str; 1] = ["aarch64.rs"];

fn root() -> &'static Path {
    let harness = Path::new(env!("CARGO_MANIFEST_DIR"));
    harness.parent().expect("the repository")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below `folder`, except those of builds and of version control.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("a folder can be listed").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !path.is_dir() {
            found.push(path);
        } else if !matches!(&*name, ".git" | "target" | "corpus" | "artifacts") {
            files(&path, found);
        }
    }
}

fn repository() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(root(), &mut found);
    found
}

fn with_extension<'a>(files: &'a [PathBuf], wanted: &'a str) -> impl Iterator<Item = &'a PathBuf> {
    let has = move |path: &&PathBuf| path.extension().is_some_and(|e| e == wanted);
    files.iter().filter(has)
}

/// A page's text without its fenced blocks.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The anchors of a page's headings, by GitHub's rule.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        });
        kept.collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let all = repository();
    let mut wrong = Vec::new();
    for page in with_extension(&all, "md") {
        let text = prose(&read(page));
        for part in text.split("](").skip(1) {
            let Some((link, _)) = part.split_once(')') else {
                continue;
            };
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().expect("a file's folder").join(file),
            };
            let is_there = target.exists()
                && (heading.is_empty() || anchors(&prose(&read(&target))).contains(heading));
            if !is_there {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere: {wrong:#?}");
}

/// The text between single backticks, outside fenced blocks.
fn spans(text: &str) -> Vec<String> {
    let prose = prose(text);
    let lines = prose.split('`').skip(1).step_by(2);
    lines
        .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn every_file_that_a_page_names_exists() {
    let all = repository();
    let names: Vec<String> = all
        .iter()
        .map(|path| {
            format!(
                "/{}",
                path.strip_prefix(root()).expect("below it").display()
            )
        })
        .collect();
    let mut wrong = Vec::new();
    for page in with_extension(&all, "md") {
        for span in spans(&read(page)) {
            for word in span.split([' ', ',', ':', '(', ')', '=', '"']) {
                let word = word.trim_start_matches("./");
                let is_path = [".rs", ".toml", ".md", ".sh"].iter().any(|end| {
                    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
                    word.len() > end.len() && word.ends_with(end) && word.chars().all(plain)
                });
                if !is_path || TO_WRITE.iter().any(|name| word.ends_with(name)) {
                    continue;
                }
                // A page may omit the beginning of a path.
                if !names.iter().any(|name| name.ends_with(&format!("/{word}"))) {
                    wrong.push(format!("{}: {word}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "files that do not exist: {wrong:#?}");
}

#[test]
fn every_identifier_of_the_architecture_and_the_decisions_occurs_in_the_sources() {
    let all = repository();
    let mut known = BTreeSet::new();
    for source in with_extension(&all, "rs") {
        let is_one_of_ours = |folder| source.starts_with(root().join(folder));
        if !["gc-preempt", "gc-core", "gc-test-harness"]
            .into_iter()
            .any(is_one_of_ours)
        {
            continue;
        }
        let text = read(source);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        known.extend(words.map(str::to_owned));
    }
    let mut wrong = Vec::new();
    for page in with_extension(&all, "md") {
        let is_checked = page.ends_with("docs/architecture.md")
            || page.starts_with(root().join("docs").join("adr"));
        if !is_checked {
            continue;
        }
        for span in spans(&read(page)) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
            if !span.chars().all(plain) || span.starts_with("URGE_") {
                continue;
            }
            for name in span.split("::").filter(|name| !name.is_empty()) {
                if !known.contains(name) {
                    wrong.push(format!("{}: {span}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "names that no source has: {wrong:#?}");
}
