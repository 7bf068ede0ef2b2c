//! `gclab explain`: each instruction of a function once, with what a stop there does, as the tables
//! of stops say.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use gc_core::Heap;
use gc_core::jit::{CodeSpec, FrameRule};
use gc_core::raw::Encoding;
use gc_preempt::{FrameEnd, StopAt, StrictAllocator};
use gc_test_harness::kernels::codegen::{Arena, Code};
use gc_test_harness::kernels::deep::Frames;
use gc_test_harness::lab::explain::Piece;
use serde_json::Value;

#[global_allocator]
static STRICT: StrictAllocator = StrictAllocator;

fn gclab(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gclab"));
    command.arg("explain").args(arguments);
    command.output().expect("gclab starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The pieces of a function.
fn pieces(arguments: &[&str]) -> Vec<Value> {
    let output = gclab(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    object["pieces"].as_array().expect("pieces").clone()
}

fn instructions(piece: &Value) -> &[Value] {
    piece["instructions"].as_array().expect("instructions")
}

/// Demands that each byte belongs to one instruction or to one range of data.
fn covers_its_bytes(piece: &Value) {
    let of_code = instructions(piece).iter().map(|line| {
        let length = line["bytes"].as_str().expect("bytes").len() / 2;
        (line["offset"].as_u64().expect("an offset"), length as u64)
    });
    let of_data = piece["data"].as_array().expect("data").iter().map(|data| {
        let [from, to] = [0, 1].map(|at| data[at].as_u64().expect("a number"));
        (from, to - from)
    });
    let mut all: Vec<(u64, u64)> = of_code.chain(of_data).collect();
    all.sort_unstable();
    let mut end = 0;
    for (offset, length) in all {
        assert_eq!(offset, end, "{piece}");
        end += length;
    }
    assert_eq!(Some(end), piece["bytes"].as_u64(), "{piece}");
}

#[test]
fn every_instruction_of_every_kernel_is_listed_once() {
    let names = text(&gclab(&[]).stdout);
    let names: Vec<&str> = names.lines().collect();
    for name in ["count", "base64", "deep", "lists", "store", "load_weak"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for name in names {
        let pieces = pieces(&[name]);
        assert_eq!(pieces.len(), 1, "{name}");
        covers_its_bytes(&pieces[0]);
        let lines = instructions(&pieces[0]);
        let listing = text(&gclab(&[name]).stdout);
        for line in lines {
            let offset = line["offset"].as_u64().expect("an offset");
            let head = format!("\n  {offset:04x}  ");
            assert_eq!(listing.matches(&head).count(), 1, "{offset}:\n{listing}");
        }
    }
}

#[test]
fn a_frame_ends_by_the_place_of_the_instruction() {
    let pieces = pieces(&["base64"]);
    let lines = instructions(&pieces[0]);
    for (at, line) in lines.iter().enumerate() {
        let end = match line["text"].as_str() {
            Some("ret") => "SP+8",
            _ => ["SP+8", "SP+16"].get(at).copied().unwrap_or("RBP+16"),
        };
        assert_eq!(line["scans"]["end"], end, "{line}");
        assert_eq!(line["scans"]["word_by_word"][0][0], -128, "{line}");
        assert_eq!(line["stop"], "safe", "{line}");
    }
}

#[test]
fn the_barrier_s_range_is_restartable_up_to_its_store() {
    let pieces = pieces(&["store"]);
    let lines = instructions(&pieces[0]);
    let store = lines
        .iter()
        .position(|line| line["text"] == "mov [rsi],rdx")
        .expect("the store of the edge");
    for (at, line) in lines.iter().enumerate() {
        // A thread at the first instruction need not be moved.
        let is_inside = (1..=store).contains(&at);
        let class = if is_inside { "restartable" } else { "safe" };
        assert_eq!(line["stop"], class, "{line}");
        assert_eq!(line["continues_at"].as_u64(), is_inside.then_some(0));
    }
    let listing = text(&gclab(&["store"]).stdout);
    assert_eq!(listing.matches("continues at 0000").count(), store);
}

/// Explains code that the caller keeps registered.
fn explained(code: &Code) -> Piece {
    let Code { name, facts, .. } = code;
    let entries: Vec<u32> = facts.sites.iter().map(|site| site.return_offset).collect();
    let none = BTreeMap::new();
    Piece::new(name, facts.address, code.bytes(), &entries, &none).expect("no stop")
}

fn deep() -> Code {
    let frames = Frames::compile(&mut Arena::new().expect("an arena")).expect("compiles");
    let mut all = frames.code.into_iter();
    all.find(|code| code.name == "deep").expect("it is there")
}

#[test]
fn a_call_s_frame_has_the_slots_of_its_map() {
    let heap = Heap::builder().build().expect("a heap");
    let code = deep();
    let _guard = code.register_with(&heap, Encoding::RAW).expect("registers");
    let piece = explained(&code);
    let facts = &code.facts;
    let mut met = 0;
    for line in &piece.lines {
        let Some(call) = &line.call else { continue };
        let report = call.as_ref().expect("managed code");
        let returns = (line.offset + line.bytes.len()) as u32;
        let site = facts
            .sites
            .iter()
            .find(|site| site.return_offset == returns);
        let slots: Vec<isize> = site
            .expect("a site")
            .slots
            .iter()
            .map(|s| *s as isize)
            .collect();
        assert!(report.by_map);
        assert_eq!((&report.exact, report.end), (&slots, FrameEnd::Fp(16)));
        let (outgoing, frame) = (facts.outgoing as isize, facts.frame_to_fp as isize);
        let saved = frame - facts.clobber as isize;
        assert_eq!(report.words, [0..outgoing, saved..frame + 8]);
        met += usize::from(!slots.is_empty());
    }
    assert!(met > 0, "no call with a slot");
    let listing = piece.to_string();
    for said in ["exact: [SP+", "arguments [SP, SP+", "saved registers [SP+"] {
        assert!(listing.contains(said), "{said}:\n{listing}");
    }
}

#[test]
fn a_call_without_a_map_is_scanned_word_by_word() {
    let heap = Heap::builder().build().expect("a heap");
    let mut code = deep();
    for site in &mut code.facts.sites {
        site.known = false;
    }
    let _guard = code.register_with(&heap, Encoding::RAW).expect("registers");
    let piece = explained(&code);
    let frame = code.facts.frame_to_fp as isize + 16;
    for report in piece
        .lines
        .iter()
        .filter_map(|line| line.call.as_ref()?.as_ref())
    {
        assert!(!report.by_map && report.exact.is_empty(), "{report:?}");
        assert_eq!(report.words.first(), Some(&(0..frame)));
        assert_eq!(report.words.len(), 1);
    }
    let listing = piece.to_string();
    assert!(
        listing.contains("word by word [SP, RBP+16): no map knows this call"),
        "{listing}"
    );
}

#[test]
fn a_stop_in_an_unsafe_range_scans_nothing() {
    let heap = Heap::builder().build().expect("a heap");
    let code = deep();
    // `mov rbp, rsp`
    let inside = code.range().start + 1..code.range().start + 4;
    let spec = CodeSpec::new(code.range(), FrameRule::Rbp)
        .stack_maps(code.maps().expect("maps"), Encoding::RAW)
        .unsafe_range(inside)
        .owner(code.memory());
    // SAFETY: Cranelift made the range and the maps, and the owner keeps the code mapped.
    let _guard = unsafe { heap.register_code(spec) }.expect("registers");
    let piece = explained(&code);
    for (at, line) in piece.lines.iter().enumerate() {
        let is_unsafe = line.stop.stop == StopAt::Unsafe;
        assert_eq!(is_unsafe, at == 1, "{line:?}");
        assert_eq!(line.stop.innermost.is_none(), is_unsafe, "{line:?}");
    }
    let listing = piece.to_string();
    assert_eq!(listing.matches(" unsafe ").count(), 1, "{listing}");
}

#[test]
fn a_lox_function_is_listed_with_its_inline_allocations_and_calls() {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/search_tree.lox");
    let names = text(&gclab(&["--file", program]).stdout);
    let names: Vec<&str> = names.lines().collect();
    assert!(names.contains(&"put"), "{names:?}");
    let (mut restartable, mut exact) = (0, 0);
    for more in [&[][..], &["--cold"]] {
        let pieces = pieces(&[&["put", "--file", program], more].concat());
        assert!(!pieces.is_empty());
        for piece in &pieces {
            covers_its_bytes(piece);
            for line in instructions(piece) {
                restartable += usize::from(line["stop"] == "restartable");
                let slots = line["call_scans"]["exact"].as_array();
                exact += slots.map_or(0, Vec::len);
            }
        }
    }
    assert!(restartable > 0 && exact > 0, "{restartable} {exact}");
}

#[test]
fn a_poll_on_a_back_edge_is_a_call_with_a_map() {
    let calls = |strategy: &str| {
        let pieces = pieces(&["list", "--strategy", strategy]);
        pieces.iter().for_each(covers_its_bytes);
        let lines = pieces.iter().flat_map(instructions);
        let maps = lines.filter(|line| line["call_scans"]["by_map"] == true);
        maps.count()
    };
    assert!(calls("backedge") > calls("async"));
    let output = gclab(&["nonsense", "--strategy", "async"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("mandelbrot"));
}

#[test]
fn a_map_at_every_instruction_names_the_list_s_register() {
    let pieces = pieces(&["list", "--strategy", "maps"]);
    let lines: Vec<&Value> = pieces.iter().flat_map(instructions).collect();
    assert!(lines.iter().all(|line| line["map"].is_array()));
    let in_registers = lines.iter().filter(|line| {
        let mut names = line["map"].as_array().into_iter().flatten();
        names.any(|name| name.as_str().is_some_and(|name| name.starts_with('r')))
    });
    assert!(in_registers.count() > 0, "{lines:?}");
    // Single steps end at calls' returns and at targets of jumps backwards.
    assert!(lines.iter().any(|line| line["point"] == true), "{lines:?}");
}

#[test]
fn a_name_that_no_function_has_is_exit_64_with_the_names() {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/closures.lox");
    for (arguments, code, said) in [
        (&["nonsense"][..], 64, "base64"),
        (&["nonsense", "--file", program], 64, "compose"),
        (&["count", "--cold"], 64, "--file"),
        (&["f", "--file", "/no/such.lox"], 74, "/no/such.lox"),
        (&["f", "--file", "/proc/self/comm"], 65, "Error"),
    ] {
        let output = gclab(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
