//! A volume through our volume core, attached by metad's grant, without a block device.

use super::{Ask, Body, Engine, EngineEvent, ROOM_INITIATOR, ROOM_LOAD, ROOM_VOLUMES};
use crate::metad::{Metad, Request, Word};
use crate::options::parse_seconds;
use anyhow::{Context, Result};
use clap::Args;
use nvmf::initiator;
use reactor::{Completion, Driver, Mailbox, Token, UringDriver};
use shardmap::generations::SnapshotStep;
use shardmap::units::{BlockRange, Blocks, Lba};
use volume::{
    AttachGrant, HostBuffer, HostOp, HostRequest, TraceEvent, VolumeEvent, Volumes, VolumesConfig,
};

/// Words of metad that may wait for the reactor.
const WORDS_MAX: usize = 16;

/// Which volume.
#[derive(Clone, Debug, Args)]
pub(crate) struct VolumeOptions {
    /// Members of metad; one that is up is enough
    #[arg(
        long,
        required = true,
        value_name = "ADDRESS:PORT",
        value_delimiter = ','
    )]
    pub(crate) metad: Vec<String>,
    /// Name of the volume. It must be attached nowhere; its content is overwritten by writes
    #[arg(long)]
    pub(crate) volume: String,
    /// Name under which we register as a client host
    #[arg(long, default_value = "ubs-bench")]
    pub(crate) host: String,
    /// Make a snapshot so often, in seconds, and give up the one before
    #[arg(long, value_parser = parse_pause)]
    pub(crate) snapshot_every: Option<f64>,
}

fn parse_pause(text: &str) -> Result<f64, String> {
    let pause = parse_seconds(text)?;
    if pause < 0.01 {
        return Err(format!("\"{text}\": at most a hundred snapshots a second"));
    }
    Ok(pause)
}

/// The engine.
#[derive(Debug)]
pub(crate) struct VolumeEngine {
    grant: AttachGrant,
    volumes: Volumes,
    metad: Metad,
    words: Mailbox<Word>,
    detached: bool,
    events: Vec<VolumeEvent>,
}

impl VolumeEngine {
    /// Takes the volume from metad.
    pub(crate) fn new(options: &VolumeOptions, driver: &mut UringDriver) -> Result<Self> {
        let token = Token {
            room: ROOM_LOAD,
            index: 0,
            value: 0,
        };
        let bell = driver.doorbell(token).context("no doorbell")?;
        let words = Mailbox::new(WORDS_MAX, bell);
        let (metad, taken) = Metad::take(options, words.clone())?;
        let initiator = initiator::Config::new(ROOM_INITIATOR, taken.host_nqn, taken.host_id);
        let config = VolumesConfig {
            room: ROOM_VOLUMES,
            initiator,
            seed: 1,
        };
        Ok(Self {
            grant: taken.grant,
            volumes: Volumes::new(config),
            metad,
            words,
            detached: false,
            events: Vec::new(),
        })
    }

