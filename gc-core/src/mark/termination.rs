//! When marking is over: the one word by which several markers agree on it.
//!
//! ```text
//! 63            1      0
//! [ members at work | OPEN ]
//! ```
//!
//! One thread, the *leader* (a heap's collector), marks as long as marking lasts; *members* join
//! and leave. The rules:
//!
//! * A member joins before it takes its first packet, and only while the word says open.
//! * A member leaves when it has found the queue empty and its own packet is empty, or when it has
//!   put its packet into the queue.
//! * The leader alone closes. It does so when it has found the queue empty and its own packet is
//!   empty, and in one step from "open, no member at work".
//!
//! Then there is no work. Suppose that the leader found the queue empty at time *t* and closed at
//! *u*. Only members put packets into the queue after *t*. Consider the last such packet. If a
//! member took it, that member had joined before, and had to find the queue empty once more before
//! it left. If no member took it, the member that put it in cannot have found the queue empty
//! afterwards, so it was at work at *u*. A member that joins after *u* is refused. (Threads that
//! are no members may put packets in at any time: mutators that mark what they cannot log. For
//! these the leader looks at the queue again in a stop.)
//!
//! The code below has the orderings that this needs. The model at the end of the file checks them
//! and the rules: `cargo test -p gc-core --features loom --lib loom`.

use std::sync::atomic::{AtomicU64, Ordering};

/// The operations of the protocol's atomic word, which loom's type has as well.
pub(crate) trait AtomicWord {
    fn load(&self, order: Ordering) -> u64;
    fn compare_exchange(
        &self,
        from: u64,
        to: u64,
        ok: Ordering,
        failed: Ordering,
    ) -> Result<u64, u64>;
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;
    fn fetch_sub(&self, less: u64, order: Ordering) -> u64;
}

macro_rules! atomic_word {
    ($t:ty) => {
        impl AtomicWord for $t {
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                self.load(order)
            }
            #[inline]
            fn compare_exchange(
                &self,
                from: u64,
                to: u64,
                ok: Ordering,
                failed: Ordering,
            ) -> Result<u64, u64> {
                self.compare_exchange(from, to, ok, failed)
            }
            #[inline]
            fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
                self.fetch_or(bits, order)
            }
            #[inline]
            fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
                self.fetch_and(bits, order)
            }
            #[inline]
            fn fetch_sub(&self, less: u64, order: Ordering) -> u64 {
                self.fetch_sub(less, order)
            }
        }
    };
}

atomic_word!(AtomicU64);

const OPEN: u64 = 1;
const MEMBER: u64 = 2;

/// See the module's head.
#[derive(Default)]
pub(crate) struct Termination<W = AtomicU64>(pub(crate) W);

