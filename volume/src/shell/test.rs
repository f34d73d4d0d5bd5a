//! The shell against our own target, over the simulated network.

use crate::api::{
    AttachGrant, HostBuffer, HostOp, HostRequest, MetadAnswer, MetadVerdict, SlicePath,
    VolumeEvent, VolumeOptions,
};
use crate::core::StoreState;
use crate::shell::{Volumes, VolumesConfig};
use nvmf::initiator;
use nvmf::proto::vendor::{OpenSlice, SliceState, opcode};
use nvmf::target::{
    AssociationId, Command, CommandKind, Identity, NamespaceFacts, Namespaces, Reply, ReplyData,
    Status, Target, TargetConfig,
};
use reactor::sim::{NodeId, SimConfig, SimWorld};
use reactor::{App, Completion, Driver};
use shardmap::dirty::RegionSet;
use shardmap::generations::VolumeGenerations;
use shardmap::map::{Layout, Shape, VolumeMap};
use shardmap::units::{
    BLOCK_BYTES, BlockRange, Blocks, Epoch, Lba, MembershipSeq, Nsid, RegionIndex, StoreId,
    VolumeId,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const VOLUME: VolumeId = VolumeId([3; 16]);
const SECOND_NS: u64 = 1_000_000_000;

/// What survives a crash of a store: this one has no volatile cache.
#[derive(Debug, Default)]
struct Medium {
    blocks: BTreeMap<u64, Vec<u8>>,
    marks: RegionSet,
    /// Where each ReadMarks began.
    marks_asked: Vec<u32>,
    marks_added: RegionSet,
    stamp: (u64, u64),
    writes: u64,
}

impl Medium {
    /// One region at a time, so that asking on is exercised.
    fn page_of_marks(&mut self, from: u32) -> (u64, Vec<u8>) {
        self.marks_asked.push(from);
        let mut regions = self.marks.iter().filter(|r| r.0 >= from);
        let page: RegionSet = regions.by_ref().take(1).collect();
        let next = regions.next().map_or(0, |r| u64::from(r.0) + 1);
        (next, page.to_bytes())
    }
}

/// One slice, by the letter of the vendor commands.
struct Slice {
    volume: VolumeId,
    medium: Rc<RefCell<Medium>>,
    session: Option<AssociationId>,
}

/// The slices of a store by NSID from 1 on: that of [`VOLUME`] first.
struct Slices {
    slices: Vec<Slice>,
    replies: Vec<Reply>,
}

impl Slice {
    fn vendor(&mut self, from: AssociationId, command: &CommandKind) -> (Status, u64, Vec<u8>) {
        let CommandKind::Vendor {
            opcode: op,
            data,
            cdw10_15,
            ..
        } = command
        else {
            unreachable!()
        };
        let mut medium = self.medium.borrow_mut();
        if *op == opcode::READ_MARKS {
            let (next, page) = medium.page_of_marks(cdw10_15[1]);
            return (Status::SUCCESS, next, page);
        }
        if *op == opcode::OPEN_SLICE {
            let open = OpenSlice::ref_from_bytes(data.as_deref().unwrap()).unwrap();
            assert_eq!((open.volume, open.epoch.get()), (self.volume.0, 1));
            self.session = Some(from);
            return (Status::SUCCESS, 77, Vec::new());
        }
        let bytes = match *op {
            opcode::SLICE_STATE => {
                let mut state = SliceState::new_zeroed();
                state.head_generation = 1.into();
                state.incarnation = 77.into();
                (state.stamp_seq, state.stamp_isr) = (medium.stamp.0.into(), medium.stamp.1.into());
                state.as_bytes().to_vec()
            }
            opcode::ADD_MARKS => {
                let more = RegionSet::from_bytes(data.as_deref().unwrap()).unwrap();
                medium.marks.merge(&more);
                medium.marks_added.merge(&more);
                Vec::new()
            }
            opcode::STAMP_SLICE | opcode::COMPLETE_SLICE | opcode::TICK | opcode::STABLE => {
                Vec::new()
            }
            opcode::CLOSE_SLICE => {
                self.session = None;
                Vec::new()
            }
            other => panic!("vendor command {other:#x}"),
        };
        (Status::SUCCESS, 1, bytes)
    }

    fn data(&mut self, kind: CommandKind) -> ReplyData {
        let mut medium = self.medium.borrow_mut();
        match kind {
            CommandKind::Read {
                slba,
                blocks,
                mut into,
                ..
            } => {
                let parts = into.bytes_mut().chunks_exact_mut(BLOCK_BYTES as usize);
                for (block, part) in (slba..slba + u64::from(blocks)).zip(parts) {
                    match medium.blocks.get(&block) {
                        Some(held) => part.copy_from_slice(held),
                        None => part.fill(0),
                    }
                }
                ReplyData::Buf(into.freeze())
            }
            CommandKind::Write { slba, data, .. } => {
                for (block, part) in (slba..).zip(data.bytes().chunks_exact(BLOCK_BYTES as usize)) {
                    medium.blocks.insert(block, part.to_vec());
                }
                let last = slba + u64::from(data.len_bytes() / BLOCK_BYTES) - 1;
                for region in slba / 1024..=last / 1024 {
                    medium
                        .marks
                        .insert(RegionIndex(u32::try_from(region).unwrap()));
                }
                medium.writes += 1;
                ReplyData::None
            }
            CommandKind::WriteZeroes { slba, blocks, .. } => {
                for block in slba..slba + u64::from(blocks) {
                    medium.blocks.insert(block, vec![0; BLOCK_BYTES as usize]);
                }
                ReplyData::None
            }
            CommandKind::Flush => ReplyData::None,
            CommandKind::Deallocate { .. } | CommandKind::Vendor { .. } => unreachable!("not data"),
        }
    }
}

impl Namespaces for Slices {
    fn list(&self, _: &str) -> Vec<u32> {
        (1..).take(self.slices.len()).collect()
    }

    fn identify(&self, nsid: u32) -> Option<NamespaceFacts> {
        self.list("").contains(&nsid).then_some(NamespaceFacts {
            size_blocks: 4096,
            used_blocks: 0,
            nguid: [1; 16],
            uuid: [1; 16],
            thin: true,
            deallocate_blocks: 1,
        })
    }

    fn admit(&mut self, _: &mut dyn Driver, command: Command) {
        let id = command.id;
        let slice = &mut self.slices[command.nsid as usize - 1];
        let vendor = matches!(command.kind, CommandKind::Vendor { .. });
        let (status, result, data) = if vendor {
            let (status, result, bytes) = slice.vendor(command.association, &command.kind);
            (status, result, ReplyData::Bytes(bytes))
        } else if slice.session != Some(command.association) {
            (Status::NOT_OPEN, 0, ReplyData::None)
        } else {
            (Status::SUCCESS, 0, slice.data(command.kind))
        };
        let data = match data {
            ReplyData::Bytes(bytes) if bytes.is_empty() => ReplyData::None,
            other @ (ReplyData::None | ReplyData::Buf(_) | ReplyData::Bytes(_)) => other,
        };
        self.replies.push(Reply {
            id,
            status,
            result,
            data,
        });
    }

    fn on_association_gone(&mut self, _: &mut dyn Driver, association: AssociationId) {
        for slice in &mut self.slices {
            slice.session = slice.session.filter(|s| *s != association);
        }
    }
}

struct StoreApp {
    target: Target,
    slices: Slices,
}

impl App for StoreApp {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.target.on_completion(io, &mut self.slices, completion);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        for reply in std::mem::take(&mut self.slices.replies) {
            self.target.reply(io, reply);
        }
        self.target.on_turn_end(io, &mut self.slices);
        for reply in std::mem::take(&mut self.slices.replies) {
            self.target.reply(io, reply);
            self.target.on_turn_end(io, &mut self.slices);
        }
    }

    fn is_finished(&self) -> bool {
        false
    }
}

