//! A host that has a SIGURG handler of its own beside the collector's.
//!
//! The collector stops threads by SIGURG, the signal that the kernel also sends when urgent data
//! arrive on a socket. Signals that arrive together are merged. A handler that was installed before
//! the heap was built is therefore called for each signal, the collector's included, and must check
//! its own condition, as SIGURG always required. A handler that is installed *after* the heap, in
//! place of Urge's, should call the one that it replaces. The next stop installs Urge's handler on
//! top again; where that fails, the watchdog names the handler on stderr after a second.
//!
//! `cargo run -p gc-core --example host_sigurg`

use gc_core::Heap;
use std::error::Error;
use std::ffi::c_int;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Calls of the host's handler.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// True if urgent data may have arrived.
static URGENT: AtomicBool = AtomicBool::new(false);

extern "C" fn on_sigurg(_: c_int) {
    CALLS.fetch_add(1, Relaxed);
    URGENT.store(true, Relaxed);
}

fn checked(result: c_int) -> std::io::Result<c_int> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Receives the urgent byte, if one has arrived.
fn take_urgent(socket: &TcpStream) -> Option<u8> {
    let mut byte = 0u8;
    // SAFETY: the call writes at most one byte, into `byte`.
    let n = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            (&raw mut byte).cast(),
            1,
            libc::MSG_OOB | libc::MSG_DONTWAIT,
        )
    };
    (n == 1).then_some(byte)
}

/// Receives urgent data while a mutator loops and is stopped a thousand times.
pub fn main() -> Result<(), Box<dyn Error>> {
    // The host installs its handler first, as a socket library would.
    // SAFETY: the action is complete when it is installed, and the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigurg as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        checked(libc::sigaction(libc::SIGURG, &action, std::ptr::null_mut()))?;
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    // SAFETY: asks the kernel to signal this process for urgent data.
    checked(unsafe { libc::fcntl(receiver.as_raw_fd(), libc::F_SETOWN, libc::getpid()) })?;

    let heap = Heap::builder().build()?;
    let (attached, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut received = Vec::new();
    std::thread::scope(|threads| -> Result<(), Box<dyn Error>> {
        let _done = Done(&done);
        let looping = threads.spawn(|| {
            let _mutator = heap.attach().map_err(|e| e.to_string())?;
            attached.store(true, Relaxed);
            let mut turns = 0u64;
            while !done.load(Relaxed) {
                turns += 1; // no poll: only a signal stops this thread
            }
            Ok::<_, String>(turns)
        });
        while !attached.load(Relaxed) && !looping.is_finished() {
            std::thread::yield_now();
        }
        for byte in b"urgent" {
            // SAFETY: sends one byte, from `byte`.
            let sent = unsafe {
                libc::send(
                    sender.as_raw_fd(),
                    std::ptr::from_ref(byte).cast(),
                    1,
                    libc::MSG_OOB,
                )
            };
            checked(sent as c_int)?;
            loop {
                for _ in 0..10 {
                    heap.collect();
                }
                if URGENT.swap(false, Relaxed)
                    && let Some(byte) = take_urgent(&receiver)
                {
                    received.push(byte);
                    break;
                }
            }
        }
        while heap.stats().collections < 1000 {
            heap.collect();
        }
        done.store(true, Relaxed);
        looping.join().map_err(|_| "the mutator panicked")??;
        Ok(())
    })?;
    println!(
        "received {:?} as urgent data; the host's handler ran {} times, most of them for the collector",
        String::from_utf8_lossy(&received),
        CALLS.load(Relaxed)
    );
    println!(
        "{} collections stopped a loop without polls",
        heap.stats().collections
    );
    assert_eq!(received, b"urgent");
    assert!(CALLS.load(Relaxed) > received.len() as u64);
    Ok(())
}

/// Ends the loop also when an operation fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
