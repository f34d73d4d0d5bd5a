//! How often a detach that was refused is tried again.

use std::time::Duration;

/// First pause; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A detach that was refused, while it is still wanted.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// A sentence.
    pub(crate) why: String,
    pause: Duration,
    pausing: bool,
}

impl Default for Refusal {
    fn default() -> Self {
        Self {
            why: String::new(),
            pause: PAUSE_MIN,
            pausing: false,
        }
    }
}

impl Refusal {
    /// How long to pause now; `None` if a pause is under way.
    pub(crate) fn next_pause(&mut self) -> Option<Duration> {
        if self.pausing {
            return None;
        }
        self.pausing = true;
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        Some(pause)
    }

    /// The pause is over.
    pub(crate) fn end_pause(&mut self) {
        self.pausing = false;
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute_one_at_a_time() {
        let mut refusal = Refusal::default();
        let pauses = [2, 4, 8, 16, 30, 30].map(Duration::from_secs);
        for pause in pauses {
            assert_eq!(refusal.next_pause(), Some(pause));
            assert_eq!(refusal.next_pause(), None);
            refusal.end_pause();
        }
    }
}
