//! Volumes that nobody uses: what holding them costs, in processor time and in wake-ups.

use crate::cpu;
use crate::engine::{ROOM_INITIATOR, ROOM_LOAD, ROOM_VOLUMES, VolumeOptions};
use crate::metad::{Metad, Request, Word};
use anyhow::{Context, Result, bail};
use clap::Args;
use nvmf::initiator;
use reactor::{App, Completion, Driver, Event, Mailbox, Token, UringConfig, UringDriver};
use serde::{Deserialize, Serialize};
use shardmap::units::VolumeId;
use std::collections::BTreeMap;
use std::time::Duration;
use volume::{AttachGrant, VolumeEvent, Volumes, VolumesConfig};

/// Answers of metad that may wait for the reactor.
const WORDS_MAX: usize = 64;
/// Volumes that may be held at once.
const VOLUMES_MAX: usize = 1000;
const TIMER_STAGE: u64 = 0;
/// How long to wait for all volumes to be attached, and to be let go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of `ubs-bench idle`.
#[derive(Clone, Debug, Args)]
pub(crate) struct IdleOptions {
    /// Members of metad; one that is up is enough
    #[arg(
        long,
        required = true,
        value_name = "ADDRESS:PORT",
        value_delimiter = ','
    )]
    metad: Vec<String>,
    /// Names of the volumes. They must be attached nowhere
    #[arg(long, required = true, value_delimiter = ',')]
    volumes: Vec<String>,
    /// Name under which we register as a client host
    #[arg(long, default_value = "ubs-bench")]
    host: String,
    /// How long to look, seconds
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// How long everything may settle before, seconds
    #[arg(long, default_value_t = 10.0)]
    settle: f64,
    /// Other processes to look at
    #[arg(long, value_name = "NAME=PID", value_delimiter = ',', value_parser = named_pid)]
    peers: Vec<(String, u32)>,
    /// Run on this processor only
    #[arg(long)]
    cpu: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn named_pid(text: &str) -> Result<(String, u32), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(name, pid)| Some((name.to_owned(), pid.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text}: expected NAME=PID"))
}

/// What was seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) volumes: usize,
    pub(crate) seconds: f64,
    /// Calls of `io_uring_enter` on our own reactor.
    pub(crate) enters: u64,
    /// By process; ours is called `volumes`.
    pub(crate) processes: BTreeMap<String, Cost>,
}

/// What one process cost.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) cpu_s: f64,
    /// Waits that ended: wake-ups.
    pub(crate) voluntary_switches: u64,
}

/// As a table for people.
pub(crate) fn table(found: &Idle) -> String {
    let mut text = format!(
        "{} volumes idle for {:.0} s; our reactor entered the kernel {} times\n",
        found.volumes, found.seconds, found.enters
    );
    for (name, cost) in &found.processes {
        text += &format!(
            "{name:<12} {:8.4} s CPU ({:.3} %) {:6} voluntary switches\n",
            cost.cpu_s,
            100.0 * cost.cpu_s / found.seconds,
            cost.voluntary_switches
        );
    }
    text
}

/// Holds the volumes, looks, and lets them go.
pub(crate) fn run(options: &IdleOptions) -> Result<Idle> {
    if let Some(cpu) = options.cpu {
        cpu::pin(cpu)?;
    }
    if options.volumes.len() > VOLUMES_MAX {
        bail!("at most {VOLUMES_MAX} volumes");
    }
    let mut driver = UringDriver::new(UringConfig::default()).context("cannot start io_uring")?;
    let mut holder = Holder::take(options, &mut driver)?;
    let held = holder.held.len();
    holder.wait(&mut driver, PATIENCE, |it| it.attached == held)?;
    let settle = Duration::from_secs_f64(options.settle);
    holder.wait(&mut driver, settle, |_| false)?;
    let before = look(options)?;
    let (began_ns, enters) = (driver.now_ns(), driver.counters().enters);
    holder.wait(
        &mut driver,
        Duration::from_secs_f64(options.seconds),
        |_| false,
    )?;
    let elapsed_ns = driver.now_ns() - began_ns;
    let enters = driver.counters().enters - enters;
    let after = look(options)?;
    holder.let_go(&mut driver)?;
    driver.run(&mut holder);
    let cost = |(name, (cpu_ns, switches)): (String, (u64, u64))| {
        let (cpu_ns_before, switches_before) = before[&name];
        let spent = Duration::from_nanos(cpu_ns - cpu_ns_before);
        let cost = Cost {
            cpu_s: spent.as_secs_f64(),
            voluntary_switches: switches - switches_before,
        };
        (name, cost)
    };
    Ok(Idle {
        volumes: held,
        seconds: Duration::from_nanos(elapsed_ns).as_secs_f64(),
        enters,
        processes: after.into_iter().map(cost).collect(),
    })
}

/// Processor time in nanoseconds and voluntary switches of every process.
fn look(options: &IdleOptions) -> Result<BTreeMap<String, (u64, u64)>> {
    let ours = ("volumes".to_owned(), std::process::id());
    let all = options.peers.iter().cloned().chain([ours]);
    all.map(|(name, pid)| Ok((name, (cpu::process_ns(pid)?, cpu::voluntary_switches(pid)?))))
        .collect()
}