impl<W: AtomicWord> Termination<W> {
    /// Members may join from now on. The leader calls it.
    pub(crate) fn open(&self) {
        // Ordering: Release pairs with the Acquire of `join`: a member sees what the leader did
        // before.
        self.0.fetch_or(OPEN, Ordering::Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        // Ordering: Relaxed, a hint; `join` decides.
        self.0.load(Ordering::Relaxed) & OPEN != 0
    }

    /// One more member is at work, if it is open.
    #[must_use]
    pub(crate) fn join(&self) -> bool {
        let mut now = self.0.load(Ordering::Relaxed);
        while now & OPEN != 0 {
            // Ordering: Acquire, see `open`.
            match self
                .0
                .compare_exchange(now, now + MEMBER, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
    }

    /// The member is no longer at work, and has no cells.
    pub(crate) fn leave(&self) {
        // Ordering: Release pairs with the Acquire of `close`: the leader sees all that members
        // have done.
        self.0.fetch_sub(MEMBER, Ordering::Release);
    }

    /// In the child of a fork: it is closed, and no member is at work.
    pub(crate) fn forget(&self) {
        self.0.fetch_and(0, Ordering::Relaxed);
    }

    /// How many members are at work. A hint.
    pub(crate) fn at_work(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / MEMBER
    }

    /// The leader has found the queue empty, and has no cells. True: no member is at work, and none
    /// can join. It may be closed already.
    #[must_use]
    pub(crate) fn close(&self) -> bool {
        // Ordering: Acquire, see `leave`.
        match self
            .0
            .compare_exchange(OPEN, 0, Ordering::Acquire, Ordering::Acquire)
        {
            Ok(_) => true,
            Err(now) => now == 0,
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod model {
    //! A model of a leader and two members with a stack of packets in one word. A packet is a
    //! digit: the number of packets that following it makes.

    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64 as LoomU64, AtomicUsize};

    atomic_word!(LoomU64);

    struct Shared {
        termination: Termination<LoomU64>,
        /// The packets, a base-8 digit each, the last one lowest. A digit is one more than the
        /// number of packets that its packet makes.
        stack: LoomU64,
        /// The packets that each thread has followed. Relaxed: only the orderings of `Termination`
        /// make the counts visible to the leader.
        followed: [AtomicUsize; 3],
    }

    /// A rule that a member breaks, to show that the model finds it.
    #[derive(Clone, Copy, PartialEq)]
    enum Break {
        Nothing,
        TakeBeforeJoin,
        LeaveBeforeLast,
    }

    impl Shared {
        fn push(&self, packet: u64) {
            let mut now = self.stack.load(Ordering::Relaxed);
            // Ordering: Release pairs with the Acquire of `pop`, as in `queue::Stack`.
            while let Err(changed) = self.stack.compare_exchange(
                now,
                now * 8 + packet + 1,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                now = changed;
            }
        }

        fn pop(&self) -> Option<u64> {
            let mut now = self.stack.load(Ordering::Acquire);
            while now != 0 {
                match self.stack.compare_exchange(
                    now,
                    now / 8,
                    Ordering::Acquire,
                    Ordering::Acquire,
                ) {
                    Ok(_) => return Some(now % 8 - 1),
                    Err(changed) => now = changed,
                }
            }
            None
        }

        /// Follows a packet and all packets that come of it, except those that other threads take.
        fn drain(&self, me: usize, mut packet: Option<u64>) {
            while let Some(makes) = packet {
                for _ in 0..makes {
                    self.push(0);
                }
                let followed = self.followed[me].load(Ordering::Relaxed);
                self.followed[me].store(followed + 1, Ordering::Relaxed);
                packet = self.pop();
            }
        }

        fn member(&self, me: usize, fault: Break) {
            for _ in 0..2 {
                match fault {
                    Break::TakeBeforeJoin => {
                        let packet = self.pop();
                        if self.termination.join() {
                            self.drain(me, packet);
                            self.termination.leave();
                        }
                    }
                    Break::LeaveBeforeLast => {
                        if self.termination.join() {
                            let packet = self.pop();
                            self.termination.leave();
                            self.drain(me, packet);
                        }
                    }
                    Break::Nothing => {
                        if self.termination.join() {
                            self.drain(me, self.pop());
                            self.termination.leave();
                        }
                    }
                }
            }
        }
    }

    /// Runs the model for `packets` and `members`, in all orders with at most three preemptions.
    fn check(packets: &'static [u64], members: usize, fault: Break) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let shared = Arc::new(Shared {
                termination: Termination(LoomU64::new(0)),
                stack: LoomU64::new(0),
                followed: [const { () }; 3].map(|()| AtomicUsize::new(0)),
            });
            shared.termination.open();
            for &packet in packets {
                shared.push(packet);
            }
            let threads: Vec<_> = (1..=members)
                .map(|me| {
                    let shared = shared.clone();
                    loom::thread::spawn(move || shared.member(me, fault))
                })
                .collect();
            loop {
                shared.drain(0, shared.pop());
                if shared.termination.close() {
                    break;
                }
                loom::thread::yield_now();
            }
            let expected: u64 = packets.iter().map(|packet| 1 + packet).sum();
            let followed: usize = shared
                .followed
                .iter()
                .map(|f| f.load(Ordering::Relaxed))
                .sum();
            assert_eq!(followed as u64, expected, "the leader closed over work");
            assert!(shared.pop().is_none() && shared.termination.at_work() == 0);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    /// The leader closes once all packets are followed, and not before.
    #[test]
    fn loom_the_leader_closes_when_all_work_is_done_and_not_before() {
        check(&[1, 2], 1, Break::Nothing);
        check(&[1, 0], 2, Break::Nothing);
    }

    /// A member that takes a packet before it joins is found: the leader closes over that packet.
    #[test]
    #[should_panic(expected = "the leader closed over work")]
    fn loom_a_member_that_takes_before_it_joins_is_noticed() {
        check(&[1], 1, Break::TakeBeforeJoin);
    }

    /// A member that leaves before its last packet is followed is found.
    #[test]
    #[should_panic(expected = "the leader closed over work")]
    fn loom_a_member_that_leaves_before_its_last_packet_is_noticed() {
        check(&[1], 1, Break::LeaveBeforeLast);
    }
}
