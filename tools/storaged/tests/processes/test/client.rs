//! A client host without a block device: the volume shell on a reactor of its own.

use super::lab::{Metad, PATIENCE};
use control::client::MetadClient;
use control::core::{CLIENTD_NQN_PREFIX, HostId, NewHost};
use nvmf::initiator;
use reactor::{App, ArenaConfig, Completion, Driver, Mailbox, Token, UringConfig, UringDriver};
use shardmap::generations::{SnapshotState, SnapshotStep, VolumeGenerations};
use shardmap::grant::MembershipRequest;
use shardmap::units::{BlockRange, Blocks, Epoch, Generation, Lba, StoreId, VolumeId};
use std::collections::BTreeSet;
use std::thread::JoinHandle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use uuid::Uuid;
use volume::{
    AttachGrant, HostOp, HostRequest, MetadAnswer, MetadVerdict, TraceEvent, VolumeEvent,
    VolumeOptions, Volumes, VolumesConfig,
};

const ROOM_VOLUMES: u8 = 1;
const ROOM_INITIATOR: u8 = 2;
const BELL: Token = Token {
    room: 3,
    index: 0,
    value: 0,
};
/// Blocks of a request.
pub(super) const CHUNK_BLOCKS: u32 = 32;

enum Order {
    Write { chunk: u64, version: u64 },
    Flush,
    Metad(MetadAnswer),
    Generations(VolumeGenerations),
    Detach,
    Die,
}

#[derive(Debug)]
enum Seen {
    Attached,
    Done,
    Ask(MembershipRequest),
    Resilvered(StoreId),
    Snapshot(Generation),
    Detached,
    Failed(String),
}

/// What a block holds.
pub(super) fn content(lba: u64, version: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    for word in block.as_chunks_mut::<8>().0 {
        *word = (lba << 16 | version).to_le_bytes();
    }
    block
}

struct Host {
    volume: VolumeId,
    volumes: Volumes,
    orders: Mailbox<Order>,
    seen: mpsc::UnboundedSender<Seen>,
    steps: mpsc::UnboundedSender<(Generation, SnapshotStep)>,
    events: Vec<VolumeEvent>,
    dead: bool,
}

impl Host {
    fn on_order(&mut self, io: &mut dyn Driver, order: Order) {
        let volume = self.volume;
        let op = match order {
            Order::Write { chunk, version } => {
                let start = chunk * u64::from(CHUNK_BLOCKS);
                let range = BlockRange::new(Lba(start), Blocks(CHUNK_BLOCKS)).unwrap();
                let mut data = io.arena().take(CHUNK_BLOCKS * 4096).unwrap();
                for (lba, block) in (start..).zip(data.bytes_mut().as_chunks_mut().0) {
                    *block = content(lba, version);
                }
                let (data, fua) = (data.freeze(), false);
                HostOp::Write { range, data, fua }
            }
            Order::Flush => HostOp::Flush,
            Order::Metad(answer) => return self.volumes.on_metad(io, answer),
            Order::Generations(now) => {
                return assert!(self.volumes.set_generations(io, volume, now));
            }
            Order::Detach => return assert!(self.volumes.detach(io, volume)),
            Order::Die => return self.dead = true,
        };
        let request = HostRequest { volume, id: 1, op };
        self.volumes.submit(io, request).unwrap();
    }

