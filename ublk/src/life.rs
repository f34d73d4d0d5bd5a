//! The life of a device, from the first control command to the last.
//!
//! ```text
//! Preparing ──► Starting ──► Live ──► Stopping ──► Closing ──► Removing ──► Gone
//!     │            │           │ (all tags withdrawn by somebody else) ▲
//!     │            │           └───────────────────────────────────────┤
//!     │            └─(start failed, device made here)─► Stopping ──────┘
//!     └─(nothing was made)─► Gone
//! any with fetches ─(they cannot be taken back)─► Stranded: the process has to exit
//! ```
//!
//! One rule above all: a device that was *recovered* is never removed because of a failure here. It
//! may hold requests of a file system; it waits for the next daemon.

/// Where a device is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The helper adds the device, or begins its recovery.
    Preparing,
    /// Tags are being fetched; the helper waits in the start, or in the end of the recovery.
    Starting,
    /// Serving.
    Live,
    /// The helper waits in the stop.
    Stopping,
    /// `/dev/ublkcN` is being closed.
    Closing,
    /// The helper removes the device.
    Removing,
    /// Nothing of ours is left.
    Gone,
    /// Failed with fetches in the driver, which only the end of the process takes back.
    Stranded,
}

/// Where a device came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Made by this process.
    Created,
    /// Taken over from a dead one.
    Recovered,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeEvent {
    /// The device exists and `/dev/ublkcN` is open.
    Prepared,
    /// It does not.
    PrepareFailed,
    /// `/dev/ublkcN` is adopted and mapped.
    Opened,
    /// It could not be.
    OpenFailed,
    /// The disk is there.
    Started,
    /// It is not.
    StartFailed,
    /// The owner wants it gone.
    StopAsked {
        /// Even if it is in use.
        force: bool,
    },
    /// The disk is gone.
    StopDone,
    /// The disk is still there: it is in use, or the driver refused.
    StopFailed,
    /// The driver has given all tags back.
    AllWithdrawn,
    /// A tag is lost for good.
    Broke,
    /// `/dev/ublkcN` is closed.
    Closed,
    /// The device is removed, or has become somebody else's.
    Removed,
    /// The device is still there.
    RemoveFailed,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeEffect {
    /// Adopt and map `/dev/ublkcN`: `Opened` or `OpenFailed` follows at once.
    Open,
    /// Fetch all tags.
    Fetch,
    /// Have the helper start the disk, or end its recovery.
    RunStart,
    /// Have the helper stop the disk.
    RunStop {
        /// Even if it is in use.
        force: bool,
    },
    /// Unmap and close `/dev/ublkcN`.
    Close,
    /// Have the helper remove the device, if it is dead.
    RunRemove,
    /// Tell the owner.
    Report(Report),
}

/// What the owner is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It can be used.
    Live,
    /// The stop was refused; it serves on.
    StopRefused,
    /// It is gone.
    Stopped,
    /// It failed; nothing of ours is left in the driver, unless the phase is `Stranded`.
    Failed,
}

/// The machine.
#[derive(Debug)]
pub struct Life {
    phase: Phase,
    origin: Origin,
    /// A stop that was asked for too early.
    stop_asked: Option<bool>,
    is_withdrawn: bool,
    has_stopped: bool,
    has_failed: bool,
}

