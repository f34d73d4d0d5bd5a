//! The machine's state and the small questions every handler asks of it.

use super::catch_up::CatchUp;
use super::copy::Copy;
use super::event::{
    Command, CommandId, CopyId, Effect, Event, Grant, HostFault, HostWhat, OpId, Payload,
    RequestId, Stamp, StoreState, TraceEvent,
};
use super::flush::{FlushId, FlushTicket};
use super::generations::Generations;
use super::leg::{Leg, Session};
use super::members::{Members, Position, STRIDE_MAX};
use super::range_lock::{Holder, RangeLock};
use super::reconcile::Reconcile;
use super::resilver::Resilver;
use super::stable::Stable;
use shardmap::canary::{Mechanism, stands};
use shardmap::map::VolumeMap;
use shardmap::units::{
    BlockRange, Epoch, Generation, Incarnation, MembershipSeq, Moment, REGION_BLOCKS, RegionIndex,
};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// Far more rounds than all operations of a volume could need in one step; a step that passes it
/// would never end.
const SETTLE_ROUNDS_MAX: u32 = 100_000;

/// Effects of a step, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    effects: Vec<Effect>,
}

impl Outbox {
    /// Adds an effect.
    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Takes all effects out, first one first.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Effect> {
        self.effects.drain(..)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }
}

/// Knobs of the machine. Times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// IO to a shard is held while fewer in-sync stores than this hold it.
    pub min_in_sync: u32,
    /// How long a member may be without a session.
    pub degrade_grace_ms: u64,
    /// How long an attach waits for members.
    pub attach_wait_ms: u64,
    /// How long metad may take before it is asked again.
    pub metad_retry_ms: u64,
    /// First and longest pause before a store is opened again.
    pub reopen_ms: (u64, u64),
    /// How long a member may keep a write or flush waiting that others have done; zero is for ever.
    pub slow_ms: u64,
    /// How long a member that was removed for being slow stays out: the first time, at most.
    pub slow_return_ms: (u64, u64),
    /// Whether members that do not answer are removed. Without a host nobody waits for them: then
    /// only those are removed that have lost data and cannot come back by themselves.
    pub may_shrink: bool,
    /// Resilver speed limit; zero is none.
    pub resilver_bytes_per_s_max: u64,
    /// How long after a write marks are cleaned; zero is never.
    pub stable_period_ms: u64,
    /// How long the writes of a snapshot may take before a store that is out counts as what they wait
    /// for.
    pub snapshot_stuck_ms: u64,
    /// How long writes wait for other volumes that are to be cut at the same moment.
    pub snapshot_hold_ms: u64,
    /// Spreads the pauses.
    pub seed: u64,
    /// Whether commands are traced, one by one, for the models.
    pub record_commands: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            min_in_sync: 1,
            degrade_grace_ms: 300,
            attach_wait_ms: 3_000,
            metad_retry_ms: 2_000,
            reopen_ms: (100, 10_000),
            slow_ms: 3_000,
            slow_return_ms: (10_000, 300_000),
            may_shrink: true,
            resilver_bytes_per_s_max: 0,
            stable_period_ms: 45_000,
            snapshot_stuck_ms: 2_000,
            snapshot_hold_ms: 3_000,
            seed: 1,
            record_commands: false,
        }
    }
}

/// ```text
/// New --> Attaching --> Serving --> Detaching --> Ended
///             |            |            |           ^
///             |            +--> Failed -+-----------|
///             +--------------------------------------
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    New,
    Attaching,
    Serving,
    Detaching,
    Failed,
    Ended,
}

/// A membership change that was asked for and not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) request: RequestId,
    pub(super) isr: Members,
    /// What it has in common with the sets that were asked for before, on the same version, and
    /// may be recorded instead.
    pub(super) both: Members,
    pub(super) tries: u32,
    /// To be asked for again, as soon as that is safe.
    pub(super) due: bool,
    /// The set is not wanted but found on the stores, as this version.
    pub(super) found: Option<MembershipSeq>,
}

/// How far a host operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for a region to be reconciled.
    Parked,
    /// Waits for its range lock.
    Locking,
    /// Holds its lock, and waits for other volumes that are to be cut at the same moment.
    Held,
    /// Holds its lock; commands are sent as stores can take them.
    Running,
    /// Every store answered; waits for stamps.
    Finished,
}

