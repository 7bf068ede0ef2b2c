//! Span reserves: the spans of a mutator lie side by side, and no page of a reserve is lost.

use super::*;

const SPAN: usize = 64 << 10;

/// A heap with `used` bytes in use at its start, and two mutators.
struct Two {
    toy: Toy,
    other: LocalAllocator,
    site: Site,
}

impl Two {
    fn new(used: usize, config: SpaceConfig) -> Two {
        let toy = Toy::new(config);
        let site = toy.space.site(leaf(&toy), 16).unwrap();
        toy.space.take_pages(used / PAGE).unwrap();
        Two {
            toy,
            other: LocalAllocator::new().unwrap(),
            site,
        }
    }

    /// Has one mutator take a new span and use it up. Returns the first cell.
    fn span(&self, other: bool) -> Result<usize, AllocError> {
        let runs = if other { &self.other } else { &self.toy.runs };
        let mut first = None;
        loop {
            // SAFETY: this test's own runs, of this space.
            let cell = unsafe { bump(runs.as_mut_ptr(), self.site) } as usize;
            if cell == 0 {
                runs.refill(&self.toy.space, self.site)?;
                continue;
            }
            let first = *first.get_or_insert(cell);
            if cell + 16 == first + SPAN {
                return Ok(first);
            }
        }
    }
}

fn roomy() -> SpaceConfig {
    SpaceConfig {
        reserve: 1 << 30,
        ..SpaceConfig::default()
    }
}

/// The number of spans that do not begin where the span before them ends.
fn jumps(spans: &[usize]) -> usize {
    let is_jump = |two: &&[usize]| two[0] + SPAN != two[1];
    spans.windows(2).filter(is_jump).count()
}

/// The spans of two mutators that allocate in turn lie side by side for each mutator.
#[test]
fn the_spans_of_mutators_that_take_turns_lie_together() {
    let two = Two::new(128 << 20, roomy());
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for _ in 0..16 * CHUNK_PAGES * PAGE / SPAN {
        ours.push(two.span(false).unwrap());
        others.push(two.span(true).unwrap());
    }
    // One jump for each chunk, and some until a reserve is as long as a chunk.
    for spans in [&ours, &others] {
        assert!(
            jumps(spans) <= 16 + 8,
            "{} of {}",
            jumps(spans),
            spans.len()
        );
    }
    let mut all = [ours, others].concat();
    all.sort_unstable();
    assert!(
        all.windows(2).all(|two| two[0] + SPAN <= two[1]),
        "a span twice"
    );
}

/// A reserve is no longer than the spans that its mutator has used, and a small heap has none.
#[test]
fn a_mutator_that_allocates_little_reserves_little_and_a_small_heap_nothing() {
    let two = Two::new(128 << 20, roomy());
    let before = two.toy.space.used_bytes() as usize;
    for spans in 1..100 {
        two.span(false).unwrap();
        let used = two.toy.space.used_bytes() as usize - before;
        assert!(
            used <= 2 * spans * SPAN && used <= spans * SPAN + (2 << 20),
            "{used} bytes for {spans} spans"
        );
    }
    let two = Two::new(1 << 20, roomy());
    let before = two.toy.space.used_bytes() as usize;
    for spans in 1..8 {
        two.span(false).unwrap();
        let used = two.toy.space.used_bytes() as usize - before;
        assert_eq!(used, spans * SPAN);
    }
}

/// The reserves of many mutators together are no longer than those of two.
#[test]
fn many_mutators_reserve_no_more_together_than_two() {
    let two = Two::new(128 << 20, roomy());
    let reserved = |mutators| {
        two.toy.space.set_mutators(mutators);
        let before = two.toy.space.used_bytes() as usize;
        for _ in 0..40 {
            two.span(false).unwrap();
        }
        // The other pages in use are the reserve.
        let used = two.toy.space.used_bytes() as usize - before;
        two.toy.space.give_back_reserve(&two.toy.runs.span_reserve);
        used.saturating_sub(40 * SPAN)
    };
    assert!(reserved(2) >= 16 * SPAN);
    assert_eq!(reserved(1000), 0);
}

/// The unused pages of a reserve go back clean, and an idle mutator's next reserves are smaller.
#[test]
fn pages_given_back_are_as_clean_as_they_were_and_the_next_reserve_is_smaller() {
    let two = Two::new(128 << 20, roomy());
    let used = || two.toy.space.used_bytes() as usize;
    for _ in 0..40 {
        two.span(false).unwrap();
    }
    let before = used();
    let dirty = two.toy.space.page_runs.lock().free_dirty();
    two.toy.space.give_back_reserve(&two.toy.runs.span_reserve);
    let reserved = before - used();
    assert!(reserved > 0);
    let free = two.toy.space.page_runs.lock().free_dirty();
    assert_eq!(free, dirty, "a page that was never used is not dirty");
    // After some collections, an idle mutator takes a single span at a time again.
    (0..12).for_each(|_| two.toy.space.give_back_reserve(&two.toy.runs.span_reserve));
    let before = used();
    two.span(false).unwrap();
    assert_eq!(used() - before, SPAN);
}

/// Pages of one mutator's reserve are free for other mutators once it is given back.
#[test]
fn pages_that_one_mutator_reserved_others_get_once_it_gives_them_back() {
    const LIMIT: usize = 256 << 20;
    let config = SpaceConfig {
        hard_limit: Some(LIMIT as u64),
        ..roomy()
    };
    let two = Two::new(128 << 20, config);
    let spans = 40;
    for _ in 0..spans {
        two.span(false).unwrap();
    }
    let fill = || std::iter::from_fn(|| two.span(true).ok()).count();
    let first = fill();
    let reserved = LIMIT - (128 << 20) - (spans + first) * SPAN;
    assert!(reserved >= SPAN, "{reserved}");
    two.toy.space.give_back_reserve(&two.toy.runs.span_reserve);
    assert_eq!(fill(), reserved / SPAN);
}
