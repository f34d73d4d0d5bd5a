//! A storage server: the real storaged on a simulated machine, and what its control thread does.

use crate::metad::{Ask, Why, server_index};
use crate::plan::{DEVICE_BYTES, JOURNAL_BYTES};
use crate::rare::Rare;
use crate::sim::{CLUSTER, Item, Party, Sim, Task};
use crate::upkeep::Upkeep;
use control::core::desire::{known_hosts, slices_of_server, was_restored_between};
use control::core::{Command, NewServer, NewStore, RefusalCode, Reply};
use nvmf::target::{Target, TargetConfig};
use reactor::sim::{NodeId, SimWorld};
use reactor::{FileKind, Mailbox};
use shardmap::units::{BLOCK_BYTES, ServerId, StoreId};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use storaged::app::{CONTROL_TOKEN, ROOM_TARGET};
use storaged::{News, Order, Storaged, Told, Wanted};
use store::{OpenFacts, PrepareOptions, ScrubPace, Store};
use uuid::Uuid;

const PORT: u16 = 4420;
const ORDERS_MAX: usize = 256;

/// A storage server.
pub(crate) struct Server {
    pub(crate) node: NodeId,
    uuid: Uuid,
    store_uuid: Uuid,
    pub(crate) life: u32,
    /// While its process runs.
    pub(crate) app: Option<Rc<RefCell<Storaged>>>,
    orders: Option<Arc<Mailbox<Order>>>,
    wanted: Wanted,
    facts: Option<OpenFacts>,
    /// What its store has said that it holds, since its disk is what it is.
    pub(crate) capacity_bytes: u64,
    pub(crate) id: Option<ServerId>,
    pub(crate) store: Option<StoreId>,
    /// Hosts that it remembers over restarts.
    host_nqns: Vec<String>,
    pub(crate) seen: u64,
    pub(crate) looking: bool,
    /// metad knows its store in this life; before, it does not ask what is wanted of it.
    pub(crate) registered: bool,
    /// It answers on the network.
    pub(crate) listening: bool,
    /// When a life last ended otherwise than in order.
    pub(crate) lost_at_ns: Option<u64>,
    /// It is being stopped in order.
    pub(crate) stopping: bool,
    /// Volumes that it brings up to date.
    pub(crate) upkeep: Upkeep,
}

/// Where a server's store is.
pub(crate) fn path() -> &'static Path {
    Path::new("/store")
}

impl Server {
    pub(crate) fn new(node: NodeId, number: usize) -> Self {
        Self {
            node,
            uuid: Uuid::from_u128(0x5e_0000 + number as u128),
            store_uuid: Uuid::from_u128(0x57_0000 + number as u128),
            life: 0,
            app: None,
            orders: None,
            wanted: Wanted::default(),
            facts: None,
            capacity_bytes: 0,
            id: None,
            store: None,
            host_nqns: Vec::new(),
            seen: 0,
            looking: false,
            registered: false,
            listening: false,
            lost_at_ns: None,
            stopping: false,
            upkeep: Upkeep::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.app.is_some()
    }

    /// Where it listens, as what, and its store.
    pub(crate) fn target(&self, world: &SimWorld) -> (SocketAddr, Uuid, Uuid) {
        let address = SocketAddr::new(world.ip(self.node), PORT);
        (address, self.uuid, self.store_uuid)
    }
}

impl Sim {
    /// Puts a disk that holds an empty store into a server.
    pub(crate) fn give_blank_store(&mut self, index: usize) {
        let server = &mut self.servers[index];
        server.capacity_bytes = 0;
        let kind = if self.control.chance(1, 2) {
            FileKind::BlockDevice
        } else {
            FileKind::File
        };
        self.world.add_disk(server.node, path(), kind, DEVICE_BYTES);
        let options = PrepareOptions {
            cluster: CLUSTER,
            store: server.store_uuid,
            size_bytes: None,
            wipe: false,
            journal_bytes: Some(JOURNAL_BYTES),
            checksums: true,
        };
        let image = Store::blank(DEVICE_BYTES, &options).expect("a size that fits");
        let mut disk = self.world.disk(server.node, path());
        // docs/formats.md, "assumed of the medium": a block is written whole or not at all.
        disk.set_sector_bytes(BLOCK_BYTES as usize);
        disk.tear_failed_writes();
        for (offset, bytes) in image {
            disk.imprint(offset, &bytes);
        }
    }

