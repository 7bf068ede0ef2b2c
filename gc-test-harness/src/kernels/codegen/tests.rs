//! Tests of `codegen.rs`.

use super::*;
use cranelift_codegen::ir::{InstBuilder, types};

extern "C" fn nothing() {}

fn facts(arena: &mut Arena, name: &str) -> Function {
    let all = arena.finish().expect("links");
    let code = all.into_iter().find(|code| code.name == name);
    code.expect("was defined").facts
}

/// `fn(reference) -> reference` with two calls. The reference is live across the first call
/// only.
fn one_live_call(arena: &mut Arena, library: bool) {
    let void = arena.signature(&[], &[]);
    let callee = arena
        .import("nothing", nothing as *const u8, &void)
        .expect("imports");
    let signature = arena.signature(&[types::I64, types::F64], &[types::F64]);
    arena
        .function("one_live_call", &signature, |body| {
            let params = body.enter();
            body.builder.declare_value_needs_stack_map(params[0]);
            let callee = body.callee(callee);
            body.builder.ins().call(callee, &[]);
            let loaded =
                body.builder
                    .ins()
                    .load(types::F64, ir::MemFlagsData::trusted(), params[0], 0);
            let sum = body.builder.ins().fadd(loaded, params[1]);
            body.builder.ins().call(callee, &[]);
            let result = if library {
                body.builder.ins().ceil(sum)
            } else {
                sum
            };
            body.builder.ins().return_(&[result]);
        })
        .expect("compiles");
}

#[test]
fn a_call_without_live_references_is_known_and_empty() {
    let mut arena = Arena::new().expect("an arena");
    one_live_call(&mut arena, false);
    let facts = facts(&mut arena, "one_live_call");
    let sites: Vec<(bool, usize)> = facts
        .sites
        .iter()
        .map(|site| (site.known, site.slots.len()))
        .collect();
    assert_eq!(sites, [(true, 1), (true, 0)]);
    let slot = facts.sites[0].slots[0];
    assert!(slot >= facts.outgoing && slot + 8 <= facts.frame_to_fp - facts.clobber);
}

#[test]
fn a_library_call_makes_sites_without_a_map_unknown() {
    let mut arena = Arena::for_isa(1 << 20, host_isa(false).expect("a target")).expect("an arena");
    one_live_call(&mut arena, true);
    let facts = facts(&mut arena, "one_live_call");
    let known: Vec<bool> = facts.sites.iter().map(|site| site.known).collect();
    assert_eq!(known, [true, false, false]);
}

#[test]
fn a_finished_arena_takes_more_functions_that_call_the_earlier_ones() {
    let mut arena = Arena::new().expect("an arena");
    let signature = arena.signature(&[types::I64], &[types::I64]);
    let first = arena.declare("first", &signature).expect("declares");
    arena
        .define(first, |body| {
            let params = body.enter();
            let next = body.builder.ins().iadd_imm_s(params[0], 1);
            body.builder.ins().return_(&[next]);
        })
        .expect("compiles");
    arena.finish().expect("links");
    arena
        .function("second", &signature, |body| {
            let params = body.enter();
            let first = body.callee(first);
            let call = body.builder.ins().call(first, &params);
            let result = body.builder.inst_results(call)[0];
            let twice = body.builder.ins().iadd(result, result);
            body.builder.ins().return_(&[twice]);
        })
        .expect("compiles");
    let code = arena.finish().expect("links").remove(0);
    drop(arena); // the code keeps the memory
    // SAFETY: the function was compiled with this signature above.
    let second: extern "C" fn(i64) -> i64 = unsafe { std::mem::transmute(code.entry()) };
    assert_eq!(second(20), 42);
}

#[test]
fn code_memory_goes_with_its_last_owner() {
    let mut arena = Arena::new().expect("an arena");
    one_live_call(&mut arena, false);
    let code = arena.finish().expect("links").remove(0);
    let memory = Arc::downgrade(&code.memory());
    let entry = code.range().start;
    drop(arena);
    assert!(memory.upgrade().is_some() && is_mapped(entry));
    drop(code);
    assert!(memory.upgrade().is_none() && !is_mapped(entry));
}

fn is_mapped(address: usize) -> bool {
    let mut resident = 0_u8;
    // SAFETY: mincore reads only the page tables and writes one byte for each page.
    let status = unsafe { libc::mincore((address & !4095) as *mut _, 4096, &mut resident) };
    status == 0
}

#[test]
fn an_exhausted_arena_is_an_error_value() {
    let mut arena = Arena::for_isa(1, host_isa(true).expect("a target")).expect("an arena");
    let void = arena.signature(&[], &[]);
    let callee = arena
        .import("nothing", nothing as *const u8, &void)
        .expect("imports");
    let fill = |arena: &mut Arena, name: &str| {
        arena.function(name, &void, |body| {
            body.enter();
            let callee = body.callee(callee);
            for _ in 0..400 {
                body.builder.ins().call(callee, &[]);
            }
            body.builder.ins().return_(&[]);
        })
    };
    let error = (0..10)
        .find_map(|i| fill(&mut arena, &format!("f{i}")).err())
        .expect("one page cannot hold all");
    assert!(matches!(error, CodegenError::Arena(_)), "{error}");
}

#[test]
fn a_name_is_imported_once() {
    let mut arena = Arena::new().expect("an arena");
    let void = arena.signature(&[], &[]);
    arena
        .import("nothing", nothing as *const u8, &void)
        .expect("imports");
    arena
        .import("nothing", nothing as *const u8, &void)
        .expect("the same again is the same");
    let error = arena.import("nothing", is_mapped as *const u8, &void);
    assert!(error.is_err());
}
