//! Disks that spoil blocks at rest and say nothing: a bit turns over, or a write for another block has
//! landed there. Stores must find it, must not serve it, and must heal it from another replica.
//!
//! Other replicas may be out meanwhile, and have something older: whoever heals from them without comparing
//! brings that back.
//!
//! What is not promised does not happen (ADR 0009, 0011): there is always another replica of the block that
//! is good and has it durably, and a store does not crash between a block's spoiling and its being found,
//! because after a crash nobody knows the checksums of marked regions. So a disk whose server dies turns out
//! not to have spoiled anything, and so do all when another one's medium is lost. Nor does a disk spoil
//! blocks that also fails to read: it may be their checksums that it does not give. Nor does a write that
//! fails leave anything torn if the server dies before its store has noted that (ADR 0013).

use crate::metad::VOLUME;
use crate::plan::index;
use crate::rare::Rare;
use crate::server::path;
use crate::sim::{Party, Sim, Task};
use crate::workload::Kind;
use reactor::sim::{FaultKind, Prng};
use shardmap::units::{Generation, Lba, Nsid, StoreId};
use storaged::{Order, Replica, Replicas};
use store::core::format::geometry::SUPERBLOCK_OFFSETS;
use store::core::format::superblock::{SUPERBLOCK_BYTES, Superblock};
use store::hash::block_checksum;

/// Makes the chance of what rots another one than the world's.
const ROT_SEED: u64 = 0x726f_7420_0000_0000;
/// Seeds in which disks rot, modulo 16: those of which nothing is recorded or known.
const ROT_SEEDS: [u64; 3] = [7, 12, 15];
/// Blocks that are spoiled at a time, at most; all on one server.
const SPOILED_MAX: usize = 6;
/// Virtual seconds after which nothing is spoiled any more: the longest pause of a storaged that could
/// not heal a block, a pass of the scrub and what is left to hosts.
const HEALED_S: u64 = 400;

type Block = Box<[u8; 4096]>;

/// A spoiled block.
struct Spoiled {
    spot: Spot,
    offset_bytes: u64,
    whole: Block,
    rotten: Block,
}

/// Where a block is, that may be spoiled.
#[derive(Clone, Copy)]
struct Spot {
    server: usize,
    store: StoreId,
    nsid: Nsid,
    block: u64,
    generation: Generation,
}

/// Which disks have spoiled what.
pub(crate) struct Rotting {
    prng: Prng,
    every_ms: Option<u64>,
    spoiled: Vec<Spoiled>,
}

impl Rotting {
    pub(crate) fn draw(seed: u64) -> Self {
        let mut prng = Prng::new(seed ^ ROT_SEED);
        let pause = [300, 1_000, 4_000][index(&mut prng, 3)];
        Self {
            prng,
            every_ms: ROT_SEEDS.contains(&(seed % 16)).then_some(pause),
            spoiled: Vec::new(),
        }
    }

    /// Whether disks rot in this run.
    pub(crate) const fn is_on(&self) -> bool {
        self.every_ms.is_some()
    }
}

impl Sim {
    /// Decides when a disk may spoil something next.
    pub(crate) fn rot_later(&mut self) {
        if let Some(mean_ms) = self.rotting.every_ms {
            let mean_ns = mean_ms * 1_000_000;
            let pause = self.rotting.prng.within(mean_ns / 20, mean_ns * 2);
            self.schedule(pause, Task::Rot);
        }
    }

    pub(crate) fn on_rot(&mut self) {
        if self.calm {
            return;
        }
        self.forget_healed();
        for _ in 0..4 {
            if let Some(spot) = self.draw_spot()
                && self.spoil(spot)
            {
                break;
            }
        }
        self.rot_later();
    }

