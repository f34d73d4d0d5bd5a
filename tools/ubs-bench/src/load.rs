//! Closed-loop load: a fixed number of requests is outstanding, each completion starts the next.

use crate::cpu;
use crate::engine::{Ask, Body, Engine, EngineEvent, ROOM_LOAD};
use crate::options::LoadOptions;
use crate::outcome::{Gauges, Outcome, Tally};
use crate::pattern::{Pattern, Way, splitmix64};
use anyhow::{Context, Result, bail};
use reactor::{App, ArenaConfig, Completion, Driver, Event, Token, UringConfig, UringDriver};

const BLOCK_BYTES: u32 = 4096;
/// How long an engine may take to get ready, and to let go.
const PATIENCE_NS: u64 = 30_000_000_000;

/// Where a load is in its life. Only the next stage can follow, or `Stopping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    /// Working, not yet measured.
    Ramping,
    Measuring,
    /// Nothing new is started.
    Draining,
    Stopping,
    Over,
}

/// The timers, as token values.
const TIMER_PATIENCE: u64 = 0;
const TIMER_RAMPED: u64 = 1;
const TIMER_MEASURED: u64 = 2;

/// One place for an outstanding request.
#[derive(Debug, Default)]
struct Slot {
    since_ns: u64,
    /// The body that is not in use: a request takes one of its way.
    read: Option<Body>,
    write: Option<Body>,
}

/// The load on an engine.
#[derive(Debug)]
struct Load<E> {
    engine: E,
    options: LoadOptions,
    stage: Stage,
    pattern: Option<Pattern>,
    slots: Vec<Slot>,
    /// Requests the engine had no room for.
    parked: Vec<Ask>,
    in_flight: u32,
    /// Requests still to be started, if they are counted.
    left: Option<u64>,
    tally: Tally,
    events: Vec<EngineEvent>,
    problem: Option<String>,
}

/// Runs a load from beginning to end.
///
/// `make` builds the engine, which may want a bell of the driver.
pub(crate) fn run<E: Engine>(
    options: LoadOptions,
    make: impl FnOnce(&mut UringDriver) -> Result<E>,
) -> Result<Outcome> {
    if let Some(cpu) = options.cpu {
        cpu::pin(cpu)?;
    }
    let mut driver = UringDriver::new(config(&options)).context("cannot start io_uring")?;
    let mut load = Load::new(make(&mut driver)?, options);
    load.begin(&mut driver);
    let (mut begin, mut end) = (Gauges::default(), None);
    while load.stage != Stage::Over {
        let before = load.stage;
        driver.turn(&mut load);
        if before != load.stage {
            match load.stage {
                Stage::Measuring => begin = load.gauges(&driver)?,
                Stage::Draining if before == Stage::Measuring => {
                    end = Some(load.gauges(&driver)?);
                }
                Stage::Starting
                | Stage::Ramping
                | Stage::Draining
                | Stage::Stopping
                | Stage::Over => {}
            }
        }
        // The end of the measured time has been seen; now things may be torn down.
        if load.stage == Stage::Draining && load.in_flight == 0 {
            load.stop(&mut driver);
            load.take_events(&mut driver, Vec::new());
        }
    }
    driver.run(&mut load);
    if let Some(problem) = load.problem {
        bail!(problem);
    }
    let end = end.context("the load ended before anything was measured")?;
    let processors = cpu::processors()?;
    Ok(load
        .tally
        .outcome((E::NAME, &load.options), begin, end, processors))
}

fn config(options: &LoadOptions) -> UringConfig {
    let mut arena = ArenaConfig::default();
    // Bodies of both ways, and what the connections stage.
    let wanted = options.iodepth * 2 + 64;
    for (count, slot_bytes) in arena.slot_counts.iter_mut().zip(reactor::arena::SLOT_BYTES) {
        if options.bs <= slot_bytes {
            *count = (*count).max(wanted);
            break;
        }
    }
    UringConfig {
        spin_us: options.spin_us,
        arena,
        ..UringConfig::default()
    }
}

impl<E: Engine> Load<E> {
    fn new(engine: E, options: LoadOptions) -> Self {
        let connections = engine.connections();
        Self {
            engine,
            stage: Stage::Starting,
            pattern: None,
            slots: Vec::new(),
            parked: Vec::new(),
            in_flight: 0,
            left: None,
            tally: Tally::new(connections),
            events: Vec::new(),
            problem: None,
            options,
        }
    }

