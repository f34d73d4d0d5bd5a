//! Workers: each takes the next request, has it written down, carries it out, and tells how it ended.

use crate::device::{Buffer, Device};
use crate::pattern::{Pattern, Wish};
use crate::report::Report;
use crate::sink::Saved;
use anyhow::{Context, Result};
use rustix::io::Errno;
use shardmap::units::{BLOCK_BYTES, BlockRange, Generation, Lba};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use ubs_verify::{Action, Content, Ending, OpId, Stamp};

/// How long a worker sleeps before it looks again whether a signal came.
const SIGNAL_POLL: Duration = Duration::from_millis(200);
/// Writes are tagged with the head, whatever its number.
const HEAD: Generation = Generation(0);
/// Places tried before a worker waits for others to finish.
const TRIES_MAX: usize = 16;

/// When to end, and how fast to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) depth: u16,
    /// Largest request of the pattern, in blocks.
    pub(crate) io_blocks: u32,
    pub(crate) ops_max: Option<u64>,
    pub(crate) duration_max: Option<Duration>,
    /// Least time between the beginnings of two requests.
    pub(crate) interval: Duration,
    pub(crate) errors_max: u64,
    /// End at the first wrong block.
    pub(crate) stop_at_wrong: bool,
}

struct State {
    saved: Saved,
    pattern: Pattern,
    busy: Vec<BlockRange>,
    report: Report,
    issued: u64,
    next_slot: Instant,
    last_done: Instant,
    stopping: bool,
    failure: Option<anyhow::Error>,
}

struct Engine<'a> {
    device: &'a Device,
    bounds: Bounds,
    began: Instant,
    stop: &'a AtomicBool,
    state: Mutex<State>,
    finished: Condvar,
}

/// A request on its way.
struct Job {
    op: OpId,
    wish: Wish,
    began: Instant,
}

/// Works `pattern` off with one thread per request in flight.
///
/// # Errors
/// The journal cannot be saved. IO errors are in the report.
pub(crate) fn work(
    device: &Device,
    saved: Saved,
    pattern: Pattern,
    bounds: Bounds,
    stop: &Arc<AtomicBool>,
) -> Result<(Saved, Report)> {
    let began = Instant::now();
    let engine = Engine {
        device,
        bounds,
        began,
        stop,
        state: Mutex::new(State {
            saved,
            pattern,
            busy: Vec::new(),
            report: Report::default(),
            issued: 0,
            next_slot: began,
            last_done: began,
            stopping: false,
            failure: None,
        }),
        finished: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..bounds.depth {
            scope.spawn(|| engine.worker());
        }
    });
    let mut state = engine.state.into_inner().expect("no worker panicked");
    if let Some(failure) = state.failure {
        return Err(failure);
    }
    state.saved.save()?;
    state.report.seconds = began.elapsed().as_secs_f64();
    Ok((state.saved, state.report))
}

