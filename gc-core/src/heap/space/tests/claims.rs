//! What mutators claim beyond the span that they need: it lies together, and nobody misses it.

use super::*;

const SPAN: usize = 64 << 10;

/// A heap in which `used` bytes are in use already, at its start, and two mutators of it.
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

    /// Has one of them take a new span, and use all of it up; where it lies.
    fn span(&self, other: bool) -> Result<usize, AllocError> {
        let runs = if other { &self.other } else { &self.toy.runs };
        let mut first = None;
        loop {
            // SAFETY: our own runs, of this space.
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

/// How many of the spans do not begin where the one before ends.
fn jumps(spans: &[usize]) -> usize {
    let is_jump = |two: &&[usize]| two[0] + SPAN != two[1];
    spans.windows(2).filter(is_jump).count()
}

#[test]
fn the_spans_of_mutators_that_take_turns_lie_together() {
    let two = Two::new(128 << 20, roomy());
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for _ in 0..16 * CHUNK_PAGES * PAGE / SPAN {
        ours.push(two.span(false).unwrap());
        others.push(two.span(true).unwrap());
    }
    // One a chunk, and those until a claim is as long.
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

#[test]
fn who_allocates_little_claims_little_and_a_small_heap_nothing() {
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

#[test]
fn many_mutators_claim_no_more_together_than_two() {
    let two = Two::new(128 << 20, roomy());
    let claimed = |mutators| {
        two.toy.space.foresee(0, mutators);
        let before = two.toy.space.used_bytes() as usize;
        for _ in 0..40 {
            two.span(false).unwrap();
        }
        // What is in use beside these is claimed.
        let used = two.toy.space.used_bytes() as usize - before;
        two.toy.space.give_back_reserve(&two.toy.runs.span_reserve);
        used.saturating_sub(40 * SPAN)
    };
    assert!(claimed(2) >= 16 * SPAN);
    assert_eq!(claimed(1000), 0);
}

#[test]
fn what_is_given_back_is_as_clean_as_it_was_and_the_next_claim_is_smaller() {
    let two = Two::new(128 << 20, roomy());
    let used = || two.toy.space.used_bytes() as usize;
    for _ in 0..40 {
        two.span(false).unwrap();
    }
    let before = used();
    let dirty = two.toy.space.spans.lock().free_dirty();
    two.toy.space.give_back_reserve(&two.toy.runs.span_reserve);
    let claimed = before - used();
    assert!(claimed > 0);
    let free = two.toy.space.spans.lock().free_dirty();
    assert_eq!(free, dirty, "what was never used is not dirty");
    // An idle mutator's next one is a single span again, some collections later.
    (0..12).for_each(|_| two.toy.space.give_back_reserve(&two.toy.runs.span_reserve));
    let before = used();
    two.span(false).unwrap();
    assert_eq!(used() - before, SPAN);
}

#[test]
fn what_one_mutator_claimed_others_have_once_it_is_given_back() {
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
    let claimed = LIMIT - (128 << 20) - (spans + first) * SPAN;
    assert!(claimed >= SPAN, "{claimed}");
    two.toy.space.give_back_reserve(&two.toy.runs.span_reserve);
    assert_eq!(fill(), claimed / SPAN);
}