    fn begin(&mut self, io: &mut dyn Driver) {
        arm(io, TIMER_PATIENCE, PATIENCE_NS);
        let mut events = std::mem::take(&mut self.events);
        self.engine.start(io, &mut events);
        self.take_events(io, events);
    }

    fn gauges(&self, driver: &UringDriver) -> Result<Gauges> {
        let mut peer_cpu_ns = 0;
        for pid in &self.options.peer_pid {
            peer_cpu_ns += cpu::process_ns(*pid)?;
        }
        Ok(Gauges {
            at_ns: driver.now_ns(),
            own_cpu_ns: cpu::process_ns(std::process::id())?,
            peer_cpu_ns,
            busy_ns: cpu::machine_busy_ns()?,
            enters: driver.counters().enters,
        })
    }

    fn take_events(&mut self, io: &mut dyn Driver, mut events: Vec<EngineEvent>) {
        events.append(&mut self.events);
        while !events.is_empty() {
            for event in events.drain(..) {
                match event {
                    EngineEvent::Ready { size_blocks } => self.on_ready(io, size_blocks),
                    EngineEvent::Done { slot, body, fault } => self.on_done(io, slot, body, fault),
                    EngineEvent::SnapshotBegan => self.tally.snapshot_began(io.now_ns()),
                    EngineEvent::SnapshotEnded => {
                        let counts = self.stage == Stage::Measuring;
                        self.tally.snapshot_ended(io.now_ns(), counts);
                    }
                    EngineEvent::ResilverBegan => self.tally.resilver_began(io.now_ns()),
                    EngineEvent::ResilverEnded {
                        bytes_missed,
                        bytes_moved,
                    } => self
                        .tally
                        .resilver_ended(io.now_ns(), bytes_missed, bytes_moved),
                    EngineEvent::Broken(why) => self.fail(io, why),
                    EngineEvent::Gone => self.stage = Stage::Over,
                }
            }
            // What the handlers made happen.
            std::mem::swap(&mut events, &mut self.events);
        }
        self.events = events;
    }

    fn fail(&mut self, io: &mut dyn Driver, why: String) {
        self.problem.get_or_insert(why);
        self.stop(io);
    }

    fn stop(&mut self, io: &mut dyn Driver) {
        if matches!(self.stage, Stage::Stopping | Stage::Over) {
            return;
        }
        self.stage = Stage::Stopping;
        self.parked.clear();
        arm(io, TIMER_PATIENCE, PATIENCE_NS);
        self.engine.stop(io, &mut self.events);
    }

    fn on_ready(&mut self, io: &mut dyn Driver, size_blocks: u64) {
        if self.stage != Stage::Starting {
            return;
        }
        let options = &self.options;
        let wanted = options
            .size
            .map_or(size_blocks, |bytes| bytes / u64::from(BLOCK_BYTES));
        if wanted > size_blocks {
            let why = format!("--size wants {wanted} blocks, there are {size_blocks}");
            return self.fail(io, why);
        }
        let io_blocks = options.bs / BLOCK_BYTES;
        let pattern = Pattern::new(
            options.rw,
            options.rwmixread,
            io_blocks,
            wanted,
            options.seed,
        );
        let Some(pattern) = pattern else {
            let why = format!("{wanted} blocks have no room for a request of {io_blocks}");
            return self.fail(io, why);
        };
        self.left = options.once.then(|| pattern.places_count());
        self.pattern = Some(pattern);
        if let Err(why) = self.make_slots(io) {
            return self.fail(io, why);
        }
        if self.options.once {
            self.stage = Stage::Measuring;
        } else {
            self.stage = Stage::Ramping;
            arm(io, TIMER_RAMPED, ns(self.options.ramp_time));
        }
        for slot in 0..self.options.iodepth {
            self.start(io, slot);
        }
    }

    fn make_slots(&mut self, io: &mut dyn Driver) -> Result<(), String> {
        let options = &self.options;
        let (reads, writes) = match options.rw {
            crate::pattern::Rw::Read | crate::pattern::Rw::RandRead => (true, false),
            crate::pattern::Rw::Write | crate::pattern::Rw::RandWrite => (false, true),
            crate::pattern::Rw::RandMix => (true, true),
        };
        let take = || {
            io.arena()
                .take(options.bs)
                .ok_or("the buffer arena is too small")
        };
        let mut state = options.seed;
        for _ in 0..options.iodepth {
            let mut slot = Slot::default();
            if reads {
                slot.read = Some(Body::Read(take()?));
            }
            if writes {
                let mut data = take()?;
                for word in data.bytes_mut().chunks_exact_mut(8) {
                    word.copy_from_slice(&splitmix64(&mut state).to_le_bytes());
                }
                slot.write = Some(Body::Write(data.freeze()));
            }
            self.slots.push(slot);
        }
        Ok(())
    }