struct ClientApp {
    volumes: Volumes,
    events: Vec<VolumeEvent>,
}

impl App for ClientApp {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.volumes.on_completion(io, completion, &mut self.events);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.volumes.on_turn_end(io, &mut self.events);
    }

    fn is_finished(&self) -> bool {
        false
    }
}

/// Three stores, one client, and a metad that grants everything.
struct Cluster {
    world: SimWorld,
    stores: Vec<(NodeId, Rc<RefCell<Medium>>)>,
    /// Other volumes with their media by store.
    others: Vec<(VolumeId, Vec<Rc<RefCell<Medium>>>)>,
    client: NodeId,
    app: Rc<RefCell<ClientApp>>,
    seqs: BTreeMap<VolumeId, u64>,
}

impl Cluster {
    fn attached(seed: u64) -> Self {
        Self::with_volumes(seed, 1)
    }

    fn with_volumes(seed: u64, count: u8) -> Self {
        let mut world = SimWorld::new(SimConfig::seeded(seed));
        let stores: Vec<_> = (0..3).map(|_| (world.add_node(), Rc::default())).collect();
        let client = world.add_node();
        let app = world.boot(client, |_| {
            let initiator = initiator::Config::new(1, "nqn.test:client".into(), [1; 16]);
            let config = VolumesConfig {
                room: 2,
                initiator,
                seed,
            };
            ClientApp {
                volumes: Volumes::new(config),
                events: Vec::new(),
            }
        });
        let other = |n: u8| {
            (
                VolumeId([100 + n; 16]),
                (0..3).map(|_| Rc::default()).collect(),
            )
        };
        let mut cluster = Self {
            world,
            stores,
            others: (1..count).map(other).collect(),
            client,
            app,
            seqs: BTreeMap::new(),
        };
        (0..3).for_each(|store| cluster.boot_store(store));
        for (nsid, volume) in (1..).zip(cluster.volumes()) {
            let grant = cluster.grant(volume, Nsid(nsid));
            let app = cluster.app.clone();
            let client = cluster.client;
            cluster.world.on(client, |io| {
                app.borrow_mut().volumes.attach(io, &grant).unwrap()
            });
            cluster.wait(|e| matches!(e, VolumeEvent::Attached { .. }));
        }
        cluster
    }

