//! Files import downward only: no two files of a crate import each other, directly or through
//! others, and no folder of `gc-core` or `gc-preempt` imports from a floor above its own.
//!
//! An arrow leads from a file to each file that it names by `use` or by a path in its code. Test
//! code makes no arrows. Method calls make no arrows either, so a type's `impl` blocks must be in
//! the folder that defines the type.
//!
//! The same reading of the code finds names that the libraries must not use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gc_preempt::StrictAllocator;
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

/// A module: its file, its items, and the names that it imports.
#[derive(Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    items: BTreeSet<String>,
    imports: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    paths: Vec<Vec<String>>,
}

/// The files that each file of a crate imports.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The modules of a crate by their paths, such as `["heap", "bitmap"]`. The root is `[]`.
type Crate = BTreeMap<Vec<String>, Module>;

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string().replace(' ', "");
        text.starts_with("#[cfg(test") || text.starts_with("#[cfg(all(test") || text == "#[test]"
    })
}

fn item_name(item: &syn::Item) -> Option<String> {
    use syn::Item;
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item;
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Adds the leaves of a `use` tree to the module's imports: the path and the name of each.
fn leaves(tree: &syn::UseTree, prefix: &[String], module: &mut Module) {
    use syn::UseTree;
    let with = |ident: &syn::Ident| [prefix, &[ident.to_string()]].concat();
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &with(&path.ident), module),
        UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, prefix, module);
            }
        }
        UseTree::Glob(_) => {
            module.globs.push(prefix.to_vec());
            module.paths.push(prefix.to_vec());
        }
        UseTree::Name(name) if name.ident == "self" => {
            if let Some(last) = prefix.last() {
                module.imports.insert(last.clone(), prefix.to_vec());
            }
            module.paths.push(prefix.to_vec());
        }
        UseTree::Name(name) => {
            module
                .imports
                .insert(name.ident.to_string(), with(&name.ident));
            module.paths.push(with(&name.ident));
        }
        UseTree::Rename(rename) => {
            module
                .imports
                .insert(rename.rename.to_string(), with(&rename.ident));
            module.paths.push(with(&rename.ident));
        }
    }
}

/// Finds the paths in code: each sequence of identifiers joined by `::`.
fn paths_in(tokens: TokenStream, found: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    found.extend((path.len() > 1).then(|| std::mem::take(&mut path)));
                    path.clear();
                }
                path.push(ident.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                paths_in(group.stream(), found);
                colons = 0;
            }
            _ => {
                found.extend((path.len() > 1).then(|| std::mem::take(&mut path)));
                path.clear();
                colons = 0;
            }
        }
    }
    found.extend((path.len() > 1).then_some(path));
}

fn read_items(items: Vec<syn::Item>, at: &[String], file: &Path, root: &Path, modules: &mut Crate) {
    let mut module = Module {
        file: file
            .strip_prefix(root)
            .expect("a file of the crate")
            .display()
            .to_string(),
        ..Module::default()
    };
    for item in items {
        if is_test(attributes(&item)) {
            continue;
        }
        module.items.extend(item_name(&item));
        match item {
            syn::Item::Use(item) => leaves(&item.tree, &[], &mut module),
            syn::Item::Mod(item) => {
                let name = item.ident.to_string();
                let path = [at, std::slice::from_ref(&name)].concat();
                module.children.insert(name.clone());
                match item.content {
                    Some((_, items)) => read_items(items, &path, file, root, modules),
                    None => read_file(&child_file(file, &name), &path, root, modules),
                }
            }
            other => paths_in(other.to_token_stream(), &mut module.paths),
        }
    }
    modules.insert(at.to_vec(), module);
}

fn child_file(parent: &Path, name: &str) -> PathBuf {
    let stem = parent.file_stem().expect("a file");
    let folder = parent.parent().expect("a folder");
    let folder = match stem.to_str() {
        Some("lib" | "main" | "mod") => folder.to_path_buf(),
        _ => folder.join(stem),
    };
    let flat = folder.join(format!("{name}.rs"));
    if flat.exists() {
        flat
    } else {
        folder.join(name).join("mod.rs")
    }
}

