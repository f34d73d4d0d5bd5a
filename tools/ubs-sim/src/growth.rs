//! An operator who enlarges disks and lets the stores on them grow (ADR 0014), in any weather: the servers
//! that he asks crash and lose power meanwhile, and their answers. What a store has said to have taken in it
//! must have for as long as its disk lives, and metad must hear of it.

use crate::plan::{DEVICE_BYTES, index};
use crate::rare::Rare;
use crate::server::path;
use crate::sim::{CLUSTER, Sim, Task};
use control::core::reader_host_nqn;
use nvmf::initiator::{Config, Errand, ErrandFault, Reply, Request};
use nvmf::proto::vendor::{StoreGrowth, growth, opcode};
use reactor::sim::{NodeId, Prng, SimWorld};
use std::cell::RefCell;
use std::rc::Rc;
use uuid::Uuid;
use zerocopy::FromBytes as _;

/// Makes the operator's chance another one than the world's.
const GROWTH_SEED: u64 = 0x6772_6f77_7468_0000;
/// One seed in so many has such an operator.
const ONE_IN: u64 = 4;
pub(crate) const PAUSE_NS: (u64, u64) = (5_000_000_000, 60_000_000_000);
/// After an answer that did not come.
const AGAIN_NS: (u64, u64) = (200_000_000, 5_000_000_000);
/// In which a growth is through, mostly.
const CUT_NS: u64 = 4_000_000;
/// What a disk becomes larger by: sometimes too little for a growth.
const STEP_BYTES: (u64, u64) = (12 << 20, 40 << 20);
/// Largest disk.
const DISK_BYTES_MAX: u64 = 8 * DEVICE_BYTES;
const ROOM: u8 = 1;

/// The operator's machine, and what runs there.
pub(crate) struct Growths {
    prng: Prng,
    node: NodeId,
    /// The server that is asked, and the program that asks it.
    asked: Option<(usize, Rc<RefCell<Errand>>)>,
}

impl Growths {
    /// In some seeds, an operator with a machine.
    pub(crate) fn draw(seed: u64, world: &mut SimWorld) -> Option<Self> {
        let mut prng = Prng::new(seed ^ GROWTH_SEED);
        prng.chance(1, ONE_IN).then(|| Self {
            prng,
            node: world.add_node(),
            asked: None,
        })
    }
}

impl Sim {
    pub(crate) fn grow_later(&mut self, pause_ns: (u64, u64)) {
        if let Some(growths) = &mut self.growths {
            let pause = growths.prng.within(pause_ns.0, pause_ns.1);
            self.schedule(pause, Task::Grow);
        }
    }

    /// A disk becomes larger, or has become so before, and its server hears of it. Power may be cut then.
    pub(crate) fn on_grow(&mut self) {
        let servers = self.servers.len();
        let Some(growths) = &mut self.growths else {
            return;
        };
        let server = index(&mut growths.prng, servers);
        let more_bytes = growths.prng.within(STEP_BYTES.0, STEP_BYTES.1) >> 12 << 12;
        let enlarges = growths.prng.chance(2, 3);
        let is_cut = growths.prng.chance(1, 2);
        let cut_ns = growths.prng.within(0, CUT_NS);
        if self.calm {
            return;
        }
        let disk_bytes = self.disk_bytes(server);
        if enlarges && disk_bytes + more_bytes <= DISK_BYTES_MAX {
            let mut disk = self.world.disk(self.servers[server].node, path());
            disk.enlarge(disk_bytes + more_bytes);
        }
        self.ask_to_grow(server);
        if is_cut {
            self.schedule(cut_ns, Task::CutGrowing(server));
        }
    }

    /// A server that was asked a moment ago loses power.
    pub(crate) fn cut_while_it_grows(&mut self, server: usize) {
        if !self.calm && self.servers[server].is_up() {
            self.trouble(format_args!("server {server}: power cut while it may grow"));
            self.cut_server(server);
            self.restart_server(server, AGAIN_NS);
        }
    }

    fn disk_bytes(&self, server: usize) -> u64 {
        let disk = self.world.disk_ref(self.servers[server].node, path());
        disk.size_bytes()
    }

    fn ask_to_grow(&mut self, server: usize) {
        let growths = self.growths.as_mut().expect("the operator asks");
        let (address, uuid, store) = self.servers[server].target(&self.world);
        let config = Config::new(ROOM, reader_host_nqn(CLUSTER), *Uuid::nil().as_bytes());
        let request = Request::Vendor {
            nsid: 0,
            opcode: opcode::GROW_STORE,
            cdw10_15: growth::cdw10_15(*store.as_bytes()),
            data: None,
            reply_len_bytes: u32::try_from(size_of::<StoreGrowth>()).expect("small"),
        };
        let nqn = storaged::subsystem_nqn(uuid);
        let begin =
            |io: &mut dyn reactor::Driver| Errand::begin(io, config, (address, &nqn), request);
        let errand = self.world.boot(growths.node, begin);
        growths.asked = Some((server, errand));
        self.say(format_args!(
            "operator: asks the store of server {server} to grow"
        ));
    }

    /// Notices that the operator's program has ended.
    pub(crate) fn reap_growth(&mut self) {
        let Some(growths) = &mut self.growths else {
            return;
        };
        if growths.asked.is_none() || self.world.is_running(growths.node) {
            return;
        }
        let (server, errand) = growths.asked.take().expect("just seen");
        let errand = Rc::into_inner(errand).expect("its process has ended");
        let answer = errand.into_inner().answer();
        let pause_ns = if answer.is_ok() { PAUSE_NS } else { AGAIN_NS };
        self.say(format_args!("operator: server {server}: {}", told(&answer)));
        self.grow_later(pause_ns);
    }

    /// The store of a server has told that it has grown.
    pub(crate) fn on_grown(&mut self, server: usize, capacity_bytes: u64) {
        self.say(format_args!(
            "server {server}: has grown to {capacity_bytes} bytes"
        ));
        self.rare.note(Rare::StoreGrown);
        self.servers[server].capacity_bytes = capacity_bytes;
        self.register_store(server);
    }

    /// A store that has opened has at least what it had.
    pub(crate) fn check_capacity(&mut self, server: usize, capacity_bytes: u64) {
        let had = std::mem::replace(&mut self.servers[server].capacity_bytes, capacity_bytes);
        if capacity_bytes < had {
            self.find(format!(
                "server {server}: its store had {had} bytes and has {capacity_bytes}"
            ));
        }
        if capacity_bytes > had && had > 0 {
            self.rare.note(Rare::GrownUnheard);
        }
    }

    /// metad knows how large every store is.
    pub(crate) fn prove_capacities(&mut self) {
        self.must_soon("metad knows what stores hold", |sim| {
            sim.servers.iter().all(|server| {
                let known = server.store.and_then(|id| sim.metad.state.stores.get(&id));
                known.is_some_and(|store| store.size_bytes == server.capacity_bytes)
            })
        });
    }
}

fn told(answer: &Result<Reply, ErrandFault>) -> String {
    match answer {
        Ok(reply) => match StoreGrowth::read_from_bytes(&reply.data) {
            Ok(growth) if growth.refusal == 0 => "has grown".into(),
            Ok(growth) => format!("does not grow, reason {}", growth.refusal),
            Err(_) => "makes no sense".into(),
        },
        Err(fault) => fault.to_string(),
    }
}
