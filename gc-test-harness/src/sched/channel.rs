//! Channels between green threads: a full or an empty one blocks its green thread only.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::green::Green;
use super::worker::{current, park, unpark};

/// A channel of at most so many messages. A clone is another handle on the same channel.
pub struct Channel<T>(Arc<Inner<T>>);

struct Inner<T> {
    capacity: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    messages: VecDeque<T>,
    closed: bool,
    senders: VecDeque<Arc<Green>>,
    receivers: VecDeque<Arc<Green>>,
}

impl<T> Clone for Channel<T> {
    fn clone(&self) -> Self {
        Channel(self.0.clone())
    }
}

impl<T: Send> Channel<T> {
    /// A channel that keeps up to so many messages, at least one.
    pub fn new(capacity: usize) -> Channel<T> {
        Channel(Arc::new(Inner {
            capacity: capacity.max(1),
            state: Mutex::new(State {
                messages: VecDeque::new(),
                closed: false,
                senders: VecDeque::new(),
                receivers: VecDeque::new(),
            }),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, and waits while the channel is full. On a green thread.
    ///
    /// # Errors
    /// The channel is closed: the message.
    pub fn send(&self, message: T) -> Result<(), T> {
        loop {
            let mut state = self.lock();
            if state.closed {
                return Err(message);
            }
            if state.messages.len() < self.0.capacity {
                state.messages.push_back(message);
                let receiver = state.receivers.pop_front();
                drop(state);
                wake(receiver);
                return Ok(());
            }
            wait_in(&mut state.senders);
            drop(state);
            park();
        }
    }

    /// Receives a message, and waits while there is none. `None`: the channel is closed and empty.
    /// On a green thread.
    pub fn receive(&self) -> Option<T> {
        loop {
            let mut state = self.lock();
            if let Some(message) = state.messages.pop_front() {
                let sender = state.senders.pop_front();
                drop(state);
                wake(sender);
                return Some(message);
            }
            if state.closed {
                return None;
            }
            wait_in(&mut state.receivers);
            drop(state);
            park();
        }
    }

    /// Closes the channel. On a green thread.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let State {
            senders, receivers, ..
        } = &mut *state;
        let waiting: Vec<_> = senders.drain(..).chain(receivers.drain(..)).collect();
        drop(state);
        waiting.into_iter().for_each(|green| wake(Some(green)));
    }
}

/// Adds the running green thread, once.
fn wait_in(list: &mut VecDeque<Arc<Green>>) {
    let me = current();
    if !list.iter().any(|green| Arc::ptr_eq(green, &me)) {
        list.push_back(me);
    }
}

fn wake(green: Option<Arc<Green>>) {
    if let Some(green) = green {
        unpark(&green);
    }
}