impl Engine<'_> {
    fn worker(&self) {
        let mut buffer = Buffer::new(self.bounds.io_blocks);
        while let Some(job) = self.next_job() {
            if let Wish::Write(range, _) = job.wish {
                self.fill(job.op, range, &mut buffer);
            }
            let result = self.perform(job.wish, &mut buffer);
            let found = match (job.wish, result) {
                (Wish::Read(range), Ok(())) => contents(range, &buffer),
                _ => Vec::new(),
            };
            self.ended(&job, result, &found);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no worker panicked")
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if self.is_over(&mut state, now) {
                self.finished.notify_all();
                return None;
            }
            if state.next_slot > now {
                let wait = (state.next_slot - now).min(SIGNAL_POLL);
                state = self.wait(state, wait);
                continue;
            }
            let Some(wish) = state.free_wish() else {
                state = self.wait(state, SIGNAL_POLL);
                continue;
            };
            state.next_slot = now.max(state.next_slot + self.bounds.interval);
            return state.begin(wish);
        }
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, time: Duration) -> MutexGuard<'s, State> {
        let waited = self.finished.wait_timeout(state, time);
        waited.expect("no worker panicked").0
    }

    fn is_over(&self, state: &mut State, now: Instant) -> bool {
        let enough = self.bounds.ops_max.is_some_and(|max| state.issued >= max);
        let late = self
            .bounds
            .duration_max
            .is_some_and(|max| now - self.began >= max);
        state.stopping |= enough || late || self.stop.load(Ordering::Relaxed);
        state.stopping
    }

    fn fill(&self, op: OpId, range: BlockRange, buffer: &mut Buffer) {
        let volume = self.lock().saved.journal.history().subject().volume;
        let blocks = buffer
            .bytes_mut(range)
            .chunks_exact_mut(BLOCK_BYTES as usize);
        for (lba, block) in (range.start().0..).zip(blocks) {
            let stamp = Stamp {
                volume,
                lba: Lba(lba),
                seq: op.seq,
                generation: HEAD,
                writer: op.writer,
            };
            stamp.fill(block);
        }
    }

    fn perform(&self, wish: Wish, buffer: &mut Buffer) -> Result<(), Errno> {
        match wish {
            Wish::Read(range) => self.device.read(range, buffer),
            Wish::Write(range, fua) => self.device.write(range, buffer, fua),
            Wish::Zero(range) => self.device.zero(range),
            Wish::Flush => self.device.flush(),
        }
    }

    fn ended(&self, job: &Job, result: Result<(), Errno>, found: &[(Lba, Content)]) {
        let mut state = self.lock();
        let state = &mut *state;
        let now = Instant::now();
        for (lba, content) in found {
            let verdict = state.saved.journal.judge(job.op, *lba, content);
            state.stopping |= self.bounds.stop_at_wrong && !verdict.is_legal();
            state.report.judged(lba.0, &verdict);
        }
        let how = if result.is_ok() {
            Ending::Ok
        } else {
            Ending::Failed
        };
        let told = state.saved.journal.end(job.op, how);
        assert_eq!(told, Ok(()), "an action of our own ends once");
        if let Some(range) = job.wish.range() {
            state.busy.retain(|other| *other != range);
        }
        if let Err(errno) = result {
            let at = (now - self.began).as_secs_f64();
            let what = format!("{:?} failed after {at:.3} s: {errno}", job.wish);
            state.report.failed(what);
            state.stopping |= state.report.io_errors >= self.bounds.errors_max;
        } else {
            state.count(job.wish, now - job.began, now);
        }
        if job.wish == Wish::Flush {
            state.save();
        }
        self.finished.notify_all();
    }
}

impl State {
    /// The next request that meets no other one on its way.
    fn free_wish(&mut self) -> Option<Wish> {
        for _ in 0..TRIES_MAX {
            let wish = self.pattern.next();
            let met = |r: BlockRange| self.busy.iter().any(|other| other.overlaps(r));
            if !wish.range().is_some_and(met) {
                return Some(wish);
            }
        }
        None
    }

    /// Written down, and only then on its way.
    fn begin(&mut self, wish: Wish) -> Option<Job> {
        let action = match wish {
            Wish::Read(range) => Action::Read { range },
            Wish::Write(range, fua) => Action::Write {
                range,
                generation: HEAD,
                fua,
            },
            Wish::Zero(range) => Action::Zero { range, fua: false },
            Wish::Flush => Action::Flush,
        };
        self.issued += 1;
        self.busy.extend(wish.range());
        let op = self.saved.journal.issue(self.saved.writer, action);
        self.save();
        let began = Instant::now();
        (self.failure.is_none()).then_some(Job { op, wish, began })
    }

    fn save(&mut self) {
        if let Err(why) = self.saved.save().context("the run ends here") {
            self.stopping = true;
            self.failure.get_or_insert(why);
        }
    }

    fn count(&mut self, wish: Wish, took: Duration, now: Instant) {
        let report = &mut self.report;
        match wish {
            Wish::Read(_) => report.reads += 1,
            Wish::Write(..) => report.writes += 1,
            Wish::Zero(_) => report.zeroes += 1,
            Wish::Flush => report.flushes += 1,
        }
        report.longest_io = report.longest_io.max(took);
        report.longest_gap = report.longest_gap.max(now - self.last_done);
        self.last_done = now;
    }
}

fn contents(range: BlockRange, buffer: &Buffer) -> Vec<(Lba, Content)> {
    let blocks = buffer.bytes(range).chunks_exact(BLOCK_BYTES as usize);
    let lbas = (range.start().0..).map(Lba);
    lbas.zip(blocks.map(Content::of)).collect()
}
