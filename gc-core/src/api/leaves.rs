//! Types of the standard library that hold no edges: what the operating system gives, channels'
//! ends, functions, and collections of leaves.

use std::collections::LinkedList;
use std::sync::{LazyLock, Mutex, mpsc};

use crate::api::trace::Leaf;

macro_rules! leaves {
    ($($({$($generics:tt)*})? $type:ty),* $(,)?) => {$(
        // SAFETY: a value consists of plain bits, or of leaves.
        unsafe impl$(<$($generics)*>)? Leaf for $type {}
    )*};
}

leaves!(
    // What the operating system gives.
    std::os::fd::OwnedFd, std::net::TcpListener,
    std::os::unix::net::UnixStream, std::os::unix::net::UnixListener,
    std::os::unix::net::UnixDatagram, std::io::PipeReader, std::io::PipeWriter,
    std::io::Stdin, std::io::Stdout, std::io::Stderr, std::io::Error, std::io::ErrorKind,
    std::process::Child, std::process::ChildStdin, std::process::ChildStdout,
    std::process::ChildStderr, std::process::ExitStatus,
    std::net::IpAddr, std::net::Ipv4Addr, std::net::Ipv6Addr, std::net::SocketAddr,
    {R: Leaf} std::io::BufReader<R>, {W: Leaf + std::io::Write} std::io::BufWriter<W>,
    // Threads.
    std::sync::Condvar, std::sync::Barrier, std::thread::Thread,
    {T: Leaf, F: Leaf} LazyLock<T, F>,
    // Collections and plain values.
    {T: Leaf} LinkedList<T>, {T: Leaf} core::ops::Range<T>, {T: Leaf} core::ops::RangeInclusive<T>,
    {T: Leaf} core::cmp::Reverse<T>, {T: Leaf} core::num::Saturating<T>,
    core::convert::Infallible, std::path::Path, std::ffi::OsStr, core::ffi::CStr,
    {H: 'static} core::hash::BuildHasherDefault<H>,
    {A: Leaf, B: Leaf, C: Leaf, D: Leaf, E: Leaf} (A, B, C, D, E),
    {A: Leaf, B: Leaf, C: Leaf, D: Leaf, E: Leaf, F: Leaf} (A, B, C, D, E, F),
);

macro_rules! held_outside {
    ($({$($generics:tt)*} $type:ty),* $(,)?) => {$(
        // SAFETY: the value has a place of its own outside of the heap, which is not in a cell. A
        // field stays null there: it refuses every store.
        unsafe impl<$($generics)*> Leaf for $type {}
    )*};
}

held_outside!(
    {T: Send + Sync + ?Sized + 'static} std::sync::Weak<T>,
    {T: Send + 'static} mpsc::Sender<T>, {T: Send + 'static} mpsc::SyncSender<T>,
    // A receiver belongs to one thread. A mutex lets threads share it.
    {T: Send + 'static} Mutex<mpsc::Receiver<T>>,
    {T: Send + 'static} std::thread::JoinHandle<T>,
    {} dyn core::error::Error + Send + Sync, {} dyn core::any::Any + Send + Sync,
);

macro_rules! functions {
    ($(($($argument:ident),*))*) => {$(
        held_outside!(
            {$($argument: 'static,)* R: 'static} dyn Fn($($argument),*) -> R + Send + Sync,
            {$($argument: 'static,)* R: 'static} dyn FnMut($($argument),*) -> R + Send + Sync,
            {$($argument: 'static,)* R: 'static} dyn FnOnce($($argument),*) -> R + Send + Sync,
        );
    )*};
}

functions!(()(A)(A, B)(A, B, C)(A, B, C, D));

leaves!(
    {A: 'static, B: 'static, C: 'static, R: 'static} fn(A, B, C) -> R,
    {A: 'static, B: 'static, C: 'static, D: 'static, R: 'static} fn(A, B, C, D) -> R,
    {A: 'static, B: 'static, C: 'static, D: 'static, E: 'static, R: 'static} fn(A, B, C, D, E) -> R,
);
