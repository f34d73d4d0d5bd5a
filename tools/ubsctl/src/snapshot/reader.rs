//! Reads a snapshot from the storageds: a view, on a reactor in a thread of its own.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::ring;
use control::api::{SnapshotView, VolumeView};
use control::core::reader_host_nqn;
use nvmf::initiator;
use reactor::{App, BufMut, Completion, Driver, Mailbox, Token};
use shardmap::dirty::BlockSet;
use shardmap::units::{BLOCK_BYTES, BlockRange, Generation, RegionIndex, VolumeId};
use std::collections::{BTreeMap, VecDeque};
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use uuid::Uuid;
use volume::{
    HostBuffer, HostOp, HostRequest, SlicePath, ViewGrant, VolumeEvent, Volumes, VolumesConfig,
};

const ROOM_VOLUMES: u8 = 1;
const ROOM_INITIATOR: u8 = 2;
const BELL: Token = Token {
    room: 3,
    index: 0,
    value: 0,
};
/// Requests under way; who asks keeps to it.
pub(super) const REQUESTS_MAX: usize = 32;

/// A request's end: what was found, or one sentence.
type Told<T> = oneshot::Sender<Result<T, String>>;

enum Order {
    Changes(RegionIndex, Generation, Told<BlockSet>),
    Read(BlockRange, Told<Vec<u8>>),
    End,
}

/// A snapshot that is open for reading.
pub(super) struct Reader {
    orders: Mailbox<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Opens a complete snapshot of a volume.
    pub(super) async fn open(
        context: &Context,
        volume: &VolumeView,
        snapshot: &SnapshotView,
    ) -> Result<Self, Failure> {
        let cluster = context.client.cluster().await?.uuid;
        let wait_ms = u64::try_from(context.timeout.as_millis()).unwrap_or(u64::MAX);
        let grant = ViewGrant {
            id: VolumeId(*Uuid::new_v4().as_bytes()),
            map: volume.map.clone(),
            generation: snapshot.generation,
            slices: paths(context, volume).await?,
            attach_wait_ms: wait_ms,
        };
        let (tell, opened) = oneshot::channel();
        let (started, orders) = oneshot::channel();
        let nqn = reader_host_nqn(cluster);
        let thread = std::thread::spawn(move || run(&grant, nqn, tell, started));
        let broken = || Failure::error("the thread that reads the snapshot ended; see above");
        let mut reader = match orders.await.map_err(|_| broken())? {
            Ok(orders) => Self {
                orders,
                thread: Some(thread),
            },
            Err(why) => return Err(Failure::Error(why)),
        };
        match opened.await.map_err(|_| broken())? {
            Ok(()) => Ok(reader),
            Err(why) => {
                reader.thread = None; // it has ended
                Err(Failure::error(format!(
                    "cannot open {}: {why}; see `ubsctl volume explain {}`",
                    super::full_name(snapshot),
                    volume.name
                )))
            }
        }
    }

    /// Blocks of 16 regions that may read otherwise than in an earlier snapshot.
    pub(super) async fn changes(
        &self,
        from: RegionIndex,
        after: Generation,
    ) -> Result<BlockSet, Failure> {
        self.ask(|tell| Order::Changes(from, after, tell)).await
    }

    /// At most 32 blocks.
    pub(super) async fn read(&self, range: BlockRange) -> Result<Vec<u8>, Failure> {
        self.ask(|tell| Order::Read(range, tell)).await
    }

    async fn ask<T>(&self, order: impl FnOnce(Told<T>) -> Order) -> Result<T, Failure> {
        let (tell, told) = oneshot::channel();
        if self.orders.send(order(tell)).is_err() {
            unreachable!("at most {REQUESTS_MAX} requests are under way");
        }
        let told = told
            .await
            .map_err(|_| Failure::error("the thread that reads the snapshot ended; see above"))?;
        told.map_err(Failure::Error)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It fails only if the thread is gone, which is as good.
            drop(self.orders.send(Order::End));
            drop(thread.join());
        }
    }
}

/// Where the slices of a volume are.
async fn paths(
    context: &Context,
    volume: &VolumeView,
) -> Result<BTreeMap<shardmap::units::StoreId, SlicePath>, Failure> {
    let servers = context.client.servers(named("")).await?.list;
    let mut paths = BTreeMap::new();
    for slice in &volume.slices {
        let server = servers.iter().find(|s| s.id == slice.server);
        let server = server.ok_or_else(|| Failure::not_found("server", &slice.server_name))?;
        let path = SlicePath {
            nsid: slice.nsid,
            address: server.address,
            subsystem_nqn: server.subsystem_nqn.clone(),
        };
        paths.insert(slice.store, path);
    }
    Ok(paths)
}

