//! `RESULTS.md` and the plots are those that the committed data files make.

use benches::results::{data, render};

#[test]
fn the_committed_page_is_what_the_committed_data_makes() {
    let all = data::read_all().expect("data files");
    assert!(!all.is_empty(), "there is a data file");
    for (path, text) in render::files(&all) {
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{} is not what its data makes: `cargo run -p benches --bin results` makes it anew",
            path.display()
        );
    }
}