    fn settle(&mut self) {
        for event in self.events.drain(..) {
            let event = match event.into_request() {
                Ok(request) => {
                    drop(self.seen.send(Seen::Ask(request)));
                    continue;
                }
                Err(event) => event,
            };
            let seen = match event {
                VolumeEvent::Attached { .. } => Seen::Attached,
                VolumeEvent::HostDone { result: Ok(()), .. } => Seen::Done,
                VolumeEvent::HostDone { result, .. } => Seen::Failed(format!("{result:?}")),
                VolumeEvent::Transition {
                    what: TraceEvent::Resilvered(record),
                    ..
                } => Seen::Resilvered(record.store),
                VolumeEvent::Snapshot {
                    generation, step, ..
                } => {
                    self.steps.send((generation, step)).unwrap_or_default();
                    Seen::Snapshot(generation)
                }
                VolumeEvent::Detached { .. } => Seen::Detached,
                VolumeEvent::AttachFailed { why, .. } => Seen::Failed(why.to_string()),
                VolumeEvent::Failed { why, .. } => Seen::Failed(why.to_string()),
                VolumeEvent::AskMetad { .. } | VolumeEvent::AskVerify { .. } => {
                    unreachable!("a request")
                }
                VolumeEvent::Remember { .. }
                | VolumeEvent::Progress { .. }
                | VolumeEvent::Resilvered { .. }
                | VolumeEvent::Transition { .. } => continue,
            };
            drop(self.seen.send(seen));
        }
    }
}

impl App for Host {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if completion.token.room == BELL.room {
            while let Some(order) = self.orders.recv() {
                self.on_order(io, order);
            }
        } else {
            self.volumes.on_completion(io, completion, &mut self.events);
        }
        self.settle();
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.volumes.on_turn_end(io, &mut self.events);
        self.settle();
    }

    fn is_finished(&self) -> bool {
        self.dead
    }
}

/// A volume that is attached.
pub(super) struct Client {
    metad: MetadClient,
    host: HostId,
    volume: VolumeId,
    pub(super) epoch: Epoch,
    orders: Mailbox<Order>,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// Stores that it has brought up to date.
    resilvered: BTreeSet<StoreId>,
    thread: Option<JoinHandle<()>>,
    steps: Option<mpsc::UnboundedReceiver<(Generation, SnapshotStep)>>,
    following: Vec<AbortHandle>,
}