    /// Starts storaged, if it does not run.
    pub(crate) fn boot_server(&mut self, index: usize) {
        if self.servers[index].is_up() {
            return;
        }
        let (ahead_ns, fast_ppm) = self.draw_clock();
        let server = &mut self.servers[index];
        server.life += 1;
        (server.looking, server.listening, server.stopping) = (false, false, false);
        (server.facts, server.seen, server.registered) = (None, 0, false);
        (server.wanted, server.upkeep) = (Wanted::default(), Upkeep::default());
        let (node, life, uuid) = (server.node, server.life, server.uuid);
        let (listen, ..) = server.target(&self.world);
        let inbox = self.inbox.clone();
        let heals = self.rotting.is_on();
        let mut orders = None;
        self.world.set_clock(node, ahead_ns, fast_ppm);
        let app = self.world.boot(node, |io| {
            let bell = io.doorbell(CONTROL_TOKEN).expect("bells are free");
            let mailbox = Arc::new(Mailbox::new(ORDERS_MAX, bell));
            orders = Some(Arc::clone(&mailbox));
            let config = TargetConfig {
                granted_bytes_max: 2 << 20,
                ..TargetConfig::new(ROOM_TARGET, storaged::subsystem(uuid))
            };
            let news = move |news| {
                inbox.put(Item::Server(index, life, news));
                true
            };
            let stores = (
                vec![PathBuf::from(path())],
                Arc::from([storaged::Fill::default()]),
            );
            let storaged = Storaged::new(
                stores,
                (listen, Target::new(config)),
                storaged::Hosting::new(uuid),
                mailbox,
                Box::new(news),
            )
            .scrubbed(Some(ScrubPace {
                period: std::time::Duration::from_secs(20),
                bytes_per_s_max: 4 << 20,
            }));
            if heals {
                storaged.healed(uuid)
            } else {
                storaged
            }
        });
        let server = &mut self.servers[index];
        (server.app, server.orders) = (Some(app), orders);
        self.say(format_args!("server {index}: boots"));
        let nqns = self.servers[index].host_nqns.clone();
        self.order(index, Order::Hosts(nqns));
        self.order(index, Order::Open { cluster: CLUSTER });
    }

    pub(crate) fn order(&mut self, index: usize, order: Order) {
        if let Some(orders) = &self.servers[index].orders {
            orders.send(order).expect("few orders");
        }
    }

    /// Looks at a store behind its back; `None` while it does not serve: until it has opened it may know
    /// half of what it has.
    pub(crate) fn with_store<R>(
        &self,
        store: StoreId,
        look: impl FnOnce(&Store) -> R,
    ) -> Option<R> {
        let of_store = |s: &&Server| s.store == Some(store) && s.facts.is_some();
        let server = self.servers.iter().find(of_store);
        let app = server.and_then(|s| s.app.as_ref())?.borrow();
        let (_, store) = app.slices().stores().next()?;
        Some(look(store))
    }

    /// Counts what its store has merged and healed. Where disks lose and tear, but do not rot, a checksum
    /// that does not match is a false alarm.
    pub(crate) fn note_counts(&mut self, index: usize) {
        let store = self.servers[index].store;
        let counts = store.and_then(|store| self.with_store(store, |it| it.counters().core));
        if let Some(counts) = counts {
            let merged = counts.cells_moved + counts.cells_copied;
            self.rare.add(Rare::Merged, merged);
            if counts.blocks_rotten > 0 && !self.rotting.is_on() {
                let rotten = counts.blocks_rotten;
                self.find(format!("server {index}: {rotten} blocks taken for rotten"));
            }
        }
    }

    /// The process is gone.
    fn server_is_down(&mut self, index: usize, in_order: bool) {
        self.note_counts(index);
        self.note_healing(index);
        let now_ns = self.world.now_ns();
        let server = &mut self.servers[index];
        (server.app, server.orders, server.listening) = (None, None, false);
        (server.stopping, server.registered) = (false, false);
        if !in_order {
            server.lost_at_ns = Some(now_ns);
        }
        self.forget_asks(Party::Server(index));
    }

    /// `kill -9`.
    pub(crate) fn crash_server(&mut self, index: usize) {
        if self.servers[index].is_up() {
            self.untear(index);
            self.unspoil(index, false);
            self.world.crash(self.servers[index].node);
            self.server_is_down(index, false);
        }
    }

    /// Power loss.
    pub(crate) fn cut_server(&mut self, index: usize) {
        self.untear(index);
        self.unspoil(index, true);
        self.world.power_cut(self.servers[index].node);
        self.server_is_down(index, false);
    }

    /// A stop in order; the process ends when it is through.
    pub(crate) fn stop_server(&mut self, index: usize) {
        self.servers[index].stopping = true;
        self.order(index, Order::Stop);
    }

    /// Notices servers that ended by themselves.
    pub(crate) fn reap_servers(&mut self) {
        for index in 0..self.servers.len() {
            let server = &self.servers[index];
            if server.stopping && !self.world.is_running(server.node) {
                self.say(format_args!("server {index}: stopped in order"));
                // What is marked has checksums that are not durable (docs/operations.md, known gaps).
                self.unspoil(index, false);
                self.server_is_down(index, true);
                self.rare.note(Rare::StoreStopped);
                self.restart_server(index, (1_000_000, 8_000_000_000));
            }
        }
    }