fn read_file(file: &Path, at: &[String], root: &Path, modules: &mut Crate) {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed =
        syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    read_items(parsed.items, at, file, root, modules);
}

/// The file that defines the item `path`, as seen from the module `at`. `None` if the item is
/// outside the crate.
fn resolve(modules: &Crate, at: &[String], path: &[String], depth: u32) -> Option<String> {
    if depth > 8 {
        return None; // an import of itself
    }
    let (first, mut rest) = path.split_first()?;
    let mut here: Vec<String> = match first.as_str() {
        "crate" => Vec::new(),
        "self" => at.to_vec(),
        "super" => at[..at.len().checked_sub(1)?].to_vec(),
        name => {
            let module = modules.get(at)?;
            if module.children.contains(name) {
                [at, std::slice::from_ref(first)].concat()
            } else {
                let import = module.imports.get(name)?;
                if import.first() == Some(first) && import.len() == 1 {
                    return None;
                }
                return resolve(modules, at, &[import, rest].concat(), depth + 1);
            }
        }
    };
    while let Some((next, after)) = rest.split_first() {
        let module = modules.get(&here)?;
        if next == "super" {
            here.pop()?;
        } else if module.children.contains(next) {
            here.push(next.clone());
        } else if module.items.contains(next) {
            return Some(module.file.clone());
        } else if let Some(import) = module.imports.get(next) {
            return resolve(modules, &here, &[import, after].concat(), depth + 1);
        } else {
            let globs = module.globs.iter().find_map(|glob| {
                let path = [glob, rest].concat();
                let file = resolve(modules, &here, &path, depth + 1)?;
                (file != module.file).then_some(file)
            });
            return Some(globs.unwrap_or_else(|| module.file.clone()));
        }
        rest = after;
    }
    Some(modules.get(&here)?.file.clone())
}

/// The arrows between the files of a crate's `src`.
fn arrows(root: &Path) -> Arrows {
    let mut modules = Crate::new();
    let main = if root.join("lib.rs").exists() {
        "lib.rs"
    } else {
        "main.rs"
    };
    read_file(&root.join(main), &[], root, &mut modules);
    let mut arrows = Arrows::new();
    for (at, module) in &modules {
        let out = arrows.entry(module.file.clone()).or_default();
        for path in &module.paths {
            out.extend(resolve(&modules, at, path, 0).filter(|file| *file != module.file));
        }
    }
    arrows.remove(main); // the root names all exports, and no file leads to it
    for out in arrows.values_mut() {
        out.remove(main);
    }
    arrows
}

/// The groups of files that lead to each other: the strongly connected components of more than one
/// file.
fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = arrows
        .keys()
        .map(|from| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(file) = next.pop() {
                for to in arrows.get(file).into_iter().flatten() {
                    if seen.insert(to) {
                        next.push(to);
                    }
                }
            }
            (from, seen)
        })
        .collect();
    let mut groups: BTreeSet<Vec<String>> = BTreeSet::new();
    for (from, seen) in &reach {
        if seen.contains(*from) {
            let group = seen.iter().filter(|to| reach[**to].contains(*from));
            groups.insert(group.map(|file| (*file).clone()).collect());
        }
    }
    groups.into_iter().collect()
}

