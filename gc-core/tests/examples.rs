//! Each example runs and checks its own result, in a child of its own, because one of them installs
//! a signal handler.

mod common;

#[path = "../examples/coroutines.rs"]
mod coroutines;
#[path = "../examples/foreign_call.rs"]
mod foreign_call;
#[path = "../examples/host_sigurg.rs"]
mod host_sigurg;
#[path = "../examples/interpreter.rs"]
mod interpreter;
#[path = "../examples/jit.rs"]
mod jit;
#[path = "../examples/worker_pool.rs"]
mod worker_pool;

/// Runs an example in a child of the test `name`. Panics unless the example's own assertions hold.
fn check(name: &str, main: fn() -> Result<(), Box<dyn std::error::Error>>) {
    if common::is_child() {
        return main().unwrap();
    }
    let output = common::run_child(name, "", &[]).expect("the child hung");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
fn a_foreign_call_holds_a_reference() {
    check("a_foreign_call_holds_a_reference", foreign_call::main);
}

#[test]
fn generators_run_on_stacks_of_their_own() {
    check("generators_run_on_stacks_of_their_own", coroutines::main);
}

#[test]
fn a_host_s_own_sigurg_handler_goes_on_working() {
    check(
        "a_host_s_own_sigurg_handler_goes_on_working",
        host_sigurg::main,
    );
}

#[test]
fn a_small_interpreter_is_embedded() {
    check("a_small_interpreter_is_embedded", interpreter::main);
}

#[test]
fn a_jit_registers_its_code() {
    check("a_jit_registers_its_code", jit::main);
}

#[test]
fn workers_wait_for_input_inside_blocking() {
    check("workers_wait_for_input_inside_blocking", worker_pool::main);
}