    /// A block of a replica that may be spoiled now: another one in sync has the same, durably. Others may be
    /// out, and have something older.
    fn draw_spot(&mut self) -> Option<Spot> {
        let volume = self.recorded().clone();
        let touched = self.oracle.touched();
        if !volume.verified || self.membership_is_asked_for() || touched.is_empty() {
            return None;
        }
        let snapshots: Vec<_> = volume.generations().complete().collect();
        let prng = &mut self.rotting.prng;
        let block = touched[index(prng, touched.len())];
        let generation = match snapshots.len() {
            0 => Generation(0),
            n if prng.chance(1, 2) => snapshots[index(prng, n)],
            _ => Generation(0),
        };
        let shape = volume.map.shape;
        let positions = shape.positions_of(shape.shard_of(Lba(block)));
        let spot = |position: u16| Spot {
            server: self.server_of(volume.map.stores[usize::from(position)]),
            store: volume.map.stores[usize::from(position)],
            nsid: volume.slices[usize::from(position)],
            block,
            generation,
        };
        let spots = positions.map(spot);
        let members: Vec<Spot> = spots.filter(|s| volume.isr.contains(&s.store)).collect();
        let whole = |s: &Spot| self.slice_facts(s.store, s.nsid) == Some(false);
        if members.len() < 2 || !members.iter().all(whole) {
            return None;
        }
        let ours = members[index(&mut self.rotting.prng, members.len())];
        let value = |s: &Spot| self.peek(s.store, s.nsid, block, generation).ok();
        let shown = value(&ours)?;
        let same = members.iter().all(|s| value(s) == Some(shown));
        // A complete snapshot is durable everywhere; of the head, what is not marked or a flush has covered.
        let marked = |s: &Spot| self.with_store(s.store, |it| it.is_marked(s.nsid, Lba(block)));
        let durable = generation.0 > 0
            || members.iter().all(|s| marked(s) == Some(false))
            || self.oracle.is_durable(block, shown);
        (same && durable).then_some(ours)
    }

    fn spoil(&mut self, spot: Spot) -> bool {
        let elsewhere = self
            .rotting
            .spoiled
            .iter()
            .any(|s| s.spot.server != spot.server);
        let node = self.servers[spot.server].node;
        let fails = self
            .world
            .disk_ref(node, path())
            .is_to_fail(FaultKind::Read);
        if elsewhere || fails || self.rotting.spoiled.len() >= SPOILED_MAX {
            return false;
        }
        let Some((offset_bytes, whole)) = self.whole_block(spot) else {
            return false;
        };
        if self
            .rotting
            .spoiled
            .iter()
            .any(|s| s.offset_bytes == offset_bytes)
        {
            return false;
        }
        let touched = self.oracle.touched();
        let other = touched[index(&mut self.rotting.prng, touched.len())];
        let another = Spot {
            block: other,
            generation: Generation(0),
            ..spot
        };
        let misdirected = self.rotting.prng.chance(1, 3);
        // Zeroes may come to lie there honestly, when the place is another block's.
        let another = self.whole_block(another).filter(|(_, content)| {
            let zeroes = content.iter().all(|byte| *byte == 0);
            misdirected && !zeroes
        });
        let by_another = another.is_some();
        let mut rotten = another.map_or_else(|| whole.clone(), |(_, content)| content);
        if rotten == whole {
            rotten[index(&mut self.rotting.prng, 4096)] ^= 1 << self.rotting.prng.below(8);
        }
        let Spot {
            server,
            block,
            generation,
            ..
        } = spot;
        self.trouble(format_args!(
            "server {server}: its disk spoils block {block} of {generation}, by another one {by_another}"
        ));
        self.rare.note(Rare::Spoiled);
        self.rare.add(Rare::SpoiledByAnother, u64::from(by_another));
        self.rare
            .add(Rare::SpoiledSnapshot, u64::from(generation.0 > 0));
        self.imprint(server, offset_bytes, &rotten);
        self.rotting.spoiled.push(Spoiled {
            spot,
            offset_bytes,
            whole,
            rotten,
        });
        true
    }

    /// Place and content of a block whose store knows its checksum, if that is right.
    fn whole_block(&self, spot: Spot) -> Option<(u64, Block)> {
        let Spot {
            server,
            store,
            nsid,
            block,
            generation,
        } = spot;
        let place = self.with_store(store, |it| {
            let known = it.known_checksum(nsid, Lba(block), generation)?;
            let offset = it.place_of(nsid, Lba(block), generation).ok()??;
            Some((known, offset))
        });
        let (known, offset_bytes) = place??;
        let content = self.content(server, offset_bytes);
        (block_checksum(&content[..]) == known).then_some((offset_bytes, content))
    }

