//! Processor time: of processes, and of everybody else.
//!
//! From `schedstat` (nanoseconds), not from ticks: an idle ring shows as waiting for IO in the
//! ticks, and a sample is short.

use anyhow::{Context, Result};
use std::fs;

/// Time a process has run on a processor, over its threads that are alive, in nanoseconds.
pub(crate) fn process_ns(pid: u32) -> Result<u64> {
    let dir = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&dir).with_context(|| format!("no process {pid}"))?;
    let mut total_ns = 0;
    for task in tasks {
        // A thread may end while we look.
        let Ok(text) = task.and_then(|t| fs::read_to_string(t.path().join("schedstat"))) else {
            continue;
        };
        total_ns += parse_schedstat(&text)?;
    }
    Ok(total_ns)
}

/// Waits of a process that ended, over its threads that are alive: how often it was woken.
pub(crate) fn voluntary_switches(pid: u32) -> Result<u64> {
    let dir = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&dir).with_context(|| format!("no process {pid}"))?;
    let mut total = 0;
    for task in tasks {
        // A thread may end while we look.
        let Ok(text) = task.and_then(|t| fs::read_to_string(t.path().join("status"))) else {
            continue;
        };
        total += parse_switches(&text)?;
    }
    Ok(total)
}

/// The line of a task's `status` about voluntary switches.
fn parse_switches(text: &str) -> Result<u64> {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let count = count.context("a task's status has no voluntary switches")?;
    count.trim().parse().context("status is not as expected")
}

/// Time all processors together were busy, in nanoseconds.
pub(crate) fn machine_busy_ns() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse_busy(&text)
}

/// Processors of the machine.
pub(crate) fn processors() -> Result<usize> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let one = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    Ok(text.lines().filter(one).count())
}

/// Restricts this process (before it has other threads) to one processor.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    anyhow::ensure!(cpu < rustix::thread::CpuSet::MAX_CPU, "no processor {cpu}");
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on processor {cpu} only"))
}

/// Does something on one processor only; what it starts stays there.
pub(crate) fn pinned<T>(cpu: usize, what: impl FnOnce() -> T) -> Result<T> {
    let before = rustix::thread::sched_getaffinity(None)?;
    pin(cpu)?;
    let done = what();
    rustix::thread::sched_setaffinity(None, &before)?;
    Ok(done)
}

/// First field of a `schedstat`: time on the processor in nanoseconds.
fn parse_schedstat(text: &str) -> Result<u64> {
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().context("schedstat is not as expected")
}

/// user, nice, system, irq, softirq and steal of the `cpu` line; ticks are hundredths of a second
/// on every architecture that Linux shows to programs.
fn parse_busy(text: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = line
        .context("/proc/stat has no cpu line")?
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    anyhow::ensure!(ticks.len() >= 8, "/proc/stat has too few columns");
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().map(|column| ticks[*column]).sum();
    Ok(busy * 10_000_000)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn busy_time_leaves_idle_and_waiting_for_io_out() {
        let text = "cpu  1 2 4 1000 1000 8 16 32 64 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(parse_busy(text).unwrap(), 63 * 10_000_000);
        assert!(parse_busy("cpu  1 2 3\n").is_err());
        assert!(parse_busy("").is_err());
    }

    #[test]
    fn time_of_a_thread_is_the_first_number() {
        assert_eq!(parse_schedstat("123 456 7\n").unwrap(), 123);
        assert!(parse_schedstat("").is_err());
    }

    #[test]
    fn voluntary_switches_are_not_the_others() {
        let text = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(parse_switches(text).unwrap(), 12);
        assert!(parse_switches("nonvoluntary_ctxt_switches:\t7\n").is_err());
    }

    #[test]
    fn our_own_time_grows_with_work() {
        let pid = std::process::id();
        let before_ns = process_ns(pid).unwrap();
        let mut n = 0u64;
        while process_ns(pid).unwrap() == before_ns {
            n = std::hint::black_box(n.wrapping_add(1));
        }
    }
}