/// The program on the reactor.
struct Holder {
    volumes: Volumes,
    held: BTreeMap<VolumeId, (AttachGrant, Metad)>,
    words: Mailbox<Word>,
    attached: usize,
    detached: usize,
    /// The stage's time is over.
    rung: bool,
    problem: Option<String>,
    events: Vec<VolumeEvent>,
}

impl Holder {
    fn take(options: &IdleOptions, driver: &mut UringDriver) -> Result<Self> {
        let bell = driver.doorbell(token(1)).context("no doorbell")?;
        let words = Mailbox::new(WORDS_MAX, bell);
        let mut held = BTreeMap::new();
        let mut identity = None;
        for name in &options.volumes {
            let one = VolumeOptions {
                metad: options.metad.clone(),
                volume: name.clone(),
                host: options.host.clone(),
                snapshot_every: None,
            };
            let (metad, taken) = Metad::take(&one, words.clone())
                .with_context(|| format!("cannot take volume {name}"))?;
            identity.get_or_insert((taken.host_nqn, taken.host_id));
            held.insert(taken.grant.volume, (taken.grant, metad));
        }
        let (nqn, id) = identity.context("no volumes")?;
        let mut volumes = Volumes::new(VolumesConfig {
            room: ROOM_VOLUMES,
            initiator: initiator::Config::new(ROOM_INITIATOR, nqn, id),
            seed: 1,
        });
        for (grant, _) in held.values() {
            volumes.attach(driver, grant)?;
        }
        Ok(Self {
            volumes,
            held,
            words,
            attached: 0,
            detached: 0,
            rung: false,
            problem: None,
            events: Vec::new(),
        })
    }

    /// Turns until the time is over, or what is awaited is there. Only waiting for nothing may take
    /// all the time.
    fn wait(
        &mut self,
        driver: &mut UringDriver,
        time: Duration,
        until: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        self.rung = false;
        let time_ns = u64::try_from(time.as_nanos()).expect("less than centuries");
        let timer = driver.arm(token(TIMER_STAGE), driver.now_ns() + time_ns);
        while !self.rung && !until(self) && self.problem.is_none() {
            driver.turn(self);
        }
        driver.disarm(timer);
        match self.problem.take() {
            Some(problem) => bail!(problem),
            None => Ok(()),
        }
    }

    fn let_go(&mut self, driver: &mut UringDriver) -> Result<()> {
        for volume in self.held.keys() {
            self.volumes.detach(driver, *volume);
        }
        let held = self.held.len();
        self.wait(driver, PATIENCE, |it| it.detached == held)?;
        for (grant, metad) in self.held.values_mut() {
            metad.let_go(grant.epoch);
        }
        if self.detached < held {
            bail!("{} of {held} volumes were not let go", held - self.detached);
        }
        Ok(())
    }

    fn on_events(&mut self) {
        for event in std::mem::take(&mut self.events) {
            match event {
                VolumeEvent::Attached { .. } => self.attached += 1,
                VolumeEvent::Detached { .. } => self.detached += 1,
                VolumeEvent::AskMetad {
                    volume,
                    request,
                    epoch,
                    seq,
                    new_isr,
                } => self.held[&volume].1.send(Request::SetIsr {
                    request,
                    epoch,
                    seq,
                    new_isr,
                }),
                VolumeEvent::AttachFailed { volume, why, .. } => {
                    self.problem
                        .get_or_insert(format!("cannot attach {volume}: {why}"));
                }
                VolumeEvent::Failed { volume, why } => {
                    self.problem
                        .get_or_insert(format!("volume {volume} failed: {why}"));
                }
                VolumeEvent::AskVerify { volume, .. } => {
                    self.problem
                        .get_or_insert(format!("volume {volume} is not verified"));
                }
                // Nothing is asked of the volumes, and nothing outlives a bench.
                VolumeEvent::HostDone { .. }
                | VolumeEvent::Remember { .. }
                | VolumeEvent::Snapshot { .. }
                | VolumeEvent::Progress { .. }
                | VolumeEvent::Resilvered { .. }
                | VolumeEvent::Transition { .. } => {}
            }
        }
    }
}

impl App for Holder {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match (completion.token.room, &completion.event) {
            (ROOM_LOAD, Event::Timer(_)) => self.rung = true,
            (ROOM_LOAD, _) => {
                while let Some(word) = self.words.recv() {
                    match word {
                        Word::Answer(answer) => self.volumes.on_metad(io, answer),
                        Word::Generations(_) => unreachable!("no snapshots are made here"),
                    }
                }
            }
            _ => self.volumes.on_completion(io, completion, &mut self.events),
        }
        self.on_events();
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.volumes.on_turn_end(io, &mut self.events);
        self.on_events();
    }

    fn is_finished(&self) -> bool {
        self.detached == self.held.len()
    }
}

const fn token(value: u64) -> Token {
    Token {
        room: ROOM_LOAD,
        index: 0,
        value,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_peer_has_a_name_and_a_process() {
        assert_eq!(named_pid("metad1=7"), Ok(("metad1".to_owned(), 7)));
        assert!(named_pid("metad1").is_err());
        assert!(named_pid("metad1=x").is_err());
    }
}