    fn on_event(&mut self, event: VolumeEvent, out: &mut Vec<EngineEvent>) {
        match event {
            VolumeEvent::HostDone {
                id, result, buffer, ..
            } => {
                let body = match buffer {
                    HostBuffer::Read(into) => Body::Read(into),
                    HostBuffer::Write(data) => Body::Write(data),
                    HostBuffer::Changes(_) | HostBuffer::None => {
                        unreachable!("requests have bodies")
                    }
                };
                let slot = u32::try_from(id).expect("a slot");
                let fault = result.err().map(|fault| fault.to_string());
                out.push(EngineEvent::Done { slot, body, fault });
            }
            VolumeEvent::Attached { .. } => {
                let size_blocks = self.grant.map.size_blocks;
                out.push(EngineEvent::Ready { size_blocks });
            }
            VolumeEvent::AttachFailed { why, .. } => {
                self.detached = true;
                out.push(EngineEvent::Broken(format!("cannot attach: {why}")));
            }
            VolumeEvent::AskMetad {
                request,
                epoch,
                seq,
                new_isr,
                ..
            } => {
                self.metad.send(Request::SetIsr {
                    request,
                    epoch,
                    seq,
                    new_isr,
                });
            }
            VolumeEvent::Detached { .. } => self.detached = true,
            VolumeEvent::Failed { why, .. } => {
                out.push(EngineEvent::Broken(format!("the volume failed: {why}")));
            }
            VolumeEvent::Transition {
                what: TraceEvent::StartRs { .. },
                ..
            } => out.push(EngineEvent::ResilverBegan),
            VolumeEvent::Resilvered { record, .. } => out.push(EngineEvent::ResilverEnded {
                bytes_missed: record.bytes_missed,
                bytes_moved: record.bytes_moved,
            }),
            VolumeEvent::AskVerify { .. } => {
                let why = "metad was restored and the volume is not verified; attach it once";
                out.push(EngineEvent::Broken(why.into()));
            }
            VolumeEvent::Snapshot {
                epoch,
                generation,
                step,
                ..
            } => {
                self.metad
                    .send(Request::Snapshot(epoch, (generation, step)));
                if matches!(step, SnapshotStep::Complete { .. }) {
                    out.push(EngineEvent::SnapshotEnded);
                }
            }
            // Nothing outlives a bench.
            VolumeEvent::Remember { .. }
            | VolumeEvent::Progress { .. }
            | VolumeEvent::Transition { .. } => {}
        }
    }

    fn take_events(&mut self, mut events: Vec<VolumeEvent>, out: &mut Vec<EngineEvent>) {
        let was_detached = self.detached;
        for event in events.drain(..) {
            self.on_event(event, out);
        }
        self.events = events;
        if self.detached && !was_detached {
            // metad forgets us before we are gone, so that the next run finds the volume free.
            self.metad.let_go(self.grant.epoch);
            out.push(EngineEvent::Gone);
        }
    }
}

impl Engine for VolumeEngine {
    const NAME: &'static str = "volume";

    fn connections(&self) -> u32 {
        1
    }

    fn start(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>) {
        if let Err(fault) = self.volumes.attach(io, &self.grant) {
            out.push(EngineEvent::Broken(fault.to_string()));
        }
    }

    fn submit(&mut self, io: &mut dyn Driver, ask: Ask) -> Result<(), Ask> {
        let Ask {
            slot,
            lba,
            blocks,
            body,
        } = ask;
        let range = BlockRange::new(Lba(lba), Blocks(blocks)).expect("inside the volume");
        let op = match body {
            Body::Read(into) => HostOp::Read { range, into },
            Body::Write(data) => HostOp::Write {
                range,
                data,
                fua: false,
            },
        };
        let id = u64::from(slot);
        let request = HostRequest {
            volume: self.grant.volume,
            id,
            op,
        };
        self.volumes.submit(io, request).map_err(|refused| {
            let body = match refused.request.op {
                HostOp::Read { into, .. } => Body::Read(into),
                HostOp::Write { data, .. } => Body::Write(data),
                HostOp::Flush
                | HostOp::Discard { .. }
                | HostOp::Zero { .. }
                | HostOp::Changes { .. } => unreachable!("never asked"),
            };
            Ask {
                slot,
                lba,
                blocks,
                body,
            }
        })
    }

    fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        out: &mut Vec<EngineEvent>,
    ) {
        let mut events = std::mem::take(&mut self.events);
        self.volumes.on_completion(io, completion, &mut events);
        self.take_events(events, out);
    }

    fn on_rung(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>) {
        while let Some(word) = self.words.recv() {
            match word {
                Word::Answer(answer) => self.volumes.on_metad(io, answer),
                Word::Generations(generations) => {
                    if generations.pending().is_some() {
                        out.push(EngineEvent::SnapshotBegan);
                    }
                    let volume = self.grant.volume;
                    self.volumes.set_generations(io, volume, generations);
                }
            }
        }
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>) {
        let mut events = std::mem::take(&mut self.events);
        self.volumes.on_turn_end(io, &mut events);
        self.take_events(events, out);
    }

    fn stop(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>) {
        if self.detached || !self.volumes.detach(io, self.grant.volume) {
            self.metad.let_go(self.grant.epoch);
            out.push(EngineEvent::Gone);
        }
    }
}
