//! Each transition of the state word by itself.

use super::*;

fn ask(s: &State, n: u64) -> Request {
    s.request_or_hold(n, || (), || ())
}

#[test]
fn a_resumed_thread_that_has_not_left_its_park_is_taken_over() {
    let s = State::new();
    assert_eq!(ask(&s, 1), Request::Asked);
    assert!(s.acknowledge(1));
    assert!(!s.acknowledge(1), "an acknowledgement counts once");
    assert_eq!(s.leave_stopped(|| 0), Err(1));
    assert_eq!(ask(&s, 2), Request::Held);
    assert_eq!(s.leave_stopped(|| 1), Err(2), "resumed for 1, held for 2");
    assert_eq!(s.leave_stopped(|| 2), Ok(()));
    assert_eq!(s.load().phase(), Phase::Running);
}

#[test]
fn a_blocked_thread_is_held_and_never_asked() {
    let s = State::new();
    assert_eq!(s.enter_blocked(|| 0), Ok(()));
    assert_eq!(ask(&s, 1), Request::Held);
    assert_eq!(s.leave_blocked(|| 0), Err(Kept::Stop(1)));
    assert_eq!(s.leave_blocked(|| 1), Ok(()));
}

#[test]
fn a_thread_that_is_aside_stays_blocked_through_the_stops_of_other_worlds() {
    let s = State::new();
    assert!(!s.set_aside(), "it runs");
    assert_eq!(s.enter_blocked(|| 0), Ok(()));
    assert!(s.set_aside());
    assert_eq!(s.leave_blocked(|| 0), Err(Kept::Aside));
    assert_eq!(ask(&s, 1), Request::Held);
    assert_eq!(s.leave_blocked(|| 1), Err(Kept::Aside));
    s.take_back();
    assert_eq!(s.leave_blocked(|| 0), Err(Kept::Stop(1)));
    assert_eq!(s.leave_blocked(|| 1), Ok(()));
}

#[test]
fn an_asked_thread_may_not_block_before_it_has_stopped() {
    let s = State::new();
    assert_eq!(ask(&s, 1), Request::Asked);
    assert_eq!(s.enter_blocked(|| 0), Err(1));
    s.defer(1);
    assert!(s.load().pending());
    assert!(s.acknowledge(1));
    assert_eq!(s.leave_stopped(|| 1), Ok(()));
    assert_eq!(s.enter_blocked(|| 1), Ok(()));
}

#[test]
fn marks_of_another_stop_mean_nothing() {
    let s = State::new();
    assert_eq!(ask(&s, 1), Request::Asked);
    assert!(!s.acknowledge(2));
    s.defer(2);
    assert!(!s.load().pending());
    // resumed without this thread (it died, say): the stale request does not keep it from
    // blocking
    assert_eq!(s.enter_blocked(|| 1), Ok(()));
    assert_eq!(s.leave_blocked(|| 1), Ok(()));
}
