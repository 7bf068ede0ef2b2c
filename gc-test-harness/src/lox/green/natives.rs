//! The natives of programs with green threads, and the channels that they use.
//!
//! | native | effect |
//! |---|---|
//! | `spawn(f, ...)` | a green thread calls `f` with the arguments that follow; the result is nil |
//! | `yield()` | lets the other green threads run |
//! | `sleep(seconds)` | the green thread waits |
//! | `channel()`, `channel(n)` | a channel that holds up to `n` values, none by default |
//! | `send(c, value)` | waits while the channel is full; without room in it, until it is received |
//! | `receive(c)` | waits for a value, and returns it; values come in the order of their `send` |

use std::time::{Duration, Instant};

use super::super::cells::OutOfMemory;
use super::super::greens::{Id, Sleeper};
use super::super::isolate::Vm;
use super::super::object::{
    ARRAY_ELEMENTS, Array, Channel, Closure, Header, NativeFn, Queue, Tag, is,
};
use super::super::proto::Isolate;
use super::super::runtime::arity_error;
use super::super::value::Value;
use super::threads::{self, PASSED, greens, let_others_run, wait};

/// The names of the natives, and their code, in the order of their global variables.
pub const GREEN_NATIVES: [(&str, NativeFn); 6] = [
    ("spawn", spawn),
    ("yield", yield_now),
    ("sleep", sleep),
    ("channel", channel),
    ("send", send),
    ("receive", receive),
];

/// The most values that a channel holds.
const CAPACITY_MAX: f64 = (1 << 20) as f64;

/// Fails unless a native has got as many arguments as it takes.
macro_rules! expect {
    ($vm:expr, $count:expr, $expected:expr) => {
        if $count != $expected {
            let (expected, count) = ($expected, $count);
            return (*$vm).fail(&format!("Expected {expected} arguments but got {count}."));
        }
    };
}

// SAFETY, of all natives: `vm` is the isolate whose green thread runs, and the arguments are live
// values below the limit of its value stack.

unsafe extern "C" fn spawn(vm: *mut Isolate, count: u32, arguments: *const Value) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: see above.
    unsafe {
        let Some(count) = count.checked_sub(1) else {
            return (*vm).fail("Expected a function to spawn.");
        };
        let callee = *arguments;
        let callable = [Tag::Closure, Tag::BoundMethod, Tag::Class, Tag::Native];
        if !callable.iter().any(|&tag| is(callee, tag)) {
            return (*vm).fail("Can only spawn functions and classes.");
        }
        if is(callee, Tag::Closure) && (*(*callee.as_cell::<Closure>()).proto).arity != count {
            return arity_error(vm, callee, count);
        }
        match threads::spawn(vm, arguments, count) {
            Ok(()) => Value::NIL,
            Err(error) => (*vm).fail(&format!("Could not make a green thread: {error}.")),
        }
    }
}

unsafe extern "C" fn yield_now(vm: *mut Isolate, count: u32, _: *const Value) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: see above.
    unsafe {
        expect!(vm, count, 0);
        let_others_run(vm);
    }
    Value::NIL
}

unsafe extern "C" fn sleep(vm: *mut Isolate, count: u32, arguments: *const Value) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: see above.
    unsafe {
        expect!(vm, count, 1);
        let seconds = *arguments;
        let time = seconds
            .is_number()
            .then(|| Duration::try_from_secs_f64(seconds.as_number()).ok())
            .flatten();
        let Some(until) = time.and_then(|time| Instant::now().checked_add(time)) else {
            return (*vm).fail("Seconds must be a number from 0.");
        };
        let greens = greens(vm);
        greens.sleeps += 1;
        greens.sleepers.push(Sleeper {
            until,
            number: greens.sleeps,
            green: greens.current,
        });
        wait();
    }
    Value::NIL
}

unsafe extern "C" fn channel(vm: *mut Isolate, count: u32, arguments: *const Value) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: see above.
    unsafe {
        let capacity = match count {
            0 => 0.0,
            1 if (*arguments).is_number() => (*arguments).as_number(),
            1 => f64::NAN,
            _ => return (*vm).fail(&format!("Expected 1 arguments but got {count}.")),
        };
        if !(0.0..=CAPACITY_MAX).contains(&capacity) || capacity.fract() != 0.0 {
            return (*vm).fail("A capacity must be an integer from 0 to 1048576.");
        }
        match (*vm).make_channel(capacity as u32) {
            Ok(channel) => Value::cell(channel),
            Err(OutOfMemory) => (*vm).fail("Out of memory."),
        }
    }
}

unsafe extern "C" fn send(vm: *mut Isolate, count: u32, arguments: *const Value) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: see above. The channel's cell is alive, since the arguments stay on the value stack.
    unsafe {
        expect!(vm, count, 2);
        let (channel, value) = (*arguments, *arguments.add(1));
        if !is(channel, Tag::Channel) {
            return (*vm).fail("Can only send to channels.");
        }
        let channel: *mut Channel = channel.as_cell();
        if let Some(receiver) = take(vm, &raw mut (*channel).receivers) {
            passed(vm, receiver).write(value);
            greens(vm).ready.push_back(receiver);
        } else if (*channel).length < Array::length((*channel).buffer.as_cell()) {
            put(vm, channel, value);
        } else {
            let current = greens(vm).current;
            passed(vm, current).write(value);
            wait_in(vm, &raw mut (*channel).senders);
        }
    }
    Value::NIL
}