    /// Starts the next request in a free slot.
    fn start(&mut self, io: &mut dyn Driver, slot: u32) {
        if !matches!(self.stage, Stage::Ramping | Stage::Measuring) {
            return;
        }
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return;
            }
            *left -= 1;
        }
        let (way, lba) = self.pattern.as_mut().expect("made when ready").next();
        let place = &mut self.slots[slot as usize];
        let body = match way {
            Way::Read => place.read.take(),
            Way::Write => place.write.take(),
        };
        place.since_ns = io.now_ns();
        let ask = Ask {
            slot,
            lba,
            blocks: self.options.bs / BLOCK_BYTES,
            body: body.expect("a free slot has its bodies"),
        };
        self.in_flight += 1;
        if let Err(ask) = self.engine.submit(io, ask) {
            self.parked.push(ask);
        }
    }

    fn on_done(&mut self, io: &mut dyn Driver, slot: u32, body: Body, fault: Option<String>) {
        self.in_flight -= 1;
        let now_ns = io.now_ns();
        let place = &mut self.slots[slot as usize];
        let way = body.way();
        match way {
            Way::Read => place.read = Some(body),
            Way::Write => place.write = Some(body),
        }
        if let Some(why) = fault {
            // Requests that come back because we stop are no failures of the load.
            if self.stage != Stage::Stopping {
                self.tally.failed += 1;
                self.fail(io, format!("a request failed: {why}"));
            }
            return;
        }
        if self.stage == Stage::Measuring {
            let connection = (slot % self.engine.connections()) as usize;
            self.tally.note(way, place.since_ns, now_ns, connection);
        }
        self.start(io, slot);
        if self.left == Some(0) && self.stage == Stage::Measuring && self.in_flight == 0 {
            self.stage = Stage::Draining;
        }
    }

    fn on_timer(&mut self, io: &mut dyn Driver, timer: u64) {
        match (timer, self.stage) {
            (TIMER_RAMPED, Stage::Ramping) => {
                self.stage = Stage::Measuring;
                arm(io, TIMER_MEASURED, ns(self.options.runtime));
            }
            (TIMER_MEASURED, Stage::Measuring) => self.stage = Stage::Draining,
            (TIMER_PATIENCE, Stage::Starting) => {
                self.fail(io, format!("the {} did not get ready in 30 s", E::NAME));
            }
            (TIMER_PATIENCE, Stage::Stopping) => {
                self.problem
                    .get_or_insert_with(|| format!("the {} did not let go in 30 s", E::NAME));
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }

    fn retry_parked(&mut self, io: &mut dyn Driver) {
        for ask in std::mem::take(&mut self.parked) {
            if let Err(ask) = self.engine.submit(io, ask) {
                self.parked.push(ask);
            }
        }
    }
}

impl<E: Engine> App for Load<E> {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        let mut events = std::mem::take(&mut self.events);
        match (completion.token.room, &completion.event) {
            (ROOM_LOAD, Event::Timer(_)) => self.on_timer(io, completion.token.value),
            (ROOM_LOAD, _) => self.engine.on_rung(io, &mut events),
            _ => self.engine.on_completion(io, completion, &mut events),
        }
        self.take_events(io, events);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        if !self.parked.is_empty() {
            self.retry_parked(io);
        }
        let mut events = std::mem::take(&mut self.events);
        self.engine.on_turn_end(io, &mut events);
        self.take_events(io, events);
    }

    fn is_finished(&self) -> bool {
        self.stage == Stage::Over
    }
}

fn arm(io: &mut dyn Driver, value: u64, in_ns: u64) {
    let at_ns = io.now_ns() + in_ns;
    io.arm(
        Token {
            room: ROOM_LOAD,
            index: 0,
            value,
        },
        at_ns,
    );
}

fn ns(seconds: f64) -> u64 {
    std::time::Duration::from_secs_f64(seconds)
        .as_nanos()
        .try_into()
        .expect("at most a day")
}
