//! How fast a resilver may go while the host works: so that the host's slowest requests take at most
//! about twice as long as without it (protocol §9).
//!
//! Decided from nothing but how long host requests took. A probe without copies measures what is
//! usual; then copies run at a rate that halves when the slowest hundredth takes too long and
//! grows while it does not; the probe is repeated, because loads change.
//!
//! ```text
//! Probing --64 requests, or time is up--> Running --10 s--> Probing
//! ```

use shardmap::units::Moment;

/// Requests that make a window; their slowest is about the 99th percentile.
const WINDOW_SAMPLES: u32 = 64;
/// Longest window. A window without enough requests decides with what it has.
const WINDOW_MS: u64 = 250;
/// Fewest requests that decide anything.
const SAMPLES_MIN: u32 = 4;
/// How long a probe's result is believed.
const RUN_MS: u64 = 10_000;
/// The host counts as busy for so long after a request.
const BUSY_MS: u64 = 100;
/// First, least and greatest rate, in bytes per second.
const RATE: (u64, u64, u64) = (32 << 20, 1 << 20, 8 << 30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Probing,
    Running,
}

/// When the next copy may start: held back for the host's sake, and by the configured limit.
#[derive(Debug)]
pub(super) struct Throttle {
    pub(super) pace: Pace,
    next_copy_at: Moment,
}

impl Throttle {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            pace: Pace::new(now),
            next_copy_at: now,
        }
    }

    /// Until when no copy may start, if so. `host_waits`: requests are outstanding.
    pub(super) fn held_until(&mut self, now: Moment, host_waits: bool) -> Option<Moment> {
        let limit = Some(self.next_copy_at).filter(|at| *at > now);
        self.pace.held_until(now, host_waits).max(limit)
    }

    /// A copy starts. No limit: zero bytes per second.
    pub(super) fn on_copy(&mut self, now: Moment, bytes: u64, limit_bytes_per_s: u64) {
        if let Some(cost_ns) = bytes
            .saturating_mul(1_000_000_000)
            .checked_div(limit_bytes_per_s)
        {
            self.next_copy_at = Moment(self.next_copy_at.max(now).0.saturating_add(cost_ns));
        }
        self.pace.on_copy(now, bytes);
    }
}

/// Pace of one resilver.
#[derive(Debug)]
pub(super) struct Pace {
    mode: Mode,
    mode_began: Moment,
    window_began: Moment,
    samples: u32,
    slowest_ns: u64,
    /// Slowest of the probe; zero before the first.
    usual_ns: u64,
    rate_bytes_per_s: u64,
    next_copy_at: Moment,
    host_seen_at: Option<Moment>,
}