/// The thread: from the first connection to the last answer.
fn run(
    grant: &ViewGrant,
    host_nqn: String,
    opened: Told<()>,
    started: oneshot::Sender<Result<Mailbox<Order>, String>>,
) {
    let driver = ring::driver([64, 32, 48]).and_then(|mut driver| {
        let bell = driver.doorbell(BELL).map_err(|e| e.to_string())?;
        Ok((driver, bell))
    });
    let (mut driver, bell) = match driver {
        Ok(driver) => driver,
        Err(why) => return drop(started.send(Err(why))),
    };
    let orders = Mailbox::new(REQUESTS_MAX + 1, bell);
    let host_id = *Uuid::new_v4().as_bytes();
    let mut shell = Shell {
        view: grant.id,
        volumes: Volumes::new(VolumesConfig {
            room: ROOM_VOLUMES,
            initiator: initiator::Config::new(ROOM_INITIATOR, host_nqn, host_id),
            seed: u64::from_le_bytes(host_id[..8].try_into().expect("eight bytes")),
        }),
        orders: orders.clone(),
        opened: Some(opened),
        starved: VecDeque::new(),
        under_way: BTreeMap::new(),
        next_id: 0,
        events: Vec::new(),
        over: false,
    };
    if let Err(fault) = shell.volumes.open_view(&mut driver, grant) {
        return drop(started.send(Err(fault.to_string())));
    }
    drop(started.send(Ok(orders)));
    driver.run(&mut shell);
}

/// What a request under way was made for.
enum UnderWay {
    Changes(Told<BlockSet>),
    Read(Told<Vec<u8>>),
}

struct Shell {
    view: VolumeId,
    volumes: Volumes,
    orders: Mailbox<Order>,
    opened: Option<Told<()>>,
    /// Reads that wait for memory.
    starved: VecDeque<(BlockRange, Told<Vec<u8>>)>,
    under_way: BTreeMap<u64, UnderWay>,
    next_id: u64,
    events: Vec<VolumeEvent>,
    over: bool,
}

impl Shell {
    fn on_order(&mut self, io: &mut dyn Driver, order: Order) {
        match order {
            Order::Changes(from, after, tell) => {
                let op = HostOp::Changes { from, after };
                self.begin(io, op, UnderWay::Changes(tell));
            }
            Order::Read(range, tell) => self.starved.push_back((range, tell)),
            Order::End => {
                if !self.volumes.detach(io, self.view) {
                    self.over = true;
                }
            }
        }
    }

    fn begin(&mut self, io: &mut dyn Driver, op: HostOp, what: UnderWay) {
        self.next_id += 1;
        let (volume, id) = (self.view, self.next_id);
        self.under_way.insert(id, what);
        if let Err(refused) = self.volumes.submit(io, HostRequest { volume, id, op }) {
            self.end(id, Err(refused.why.to_string()), HostBuffer::None);
        }
    }

    /// Begins reads as far as there is memory.
    fn feed(&mut self, io: &mut dyn Driver) {
        while let Some((range, _)) = self.starved.front() {
            let range = *range;
            let Some(into): Option<BufMut> = io.arena().take(range.blocks().0 * BLOCK_BYTES) else {
                return;
            };
            let (_, tell) = self.starved.pop_front().expect("just seen");
            let op = HostOp::Read { range, into };
            self.begin(io, op, UnderWay::Read(tell));
        }
    }

    /// Tells who asked; one that does not listen any more has given up.
    fn end(&mut self, id: u64, result: Result<(), String>, buffer: HostBuffer) {
        let what = self.under_way.remove(&id).expect("it ends once");
        match (what, buffer) {
            (UnderWay::Changes(tell), HostBuffer::Changes(found)) => {
                drop(tell.send(result.map(|()| found)));
            }
            (UnderWay::Changes(tell), _) => {
                drop(tell.send(result.map(|()| unreachable!("an answer has blocks"))));
            }
            (UnderWay::Read(tell), HostBuffer::Read(data)) => {
                drop(tell.send(result.map(|()| data.bytes().to_vec())));
            }
            (UnderWay::Read(tell), _) => {
                drop(tell.send(result.map(|()| unreachable!("an answer has data"))));
            }
        }
    }

    fn settle(&mut self) {
        for event in std::mem::take(&mut self.events) {
            match event {
                VolumeEvent::Attached { .. } => {
                    if let Some(tell) = self.opened.take() {
                        drop(tell.send(Ok(())));
                    }
                }
                VolumeEvent::AttachFailed {
                    why, stores_needed, ..
                } => {
                    let stores: Vec<String> =
                        stores_needed.iter().map(ToString::to_string).collect();
                    let needed = if stores.is_empty() {
                        why.to_string()
                    } else {
                        format!(
                            "no store of some shard has it; one of these is needed: {}",
                            stores.join(", ")
                        )
                    };
                    if let Some(tell) = self.opened.take() {
                        drop(tell.send(Err(needed)));
                    }
                    self.over = true;
                }
                VolumeEvent::HostDone {
                    id, result, buffer, ..
                } => self.end(id, result.map_err(|fault| fault.to_string()), buffer),
                VolumeEvent::Detached { .. } => self.over = true,
                VolumeEvent::Transition { .. } => {} // which stores are read
                VolumeEvent::AskMetad { .. }
                | VolumeEvent::AskVerify { .. }
                | VolumeEvent::Remember { .. }
                | VolumeEvent::Snapshot { .. }
                | VolumeEvent::Failed { .. }
                | VolumeEvent::Progress { .. }
                | VolumeEvent::Resilvered { .. } => unreachable!("not of a view"),
            }
        }
    }
}

impl App for Shell {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        if completion.token.room == BELL.room {
            while let Some(order) = self.orders.recv() {
                self.on_order(io, order);
            }
        } else {
            self.volumes.on_completion(io, completion, &mut self.events);
        }
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        loop {
            self.feed(io);
            self.volumes.on_turn_end(io, &mut self.events);
            if self.events.is_empty() {
                return;
            }
            self.settle();
        }
    }

    fn is_finished(&self) -> bool {
        self.over && self.volumes.is_idle()
    }
}
