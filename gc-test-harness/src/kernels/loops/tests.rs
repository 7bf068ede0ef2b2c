//! Tests of `loops.rs`.

use super::*;

/// Compiles one kernel in its own arena, and gives its code and the instructions as Cranelift
/// prints them.
fn listed(kernel: impl Fn(&mut Arena) -> Result<(), CodegenError>) -> (Code, Vec<String>) {
    let mut arena = Arena::new().expect("an arena");
    arena.keep_listings();
    kernel(&mut arena).expect("compiles");
    let code = arena.finish().expect("links").remove(0);
    let listing = code.listing.as_deref().expect("was asked for");
    let lines = listing.lines().map(|line| line.trim().to_owned()).collect();
    (code, lines)
}

/// The instructions from a loop's head to its backward jump, which are the only ones that
/// repeat.
fn loop_of(lines: &[String]) -> &[String] {
    for (end, line) in lines.iter().enumerate() {
        let Some(target) = line.strip_prefix("jmp     label") else {
            continue;
        };
        let head = format!("block{target}:");
        if let Some(start) = lines[..end].iter().position(|line| *line == head) {
            return &lines[start + 1..=end];
        }
    }
    panic!("no loop in {lines:#?}");
}

fn touches_memory(line: &str) -> bool {
    line.contains('(') && !line.starts_with("lea")
}

#[test]
fn a_counting_loop_touches_no_memory_and_calls_nothing() {
    let (_, lines) = listed(|arena| count(arena, false));
    let body = loop_of(&lines);
    assert!(
        body.iter()
            .all(|line| !touches_memory(line) && !line.contains("call")),
        "{body:#?}"
    );
}

#[test]
fn a_chasing_loop_loads_its_two_words_and_nothing_else() {
    let (_, lines) = listed(|arena| chase(arena, true));
    let body = loop_of(&lines);
    let memory = body.iter().filter(|line| touches_memory(line)).count();
    assert_eq!(memory, 2, "{body:#?}");
    assert!(body.iter().all(|line| !line.contains("call")), "{body:#?}");
}

#[test]
fn declared_references_and_a_registered_arena_change_no_byte_of_a_loop() {
    let (plain, _) = listed(|arena| chase(arena, false));
    let (declared, _) = listed(|arena| chase(arena, true));
    assert_eq!(plain.bytes(), declared.bytes());
    let mut arena = Arena::new().expect("an arena");
    let loops = Loops::compile(&mut arena).expect("compiles");
    let among_others = loops.code.iter().find(|code| code.name == "chase");
    assert_eq!(among_others.expect("is there").bytes(), plain.bytes());
}

#[test]
fn stopping_and_collecting_changes_no_byte_of_a_loop() {
    let heap = gc_core::Heap::builder().build().expect("a heap");
    let mut arena = Arena::new().expect("an arena");
    let loops = Loops::compile(&mut arena).expect("compiles");
    let before: Vec<Vec<u8>> = loops.code.iter().map(|c| c.bytes().to_vec()).collect();
    let register = |code: &Code| code.register_with(&heap, gc_core::raw::Encoding::RAW);
    let _guards: Vec<_> = loops.code.iter().map(register).collect();
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let _mutator = heap.attach().expect("attaches");
            (loops.count)(1, 30_000_000)
        });
        while !counting.is_finished() {
            heap.collect();
        }
    });
    let after: Vec<Vec<u8>> = loops.code.iter().map(|c| c.bytes().to_vec()).collect();
    assert_eq!(before, after);
}

#[test]
fn every_loop_gives_the_oracles_answer() {
    let loops = Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles");
    assert_eq!((loops.count)(7, 1000), count_oracle(7, 1000));
    let mut place = 0;
    // SAFETY: the place is a word of this frame.
    let aloud = unsafe { (loops.count_aloud)(7, 1000, &raw mut place) };
    assert_eq!((aloud, place), (count_oracle(7, 1000), 1));

    let values = [3, 1, 4, 1, 5];
    let mut ring: Vec<[usize; 2]> = values.iter().map(|&v| [0, v as usize]).collect();
    for i in 0..ring.len() {
        ring[i][0] = ring[(i + 1) % values.len()].as_ptr() as usize;
    }
    let mut slot = ring[0].as_ptr() as usize;
    // SAFETY: the slot names a ring of nodes that outlive the call.
    let sum = unsafe { (loops.chase)(&mut slot, 13) };
    assert_eq!(sum, chase_oracle(&values.map(|v| v as u64), 13));
    assert_eq!(slot, ring[3].as_ptr() as usize);

    let bytes: Vec<u8> = (0..3000_u32).map(|i| ((i * i) >> 3) as u8).collect();
    let text = base64_encode(&bytes);
    let mut decoded = vec![0; bytes.len()];
    let table = base64_table();
    // SAFETY: text, output and table are as long as the kernel requires.
    let written = unsafe {
        (loops.base64)(
            text.as_ptr(),
            text.len(),
            decoded.as_mut_ptr(),
            table.as_ptr(),
        )
    };
    assert_eq!((written, decoded), (bytes.len(), bytes));
}

#[test]
fn the_spinlock_excludes() {
    let loops = Loops::compile(&mut Arena::new().expect("an arena")).expect("compiles");
    let (mut lock, mut counter) = (0_u64, 0_u64);
    let words = [&raw mut lock as usize, &raw mut counter as usize];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            // SAFETY: both words outlive the scope, and only the kernel accesses them
            // meanwhile.
            scope.spawn(|| unsafe {
                (loops.spinlock)(words[0] as *mut u64, words[1] as *mut u64, 500, 20);
            });
        }
    });
    assert_eq!((lock, counter), (0, 1000));
}