impl Pace {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            mode: Mode::Probing,
            mode_began: now,
            window_began: now,
            samples: 0,
            slowest_ns: 0,
            usual_ns: 0,
            rate_bytes_per_s: RATE.0,
            next_copy_at: now,
            host_seen_at: None,
        }
    }

    /// A host request has ended. True if copies that had to wait may go on.
    pub(super) fn on_host_done(&mut self, now: Moment, took_ns: u64) -> bool {
        self.host_seen_at = Some(now);
        self.samples += 1;
        self.slowest_ns = self.slowest_ns.max(took_ns);
        let was = self.mode;
        self.look(now);
        was != self.mode
    }

    /// Until when no copy may start, if so. `host_waits`: requests are outstanding.
    pub(super) fn held_until(&mut self, now: Moment, host_waits: bool) -> Option<Moment> {
        let recent = |seen: Moment| now < seen.plus_ms(BUSY_MS);
        if !host_waits && !self.host_seen_at.is_some_and(recent) {
            return None; // nobody to disturb
        }
        self.look(now);
        let until = match self.mode {
            Mode::Probing => self.mode_began.plus_ms(WINDOW_MS),
            Mode::Running => self.next_copy_at,
        };
        (until > now).then_some(until)
    }

    pub(super) fn on_copy(&mut self, now: Moment, bytes: u64) {
        let cost_ns = bytes.saturating_mul(1_000_000_000) / self.rate_bytes_per_s;
        self.next_copy_at = Moment(self.next_copy_at.max(now).0.saturating_add(cost_ns));
    }

    fn look(&mut self, now: Moment) {
        let over = now >= self.window_began.plus_ms(WINDOW_MS);
        if self.samples < WINDOW_SAMPLES && !over {
            return;
        }
        match self.mode {
            Mode::Probing => {
                if self.samples >= SAMPLES_MIN {
                    self.usual_ns = self.slowest_ns;
                }
                self.mode = Mode::Running;
                self.mode_began = now;
            }
            Mode::Running => {
                self.adjust();
                if now >= self.mode_began.plus_ms(RUN_MS) {
                    self.mode = Mode::Probing;
                    self.mode_began = now;
                }
            }
        }
        (self.samples, self.slowest_ns, self.window_began) = (0, 0, now);
    }

    /// Aims below twice the usual, so that it is kept while the rate swings.
    fn adjust(&mut self) {
        let (_, least, greatest) = RATE;
        if self.samples < SAMPLES_MIN || self.usual_ns == 0 {
            return;
        }
        let rate = self.rate_bytes_per_s;
        let limit_ns = self.usual_ns.saturating_add(self.usual_ns / 2);
        self.rate_bytes_per_s = if self.slowest_ns > limit_ns {
            (rate / 2).max(least)
        } else {
            (rate + rate / 8).min(greatest)
        };
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const MS: u64 = 1_000_000;

    /// One host request after another for `ms`, each taking what `took_ns` says of the bytes copied
    /// in the same millisecond; gives the bytes copied.
    fn load(pace: &mut Pace, now: &mut u64, ms: u64, took_ns: impl Fn(u64) -> u64) -> u64 {
        let (end, mut copied) = (*now + ms * MS, 0);
        while *now < end {
            let mut bytes = 0;
            while pace.held_until(Moment(*now), true).is_none() && bytes < 4 << 20 {
                pace.on_copy(Moment(*now), 128 << 10);
                bytes += 128 << 10;
            }
            copied += bytes;
            *now += MS;
            pace.on_host_done(Moment(*now), took_ns(bytes));
        }
        copied
    }

    #[test]
    fn without_a_host_nothing_is_held() {
        let mut pace = Pace::new(Moment(5));
        assert_eq!(pace.held_until(Moment(5), false), None);
        pace.on_copy(Moment(5), 1 << 30);
        assert_eq!(pace.held_until(Moment(6), false), None);
    }

    #[test]
    fn the_host_is_measured_first_and_no_copy_disturbs_that() {
        let mut pace = Pace::new(Moment(0));
        let until = Moment(WINDOW_MS * MS);
        assert_eq!(pace.held_until(Moment(0), true), Some(until));
        for n in 1..64 {
            assert!(!pace.on_host_done(Moment(n * 1000), 100));
        }
        assert!(pace.on_host_done(Moment(64_000), 100), "enough is known");
        assert_eq!(pace.held_until(Moment(64_000), true), None);
    }

    #[test]
    fn a_host_that_does_not_suffer_is_outrun_more_and_more() {
        let (mut pace, mut now) = (Pace::new(Moment(0)), 0);
        let first = load(&mut pace, &mut now, 1_000, |_| 100_000);
        let later = load(&mut pace, &mut now, 1_000, |_| 100_000);
        assert!(later > first, "{first} and then {later}");
    }

    #[test]
    fn a_host_that_suffers_gets_room_and_the_resilver_still_moves() {
        let (mut pace, mut now) = (Pace::new(Moment(0)), 0);
        let suffers = |bytes: u64| 100_000 + bytes * 10;
        load(&mut pace, &mut now, 3_000, suffers);
        let copied = load(&mut pace, &mut now, 5_000, suffers);
        let rate = copied / 5;
        assert!((512 << 10..4 << 20).contains(&rate), "{rate} bytes/s");
    }

    #[test]
    fn the_usual_is_measured_again() {
        let (mut pace, mut now) = (Pace::new(Moment(0)), 0);
        load(&mut pace, &mut now, 1_000, |_| 100_000);
        let slower_load = |_: u64| 900_000;
        load(&mut pace, &mut now, RUN_MS + 1_000, slower_load);
        assert_eq!(pace.usual_ns, 900_000);
    }
}
