//! Contenders as processes: whole runs, and servers that mark on request.
//!
//! A *run* is a process from its start to its end, which must print the expected output. Its time,
//! its processor time and its peak memory are measured. A *server* makes its graph and prints
//! `ready` and the number of objects. For each line that it then reads, it collects once and prints
//! the nanoseconds of marking. The timed part differs between servers, never in Urge's favour:
//! Urge's is from the first root to the last cell, bdwgc's is marking alone by its events, Go's is
//! the processor time of marking alone by its runtime's accounts.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::workshop::Program;

/// The time and memory that a process used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// The time from its start to its end.
    pub seconds: f64,
    /// The processor time of all its threads.
    pub processor_seconds: f64,
    /// The peak of its resident memory.
    pub peak_mib: f64,
}

/// The output of a process, and the time and memory that it used.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Its stdout.
    pub stdout: String,
    /// Its stderr, if requested.
    pub stderr: String,
    /// Its time and memory.
    pub used: Used,
}

/// Runs a process to its end. With `errors`, its stderr is kept; otherwise it goes to this
/// process's stderr.
///
/// # Errors
/// A message: the process could not be started, or failed.
pub fn run(mut command: Command, errors: bool) -> Result<Ran, String> {
    let start = Instant::now();
    let stderr = if errors {
        Stdio::piped()
    } else {
        Stdio::inherit()
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let mut ran = Ran::default();
    let said = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        // The error is ignored: the parser rejects an incomplete text.
        let _ = said.map(|mut said| said.read_to_string(&mut text));
        text
    });
    if let Some(mut stdout) = child.stdout.take() {
        let read = stdout.read_to_string(&mut ran.stdout);
        read.map_err(|e| e.to_string())?;
    }
    ran.stderr = reader.join().unwrap_or_default();
    let (status, usage) = wait(child)?;
    let time = start.elapsed();
    if status != 0 {
        let last = ran.stderr.lines().last().unwrap_or_default();
        return Err(format!("it failed with wait status {status} {last}"));
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    ran.used = Used {
        seconds: time.as_secs_f64(),
        processor_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_mib: usage.ru_maxrss as f64 / 1024.0,
    };
    Ok(ran)
}

/// Runs a process that must print exactly `expected`.
///
/// # Errors
/// Those of [`run`], or a message with the wrong output.
pub fn run_for(command: Command, expected: &str) -> Result<Used, String> {
    let ran = run(command, false)?;
    if ran.stdout == expected {
        Ok(ran.used)
    } else {
        Err(format!(
            "it printed {:?} instead of {expected:?}",
            ran.stdout
        ))
    }
}

/// Waits for a child's end and returns its resource usage, which std does not give.
fn wait(child: Child) -> Result<(i32, libc::rusage), String> {
    let pid = child.id().cast_signed();
    let mut status = 0;
    // SAFETY: `rusage` is plain data, which the call fills. The child is this process's, and only
    // this call waits for it.
    let (result, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let result = libc::wait4(pid, &mut status, 0, &mut usage);
        (result, usage)
    };
    if result == pid {
        Ok((status, usage))
    } else {
        Err(std::io::Error::last_os_error().to_string())
    }
}

/// A contender that has made its graph and marks it on request. Its process ends when this is
/// dropped.
pub struct Server {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// Starts a server, which must report that its graph has `objects` objects.
    ///
    /// # Errors
    /// A message.
    pub fn start(program: &Program, mib: u32, objects: u64) -> Result<Server, String> {
        let mut command = program.command(&[mib]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (orders, Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("it has no output".to_owned());
        };
        let mut server = Server {
            child,
            orders,
            answers: BufReader::new(answers),
        };
        let line = server.line()?;
        if line == format!("ready {objects}") {
            Ok(server)
        } else {
            Err(format!("it says {line:?} instead of ready {objects}"))
        }
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Err("it ended early".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Requests one marking, and returns its time.
    ///
    /// # Errors
    /// A message.
    pub fn mark(&mut self) -> Result<Duration, String> {
        let orders = self.orders.as_mut().ok_or("it takes no orders")?;
        orders.write_all(b"\n").map_err(|e| e.to_string())?;
        let line = self.line()?;
        let nanos = line
            .parse()
            .map_err(|_| format!("it says {line:?} instead of nanoseconds"))?;
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.orders.take()); // a server ends at the end of its input
        let _ = self.child.wait();
    }
}

/// The two pauses of one cycle of Go, each from the stop request until the world runs again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GoCycle {
    /// The pause before marking, in microseconds.
    pub first_us: f64,
    /// The pause after marking, in microseconds.
    pub second_us: f64,
}

impl GoCycle {
    /// The longer pause, in microseconds.
    pub fn longest_us(self) -> f64 {
        self.first_us.max(self.second_us)
    }
}

/// Parses the output of Go's runtime with `GODEBUG=gctrace=1`, from the word `ready` on, which may
/// be in the middle of another thread's line. `gc 4 @0.123s 15%: 0.24+46+0.20 ms clock, ...` means
/// a pause of 240 us, 46 ms of concurrent marking, and a pause of 200 us.
pub fn go_cycles(stderr: &str) -> Vec<GoCycle> {
    let after = stderr.split_once("ready").map_or("", |(_, after)| after);
    let cycles = after.lines().filter_map(|line| {
        let (_, clock) = line.strip_prefix("gc ")?.split_once(": ")?;
        let (clock, _) = clock.split_once(" ms clock")?;
        let mut parts = clock.split('+').map(str::parse::<f64>);
        let (first, _, second) = (
            parts.next()?.ok()?,
            parts.next()?.ok()?,
            parts.next()?.ok()?,
        );
        Some(GoCycle {
            first_us: first * 1e3,
            second_us: second * 1e3,
        })
    });
    cycles.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_tells_its_pauses_in_milliseconds() {
        let trace = "gc 3 @0.055s 9%: 9.14+28+9.005 ms clock, 0.29+0/4.0/41+0.010 ms cpu, 20->20->20 MB\n\
                     gc 9 @0.1ready\n23s 15%: 7.25+46+0.5 ms clock\n\
                     gc 4 @0.123s 15%: 0.25+46+0.5 ms clock, 0.48+10/27/11+0.40 ms cpu, 34->36->22 MB, 40 MB goal\n\
                     something else\n";
        let cycle = GoCycle {
            first_us: 250.0,
            second_us: 500.0,
        };
        assert_eq!(go_cycles(trace), [cycle]);
        assert_eq!(cycle.longest_us(), 500.0);
    }

    #[test]
    fn a_process_that_fails_or_prints_something_else_is_said() {
        let shell = |line: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            command
        };
        let used = run_for(shell("echo right"), "right\n").expect("it prints that");
        assert!(used.seconds > 0.0 && used.peak_mib > 0.0);
        let wrong = run_for(shell("echo wrong"), "right\n").expect_err("it prints something else");
        assert!(wrong.contains("wrong"), "{wrong}");
        let failed = run(shell("echo sorry >&2; exit 3"), true).expect_err("it fails");
        assert!(failed.contains("sorry"), "{failed}");
    }
}