impl Client {
    /// Attaches the volume on a host of this name.
    pub(super) async fn attach(metad: &Metad, volume: VolumeId, name: &str) -> Self {
        let uuid = Uuid::new_v4();
        let host_nqn = format!("{CLIENTD_NQN_PREFIX}{uuid}");
        let metad = metad.client.clone();
        let new = NewHost {
            uuid,
            name: name.into(),
            host_nqn: host_nqn.clone(),
        };
        let host = metad.register_host(new).await.unwrap();
        metad.want_attached(volume, host).await.unwrap();
        let granted = metad.attach(volume, host).await.unwrap();
        let epoch = granted.epoch;
        let grant = AttachGrant::new(granted, VolumeOptions::default());
        let (tell, seen) = mpsc::unbounded_channel();
        let (tell_steps, steps) = mpsc::unbounded_channel();
        let (told, orders) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let arena = ArenaConfig {
                slot_counts: [128, 64, 64],
                huge_pages: false,
            };
            let mut driver = UringDriver::new(UringConfig {
                arena,
                ..UringConfig::default()
            })
            .unwrap();
            let orders = Mailbox::new(64, driver.doorbell(BELL).unwrap());
            told.send(orders.clone()).unwrap();
            let initiator = initiator::Config::new(ROOM_INITIATOR, host_nqn, *uuid.as_bytes());
            let mut host = Host {
                volume,
                volumes: Volumes::new(VolumesConfig {
                    room: ROOM_VOLUMES,
                    initiator,
                    seed: 1,
                }),
                orders,
                seen: tell,
                steps: tell_steps,
                events: Vec::new(),
                dead: false,
            };
            host.volumes.attach(&mut driver, &grant).unwrap();
            driver.run(&mut host);
        });
        let mut client = Self {
            metad,
            host,
            volume,
            epoch,
            orders: orders.recv().unwrap(),
            seen,
            resilvered: BTreeSet::new(),
            thread: Some(thread),
            steps: Some(steps),
            following: Vec::new(),
        };
        client.until(|seen| matches!(seen, Seen::Attached)).await;
        client
    }

    fn order(&self, order: Order) {
        assert!(self.orders.send(order).is_ok(), "one at a time");
    }

    /// Passes questions to metad on meanwhile.
    async fn until(&mut self, done: impl Fn(&Seen) -> bool) {
        loop {
            let Ok(seen) = tokio::time::timeout(PATIENCE, self.seen.recv()).await else {
                let events = self.metad.events(0, false).await.unwrap();
                panic!("nothing in time after {events:#?}");
            };
            let seen = seen.expect("its thread lives");
            if let Seen::Resilvered(store) = seen {
                self.resilvered.insert(store);
            }
            match seen {
                Seen::Ask(ask) => {
                    let answer = self.metad.change_membership(&ask).await;
                    self.order(Order::Metad(MetadAnswer {
                        volume: ask.volume,
                        epoch: ask.epoch,
                        request: ask.request,
                        verdict: MetadVerdict::of(answer.ok(), ask.new_isr),
                    }));
                }
                Seen::Failed(why) => panic!("{why}"),
                seen if done(&seen) => return,
                Seen::Attached
                | Seen::Done
                | Seen::Resilvered(_)
                | Seen::Snapshot(_)
                | Seen::Detached => {}
            }
        }
    }

    pub(super) async fn write(&mut self, chunk: u64, version: u64) {
        self.order(Order::Write { chunk, version });
        self.until(|seen| matches!(seen, Seen::Done)).await;
    }

    pub(super) async fn flush(&mut self) {
        self.order(Order::Flush);
        self.until(|seen| matches!(seen, Seen::Done)).await;
    }

    /// Waits until it has brought the store up to date.
    pub(super) async fn resilvered(&mut self, store: StoreId) {
        // It may have come while something else was waited for.
        while !self.resilvered.contains(&store) {
            self.until(|seen| matches!(seen, Seen::Resilvered(_))).await;
        }
    }

    /// From now on it hears of snapshots from metad and tells it how far they are, whatever else it is
    /// asked for.
    pub(super) fn follow_snapshots(&mut self) {
        let (metad, host, volume) = (self.metad.clone(), self.host, self.volume);
        let orders = self.orders.clone();
        let hear = tokio::task::spawn_local(async move {
            let mut after = 0;
            loop {
                let desire = metad.watch_attachments(host, after).await.unwrap();
                after = desire.index;
                for v in desire.volumes.into_iter().filter(|v| v.volume == volume) {
                    assert!(orders.send(Order::Generations(v.generations)).is_ok());
                }
            }
        });
        let (metad, epoch) = (self.metad.clone(), self.epoch);
        let mut steps = self.steps.take().expect("once");
        let tell = tokio::task::spawn_local(async move {
            while let Some(step) = steps.recv().await {
                metad.record_snapshot(volume, epoch, step).await;
            }
        });
        self.following = vec![hear.abort_handle(), tell.abort_handle()];
    }

    /// The first, second … snapshot is made, as metad would say; waits until it is complete.
    pub(super) async fn snapshot(&mut self, number: u32) {
        let earlier = (1..number).map(|g| (Generation(g), SnapshotState::Complete));
        let mut now = VolumeGenerations {
            head: Generation(number),
            snapshots: earlier.collect(),
            hold: false,
        };
        now.begin(Generation(number + 1));
        self.order(Order::Generations(now.clone()));
        let is = |seen: &Seen| matches!(seen, Seen::Snapshot(of) if of.0 == number);
        self.until(is).await;
        now.set_complete(Generation(number));
        self.order(Order::Generations(now));
    }

    pub(super) async fn detach(mut self) {
        self.following.iter().for_each(AbortHandle::abort);
        self.metad.want_detached(self.volume).await.unwrap();
        self.order(Order::Detach);
        self.until(|seen| matches!(seen, Seen::Detached)).await;
        assert!(self.metad.detach(self.volume, self.epoch).await.unwrap());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.following.iter().for_each(AbortHandle::abort);
        drop(self.orders.send(Order::Die));
        drop(self.thread.take().map(JoinHandle::join));
    }
}
