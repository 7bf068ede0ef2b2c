//! LLVM's reader on a real object: the committed one, and one made afresh where LLVM is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};

use super::maps::{Layout, Slot};
use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
/// Where the text section is said to be loaded.
const TEXT: u64 = 0x40_0000;

/// The section `.llvm_stackmaps` of an object as it would stand in memory with the text at
/// [`TEXT`], and the functions' offsets.
fn relocated(file: &[u8]) -> (Vec<u8>, impl Fn(&str) -> usize) {
    let object = object::File::parse(file).expect("an ELF object");
    let section = object
        .section_by_name(".llvm_stackmaps")
        .expect("stack maps");
    let mut bytes = section.data().unwrap().to_vec();
    for (at, relocation) in section.relocations() {
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            panic!("{relocation:?}")
        };
        let symbol = object.symbol_by_index(symbol).unwrap();
        let address = TEXT + symbol.address().wrapping_add_signed(relocation.addend());
        assert_eq!(relocation.size(), 64);
        bytes[at as usize..][..8].copy_from_slice(&address.to_le_bytes());
    }
    let symbols: Vec<(String, usize)> = object
        .symbols()
        .map(|s| {
            (
                s.name().unwrap_or_default().to_owned(),
                (TEXT + s.address()) as usize,
            )
        })
        .collect();
    let find = move |name: &str| {
        symbols
            .iter()
            .find(|s| s.0 == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .1
    };
    (bytes, find)
}

/// Checks what the reader makes of the object of `roots.ll`: every slot of every site.
fn check(file: &[u8]) {
    let (section, address) = relocated(file);
    let maps = StackMaps::from_llvm(&section).expect("a table without a fault");
    assert_eq!(maps.len(), 6);
    let sp = |offset| FrameWord {
        from: BaseRegister::Sp,
        offset,
    };
    let edge = |offset| Slot {
        edge: sp(offset),
        derived: None,
    };
    let cases = [
        // Two references.
        ("keep_two", 31, vec![edge(8), edge(16)], Some(24), Some(8)),
        // A base, and a pointer derived from it.
        (
            "keep_derived",
            48,
            vec![
                edge(16),
                Slot {
                    edge: sp(16),
                    derived: Some(sp(8)),
                },
            ],
            Some(24),
            Some(8),
        ),
        ("keep_none", 15, vec![], Some(8), None),
        // Two pushed arguments, so slots beyond the frame's size.
        ("outer", 60, vec![edge(24), edge(32)], Some(24), Some(24)),
        ("inner", 35, vec![edge(8)], Some(24), Some(8)),
        // A frame of varying size, by RBP.
        (
            "dynamic",
            62,
            vec![Slot {
                edge: FrameWord {
                    from: BaseRegister::Rbp,
                    offset: -24,
                },
                derived: None,
            }],
            None,
            None,
        ),
    ];
    for (name, offset, slots, span, outgoing) in cases {
        let site = maps
            .site(address(name) + offset)
            .unwrap_or_else(|| panic!("no site in {name}"));
        assert!(site.known);
        assert_eq!(site.slots, slots, "{name}");
        assert_eq!(
            site.layout,
            Layout {
                span,
                clobber: 0,
                outgoing
            },
            "{name}"
        );
    }
}

/// Checks what the reader makes of the object of `allocas.ll`: both frames are scanned word by
/// word.
fn check_allocas(file: &[u8]) {
    let maps = StackMaps::from_llvm(&relocated(file).0).expect("a table without a fault");
    assert_eq!(maps.len(), 2);
    assert!(maps.sites.iter().all(|site| !site.known), "{maps:?}");
}

#[test]
fn the_committed_object_of_llvm_is_read_slot_by_slot() {
    check(&std::fs::read(Path::new(FIXTURES).join("roots.o")).unwrap());
}

#[test]
fn allocas_in_the_committed_object_of_llvm_make_its_frames_unknown() {
    check_allocas(&std::fs::read(Path::new(FIXTURES).join("allocas.o")).unwrap());
}

#[test]
fn an_object_that_nobody_relocated_is_refused() {
    let file = std::fs::read(Path::new(FIXTURES).join("roots.o")).unwrap();
    let object = object::File::parse(&*file).unwrap();
    let section = object.section_by_name(".llvm_stackmaps").unwrap();
    let error = StackMaps::from_llvm(section.data().unwrap()).unwrap_err();
    assert_eq!(error, StackMapErrorKind::NotRelocated.at(16));
}

#[test]
fn an_object_made_afresh_by_llc_is_read_the_same() {
    let [opt, llc] = ["opt-19", "llc-19"];
    for tool in [opt, llc] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!(
                "skipped: {tool} is not installed (Debian: apt install llvm-19), so no object is made afresh"
            );
            return;
        }
    }
    let directory = Directory::new();
    let [rewritten, made] = ["rewritten.ll", "made.o"].map(|name| directory.0.join(name));
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(Command::new(opt)
        .args(["-S", "-passes=rewrite-statepoints-for-gc"])
        .arg(Path::new(FIXTURES).join("roots.ll"))
        .arg("-o")
        .arg(&rewritten));
    let compile = |module: &Path| {
        run(Command::new(llc)
            .args(["-O2", "-relocation-model=pic", "-filetype=obj"])
            .arg(module)
            .arg("-o")
            .arg(&made));
        std::fs::read(&made).unwrap()
    };
    check(&compile(&rewritten));
    check_allocas(&compile(&Path::new(FIXTURES).join("allocas.ll")));
}

/// A directory that goes when the test does.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("urge-stackmap-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