unsafe extern "C" fn receive(vm: *mut Isolate, count: u32, arguments: *const Value) -> Value {
    let vm: *mut Vm = vm.cast();
    // SAFETY: as in `send`.
    unsafe {
        expect!(vm, count, 1);
        let channel = *arguments;
        if !is(channel, Tag::Channel) {
            return (*vm).fail("Can only receive from channels.");
        }
        let channel: *mut Channel = channel.as_cell();
        if (*channel).length > 0 {
            let value = get(vm, channel);
            if let Some(sender) = take(vm, &raw mut (*channel).senders) {
                put(vm, channel, passed(vm, sender).replace(Value::NIL));
                greens(vm).ready.push_back(sender);
            }
            return value;
        }
        if let Some(sender) = take(vm, &raw mut (*channel).senders) {
            greens(vm).ready.push_back(sender);
            return passed(vm, sender).replace(Value::NIL);
        }
        wait_in(vm, &raw mut (*channel).receivers);
        let current = greens(vm).current;
        passed(vm, current).replace(Value::NIL)
    }
}

/// The slot in which a green thread that waits for a channel has its value. It is a root, so stores
/// need no barrier.
///
/// # Safety
/// As [`greens`].
unsafe fn passed(vm: *mut Vm, green: Id) -> *mut Value {
    // SAFETY: the promise.
    unsafe { (*greens(vm).all[green as usize - 1]).slot(PASSED) }
}

/// Appends the running green thread to a queue, and waits until another one has taken it out.
///
/// # Safety
/// As [`wait`]; the queue's channel is alive.
unsafe fn wait_in(vm: *mut Vm, queue: *mut Queue) {
    // SAFETY: the promise.
    unsafe {
        let current = greens(vm).current;
        (*greens(vm).all[current as usize - 1]).next = 0;
        match (*queue).last {
            0 => (*queue).first = current,
            last => (*greens(vm).all[last as usize - 1]).next = current,
        }
        (*queue).last = current;
        wait();
    }
}

/// Takes the first green thread out of a queue.
///
/// # Safety
/// As [`greens`]; the queue's channel is alive.
unsafe fn take(vm: *mut Vm, queue: *mut Queue) -> Option<Id> {
    // SAFETY: the promise.
    unsafe {
        let first = (*queue).first;
        if first == 0 {
            return None;
        }
        (*queue).first = (*greens(vm).all[first as usize - 1]).next;
        if (*queue).first == 0 {
            (*queue).last = 0;
        }
        Some(first)
    }
}

/// Address of a place of a channel's buffer.
///
/// # Safety
/// The channel is alive, and its buffer has the place.
unsafe fn place(channel: *mut Channel, index: u32) -> *mut Value {
    // SAFETY: the promise.
    unsafe {
        let buffer: *mut Array = (*channel).buffer.as_cell();
        let at = index % Array::length(buffer);
        buffer
            .byte_add(ARRAY_ELEMENTS as usize)
            .cast::<Value>()
            .add(at as usize)
    }
}

/// Appends a value to a channel's buffer.
///
/// # Safety
/// The channel is alive, and has room.
unsafe fn put(vm: *mut Vm, channel: *mut Channel, value: Value) {
    // SAFETY: the promise; the place is a word of a live cell.
    unsafe {
        let place = place(channel, (*channel).first + (*channel).length);
        (*vm).mutator.write(place.cast(), value.0 as usize);
        (*channel).length += 1;
    }
}

/// Takes the first value out of a channel's buffer.
///
/// # Safety
/// The channel is alive, and its buffer is not empty.
unsafe fn get(vm: *mut Vm, channel: *mut Channel) -> Value {
    // SAFETY: as in `put`.
    unsafe {
        let place = place(channel, (*channel).first);
        let value = *place;
        (*vm).mutator.write(place.cast(), Value::NIL.0 as usize);
        (*channel).first = ((*channel).first + 1) % Array::length((*channel).buffer.as_cell());
        (*channel).length -= 1;
        value
    }
}

impl Vm {
    /// An empty channel.
    fn make_channel(&mut self, capacity: u32) -> Result<*mut Channel, OutOfMemory> {
        let buffer = Value::cell(self.make_array(capacity)?);
        let channel = self.make_channel_cell()?;
        // SAFETY: only this function has the cell, which is large enough. The buffer is alive: this
        // frame holds it.
        unsafe {
            channel.write(Channel {
                header: Header::new(Tag::Channel, 0, 0),
                buffer,
                first: 0,
                length: 0,
                senders: Queue::default(),
                receivers: Queue::default(),
            });
        }
        Ok(channel)
    }

    /// Makes the natives' cells, behind those that every program has, from global `first` on.
    pub(super) fn make_green_natives(&mut self, first: usize) -> Result<(), OutOfMemory> {
        for (index, (_, function)) in GREEN_NATIVES.iter().enumerate() {
            let native: Value = self.make_native(*function)?;
            // SAFETY: the natives come first among the globals.
            unsafe { *self.globals.add(first + index) = native };
        }
        Ok(())
    }
}