    fn volumes(&self) -> Vec<VolumeId> {
        let others = self.others.iter().map(|(volume, _)| *volume);
        [VOLUME].into_iter().chain(others).collect()
    }

    /// Media of a volume by store.
    fn media(&self, volume: VolumeId) -> Vec<Rc<RefCell<Medium>>> {
        match self.others.iter().find(|(other, _)| *other == volume) {
            Some((_, media)) => media.clone(),
            None => self.stores.iter().map(|(_, m)| m.clone()).collect(),
        }
    }

    fn address(&self, store: usize) -> SocketAddr {
        SocketAddr::new(self.world.ip(self.stores[store].0), 4420)
    }

    fn boot_store(&mut self, store: usize) {
        let node = self.stores[store].0;
        let slice = |volume| Slice {
            volume,
            medium: self.media(volume)[store].clone(),
            session: None,
        };
        let slices = self.volumes().into_iter().map(slice).collect();
        let at = self.address(store);
        self.world.boot(node, |io| {
            let identity = Identity {
                subnqn: "nqn.test:store".into(),
                serial: "1".into(),
                firmware: "1".into(),
            };
            let mut target = Target::new(TargetConfig::new(1, identity));
            target.listen(io, at).unwrap();
            StoreApp {
                target,
                slices: Slices {
                    slices,
                    replies: Vec::new(),
                },
            }
        });
    }

    fn grant(&self, volume: VolumeId, nsid: Nsid) -> AttachGrant {
        let ids: Vec<_> = [10, 11, 12].map(StoreId).to_vec();
        let shape = Shape {
            shard_blocks: 1024,
            stride: 3,
            replicas: 3,
            layout: Layout::Ring,
        };
        let path = |store: usize| SlicePath {
            nsid,
            address: self.address(store),
            subsystem_nqn: "nqn.test:store".into(),
        };
        AttachGrant {
            volume,
            map: VolumeMap {
                size_blocks: 4096,
                shape,
                stores: ids.clone(),
            },
            epoch: Epoch(1),
            seq: MembershipSeq(1),
            isr: ids.iter().copied().collect(),
            verified: true,
            survived: None,
            generations: VolumeGenerations::default(),
            ticket: [0; 32],
            view: None,
            slices: ids
                .iter()
                .enumerate()
                .map(|(i, id)| (*id, path(i)))
                .collect(),
            options: VolumeOptions {
                stable_period_ms: 0,
                ..VolumeOptions::default()
            },
        }
    }