/// The part of a host operation that lies in one shard.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) range: BlockRange,
    /// Stores of the shard.
    pub(super) homes: Members,
    /// Blocks from the start of the host's buffer.
    pub(super) first_block: u32,
    /// Asked and not answered.
    pub(super) sent: Members,
    /// Answered well on their current session.
    pub(super) done: Members,
    /// Answered with a fault that asking again does not cure.
    pub(super) failed: Members,
    /// Those of `failed` that are full.
    pub(super) full: Members,
    /// Those of `failed` whose medium could not be read.
    pub(super) unreadable: Members,
    pub(super) finished: bool,
    /// Finished because every member that counts has failed it.
    pub(super) failed_everywhere: bool,
}

/// A host operation.
#[derive(Debug)]
pub(super) struct HostOp {
    pub(super) what: HostWhat,
    pub(super) range: BlockRange,
    pub(super) stage: Stage,
    /// When the host asked.
    pub(super) began: Moment,
    pub(super) pieces: SmallVec<[Piece; 1]>,
    /// Order in which operations started.
    pub(super) start_no: u64,
    pub(super) fault: Option<HostFault>,
    /// What it writes carries this: the head when it got its lock.
    pub(super) generation: Generation,
}

impl HostOp {
    pub(super) fn is_read(&self) -> bool {
        matches!(self.what, HostWhat::Read(_))
    }
}

