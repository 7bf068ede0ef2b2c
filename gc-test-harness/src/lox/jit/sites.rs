//! The shapes that property accesses have seen, beyond the one shape that an inline cache holds.
//!
//! When compiled code finds a shape that it was not compiled for (a miss), it calls the runtime
//! through the functions here, which note the shape. After a number of misses, the function is
//! compiled again, for up to [`SHAPES_MAX`] shapes at each access. A function is compiled again at
//! most [`AGAIN_MAX`] times. After that its misses call the runtime directly.

use std::collections::HashMap;

use crate::lox::clear;
use crate::lox::isolate::Vm;
use crate::lox::proto::{Cache, Proto};
use crate::lox::runtime;
use crate::lox::value::Value;

/// The most shapes that one access is compiled for.
const SHAPES_MAX: usize = 4;
/// The most times that a function is compiled again.
const AGAIN_MAX: u32 = 3;

/// The accesses that have missed, by their caches.
#[derive(Debug, Default)]
pub(super) struct Sites {
    seen: HashMap<*mut Cache, Vec<Cache>>,
    misses: HashMap<*mut Proto, u32>,
    again: HashMap<*mut Proto, u32>,
}

impl Sites {
    /// The shapes that an access has seen: those that missed, and the one that its cache holds.
    pub(super) fn seen(&self, place: *mut Cache) -> Vec<Cache> {
        let mut seen = self.seen.get(&place).cloned().unwrap_or_default();
        // SAFETY: caches live as long as the isolate, which waits.
        let now = unsafe { *place };
        if now.id != 0 && seen.len() < SHAPES_MAX && seen.iter().all(|cache| cache.id != now.id) {
            seen.push(now);
        }
        seen
    }

    /// Whether the function may be compiled again, so that its misses are to be noted.
    pub(super) fn watches(&self, proto: *mut Proto) -> bool {
        self.again.get(&proto).copied().unwrap_or(0) < AGAIN_MAX
    }

    /// Notes a miss. Returns whether the function should be compiled again.
    pub(super) fn note(&mut self, proto: *mut Proto, place: *mut Cache, patience: u32) -> bool {
        if !self.watches(proto) {
            return false;
        }
        // SAFETY: as above.
        let now = unsafe { *place };
        let seen = self.seen.entry(place).or_default();
        let known = seen.iter().any(|cache| cache.id == now.id);
        if now.id != 0 && !known && seen.len() < SHAPES_MAX {
            seen.push(now);
        }
        let misses = self.misses.entry(proto).or_default();
        *misses += 1;
        if *misses < patience {
            return false;
        }
        *misses = 0;
        *self.again.entry(proto).or_default() += 1;
        true
    }
}

/// Reports a miss to the JIT.
///
/// # Safety
/// Only compiled code of the isolate may call this; `place` must be one of its caches.
unsafe fn missed(vm: *mut Vm, place: *mut Cache) {
    // SAFETY: the caller's promise; compiled code runs only while the JIT is attached, and `attach`
    // has set the hook.
    unsafe {
        if let Some(missed) = (*vm).hooks.missed {
            missed(vm, place);
        }
    }
}

/// Defines functions for compiled code that call the runtime and report the miss to the JIT.
macro_rules! watched {
    ($(
        $(#[$doc:meta])*
        $name:ident($($before:ident: $type:ty),*; $cache:ident, $symbol:ident) => $target:path;
    )*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function after which it is named.
        pub(super) unsafe extern "C" fn $name(
            vm: *mut Vm,
            $($before: $type,)*
            $cache: *mut Cache,
            $symbol: u32,
        ) -> Value {
            // SAFETY: the caller's promise.
            unsafe {
                let value = $target(vm, $($before,)* $cache, $symbol);
                missed(vm, $cache);
                value
            }
        }
    )*};
}

watched! {
    /// [`runtime::get_property`]
    get_property(object: Value; cache, symbol) => clear::get_property;
    /// [`runtime::set_property`]
    set_property(object: Value, value: Value; cache, symbol) => runtime::set_property;
    /// [`runtime::invoke`]
    invoke(base: *mut Value, count: u32; cache, symbol) => clear::invoke;
    /// [`runtime::super_invoke`]
    super_invoke(base: *mut Value, count: u32, superclass: Value; cache, symbol)
        => clear::super_invoke;
}