    /// Lets things happen until the event, answering for metad meanwhile.
    fn wait(&mut self, wanted: impl Fn(&VolumeEvent) -> bool) -> VolumeEvent {
        let app = self.app.clone();
        loop {
            let some = self
                .world
                .run_to(60 * SECOND_NS, |_| !app.borrow().events.is_empty());
            assert!(
                some,
                "nothing happens: {:?}",
                app.borrow().volumes.status(VOLUME)
            );
            let event = app.borrow_mut().events.remove(0);
            if let VolumeEvent::AskMetad {
                volume,
                request,
                epoch,
                new_isr,
                seq,
            } = &event
            {
                let now = self.seqs.entry(*volume).or_insert(1);
                assert_eq!(seq.0, *now);
                *now += 1;
                let verdict = MetadVerdict::Committed {
                    seq: MembershipSeq(*now),
                    isr: new_isr.clone(),
                };
                let of = |epoch, verdict| MetadAnswer {
                    volume: *volume,
                    epoch,
                    request: *request,
                    verdict,
                };
                // To an attachment that is over, whose requests had the same numbers.
                let late = of(Epoch(epoch.0 - 1), MetadVerdict::Fenced);
                for answer in [late, of(*epoch, verdict)] {
                    let client = self.client;
                    self.world
                        .on(client, |io| app.borrow_mut().volumes.on_metad(io, answer));
                }
            }
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Hands a request to the volume and does not wait.
    fn begin(&mut self, volume: VolumeId, id: u64, op: HostOp) {
        let app = self.app.clone();
        let request = HostRequest { volume, id, op };
        let client = self.client;
        self.world.on(client, |io| {
            app.borrow_mut().volumes.submit(io, request).unwrap()
        });
    }

    fn submit(&mut self, id: u64, op: HostOp) -> HostBuffer {
        self.begin(VOLUME, id, op);
        let mine = |e: &VolumeEvent| matches!(e, VolumeEvent::HostDone { id: i, .. } if *i == id);
        let VolumeEvent::HostDone { result, buffer, .. } = self.wait(mine) else {
            unreachable!()
        };
        assert_eq!(result, Ok(()));
        buffer
    }

    fn write_op(&mut self, start: u64, blocks: u32, fill: u8) -> HostOp {
        let client = self.client;
        let data = self.world.on(client, |io| {
            let mut data = io.arena().take(blocks * BLOCK_BYTES).unwrap();
            data.bytes_mut().fill(fill);
            data.freeze()
        });
        HostOp::Write {
            range: range(start, blocks),
            data,
            fua: false,
        }
    }

    fn write(&mut self, start: u64, blocks: u32, fill: u8) {
        let op = self.write_op(start, blocks, fill);
        self.submit(start << 8 | u64::from(fill), op);
    }

    fn read(&mut self, start: u64, blocks: u32) -> Vec<u8> {
        let client = self.client;
        let into = self
            .world
            .on(client, |io| io.arena().take(blocks * BLOCK_BYTES).unwrap());
        let op = HostOp::Read {
            range: range(start, blocks),
            into,
        };
        let HostBuffer::Read(data) = self.submit(1 << 60 | start, op) else {
            panic!("a read")
        };
        data.bytes().to_vec()
    }
}

fn range(start: u64, blocks: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(blocks)).unwrap()
}

#[test]
fn a_write_across_shards_reaches_every_store_and_reads_back() {
    let mut cluster = Cluster::attached(1);
    cluster.write(1008, 32, 0xab);
    let before = cluster
        .app
        .borrow()
        .volumes
        .status(VOLUME)
        .unwrap()
        .counters;
    assert!(cluster.read(1008, 32).iter().all(|b| *b == 0xab));
    cluster.write(1016, 8, 0xcd);
    cluster.submit(7, HostOp::Flush);
    cluster.submit(
        8,
        HostOp::Discard {
            range: range(1010, 2),
        },
    );
    let after = cluster
        .app
        .borrow()
        .volumes
        .status(VOLUME)
        .unwrap()
        .counters;
    assert_eq!(
        after.admin_commands, before.admin_commands,
        "steady IO needs no admin command"
    );
    assert_eq!(after.metad_requests, 0);
    let got = cluster.read(1008, 16);
    let expected = [
        0xab, 0xab, 0, 0, 0xab, 0xab, 0xab, 0xab, 0xcd, 0xcd, 0xcd, 0xcd,
    ];
    for (block, fill) in expected.into_iter().enumerate() {
        assert!(
            got[block * 4096..][..4096].iter().all(|b| *b == fill),
            "block {block}"
        );
    }
    let first = cluster.stores[0].1.borrow().blocks.clone();
    assert_eq!(first.len(), 32);
    assert!(
        cluster
            .stores
            .iter()
            .all(|(_, m)| m.borrow().blocks == first)
    );
}

#[test]
fn a_killed_store_is_left_out_and_gets_only_what_it_missed() {
    let mut cluster = Cluster::attached(2);
    (0..20).for_each(|i| cluster.write(i * 64, 16, 1));
    let node = cluster.stores[1].0;
    cluster.submit(5, HostOp::Flush);
    cluster.world.crash(node);
    (0..5).for_each(|i| cluster.write(i * 64, 16, 2));
    let status = cluster.app.borrow().volumes.status(VOLUME).unwrap();
    assert_eq!(status.isr, BTreeSet::from([StoreId(10), StoreId(12)]));
    assert_eq!(status.stores[&StoreId(11)].state, StoreState::Out);
    cluster.boot_store(1);
    let event = cluster.wait(|e| matches!(e, VolumeEvent::Resilvered { .. }));
    let VolumeEvent::Resilvered { record, .. } = event else {
        unreachable!()
    };
    assert_eq!(
        (record.store, record.bytes_missed),
        (StoreId(11), 5 * 16 * 4096)
    );
    assert_eq!(record.bytes_moved, record.bytes_missed);
    let first = cluster.stores[0].1.borrow().blocks.clone();
    assert!(
        cluster
            .stores
            .iter()
            .all(|(_, m)| m.borrow().blocks == first)
    );
}

#[test]
fn volumes_that_share_associations_do_not_mix_when_a_store_restarts_under_all_of_them() {
    const VOLUMES: u8 = 6;
    let mut cluster = Cluster::with_volumes(6, VOLUMES);
    let volumes = cluster.volumes();
    // Every volume writes the same blocks with its own bytes while the store dies.
    let node = cluster.stores[1].0;
    for round in 0..2_u8 {
        if round == 1 {
            cluster.world.crash(node);
        }
        for (n, volume) in (0..).zip(&volumes) {
            let op = cluster.write_op(1020, 8, 10 * (round + 1) + n);
            cluster.begin(*volume, u64::from(n), op);
        }
        let last = u64::from(VOLUMES) - 1;
        let mut left: BTreeSet<u64> = (0..=last).collect();
        while !left.is_empty() {
            let event = cluster.wait(|e| matches!(e, VolumeEvent::HostDone { .. }));
            let VolumeEvent::HostDone { id, result, .. } = event else {
                unreachable!()
            };
            assert_eq!(result, Ok(()));
            assert!(left.remove(&id), "{id} ended twice");
        }
    }
    cluster.boot_store(1);
    let mut out: BTreeSet<VolumeId> = volumes.iter().copied().collect();
    while !out.is_empty() {
        let event = cluster.wait(|e| matches!(e, VolumeEvent::Resilvered { .. }));
        let VolumeEvent::Resilvered { volume, record } = event else {
            unreachable!()
        };
        assert_eq!(record.bytes_moved, 8 * 4096, "{volume}");
        assert!(out.remove(&volume), "{volume} twice");
    }
    for (n, volume) in (0..).zip(&volumes) {
        for medium in cluster.media(*volume) {
            let medium = medium.borrow();
            assert_eq!(medium.blocks.len(), 8);
            let own = |bytes: &Vec<u8>| bytes.iter().all(|b| *b == 20 + n);
            assert!(medium.blocks.values().all(own), "{volume}");
        }
    }
}

#[test]
fn marks_are_asked_for_until_none_are_left() {
    let mut cluster = Cluster::attached(5);
    [0, 1024, 3072]
        .iter()
        .for_each(|start| cluster.write(*start, 1, 1));
    cluster.submit(5, HostOp::Flush);
    let node = cluster.stores[1].0;
    cluster.world.crash(node);
    cluster.write(0, 1, 2);
    cluster.boot_store(1);
    cluster.wait(|e| matches!(e, VolumeEvent::Resilvered { .. }));
    assert_eq!(cluster.stores[0].1.borrow().marks_asked, [0, 1, 3]);
    let target = cluster.stores[1].1.borrow();
    let added: Vec<u32> = target.marks_added.iter().map(|r| r.0).collect();
    assert_eq!(added, [0, 1, 3], "the target inherits every page");
}

#[test]
fn reads_go_on_at_once_when_their_store_is_killed() {
    let mut cluster = Cluster::attached(3);
    cluster.write(0, 32, 9);
    for (node, _) in cluster.stores.clone().into_iter().take(2) {
        cluster.world.crash(node);
        for _ in 0..4 {
            assert!(cluster.read(0, 32).iter().all(|b| *b == 9));
        }
        cluster.write(40, 1, 1);
    }
}

#[test]
fn a_detached_volume_leaves_nothing_behind() {
    let mut cluster = Cluster::attached(4);
    cluster.write(0, 1, 1);
    let app = cluster.app.clone();
    let client = cluster.client;
    cluster.world.on(client, |io| {
        assert!(app.borrow_mut().volumes.detach(io, VOLUME))
    });
    cluster.wait(|e| matches!(e, VolumeEvent::Detached { .. }));
    let idle = cluster
        .world
        .run_to(SECOND_NS, |_| app.borrow().volumes.is_idle());
    assert!(idle, "associations are gone too");
    let in_use = cluster.world.on(client, |io| io.arena().in_use_bytes());
    assert_eq!(in_use, 0);
}