impl Life {
    /// A device that is being prepared.
    pub fn new(origin: Origin) -> Self {
        Self {
            phase: Phase::Preparing,
            origin,
            stop_asked: None,
            is_withdrawn: false,
            has_stopped: false,
            has_failed: false,
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Where it came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// One event. What cannot happen in a phase panics; what comes late is ignored.
    pub fn step(&mut self, event: LifeEvent, out: &mut Vec<LifeEffect>) {
        use LifeEvent as E;
        match (self.phase, event) {
            (Phase::Preparing, E::Prepared) => out.push(LifeEffect::Open),
            (Phase::Preparing, E::PrepareFailed) => self.end(Report::Failed, out),
            (Phase::Preparing, E::Opened) => {
                self.phase = Phase::Starting;
                out.extend([LifeEffect::Fetch, LifeEffect::RunStart]);
            }
            (Phase::Preparing, E::OpenFailed) => self.on_open_failed(out),
            (Phase::Starting, E::Started) => self.on_started(out),
            (Phase::Starting, E::StartFailed) => self.on_start_failed(out),
            (Phase::Preparing | Phase::Starting, E::StopAsked { force }) => {
                self.stop_asked = Some(self.stop_asked.unwrap_or(false) | force);
            }
            (Phase::Live, E::StopAsked { force }) => {
                self.phase = Phase::Stopping;
                out.push(LifeEffect::RunStop { force });
            }
            (Phase::Live, E::AllWithdrawn) => self.close(out),
            (Phase::Starting | Phase::Stopping, E::AllWithdrawn) => {
                self.is_withdrawn = true;
                self.close_if_over(out);
            }
            (Phase::Stopping, E::StopDone) => {
                self.has_stopped = true;
                self.close_if_over(out);
            }
            (Phase::Stopping, E::StopFailed) => self.on_stop_failed(out),
            (Phase::Starting | Phase::Live | Phase::Stopping, E::Broke) => self.strand(out),
            (Phase::Closing, E::Closed) => {
                self.phase = Phase::Removing;
                out.push(LifeEffect::RunRemove);
            }
            (Phase::Removing, E::Removed) => {
                let report = if self.has_failed {
                    Report::Failed
                } else {
                    Report::Stopped
                };
                self.end(report, out);
            }
            (Phase::Removing, E::RemoveFailed) => self.end(Report::Failed, out),
            (
                Phase::Stopping | Phase::Closing | Phase::Removing | Phase::Gone,
                E::StopAsked { .. },
            )
            | (Phase::Stranded, _) => {}
            (phase, event) => panic!("device in phase {phase:?} cannot see {event:?}"),
        }
    }

    fn on_open_failed(&mut self, out: &mut Vec<LifeEffect>) {
        match self.origin {
            Origin::Created => {
                self.has_failed = true;
                self.phase = Phase::Removing;
                out.push(LifeEffect::RunRemove);
            }
            Origin::Recovered => self.end(Report::Failed, out),
        }
    }

    fn on_started(&mut self, out: &mut Vec<LifeEffect>) {
        if self.is_withdrawn {
            // Somebody stopped it the moment it started.
            return self.close(out);
        }
        self.phase = Phase::Live;
        out.push(LifeEffect::Report(Report::Live));
        if let Some(force) = self.stop_asked.take() {
            self.step(LifeEvent::StopAsked { force }, out);
        }
    }

    fn on_start_failed(&mut self, out: &mut Vec<LifeEffect>) {
        match self.origin {
            Origin::Created => {
                self.has_failed = true;
                self.phase = Phase::Stopping;
                out.push(LifeEffect::RunStop { force: true });
            }
            Origin::Recovered => self.strand(out),
        }
    }

    fn on_stop_failed(&mut self, out: &mut Vec<LifeEffect>) {
        if self.has_failed {
            self.strand(out);
        } else if self.is_withdrawn {
            // Whoever else stopped it has done so.
            self.close(out);
        } else {
            self.phase = Phase::Live;
            out.push(LifeEffect::Report(Report::StopRefused));
        }
    }

    fn close_if_over(&mut self, out: &mut Vec<LifeEffect>) {
        if self.is_withdrawn && self.has_stopped {
            self.close(out);
        }
    }

    fn close(&mut self, out: &mut Vec<LifeEffect>) {
        self.phase = Phase::Closing;
        out.push(LifeEffect::Close);
    }

    fn strand(&mut self, out: &mut Vec<LifeEffect>) {
        self.phase = Phase::Stranded;
        out.push(LifeEffect::Report(Report::Failed));
    }

    fn end(&mut self, report: Report, out: &mut Vec<LifeEffect>) {
        self.phase = Phase::Gone;
        out.push(LifeEffect::Report(report));
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use LifeEffect as F;
    use LifeEvent as E;

    /// Plays events and returns what was to be done, in order.
    fn play(life: &mut Life, events: &[LifeEvent]) -> Vec<LifeEffect> {
        let mut out = Vec::new();
        for event in events {
            life.step(*event, &mut out);
        }
        out
    }

    fn live(origin: Origin) -> Life {
        let mut life = Life::new(origin);
        let done = play(&mut life, &[E::Prepared, E::Opened, E::Started]);
        assert_eq!(
            done,
            [F::Open, F::Fetch, F::RunStart, F::Report(Report::Live)]
        );
        life
    }

    #[test]
    fn a_device_is_removed_only_after_its_fetches_are_back_and_its_node_is_closed() {
        for order in [
            [E::StopDone, E::AllWithdrawn],
            [E::AllWithdrawn, E::StopDone],
        ] {
            let mut life = live(Origin::Created);
            let stop = play(&mut life, &[E::StopAsked { force: false }]);
            assert_eq!(stop, [F::RunStop { force: false }]);
            assert_eq!(play(&mut life, &order[..1]), []);
            assert_eq!(play(&mut life, &order[1..]), [F::Close]);
            assert_eq!(play(&mut life, &[E::Closed]), [F::RunRemove]);
            assert_eq!(play(&mut life, &[E::Removed]), [F::Report(Report::Stopped)]);
            assert_eq!(life.phase(), Phase::Gone);
        }
    }

    #[test]
    fn a_device_in_use_serves_on() {
        let mut life = live(Origin::Created);
        let events = [E::StopAsked { force: false }, E::StopFailed];
        let done = play(&mut life, &events);
        assert_eq!(
            done,
            [F::RunStop { force: false }, F::Report(Report::StopRefused)]
        );
        assert_eq!(life.phase(), Phase::Live);
    }

    #[test]
    fn a_stop_that_comes_early_waits_for_the_start() {
        let mut life = Life::new(Origin::Created);
        let early = [E::StopAsked { force: false }, E::Prepared, E::Opened];
        assert_eq!(play(&mut life, &early), [F::Open, F::Fetch, F::RunStart]);
        let stop = F::RunStop { force: false };
        assert_eq!(
            play(&mut life, &[E::Started]),
            [F::Report(Report::Live), stop]
        );
    }

    #[test]
    fn a_failed_start_leaves_no_device_behind() {
        let mut life = Life::new(Origin::Created);
        play(&mut life, &[E::Prepared, E::Opened]);
        assert_eq!(
            play(&mut life, &[E::StartFailed]),
            [F::RunStop { force: true }]
        );
        let rest = [E::AllWithdrawn, E::StopDone, E::Closed, E::Removed];
        let done = [F::Close, F::RunRemove, F::Report(Report::Failed)];
        assert_eq!(play(&mut life, &rest), done);
    }

    #[test]
    fn nothing_that_fails_removes_a_recovered_device() {
        let table: [&[LifeEvent]; 4] = [
            &[E::PrepareFailed],
            &[E::Prepared, E::OpenFailed],
            &[E::Prepared, E::Opened, E::StartFailed],
            &[E::Prepared, E::Opened, E::Started, E::Broke],
        ];
        for events in table {
            let mut life = Life::new(Origin::Recovered);
            let done = play(&mut life, events);
            assert_eq!(done.last(), Some(&F::Report(Report::Failed)), "{events:?}");
            let harms = |f: &LifeEffect| matches!(f, F::RunRemove | F::RunStop { .. });
            assert!(!done.iter().any(harms), "{events:?}");
        }
    }

    #[test]
    fn a_device_stopped_by_somebody_else_is_closed_and_cleared_away() {
        let mut life = live(Origin::Created);
        let done = play(&mut life, &[E::AllWithdrawn, E::Closed, E::Removed]);
        assert_eq!(done, [F::Close, F::RunRemove, F::Report(Report::Stopped)]);
    }

    #[test]
    fn a_stranded_device_does_nothing_more() {
        let mut life = live(Origin::Created);
        assert_eq!(play(&mut life, &[E::Broke]), [F::Report(Report::Failed)]);
        let late = [E::StopAsked { force: true }, E::AllWithdrawn, E::Broke];
        assert_eq!(play(&mut life, &late), []);
        assert_eq!(life.phase(), Phase::Stranded);
    }

    #[test]
    fn asking_twice_stops_once() {
        let mut life = live(Origin::Created);
        let twice = [E::StopAsked { force: false }, E::StopAsked { force: true }];
        assert_eq!(play(&mut life, &twice), [F::RunStop { force: false }]);
    }
}
