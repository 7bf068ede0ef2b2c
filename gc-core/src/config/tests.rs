//! Tests of `config.rs`.

use super::*;

fn with(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::default().with(|name| {
        pairs
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.into())
    })
}

#[test]
fn the_environment_wins() {
    let c = with(&[
        ("URGE_ASYNC", "0"),
        ("URGE_INJECT", "1"),
        ("URGE_STW", "1"),
        ("URGE_CONTINUOUS", "1"),
        ("URGE_YOUNG", "always"),
        ("URGE_MARKERS", "3"),
        ("URGE_GC_PERCENT", "37"),
        ("URGE_HEAP_LIMIT", "64M"),
        ("URGE_MEMORY_LIMIT", "48M"),
        ("URGE_TRACE", "1"),
        ("URGE_VERIFY", "1"),
        ("URGE_POISON", "1"),
        ("URGE_GC_EVERY", "3"),
        ("URGE_PRE_TOUCH", "8M"),
        ("URGE_IDLE", "0.25"),
    ])
    .unwrap();
    assert_eq!(c.idle, Duration::from_millis(250));
    let c_group = with(&[("URGE_MEMORY_LIMIT", "cgroup")]).unwrap();
    assert!(c_group.cgroup && !c.cgroup);
    assert!(c.trace && c.verify);
    assert_eq!(c.young, Young::Always);
    assert_eq!(with(&[]).unwrap().young, Young::WherePays);
    assert_eq!(with(&[("URGE_YOUNG", "0")]).unwrap().young, Young::Never);
    assert_eq!((c.markers, c.pre_touch), (Some(3), 8 << 20));
    assert_eq!(c.memory_limit, Some(48 << 20));
    assert!(!c.signals && c.inject && c.stop_the_world && c.continuous);
    assert_eq!(
        (c.gc_percent, c.hard_limit, c.collect_every),
        (37, Some(64 << 20), Some(3))
    );
    assert_eq!(
        with(&[("URGE_GC_PERCENT", "off")]).unwrap().gc_percent,
        u32::MAX
    );
    assert!(with(&[("URGE_ASYNC", "")]).unwrap().signals);
}

#[test]
fn a_malformed_value_is_named_with_what_would_be_right() {
    for (name, value) in [
        ("URGE_ASYNC", "yes"),
        ("URGE_INJECT", "2"),
        ("URGE_STW", "true"),
        ("URGE_YOUNG", "never"),
        ("URGE_MARKERS", "0"),
        ("URGE_MARKERS", "65"),
        ("URGE_MARKERS", "all"),
        ("URGE_GC_PERCENT", "-1"),
        ("URGE_GC_PERCENT", "4294967295"),
        ("URGE_HEAP_LIMIT", "64Q"),
        ("URGE_HEAP_LIMIT", "99999999999999G"),
        ("URGE_HEAP_LIMIT", "M"),
        ("URGE_RESERVE", "0x10"),
        ("URGE_PRE_TOUCH", "always"),
        ("URGE_MEMORY_LIMIT", "half"),
        ("URGE_IDLE", "-1"),
        ("URGE_IDLE", "soon"),
        ("URGE_TRACE", "gc"),
        ("URGE_GC_EVERY", "0"),
    ] {
        let e = with(&[(name, value)]).unwrap_err();
        let text = e.to_string();
        assert_eq!(e.name, name);
        assert!(
            text.contains(name) && text.contains(value) && text.contains("must be"),
            "{text}"
        );
    }
}

#[test]
fn a_thousand_heaps_by_default_leave_half_of_the_addresses() {
    let taken = (0..1000).fold(0, |taken, _| taken + default_reserve(taken));
    assert_eq!(default_reserve(0), DEFAULT_RESERVE);
    assert!(taken < (1 << 46) + (1000 << 30), "{taken} bytes");
    assert_eq!(default_reserve(taken), 1 << 30);
}

#[test]
fn a_number_of_markers_out_of_range_is_refused() {
    for markers in [0, 65] {
        let config = Config {
            markers: Some(markers),
            ..Config::default()
        };
        assert!(config.checked().is_err());
    }
}

#[test]
fn a_limit_below_the_minimum_is_refused() {
    let e = with(&[("URGE_HEAP_LIMIT", "1M")]).unwrap_err();
    assert!(e.to_string().contains("at least 4194304"), "{e}");
    assert!(
        Config {
            memory_limit: Some(MINIMUM_LIMIT - 1),
            ..Config::default()
        }
        .checked()
        .is_err()
    );
    assert!(
        Config {
            hard_limit: Some(MINIMUM_LIMIT - 1),
            ..Config::default()
        }
        .checked()
        .is_err()
    );
    assert!(
        Config {
            hard_limit: Some(MINIMUM_LIMIT),
            ..Config::default()
        }
        .checked()
        .is_ok()
    );
    assert!(
        Config {
            reserve: Some(4096),
            ..Config::default()
        }
        .checked()
        .is_err()
    );
    assert!(
        Config {
            collect_every: Some(0),
            ..Config::default()
        }
        .checked()
        .is_err()
    );
}
