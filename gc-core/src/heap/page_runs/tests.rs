//! Tests of `page_runs.rs`.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Page runs with a map of those in use.
struct Model {
    spans: PageRuns,
    records: Records,
    dirty: Dirty,
    used: BTreeMap<usize, usize>,
}

impl Model {
    fn new(pages: usize, limit: usize) -> Model {
        Model {
            spans: PageRuns::new(0, pages, limit),
            records: {
                let records = Records::new(pages).unwrap();
                records.make_writable(pages).unwrap();
                records
            },
            dirty: {
                let dirty = Dirty::new(pages).unwrap();
                dirty.make_writable(pages).unwrap();
                dirty
            },
            used: BTreeMap::new(),
        }
    }

    fn take(&mut self, pages: usize) -> Result<usize, NoPages> {
        let first = self.spans.take(&self.records, &self.dirty, pages)?;
        let before = self
            .used
            .range(..=first)
            .next_back()
            .map_or(0, |(f, n)| f + n);
        let after = self
            .used
            .range(first..)
            .next()
            .map_or(usize::MAX, |(f, _)| *f);
        assert!(before <= first && first + pages <= after, "overlap");
        self.used.insert(first, pages);
        Ok(first)
    }

    fn give(&mut self, first: usize) {
        let pages = self.used.remove(&first).unwrap();
        self.dirty.set(first, pages);
        self.spans.give(&self.records, &self.dirty, first, pages);
    }

    /// Walks the page runs by their tags. They tile `[0, top)`, no two free ones are
    /// neighbours, and those in use are those of the map.
    fn check(&self) {
        let (mut page, mut was_free, mut used) = (0, false, 0);
        while page < self.spans.top() {
            // SAFETY: no other thread has this model.
            let record = unsafe { &*self.records.at(page) };
            let pages = record.pages as usize;
            assert!(pages > 0);
            match record.state {
                State::Free => assert!(!was_free, "free neighbours were not joined"),
                State::InUse => {
                    assert_eq!(self.used.get(&page), Some(&pages));
                    used += pages;
                }
            }
            was_free = record.state == State::Free;
            page += pages;
        }
        assert_eq!(page, self.spans.top());
        assert_eq!(used, self.spans.used());
    }
}

proptest! {
    /// Page runs never overlap, and free neighbours are joined.
    #[test]
    fn page_runs_never_overlap_and_always_join(steps in prop::collection::vec((any::<bool>(), 1usize..600, any::<prop::sample::Index>()), 1..300)) {
        let mut model = Model::new(8192, usize::MAX);
        for (take, pages, which) in steps {
            if take || model.used.is_empty() {
                let _ = model.take(pages);
            } else {
                let first = *model.used.keys().nth(which.index(model.used.len())).unwrap();
                model.give(first);
            }
            model.check();
        }
        for first in model.used.keys().copied().collect::<Vec<_>>() {
            model.give(first);
        }
        model.check();
        if model.spans.top() > 0 {
            // All pages are one page run again.
            let top = model.spans.top();
            prop_assert_eq!(model.take(top), Ok(0));
        }
    }
}

/// A request that exceeds the limit and one that finds no pages give different errors.
#[test]
fn the_limit_and_the_end_are_told_apart() {
    let mut model = Model::new(100, 60);
    assert_eq!(model.take(61), Err(NoPages::Limit));
    assert_eq!(model.take(60), Ok(0));
    assert_eq!(model.take(1), Err(NoPages::Limit));
    let mut model = Model::new(100, 1000);
    assert_eq!(model.take(101), Err(NoPages::Exhausted));
    assert_eq!(model.take(100), Ok(0));
    assert_eq!(model.take(1), Err(NoPages::Exhausted));
}

/// A free page run of exactly the requested length is found although it is in a list of mixed
/// lengths.
#[test]
fn a_page_run_of_just_the_right_length_is_found_when_memory_is_short() {
    let mut model = Model::new(71 + 70, usize::MAX);
    let (a, _b) = (model.take(70).unwrap(), model.take(71).unwrap());
    model.give(a);
    // The list of 70 has lengths from 64 to 79, so the list alone does not say that a page run
    // is long enough.
    assert_eq!(model.take(70), Ok(a));
}

/// A scavenged page run is clean, and is not taken a second time.
#[test]
fn released_chunks_are_clean_and_are_taken_once() {
    let mut model = Model::new(4 * CHUNK_PAGES, usize::MAX);
    let a = model.take(3 * CHUNK_PAGES).unwrap();
    model.give(a);
    assert_eq!(model.spans.free_dirty(), 3 * CHUNK_PAGES);
    let (first, pages) = model
        .spans
        .take_to_scavenge(&model.records, &model.dirty, 8)
        .unwrap();
    model.dirty.clear(first, pages);
    model
        .spans
        .put_back(&model.records, &model.dirty, first, pages);
    assert_eq!(model.spans.free_dirty(), 0);
    assert_eq!(
        model
            .spans
            .take_to_scavenge(&model.records, &model.dirty, 8),
        None
    );
    model.check();
}