    fn content(&self, server: usize, offset_bytes: u64) -> Block {
        let mut content = Box::new([0; 4096]);
        let node = self.servers[server].node;
        let disk = self.world.disk_ref(node, path());
        disk.peek(offset_bytes, &mut content[..]);
        content
    }

    fn imprint(&mut self, server: usize, offset_bytes: u64, content: &Block) {
        let node = self.servers[server].node;
        let mut disk = self.world.disk(node, path());
        disk.imprint(offset_bytes, &content[..]);
    }

    fn is_spoiled(&self, spoiled: &Spoiled) -> bool {
        self.content(spoiled.spot.server, spoiled.offset_bytes) == spoiled.rotten
    }

    /// Whether it comes back with a power cut: what was written over it is in the disk's cache.
    fn may_come_back(&self, spoiled: &Spoiled) -> bool {
        let mut durable = [0; 4096];
        let node = self.servers[spoiled.spot.server].node;
        let disk = self.world.disk_ref(node, path());
        disk.peek_durable(spoiled.offset_bytes, &mut durable);
        durable == *spoiled.rotten
    }

    /// Whether a write over it, perhaps to heal it, has failed.
    fn is_torn(&self, spoiled: &Spoiled) -> bool {
        let node = self.servers[spoiled.spot.server].node;
        let disk = self.world.disk_ref(node, path());
        disk.is_torn(spoiled.offset_bytes)
    }

    /// Whether any generation shows it; who knows, while the store is not open.
    fn is_shown(&self, spoiled: &Spoiled) -> bool {
        let Spot {
            store, nsid, block, ..
        } = spoiled.spot;
        let shown = self.with_store(store, |it| {
            let generations = it.generations(nsid)?;
            let mut all = generations.snapshots.keys().chain([&generations.head]);
            let place = |g: &Generation| it.place_of(nsid, Lba(block), *g).ok().flatten();
            Some(all.any(|g| place(g) == Some(spoiled.offset_bytes)))
        });
        shown != Some(Some(false))
    }

    /// What is healed or written over is forgotten. What nobody sees any more comes back whole, should a
    /// crash bring it back.
    fn forget_healed(&mut self) {
        for spoiled in std::mem::take(&mut self.rotting.spoiled) {
            if !self.is_spoiled(&spoiled) {
                if self.may_come_back(&spoiled) || self.is_torn(&spoiled) {
                    self.rotting.spoiled.push(spoiled);
                }
            } else if self.is_shown(&spoiled) {
                self.rotting.spoiled.push(spoiled);
            } else {
                self.imprint(spoiled.spot.server, spoiled.offset_bytes, &spoiled.whole);
            }
        }
    }

    /// Puts what was there before in the place of what a disk has spoiled: for looks behind a store's back.
    pub(crate) fn see_through(&self, server: usize, offset_bytes: u64, bytes: &mut [u8; 4096]) {
        let here = |s: &&Spoiled| s.spot.server == server && s.offset_bytes == offset_bytes;
        let spoiled = self.rotting.spoiled.iter().find(here);
        if let Some(spoiled) = spoiled.filter(|s| *s.rotten == *bytes) {
            bytes.copy_from_slice(&spoiled.whole[..]);
        }
    }

    /// The server dies, perhaps without power: its disk has spoiled nothing.
    pub(crate) fn unspoil(&mut self, server: usize, power: bool) {
        self.forget_healed();
        for spoiled in std::mem::take(&mut self.rotting.spoiled) {
            // Without power, what the cache had is what was durable and what is kept of the rest.
            let here = spoiled.spot.server == server;
            if here && (power || self.is_spoiled(&spoiled)) {
                self.imprint(server, spoiled.offset_bytes, &spoiled.whole);
            } else {
                self.rotting.spoiled.push(spoiled);
            }
        }
    }

