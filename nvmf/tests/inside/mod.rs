//! A program with both ends in it: a target over memory, and an initiator.

use super::ram::Ram;
use nvmf::initiator::{Config, Initiator, InitiatorEvent};
use nvmf::target::{Identity, Target, TargetConfig};
use reactor::{App, Completion, Driver, Event};

pub(crate) const TARGET: u8 = 1;
pub(crate) const INITIATOR: u8 = 2;
pub(crate) const WATCHDOG: u8 = 3;
pub(crate) const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:loop";
pub(crate) const HOST: &str = "nqn.2026-01.io.ublkstor:clientd:loop";
pub(crate) const BLOCKS: u64 = 2048;

pub(crate) struct Inside {
    pub(crate) target: Target,
    pub(crate) ram: Ram,
    pub(crate) initiator: Initiator,
    pub(crate) events: Vec<InitiatorEvent>,
    /// Answers are kept back while set.
    pub(crate) hold: bool,
}

impl Inside {
    /// A program whose target grants little by R2T, so that grants are waited for.
    pub(crate) fn new(config: Config) -> Self {
        let identity = Identity {
            subnqn: NQN.into(),
            serial: "1".into(),
            firmware: "0".into(),
        };
        let mut target = TargetConfig::new(TARGET, identity);
        target.granted_bytes_max = 512 * 1024;
        Self {
            target: Target::new(target),
            ram: Ram::new(usize::try_from(BLOCKS).unwrap() * 4096),
            initiator: Initiator::new(config),
            events: Vec::new(),
            hold: false,
        }
    }

    pub(crate) fn config() -> Config {
        let mut config = Config::new(INITIATOR, HOST.into(), [7; 16]);
        config.queue_depth = 64;
        config
    }

    fn answer(&mut self, io: &mut dyn Driver) {
        if !self.hold {
            // Newest first: completions come in another order than commands.
            for reply in self.ram.replies.drain(..).rev() {
                self.target.reply(io, reply);
            }
        }
    }
}

impl App for Inside {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match completion.token.room {
            TARGET => self.target.on_completion(io, &mut self.ram, completion),
            INITIATOR => self
                .initiator
                .on_completion(io, completion, &mut self.events),
            WATCHDOG => match completion.event {
                Event::Rung => {}
                Event::Timer(_) | Event::Op { .. } => panic!("nothing happened for half a minute"),
            },
            room => panic!("a completion for room {room}"),
        }
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.answer(io);
        self.target.on_turn_end(io, &mut self.ram);
        if !self.hold && !self.ram.replies.is_empty() {
            self.answer(io);
            self.target.on_turn_end(io, &mut self.ram);
        }
        self.initiator.on_turn_end(io);
    }

    fn is_finished(&self) -> bool {
        self.target.is_stopped() && self.initiator.is_idle()
    }
}
