//! A driver, a volume of one block and a host, all played; a server made of the real machines.

use std::fmt::Write as _;
use ublk::TagIndex;
use ublk::life::{Life, LifeEffect, LifeEvent, Origin, Phase};
use ublk::tag::{TagEffect, TagEvent, TagState, Tags};
use ublk::uapi::{IO_F_FUA, IoDesc, OP_FLUSH, OP_READ, OP_WRITE};

const TAGS: u32 = 3;
const BUFFERS: usize = 2;
const STEPS: u32 = 1_600;
const WRITES_MAX: u64 = 24;
const KILLS_MAX: u32 = 3;
/// After this many steps the owner may stop the device.
const STOP_AFTER: u32 = 1_300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dev {
    None,
    Added,
    Live,
    Quiesced,
    Stopping,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Nobody,
    Driver,
    Offered,
    Server,
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ctl {
    Idle,
    Start,
    Stop,
    Remove,
}

#[derive(Clone, Copy, Debug)]
struct HostRequest {
    op: u32,
    fua: bool,
    value: u64,
    out: bool,
}

/// A command to the volume.
#[derive(Clone, Copy, Debug)]
struct VolumeOp {
    epoch: u32,
    tag: u32,
    request: HostRequest,
    done: bool,
    value: u64,
}

/// The real machines of one process.
#[derive(Debug)]
struct Server {
    epoch: u32,
    /// `None` until the volume is attached.
    machines: Option<(Life, Tags)>,
    copying_in: Vec<u32>,
    copying_out: Vec<u32>,
    buffers_taken: Vec<u32>,
    ctl: Ctl,
    closing: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    random: u64,
    dev: Dev,
    own: Vec<Own>,
    requests: Vec<Option<HostRequest>>,
    server: Option<Server>,
    epochs: u32,
    kills: u32,
    stops: u32,
    failures: u32,
    writes: u64,
    volume: u64,
    volume_ops: Vec<VolumeOp>,
    trace: Vec<String>,
    step: u32,
}

fn name(state: TagState) -> &'static str {
    match state {
        TagState::Unfetched => "Unfetched",
        TagState::Fetching => "Fetching",
        TagState::Wanting(_) => "Wanting",
        TagState::CopyingIn(_) => "CopyingIn",
        TagState::Serving(_) => "Serving",
        TagState::CopyingOut(_) => "CopyingOut",
        TagState::Committing => "Committing",
        TagState::Withdrawn => "Withdrawn",
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let tags = TAGS as usize;
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            dev: Dev::None,
            own: vec![Own::Nobody; tags],
            requests: vec![None; tags],
            server: None,
            epochs: 0,
            kills: 0,
            stops: 0,
            failures: 0,
            writes: 0,
            volume: 0,
            volume_ops: Vec::new(),
            trace: Vec::new(),
            step: 0,
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % n
    }

    fn tag(&mut self) -> u32 {
        u32::try_from(self.below(u64::from(TAGS))).expect("small")
    }

    fn log(&mut self, action: &str, fields: &str) {
        let mut line = format!("[a |-> \"{action}\"");
        if !fields.is_empty() {
            write!(line, ", {fields}").expect("a string takes all");
        }
        self.trace.push(line + "]");
    }

    /// Plays one random thing after the other that can happen.
    pub(crate) fn run(mut self) -> Vec<String> {
        while self.step < STEPS {
            self.step += 1;
            match self.below(16) {
                0..=2 => self.host_asks(),
                3..=5 => self.driver_offers(),
                6 | 7 => self.server_sees(),
                8 => self.copy_ends(),
                9..=11 => self.volume_does(),
                12 | 13 => self.volume_answers(),
                14 => self.turn_ends(),
                _ => self.life_goes_on(),
            }
            let over = |s: &Server| {
                s.machines
                    .as_ref()
                    .is_some_and(|m| m.0.phase() == Phase::Gone)
            };
            if self.server.as_ref().is_some_and(over) {
                break;
            }
        }
        self.trace
    }

    fn host_asks(&mut self) {
        let (tag, draw, fua) = (self.tag(), self.below(8), self.below(3) == 0);
        let open = matches!(self.dev, Dev::Live | Dev::Quiesced);
        if !open || self.requests[tag as usize].is_some() {
            return;
        }
        let request = |op, fua, value| HostRequest {
            op,
            fua,
            value,
            out: false,
        };
        let asked = match draw {
            0..=3 if self.writes < WRITES_MAX => {
                self.writes += 1;
                let fields = format!(
                    "t |-> {tag}, fua |-> {}",
                    if fua { "TRUE" } else { "FALSE" }
                );
                self.log("write", &fields);
                request(OP_WRITE, fua, self.writes)
            }
            4 => {
                self.log("flush", &format!("t |-> {tag}"));
                request(OP_FLUSH, false, 0)
            }
            _ => {
                self.log("read", &format!("t |-> {tag}"));
                request(OP_READ, false, 0)
            }
        };
        self.requests[tag as usize] = Some(asked);
    }

    fn driver_offers(&mut self) {
        let tag = self.tag();
        let at = tag as usize;
        let serving = matches!(self.dev, Dev::Live | Dev::Stopping);
        if let Some(request) = &mut self.requests[at]
            && serving
            && !request.out
            && self.own[at] == Own::Driver
        {
            request.out = true;
            self.own[at] = Own::Offered;
            self.log("offer", &format!("t |-> {tag}"));
        }
    }

    fn server_sees(&mut self) {
        let tag = self.tag();
        let at = tag as usize;
        if self.server.is_none() {
            return;
        }
        match self.own[at] {
            Own::Offered => {
                self.own[at] = Own::Server;
                let request = self.requests[at].expect("offered");
                let desc = IoDesc {
                    op_flags: request.op | if request.fua { IO_F_FUA } else { 0 },
                    nr_sectors: if request.op == OP_FLUSH { 0 } else { 8 },
                    start_sector: 0,
                    addr: 0,
                };
                let event = TagEvent::Offered {
                    tag: TagIndex(tag),
                    desc,
                };
                self.tell_tags("see", tag, event);
            }
            Own::Aborted => {
                self.own[at] = Own::Nobody;
                let event = TagEvent::Withdrawn { tag: TagIndex(tag) };
                self.tell_tags("withdrawn", tag, event);
            }
            Own::Nobody | Own::Driver | Own::Server => {}
        }
    }

    /// Steps the tags, logs where the tag is now, and does what they say.
    fn tell_tags(&mut self, action: &str, tag: u32, event: TagEvent) {
        let mut out = Vec::new();
        let server = self.server.as_mut().expect("there is one");
        let (_, tags) = server.machines.as_mut().expect("attached");
        tags.step(event, &mut out);
        let state = name(tags.state(TagIndex(tag)));
        let fields = format!("t |-> {tag}, ts |-> \"{state}\"");
        match action {
            "turn" | "mapped" => {}
            _ => self.log(action, &fields),
        }
        out.into_iter()
            .for_each(|effect| self.do_tag_effect(effect));
    }

    fn do_tag_effect(&mut self, effect: TagEffect) {
        let server = self.server.as_mut().expect("it acts");
        match effect {
            TagEffect::Fetch { tag } => self.own[tag.0 as usize] = Own::Driver,
            TagEffect::TakeBuffer { tag, .. } => {
                if server.buffers_taken.len() < BUFFERS {
                    server.buffers_taken.push(tag.0);
                    self.tell_tags("take", tag.0, TagEvent::BufferTaken { tag });
                } else {
                    self.tell_tags("deny", tag.0, TagEvent::BufferDenied { tag });
                }
            }
            TagEffect::CopyIn { tag } => server.copying_in.push(tag.0),
            TagEffect::CopyOut { tag } => server.copying_out.push(tag.0),
            TagEffect::Hand { tag, .. } => {
                let request = self.requests[tag.0 as usize].expect("handed out");
                self.volume_ops.push(VolumeOp {
                    epoch: server.epoch,
                    tag: tag.0,
                    request,
                    done: false,
                    value: request.value,
                });
            }
            TagEffect::Commit { tag, result } => {
                assert!(result >= 0, "nothing failed here: {result}");
                server.buffers_taken.retain(|t| *t != tag.0);
                let at = tag.0 as usize;
                assert_eq!(self.own[at], Own::Server);
                self.own[at] = Own::Driver;
                self.requests[at] = None;
            }
            TagEffect::AllWithdrawn => self.tell_life(LifeEvent::AllWithdrawn),
            TagEffect::Broke { .. } => self.tell_life(LifeEvent::Broke),
        }
    }

    fn copy_ends(&mut self) {
        let inward = self.below(2) == 0;
        let Some(server) = self.server.as_mut() else {
            return;
        };
        let complete = true;
        if inward {
            if let Some(tag) = server.copying_in.pop() {
                let event = TagEvent::CopiedIn {
                    tag: TagIndex(tag),
                    complete,
                };
                self.tell_tags("in", tag, event);
            }
        } else if let Some(tag) = server.copying_out.pop() {
            let event = TagEvent::CopiedOut {
                tag: TagIndex(tag),
                complete,
            };
            self.tell_tags("out", tag, event);
        }
    }

    fn turn_ends(&mut self) {
        let live = |s: &Server| s.machines.is_some();
        if self.server.as_ref().is_some_and(live) {
            self.log("turn", "");
            self.tell_tags("turn", 0, TagEvent::TurnEnded);
        }
    }

    fn volume_does(&mut self) {
        let count = self.volume_ops.len() as u64;
        if count == 0 {
            return;
        }
        let index = usize::try_from(self.below(count)).expect("small");
        let op = &mut self.volume_ops[index];
        if op.done {
            return;
        }
        match op.request.op {
            OP_WRITE => self.volume = op.value,
            OP_READ => op.value = self.volume,
            _ => {}
        }
        op.done = true;
        let (epoch, tag, value) = (op.epoch, op.tag, op.value);
        let fields = format!("t |-> {tag}, e |-> {epoch}, v |-> {value}");
        let current = self.server.as_ref().is_some_and(|s| s.epoch == epoch);
        if !current {
            self.volume_ops.swap_remove(index);
        }
        self.log("does", &fields);
    }

    fn volume_answers(&mut self) {
        let Some(server) = &self.server else {
            return;
        };
        let current = |o: &VolumeOp| o.done && o.epoch == server.epoch;
        if let Some(index) = self.volume_ops.iter().position(current) {
            let op = self.volume_ops.swap_remove(index);
            let event = TagEvent::Answered {
                tag: TagIndex(op.tag),
                result: Ok(()),
            };
            self.tell_tags("answered", op.tag, event);
        }
    }

    /// Start, stop, kill: the rare things.
    fn life_goes_on(&mut self) {
        let (kill, fail) = (
            self.below(10) == 0,
            self.below(12) == 0 && self.failures < 2,
        );
        let Some(server) = &self.server else {
            return self.server_starts();
        };
        if kill && self.kills < KILLS_MAX {
            self.kills += 1;
            self.log("kill", "");
            return self.die();
        }
        let Some((life, _)) = &server.machines else {
            return self.attach();
        };
        let (phase, ctl) = (life.phase(), server.ctl);
        match (phase, ctl) {
            (Phase::Preparing, _) => {
                self.tell_life(LifeEvent::Prepared);
                self.tell_life(LifeEvent::Opened);
            }
            (Phase::Stranded, _) => {
                self.log("exit", "");
                self.die();
            }
            (Phase::Starting, Ctl::Start) if fail => {
                self.failures += 1;
                self.log("start fails", "");
                self.tell_life(LifeEvent::StartFailed);
            }
            (Phase::Starting, Ctl::Start) => {
                self.dev = Dev::Live;
                self.log("starts", "");
                self.tell_life(LifeEvent::Started);
            }
            (Phase::Live, _) if self.step > STOP_AFTER && self.stops == 0 => {
                self.stops += 1;
                self.tell_life(LifeEvent::StopAsked { force: false });
            }
            (Phase::Stopping, Ctl::Stop) => self.stop_goes_on(fail),
            (Phase::Closing, _) => self.tell_life(LifeEvent::Closed),
            (Phase::Removing, Ctl::Remove) => {
                self.dev = Dev::None;
                self.log("removes", "");
                self.tell_life(LifeEvent::Removed);
            }
            _ => {}
        }
    }

    fn server_starts(&mut self) {
        if self.dev == Dev::None && self.stops > 0 {
            return; // nobody wants it any more
        }
        self.epochs += 1;
        self.log("server", "");
        self.server = Some(Server {
            epoch: self.epochs,
            machines: None,
            copying_in: Vec::new(),
            copying_out: Vec::new(),
            buffers_taken: Vec::new(),
            ctl: Ctl::Idle,
            closing: false,
        });
    }

    fn attach(&mut self) {
        let origin = if self.dev == Dev::None {
            Origin::Created
        } else {
            Origin::Recovered
        };
        let server = self.server.as_mut().expect("it attaches");
        server.machines = Some((Life::new(origin), Tags::new(TAGS, 1)));
        let epoch = server.epoch;
        self.volume_ops.retain(|op| op.epoch >= epoch);
        self.log("attach", "");
    }

    fn stop_goes_on(&mut self, fail: bool) {
        let idle = self.requests.iter().all(Option::is_none);
        if self.dev == Dev::Stopping && idle {
            self.dev = Dev::Dead;
            for own in &mut self.own {
                if *own == Own::Driver {
                    *own = Own::Aborted;
                }
            }
            self.log("stopped", "");
            self.server.as_mut().expect("it stops").ctl = Ctl::Idle;
            self.tell_life(LifeEvent::StopDone);
        } else if self.dev == Dev::Live && fail {
            self.failures += 1;
            self.log("stop fails", "");
            self.tell_life(LifeEvent::StopFailed);
        } else if matches!(self.dev, Dev::Live | Dev::Added) {
            self.dev = Dev::Stopping;
            self.log("stopping", "");
        }
    }

    /// Steps the life, logs a change of its phase, and does what it says.
    fn tell_life(&mut self, event: LifeEvent) {
        let mut out = Vec::new();
        let server = self.server.as_mut().expect("it lives");
        let (life, _) = server.machines.as_mut().expect("attached");
        let before = life.phase();
        life.step(event, &mut out);
        let after = life.phase();
        if before != after {
            self.log(
                "life",
                &format!("was |-> \"{before:?}\", ph |-> \"{after:?}\""),
            );
        }
        out.into_iter()
            .for_each(|effect| self.do_life_effect(effect));
    }

    fn do_life_effect(&mut self, effect: LifeEffect) {
        let server = self.server.as_mut().expect("it acts");
        match effect {
            LifeEffect::Open => {
                if self.dev == Dev::None {
                    self.dev = Dev::Added;
                }
            }
            LifeEffect::Fetch => self.tell_tags("mapped", 0, TagEvent::Mapped),
            LifeEffect::RunStart => server.ctl = Ctl::Start,
            LifeEffect::RunStop { .. } => server.ctl = Ctl::Stop,
            LifeEffect::Close => server.closing = true,
            LifeEffect::RunRemove => server.ctl = Ctl::Remove,
            LifeEffect::Report(_) => {}
        }
    }

    fn die(&mut self) {
        self.server = None;
        self.own.fill(Own::Nobody);
        if matches!(self.dev, Dev::Live | Dev::Quiesced) {
            self.dev = Dev::Quiesced;
            self.requests
                .iter_mut()
                .flatten()
                .for_each(|r| r.out = false);
        } else {
            self.dev = Dev::None;
            self.requests.fill(None);
        }
        self.volume_ops.retain(|op| !op.done);
    }
}