/// The floors of a crate, lowest first. A floor has names of files, and names of folders, which end
/// with a slash. A file is on the floor of the longest name that matches it.
type Floors = &'static [&'static [&'static str]];

const GC_CORE: Floors = &[
    &["fault.rs", "limits.rs", "memory/", "thread.rs", "cgroup.rs"],
    &[
        "encoding.rs",
        "tracer.rs",
        "follow.rs",
        "kind.rs",
        "marked.rs",
        "error.rs",
        "config.rs",
        "stacks.rs",
    ],
    &["heap/"],
    &["alloc/"],
    &[
        "mark/",
        "roots/",
        "weak/",
        "finalize.rs",
        "verify.rs",
        "pacer/",
        "stats/",
    ],
    &["mutator/", "barrier.rs", "satb_log.rs", "dying.rs"],
    &["collector/"],
    &["api/"],
    &["raw.rs", "jit.rs", "coroutine.rs"],
];

const GC_PREEMPT: Floors = &[
    &[
        "clock.rs",
        "config.rs",
        "context.rs",
        "faults.rs",
        "state.rs",
        "table_error.rs",
        "text.rs",
    ],
    &[
        "thread_key.rs",
        "arch/",
        "lock_order.rs",
        "park.rs",
        "quiet.rs",
        "signal_mask.rs",
    ],
    &[
        "lifeline.rs",
        "own_stack.rs",
        "stack_memory.rs",
        "stack_record.rs",
        "pin.rs",
        "processors.rs",
        "handler_chain.rs",
        "signal.rs",
    ],
    &[
        "acknowledgements.rs",
        "altstack.rs",
        "stopper.rs",
        "hook.rs",
        "registry.rs",
        "stop_number.rs",
    ],
    &[
        "panics.rs",
        "strict_allocator.rs",
        "errors.rs",
        "unwind/",
        "stackmap/",
        "code/",
    ],
    &["walk/", "fuzz.rs"],
    &["stop_point.rs", "handler.rs"],
    &[
        "stopped_mutator.rs",
        "suspended_stack.rs",
        "members.rs",
        "blocking.rs",
        "switch.rs",
        "watchdog.rs",
    ],
    &[
        "attach.rs",
        "explain.rs",
        "fork.rs",
        "here.rs",
        "mutator.rs",
        "preempt.rs",
        "stack.rs",
        "world/",
    ],
];

const GC_TEST_HARNESS: Floors = &[
    &[
        "fault.rs",
        "report.rs",
        "search.rs",
        "lab/progress.rs",
        "lab/random.rs",
        "lab/gauge.rs",
        "kernels/",
        "sched/",
    ],
    &[
        "lox/fault.rs",
        "lox/value.rs",
        "lox/scanner.rs",
        "lox/bytecode.rs",
        "lox/lookups.rs",
        "lox/proto.rs",
        "lox/greens.rs",
        "lox/points.rs",
    ],
    &[
        "lox/compiler.rs",
        "lox/expression.rs",
        "lox/statement.rs",
        "lox/object.rs",
        "lox/cells.rs",
    ],
    &[
        "lox/isolate.rs",
        "lox/classes.rs",
        "lox/strings.rs",
        "lox/make.rs",
        "lox/runtime.rs",
    ],
    &[
        "lox/clear.rs",
        "lox/green/",
        "lox/interpreter.rs",
        "lox/vm.rs",
    ],
    &["lox/jit/"],
    &["lox/"],
    &["lab/"],
];

const GC_CORE_CAPI: Floors = &[&["error.rs"], &["heap.rs"], &["mutator.rs"], &["roots.rs"]];

/// The floor that a file is on.
fn floor_of(floors: Floors, file: &str) -> Option<usize> {
    let named = |name: &&&str| name.ends_with('/') && file.starts_with(**name) || file == **name;
    let longest = |floor: &[&str]| floor.iter().filter(named).map(|name| name.len()).max();
    let found = floors
        .iter()
        .enumerate()
        .filter_map(|(at, floor)| Some((longest(floor)?, at)));
    found.max().map(|(_, at)| at)
}

/// Describes each violation in a crate's arrows; empty if there is none. Files of `free` may lead
/// to each other.
fn faults(name: &str, arrows: &Arrows, floors: Floors, free: &str) -> String {
    let mut text = String::new();
    for group in circles(arrows) {
        if group
            .iter()
            .all(|file| !free.is_empty() && file.starts_with(free))
        {
            continue;
        }
        text += &format!("{name}: {} files lead to each other\n", group.len());
        for from in &group {
            for to in arrows[from].iter().filter(|to| group.contains(to)) {
                text += &format!("  {from} -> {to}\n");
            }
        }
    }
    for (from, out) in arrows.iter().filter(|_| !floors.is_empty()) {
        let Some(floor) = floor_of(floors, from) else {
            text += &format!("{name}: {from} lies on no floor\n");
            continue;
        };
        for to in out
            .iter()
            .filter(|to| floor_of(floors, to).is_some_and(|f| f > floor))
        {
            text += &format!("{name}: {from} -> {to} leads up\n");
        }
    }
    text
}

#[test]
fn files_import_downward_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository");
    let of = |member: &str, floors, free| {
        faults(
            member,
            &arrows(&root.join(member).join("src")),
            floors,
            free,
        )
    };
    let all = of("gc-core", GC_CORE, "api/")
        + &of("gc-core/capi", GC_CORE_CAPI, "")
        + &of("gc-preempt", GC_PREEMPT, "")
        + &of("gc-test-harness", GC_TEST_HARNESS, "");
    assert!(all.is_empty(), "{all}");
}