    pub(crate) fn on_server_news(&mut self, index: usize, news: News) {
        match news {
            News::StoreOpened { facts, .. } => {
                self.say(format_args!(
                    "server {index}: store open, incarnation {}, clean {}, slices {}, replayed {}",
                    facts.incarnation.0,
                    facts.clean,
                    facts.slices.len(),
                    facts.replayed
                ));
                let clean = facts.clean;
                self.check_capacity(index, facts.capacity_bytes);
                self.servers[index].facts = Some(*facts);
                if !clean {
                    self.record_crash(index);
                }
            }
            News::StoreFailed { why, .. } => {
                self.say(format_args!("server {index}: {why}"));
                self.rare.note(Rare::StoreNotOpened);
                self.crash_server(index);
                if self.calm {
                    return self.find(format!("server {index} does not open its store: {why}"));
                }
                self.restart_server(index, (500_000_000, 3_000_000_000));
            }
            News::StorePoisoned { why, .. } => {
                self.say(format_args!("server {index}: poisoned: {why}"));
                self.rare.note(Rare::StorePoisoned);
                self.crash_server(index);
                self.restart_server(index, (100_000_000, 3_000_000_000));
            }
            News::Listening { address } => {
                self.servers[index].listening = true;
                self.register_server(index, address);
            }
            News::Maintenance(news) => self.on_maintenance_news(index, news),
            News::CloneWaits(nsid) => self.servers[index].wanted.waits(nsid),
            News::SliceChanged(nsid) => {
                let orders = self.servers[index].wanted.parent_changed(nsid);
                orders.into_iter().for_each(|o| self.order(index, o));
            }
            News::StoreGrown { capacity_bytes, .. } => self.on_grown(index, capacity_bytes),
            News::FindReplicas(_) => self.on_find_replicas(index),
            News::SliceDone { nsid, end } => {
                let told = self.servers[index].wanted.done(nsid, &end);
                for one in told {
                    let command = match one {
                        Told::Made(store, nsid, size_blocks) => Command::ConfirmSlice {
                            store,
                            nsid,
                            size_blocks,
                        },
                        Told::Blank(store, nsid) => Command::ReportBlankSlice { store, nsid },
                        Told::Gone(store, nsid) => Command::ConfirmSliceGone { store, nsid },
                    };
                    self.ask(Party::Server(index), Why::Confirm, command);
                }
            }
        }
    }

    pub(crate) fn restart_server(&mut self, index: usize, after_ns: (u64, u64)) {
        let pause = self.control.within(after_ns.0, after_ns.1);
        self.schedule(pause, Task::Boot(Party::Server(index)));
    }

    fn register_server(&mut self, index: usize, address: SocketAddr) {
        let uuid = self.servers[index].uuid;
        let new = NewServer {
            cluster: Some(CLUSTER),
            uuid,
            name: format!("s{index}"),
            address,
            subsystem_nqn: storaged::subsystem_nqn(uuid),
            labels: [].into(),
        };
        let command = Command::RegisterServer(new);
        self.ask(Party::Server(index), Why::RegisterServer, command);
    }

    /// Once metad knows its server; one word after the other.
    pub(crate) fn register_store(&mut self, index: usize) {
        let party = Party::Server(index);
        let mut asks = self.asks.values();
        if asks.any(|ask| ask.party == party && ask.why == Why::RegisterStore) {
            return;
        }
        let server = &self.servers[index];
        let (Some(id), Some(facts)) = (server.id, &server.facts) else {
            return;
        };
        let new = NewStore {
            cluster: CLUSTER,
            server: id,
            uuid: Uuid::from_bytes(facts.store),
            size_bytes: server.capacity_bytes,
        };
        self.ask(party, Why::RegisterStore, Command::RegisterStore(new));
    }

    pub(crate) fn on_server_reply(&mut self, index: usize, ask: &Ask, reply: Reply) {
        let server = &mut self.servers[index];
        match (ask.why, &reply) {
            (Why::RegisterServer, Reply::Server(id)) => {
                server.id = Some(*id);
                self.register_store(index);
            }
            (Why::RegisterStore, Reply::Store(id)) => {
                (server.store, server.registered) = (Some(*id), true);
                server.wanted.registered(0, *id);
                let has_bytes = server.capacity_bytes;
                if matches!(&ask.command, Command::RegisterStore(new) if new.size_bytes != has_bytes)
                {
                    self.register_store(index);
                }
                self.look_soon(Party::Server(index));
            }
            (Why::Confirm, Reply::Done) => {}
            // A repeated word of a slice whose volume is gone.
            (Why::Confirm, Reply::Refused(refusal)) if refusal.code == RefusalCode::NotFound => {}
            (_, _) => self.on_upkeep_reply(index, ask, reply),
        }
    }

    pub(crate) fn on_server_look(&mut self, index: usize) {
        let server = &mut self.servers[index];
        let Some(id) = server.id else { return };
        server.looking = false;
        let state = &self.metad.state;
        let seen = std::mem::replace(&mut server.seen, server_index(state, id));
        let was_restored = was_restored_between(seen, server.seen);
        let (slices, nqns) = (slices_of_server(state, id), known_hosts(state));
        server.host_nqns.clone_from(&nqns);
        let orders = server.wanted.orders(slices);
        self.order(index, Order::Hosts(nqns));
        orders.into_iter().for_each(|o| self.order(index, o));
        self.upkeep_looks(index, id);
        if was_restored {
            let (address, ..) = self.servers[index].target(&self.world);
            self.register_server(index, address);
        }
    }
}
