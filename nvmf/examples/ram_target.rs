//! A target over memory, for trying hosts against: `ram_target [ADDRESS [MIB]]`.
//!
//! Prints `listening on ADDRESS:PORT nqn NQN` and serves namespace 1 until it is killed. Data is
//! kept in ordinary memory and lost at the end.
#![forbid(unsafe_code)]

mod ram;

use nvmf::target::{Identity, Target, TargetConfig};
use ram::Ram;
use reactor::{App, Completion, Driver, UringConfig, UringDriver};
use std::net::SocketAddr;

const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:ram";

struct Program {
    target: Target,
    ram: Ram,
}

impl Program {
    fn answer(&mut self, io: &mut dyn Driver) {
        for reply in self.ram.replies.drain(..) {
            self.target.reply(io, reply);
        }
    }
}

impl App for Program {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.target.on_completion(io, &mut self.ram, completion);
        self.answer(io);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.target.on_turn_end(io, &mut self.ram);
        if !self.ram.replies.is_empty() {
            self.answer(io);
            self.target.on_turn_end(io, &mut self.ram);
        }
    }

    fn is_finished(&self) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let at: SocketAddr = arguments
        .next()
        .as_deref()
        .unwrap_or("127.0.0.1:0")
        .parse()?;
    let mib: usize = arguments.next().as_deref().unwrap_or("256").parse()?;
    let identity = Identity {
        subnqn: NQN.into(),
        serial: "ram".into(),
        firmware: "0.1".into(),
    };
    let mut driver = UringDriver::new(UringConfig::default())?;
    let mut program = Program {
        target: Target::new(TargetConfig::new(0, identity)),
        ram: Ram::new(mib << 20),
    };
    let bound = program.target.listen(&mut driver, at)?;
    println!("listening on {bound} nqn {NQN}");
    driver.run(&mut program);
    Ok(())
}