/// A thread of the standard library cannot be started in every child of a fork (H99).
#[test]
fn the_libraries_start_no_threads_of_the_standard_library() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the repository");
    for member in ["gc-core", "gc-core/capi", "gc-preempt"] {
        let root = root.join(member).join("src");
        let mut modules = Crate::new();
        read_file(&root.join("lib.rs"), &[], &root, &mut modules);
        let starts = |path: &Vec<String>| {
            let at = path.iter().position(|name| name == "thread");
            let name = at.and_then(|at| path.get(at + 1));
            name.is_some_and(|name| ["spawn", "scope", "Builder"].contains(&name.as_str()))
        };
        for module in modules
            .values()
            .filter(|module| module.paths.iter().any(starts))
        {
            // Only the planted fault in this file does.
            assert_eq!(module.file, "thread.rs", "{member} starts a thread of std");
        }
    }
}

/// The arrows of a small crate with two floors. `extra` is added to the lowest file.
fn small_crate(name: &str, extra: &str) -> Arrows {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(root.join("high")).expect("a folder for the test");
    let write = |file: &str, text: &str| std::fs::write(root.join(file), text).expect("a file");
    write(
        "lib.rs",
        "mod low; mod middle; mod high; pub use high::Top;",
    );
    write("low.rs", &format!("pub struct Low; {extra}"));
    write("middle.rs", "use crate::low::Low; pub struct Middle(Low);");
    write("high/mod.rs", "mod inner; pub use inner::Top;");
    write("high/inner.rs", "pub struct Top(crate::middle::Middle);");
    arrows(&root)
}

#[test]
fn an_arrow_that_leads_up_is_found() {
    const FLOORS: Floors = &[&["low.rs", "middle.rs"], &["high/"]];
    let sound = small_crate(
        "floors-sound",
        "#[cfg(test)] mod tests { use crate::high::Top; }",
    );
    assert_eq!(faults("sound", &sound, FLOORS, ""), "");
    // A name that the root re-exports leads to the file that defines it.
    let up = small_crate("floors-up", "fn up(_: crate::Top) {}");
    let text = faults("up", &up, FLOORS, "");
    assert!(text.contains("low.rs -> high/inner.rs leads up"), "{text}");
    assert!(text.contains("3 files lead to each other"), "{text}");
    let beside = small_crate("floors-beside", "use super::middle::Middle;");
    let text = faults("beside", &beside, FLOORS, "");
    assert!(
        text.contains("2 files lead to each other") && !text.contains("up"),
        "{text}"
    );
    const MISSING: Floors = &[&["low.rs"], &["high/"]];
    assert!(faults("missing", &sound, MISSING, "").contains("middle.rs lies on no floor"));
}