/// What a command was sent for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Open,
    State,
    Generations,
    /// Is it there?
    Hear,
    AttachMarks,
    Close,
    Stamp(MembershipSeq),
    HostRead {
        op: OpId,
        piece: usize,
    },
    HostWrite {
        op: OpId,
        piece: usize,
    },
    Flush,
    CopyRead(CopyId),
    CopyWrite(CopyId),
    Hash(RegionIndex, Generation),
    ResilverMarks,
    ResilverPresence(RegionIndex),
    ResilverAddMarks,
    /// The target is whole in a snapshot that has become complete meanwhile.
    ResilverSeal(Generation),
    ResilverComplete,
    /// Of a snapshot: its steps at the members.
    Begin(Generation),
    Seal(Generation),
    CatchUpMarks,
    CatchUpBegin(Generation),
    CatchUpPresence(RegionIndex),
    CatchUpSeal(Generation),
    /// With the number of the pass, as below.
    Tick(u64),
    Stable(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Outstanding {
    pub(super) to: Position,
    pub(super) session_no: u32,
    pub(super) sent_at: Moment,
    pub(super) purpose: Purpose,
}

/// The replication machine of one attached volume. See the crate's documentation.
#[derive(Debug)]
pub struct Replicator {
    pub(super) config: Config,
    pub(super) map: VolumeMap,
    pub(super) epoch: Epoch,
    /// What new writes carry.
    pub(super) head: Generation,
    pub(super) generations: Generations,
    pub(super) seq: MembershipSeq,
    pub(super) isr: Members,
    pub(super) pending: Option<Pending>,
    pub(super) hearing: super::hear::Hearing,
    pub(super) phase: Phase,
    /// Copies that were done and windows that were looked at for them.
    pub(super) moves: u64,
    pub(super) now: Moment,
    pub(super) legs: Vec<Leg>,
    pub(super) all: Members,
    /// Homes of every shard, each set once.
    pub(super) copysets: Vec<Members>,
    /// Members that hold the current stamp, or were sent it.
    pub(super) stamped: Members,
    pub(super) stamping: Members,
    pub(super) attach_due: bool,
    /// See [`Grant::verified`].
    pub(super) verified: bool,
    /// See [`Grant::survived`].
    pub(super) survived: bool,
    /// As last handed out by [`Effect::Remember`].
    pub(super) remembered: BTreeMap<Position, Incarnation>,
    /// When [`super::Timer::Slow`] is due, if it is armed.
    pub(super) slow_due: Option<Moment>,
    pub(super) ops: BTreeMap<OpId, HostOp>,
    pub(super) parked: VecDeque<OpId>,
    pub(super) lock: RangeLock,
    pub(super) granted: VecDeque<Holder>,
    pub(super) commands: BTreeMap<CommandId, Outstanding>,
    pub(super) flushes: BTreeMap<FlushId, FlushTicket>,
    pub(super) copies: BTreeMap<CopyId, Copy>,
    pub(super) reconcile: Reconcile,
    pub(super) resilver: Option<Resilver>,
    pub(super) catch_up: Option<CatchUp>,
    pub(super) stable: Stable,
    pub(super) detach: super::detach::Detach,
    /// Something changed that may let waiting work go on.
    pub(super) changed: bool,
    pub(super) next_command: u64,
    pub(super) next_copy: u64,
    pub(super) next_flush: u64,
    pub(super) next_request: u64,
    pub(super) next_start: u64,
    pub(super) random: u64,
}

impl Replicator {
    /// A machine that does nothing until [`Event::Start`].
    ///
    /// Panics if the map has no store or more than [`STRIDE_MAX`], or the ISR is empty.
    pub fn new(config: Config, grant: Grant) -> Self {
        let stride = grant.map.stores.len();
        assert!(
            (1..=STRIDE_MAX).contains(&stride) && stride == usize::from(grant.map.shape.stride)
        );
        let all: Members = (0..stride).map(Position::new).collect();
        assert!(
            !grant.isr.is_empty() && all.covers(grant.isr),
            "in-sync set {}",
            grant.isr
        );
        let copysets = copysets_of(&grant.map);
        let mut legs: Vec<Leg> = grant.map.stores.iter().map(|s| Leg::new(*s)).collect();
        if let Some(survived) = &grant.survived
            && stands(Mechanism::Remembered)
        {
            for (leg, at) in legs.iter_mut().zip(all.iter()) {
                leg.inherited = true;
                leg.incarnation = survived.get(&at).copied();
            }
        }
        Self {
            legs,
            config,
            epoch: grant.epoch,
            head: Generations::tag(&grant.generations),
            generations: Generations::new(grant.generations),
            seq: grant.seq,
            isr: grant.isr,
            map: grant.map,
            pending: None,
            hearing: super::hear::Hearing::default(),
            phase: Phase::New,
            moves: 0,
            now: Moment::default(),
            all,
            copysets,
            stamped: Members::EMPTY,
            stamping: Members::EMPTY,
            attach_due: false,
            verified: grant.verified,
            survived: grant.survived.is_some(),
            remembered: BTreeMap::new(),
            slow_due: None,
            ops: BTreeMap::new(),
            parked: VecDeque::new(),
            lock: RangeLock::default(),
            granted: VecDeque::new(),
            commands: BTreeMap::new(),
            flushes: BTreeMap::new(),
            copies: BTreeMap::new(),
            reconcile: Reconcile::default(),
            resilver: None,
            catch_up: None,
            stable: Stable::default(),
            detach: super::detach::Detach::default(),
            changed: false,
            next_command: 0,
            next_copy: 0,
            next_flush: 0,
            next_request: 0,
            next_start: 0,
            random: config.seed | 1,
        }
    }

    /// Handles one event. Total: no event is refused, none is answered twice.
    pub fn step(&mut self, now: Moment, event: Event, out: &mut Outbox) {
        self.now = self.now.max(now);
        self.dispatch(event, out);
        self.settle(out);
        self.check_invariants();
    }

    fn settle(&mut self, out: &mut Outbox) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            if let Some(holder) = self.granted.pop_front() {
                self.on_granted(holder, out);
            } else if std::mem::take(&mut self.changed) {
                self.pump(out);
            } else {
                return;
            }
        }
        panic!("a step does not come to rest");
    }

    pub(super) fn leg(&self, at: Position) -> &Leg {
        &self.legs[at.index()]
    }

    pub(super) fn leg_mut(&mut self, at: Position) -> &mut Leg {
        &mut self.legs[at.index()]
    }

    /// ISR ∪ pending: who must answer before an acknowledgement.
    pub(super) fn ack_set(&self) -> Members {
        let pending = self.pending.filter(|_| stands(Mechanism::Witness));
        match (pending, self.pending) {
            (Some(p), _) => self.isr.or(p.isr),
            (None, Some(p)) => p.isr,
            (None, None) => self.isr,
        }
    }

    /// ISR ∩ pending: who may be read.
    pub(super) fn read_set(&self) -> Members {
        self.pending.map_or(self.isr, |p| self.isr.and(p.both))
    }

    /// The resilver target, if there is one.
    pub(super) fn target(&self) -> Members {
        self.resilver
            .as_ref()
            .map_or(Members::EMPTY, |r| Members::one(r.target))
    }

    /// ISR ∪ pending ∪ resilver target: who gets every write and flush. Model: `WS`.
    pub(super) fn write_set(&self) -> Members {
        self.ack_set().or(self.target())
    }

    /// Members of `among` with a current session that are not suspect.
    pub(super) fn usable(&self, among: Members) -> Members {
        among.iter().filter(|p| self.leg(*p).usable()).collect()
    }

    /// Who may be sent writes: those that get all of them, and a store that is given old generations.
    pub(super) fn copy_set(&self) -> Members {
        let catching_up = self.catch_up.as_ref().map(|c| Members::one(c.target));
        self.write_set().or(catching_up.unwrap_or_default())
    }

    /// Every in-sync member knows the current membership. Model: `Stamped`.
    pub(super) fn is_stamped(&self) -> bool {
        self.seq == MembershipSeq(0) || self.stamped.covers(self.isr)
    }

    /// The stamp of the current membership.
    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            seq: self.seq,
            isr: self.isr,
            members: self.all,
        }
    }

    /// Stores of the shard that holds the range's first block.
    pub(super) fn homes(&self, range: BlockRange) -> Members {
        homes_of(&self.map, self.map.shape.shard_of(range.start()))
    }

    /// Stores of the shard that holds the region.
    pub(super) fn homes_of_region(&self, region: RegionIndex) -> Members {
        self.region_range(region)
            .map_or(Members::EMPTY, |range| self.homes(range))
    }

    /// Blocks of the region; `None` past the volume's end.
    pub(super) fn region_range(&self, region: RegionIndex) -> Option<BlockRange> {
        let start = u64::from(region.0) * u64::from(REGION_BLOCKS);
        let end = (start + u64::from(REGION_BLOCKS)).min(self.map.size_blocks);
        let blocks = u32::try_from(end.checked_sub(start)?).ok()?;
        BlockRange::new(shardmap::units::Lba(start), shardmap::units::Blocks(blocks))
    }

    /// Sends a command on the current session.
    pub(super) fn send(&mut self, to: Position, purpose: Purpose, what: Command, out: &mut Outbox) {
        let leg = &mut self.legs[to.index()];
        assert!(
            leg.path && leg.session != Session::Closed,
            "no session with position {to}"
        );
        leg.outstanding += 1;
        let command = CommandId(self.next_command);
        self.next_command += 1;
        let entry = Outstanding {
            to,
            session_no: leg.session_no,
            sent_at: self.now,
            purpose,
        };
        assert!(self.commands.insert(command, entry).is_none());
        self.record_sent(&entry, &what, out);
        out.push(Effect::Send { command, to, what });
        self.arm_slow(purpose, out);
    }

    /// A pause that doubles with every failure in a row, spread by a quarter.
    pub(super) fn backoff_ms(&mut self, failures: u32) -> u64 {
        let (first, longest) = self.config.reopen_ms;
        let pause = first.saturating_mul(1 << failures.min(16)).min(longest);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        pause - self.random % (pause / 4).max(1)
    }

    pub(super) fn trace(&self, event: TraceEvent, out: &mut Outbox) {
        out.push(Effect::Trace(event));
    }

    /// Where a store stands.
    pub fn store_state(&self, at: Position) -> StoreState {
        let leg = self.leg(at);
        let catches_up = self.catch_up.as_ref().is_some_and(|c| c.target == at);
        if self.target().has(at) || catches_up {
            StoreState::Resilvering
        } else if !self.isr.has(at) {
            StoreState::Out
        } else if leg.suspect {
            StoreState::Suspect
        } else if leg.session == Session::Open {
            StoreState::InSync
        } else {
            StoreState::Disconnected
        }
    }

    /// Incarnation of a store's last session, blocks it is known to miss, commands outstanding.
    pub fn store_facts(&self, at: Position) -> (Option<shardmap::units::Incarnation>, u64, u32) {
        let leg = self.leg(at);
        (leg.incarnation, leg.dirty.len_blocks(), leg.outstanding)
    }

    /// The membership as last learnt from metad.
    pub fn membership(&self) -> (MembershipSeq, Members) {
        (self.seq, self.isr)
    }

    /// True between [`Effect::Attached`] and the end.
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Host requests outstanding.
    pub fn host_ops(&self) -> usize {
        self.ops.len()
    }

    /// Regions that wait for reconciliation.
    pub fn regions_to_reconcile(&self) -> u64 {
        self.reconcile.regions.len_regions()
    }

    /// Copies that were done and windows that were looked at for them.
    pub const fn moves(&self) -> u64 {
        self.moves
    }
}

/// Stores of a shard, by position.
pub(super) fn homes_of(map: &VolumeMap, shard: shardmap::units::ShardIndex) -> Members {
    map.shape
        .positions_of(shard)
        .map(|p| Position::new(usize::from(p)))
        .collect()
}

/// Homes of every shard, each set once.
pub(super) fn copysets_of(map: &VolumeMap) -> Vec<Members> {
    let mut copysets: Vec<Members> = (0..map.shard_count().min(64 * 64))
        .map(|s| homes_of(map, shardmap::units::ShardIndex(s)))
        .collect();
    copysets.sort_unstable();
    copysets.dedup();
    copysets
}

/// The window of a host buffer that belongs to a piece.
pub(super) fn host_window(op: OpId, piece: &Piece) -> Payload {
    Payload::Host {
        op,
        first_block: piece.first_block,
    }
}