    /// The server dies: of writes that have failed, and that its store has not noted yet, nothing has
    /// landed. Nobody was told that they failed, so they are in flight, and as such whole or not there.
    pub(crate) fn untear(&mut self, server: usize) {
        let node = self.servers[server].node;
        let mut disk = self.world.disk(node, path());
        let copies = SUPERBLOCK_OFFSETS.map(|offset| {
            let mut bytes = vec![0; SUPERBLOCK_BYTES];
            disk.peek(offset, &mut bytes);
            bytes
        });
        let chosen = Superblock::choose(&copies[0], &copies[1]).ok();
        disk.untear(|offset_bytes| {
            let Some((sb, _)) = &chosen else { return false };
            sb.failed.iter().any(|(extent, blocks)| {
                let first = sb.geometry.extent_offset(*extent);
                let mut blocks = (0..16).filter(|block| blocks >> block & 1 == 1);
                blocks.any(|block| first + block * 4096 == offset_bytes)
            })
        });
    }

    /// No disk has.
    pub(crate) fn unspoil_all(&mut self) {
        (0..self.servers.len()).for_each(|server| self.unspoil(server, false));
    }

    /// A storaged wants to heal. Sometimes a host writes to the block in just that moment.
    pub(crate) fn on_find_replicas(&mut self, server: usize) {
        let prng = &mut self.rotting.prng;
        let answer_ns = prng.within(200_000, 5_000_000);
        let race_ns = answer_ns + prng.within(0, 3_000_000);
        let races = prng.chance(2, 3);
        let party = Party::Server(server);
        let life = self.life_of(party);
        self.schedule(answer_ns, Task::Replicas(party, life));
        if races {
            let head = |s: &&Spoiled| s.spot.server == server && s.spot.generation.0 == 0;
            let blocks = self
                .rotting
                .spoiled
                .iter()
                .filter(head)
                .map(|s| s.spot.block);
            for block in blocks.collect::<Vec<_>>() {
                self.schedule(race_ns, Task::WriteOver(block));
            }
        }
    }

    pub(crate) fn write_over(&mut self, block: u64) {
        let Some(host) = self.the_client().filter(|_| !self.calm) else {
            return;
        };
        let era = self.oracle.era();
        let kind = Kind::Write { fua: false };
        if self.start(host, era, kind, (block, block + 1)) {
            self.rare.note(Rare::HealRaced);
        }
    }

    /// What metad says to a storaged that wants to heal.
    pub(crate) fn tell_replicas(&mut self, server: usize) {
        let silent = !self.metad.up || self.metad.cut.contains(&Party::Server(server));
        let volume = self.recorded();
        let pairs = volume.map.stores.iter().zip(&volume.slices).zip(0..);
        let slices = pairs.map(|((store, nsid), position)| {
            let state = &self.metad.state;
            let server = &state.servers[&state.stores[store].server];
            Replica {
                nsid: *nsid,
                position,
                address: server.address,
                subsystem_nqn: server.subsystem_nqn.clone(),
            }
        });
        let replicas = Replicas {
            shape: volume.map.shape,
            slices: slices.collect(),
        };
        let answer = (!silent).then_some(replicas);
        self.order(server, Order::Replicas(VOLUME, answer));
    }

    /// Everything that a disk has spoiled is found and healed, in the end.
    pub(crate) fn prove_nothing_is_spoiled(&mut self) {
        if self.rotting.spoiled.is_empty() {
            return;
        }
        self.must(HEALED_S, "spoiled blocks are healed", |s| {
            let mut all = s.rotting.spoiled.iter();
            !all.any(|spoiled| s.is_spoiled(spoiled) && s.is_shown(spoiled))
        });
        self.forget_healed();
    }

    /// What a storaged has healed in this life.
    pub(crate) fn note_healing(&mut self, server: usize) {
        let app = self.servers[server].app.as_ref();
        let counters = app.and_then(|app| Some(app.borrow().healing()?.counters()));
        if let Some(counters) = counters {
            self.rare.add(Rare::Healed, counters.healed);
            self.rare.add(Rare::HealRefused, counters.other_content);
        }
    }
}
