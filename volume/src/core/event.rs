//! The vocabulary between the replication core and its shell: what happens, what is to be done.
//!
//! Payload never passes through: a [`Payload`] names bytes that the shell holds.

use super::members::{Members, Position};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::map::VolumeMap;
use shardmap::units::{
    BlockRange, Epoch, Generation, Incarnation, Lba, MembershipSeq, Moment, RegionIndex, StoreId,
    WriteTick,
};
use std::collections::BTreeMap;

/// What the core needs of metad's answer to an attach.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Shape and stores of the volume.
    pub map: VolumeMap,
    /// This attach.
    pub epoch: Epoch,
    /// Version of the membership.
    pub seq: MembershipSeq,
    /// The in-sync set.
    pub isr: Members,
    /// The membership is the newest there is. Otherwise (after a disaster restore of metad) the
    /// stores' stamps decide.
    pub verified: bool,
    /// `Some` if what is above the volume has outlived our predecessor: the incarnations under
    /// which members hold all that was acknowledged ([`Effect::Remember`]). Members that are
    /// missing here, or have another incarnation, may lack some of it.
    pub survived: Option<BTreeMap<Position, Incarnation>>,
    /// Head and snapshots, as metad has them.
    pub generations: VolumeGenerations,
}

/// A host request, minted by the shell, unique while it is outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A command to a store, minted by the core in ascending order, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// A copy buffer of the shell, minted by the core, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyId(pub u64);

/// A membership request to metad, minted by the core. A repeated request keeps its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Which bytes a read fills or a write takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A window of the host request's buffer.
    Host {
        /// The request.
        op: OpId,
        /// Blocks from the start of its buffer.
        first_block: u32,
    },
    /// The whole copy buffer, allocated by the shell at the read and kept until
    /// [`Effect::DropCopy`].
    Copy(CopyId),
}

/// What the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostWhat {
    /// Fill the request's buffer.
    Read(BlockRange),
    /// Write the request's buffer.
    Write {
        /// Where.
        range: BlockRange,
        /// Durable on completion.
        fua: bool,
    },
    /// Make everything completed before durable.
    Flush,
    /// Make a range read as zeroes.
    Zero {
        /// Where.
        range: BlockRange,
        /// Space may be given back (discard; write zeroes without NOUNMAP).
        deallocate: bool,
        /// Durable on completion.
        fua: bool,
    },
    /// Of a view: which blocks of some regions it may show otherwise than an earlier snapshot.
    Changes {
        /// First region; as many as [`PRESENCE_REGIONS`](crate::limits::PRESENCE_REGIONS).
        from: RegionIndex,
        /// The earlier snapshot; zero: one in which everything reads as zeroes.
        after: Generation,
    },
}

/// A command to one store.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Read data.
    Read {
        /// Where.
        range: BlockRange,
        /// Into which buffer.
        into: Payload,
        /// Of which generation; zero: the head that the store has.
        generation: Generation,
    },
    /// Write data.
    Write {
        /// Where.
        range: BlockRange,
        /// From which buffer.
        from: Payload,
        /// Durable on completion.
        fua: bool,
        /// Generation tag.
        generation: Generation,
    },
    /// Write zeroes.
    Zero {
        /// Where.
        range: BlockRange,
        /// Space may be given back.
        deallocate: bool,
        /// Durable on completion.
        fua: bool,
        /// Generation tag.
        generation: Generation,
    },
    /// Make completed writes durable.
    Flush,
    /// Begin a session under the epoch.
    OpenSlice {
        /// Ours.
        epoch: Epoch,
    },
    /// Ask for the slice's facts.
    SliceState,
    /// End the session.
    CloseSlice,
    /// Make the membership durable on the store.
    Stamp(Stamp),
    /// Take a moment on the store's own logical clock.
    Tick,
    /// Unmark regions last written more than `idle_ticks` before the tick, and as many of those
    /// last written before the tick as it takes to keep at most `keep_max`.
    Stable {
        /// Taken earlier on this session.
        tick: WriteTick,
        /// How long a region must have been idle.
        idle_ticks: u32,
        /// Marks that may stay; zero is no limit.
        keep_max: u32,
    },
    /// Ask for the marks at and above a region.
    ReadMarks {
        /// First region asked for.
        from: RegionIndex,
    },
    /// Mark regions durably.
    AddMarks(RegionSet),
    /// The slice is whole again; clears `incomplete` durably.
    CompleteSlice(Stamp),
    /// Which blocks of some regions are present or zero.
    ReadPresence {
        /// First region asked for.
        from: RegionIndex,
        /// How many.
        regions: u32,
        /// Of generations after this snapshot only; zero: of all.
        after: Generation,
        /// Up to this one; zero: the head.
        upto: Generation,
        /// With `after` zero: what shows of the parents of a clone, too. A copy of a slice needs its own
        /// layers only.
        shown: bool,
    },
    /// One digest per 64 KiB of the range, as a generation shows it.
    Hash(BlockRange, Generation),
    /// Ask for head and snapshots.
    ReadGenerations,
    /// Durably: the head from now on; the one before is a snapshot that takes what carries its tag.
    BeginGeneration(Generation),
    /// Durably: the snapshot takes no more writes; answered when it has what it took.
    CompleteGeneration(Generation),
}

/// A membership as stores keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Its version.
    pub seq: MembershipSeq,
    /// The in-sync set.
    pub isr: Members,
    /// Every store of the volume.
    pub members: Members,
}

/// What a slice says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SliceFacts {
    /// Life of the store's volatile state.
    pub incarnation: Incarnation,
    /// It must be resilvered before it may be trusted.
    pub incomplete: bool,
    /// Newest membership it was told of.
    pub stamp_seq: MembershipSeq,
    /// That membership's in-sync set.
    pub stamp_isr: Members,
    /// How many regions it has marked.
    pub mark_count: u32,
    /// The generation that takes its writes.
    pub head: Generation,
    /// How many snapshots it has.
    pub snapshot_count: u32,
}

/// A store's successful answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Nothing but success.
    Done,
    /// To [`Command::OpenSlice`].
    Opened(Incarnation),
    /// To [`Command::SliceState`].
    Facts(SliceFacts),
    /// To [`Command::Read`] into a copy buffer: whether every byte is zero.
    Copied {
        /// All bytes zero.
        all_zero: bool,
    },
    /// To [`Command::Tick`].
    Tick(WriteTick),
    /// To [`Command::ReadMarks`]: the marks, and where to go on if there are more.
    Marks(RegionSet, Option<RegionIndex>),
    /// To [`Command::ReadPresence`]; blocks of the volume, not relative.
    Presence(BlockSet),
    /// To [`Command::Hash`].
    Hashes(Vec<u64>),
    /// To [`Command::Stable`]: marks that stayed.
    MarksLeft(u64),
    /// To [`Command::ReadGenerations`].
    Generations(VolumeGenerations),
}

/// Why a store did not do a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A newer epoch holds the slice.
    #[error("a newer attachment holds the slice")]
    Fenced,
    /// There is no current session on this path.
    #[error("the session is not current")]
    NotOpen,
    /// The medium or its checksum failed.
    #[error("medium error")]
    Medium,
    /// The store is full.
    #[error("the store is full")]
    NoSpace,
    /// The slice must be resilvered first.
    #[error("the slice is incomplete")]
    Incomplete,
    /// The store cannot serve this volume at all.
    #[error("the store refuses the slice")]
    Refused,
    /// Anything that may pass.
    #[error("the store is busy")]
    Transient,
}

/// metad's answer to a membership request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Recorded; the membership now.
    Committed {
        /// Its version.
        seq: MembershipSeq,
        /// The in-sync set.
        isr: Members,
    },
    /// Not recorded because the request was based on another version; the membership now.
    Stale {
        /// Its version.
        seq: MembershipSeq,
        /// The in-sync set.
        isr: Members,
    },
    /// Another attach has taken over.
    Fenced,
    /// Nobody knows whether it was recorded.
    Unknown,
}

/// The core's alarms; at most one of each is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Members that have not opened by now are removed.
    Attach,
    /// A member without a session has had its time.
    Grace(Position),
    /// Try to open the slice again.
    Reopen(Position),
    /// Ask metad again.
    Metad,
    /// The resilver may spend again.
    Resilver,
    /// Look whether marks can be cleaned.
    Stable,
    /// Look whether a member is slow.
    Slow,
    /// Go on with a snapshot that could not go on.
    Snapshot,
    /// Writes have waited for other volumes long enough.
    Hold,
    /// Look after what a view waits for.
    View,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Begin; once, first.
    Start,
    /// A path to the store's server is up: commands can be sent.
    PathUp(Position),
    /// The path is gone. Every command outstanding on it has ended and gets no
    /// [`Event::Done`] any more.
    PathLost(Position),
    /// A store answered.
    Done {
        /// The command.
        command: CommandId,
        /// How it ended.
        result: Result<Answer, Fault>,
    },
    /// The host asks.
    Host {
        /// Its request.
        op: OpId,
        /// What for.
        what: HostWhat,
    },
    /// metad answered.
    Metad {
        /// Which request.
        request: RequestId,
        /// How.
        verdict: Verdict,
    },
    /// An alarm. May come late, never early.
    Timer(Timer),
    /// metad has other generations now: a snapshot was made or deleted. What is known already, or
    /// older, is ignored.
    Generations(VolumeGenerations),
    /// The volume has so many blocks now, on every store. Fewer than it had are ignored.
    Grown {
        /// Its size.
        size_blocks: u64,
    },
    /// Finish what is outstanding and let go of the volume.
    Detach,
    /// Let go of the volume at once, as a crash would: what is outstanding may be done or not, and the marks
    /// say where.
    Abandon,
}

/// Something the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Keep a path to this store's server and report it.
    Connect(Position),
    /// Send a command; answered by [`Event::Done`] or covered by [`Event::PathLost`].
    Send {
        /// Its id.
        command: CommandId,
        /// To whom.
        to: Position,
        /// What.
        what: Command,
    },
    /// The host's request has ended.
    Complete {
        /// Which.
        op: OpId,
        /// How.
        result: Result<(), HostFault>,
    },
    /// What a request for changes has found; its completion follows.
    Found {
        /// Which.
        op: OpId,
        /// Blocks of the volume.
        found: BlockSet,
    },
    /// The copy buffer is not needed any more.
    DropCopy(CopyId),
    /// Ask metad to record a new in-sync set; answered by [`Event::Metad`].
    AskMetad {
        /// The request; repeated with the same id until answered.
        request: RequestId,
        /// Version it is based on.
        seq: MembershipSeq,
        /// The set wanted.
        isr: Members,
    },
    /// Ask metad to record the membership that the stores have confirmed; answered by
    /// [`Event::Metad`].
    AskVerify {
        /// The request; repeated with the same id until answered.
        request: RequestId,
        /// Version that was granted.
        seq: MembershipSeq,
        /// Newest version found.
        found_seq: MembershipSeq,
        /// Its in-sync set.
        isr: Members,
    },
    /// Keep this where it outlives our process and not the machine, for [`Grant::survived`]. One
    /// that is out of date is safe: it only trusts fewer members.
    Remember(BTreeMap<Position, Incarnation>),
    /// Arm an alarm, replacing an earlier one of the same name.
    Arm {
        /// Which.
        timer: Timer,
        /// When.
        at: Moment,
    },
    /// The volume serves from now on.
    Attached,
    /// The volume was not attached; nothing more will happen.
    AttachFailed(AttachFault),
    /// Everything is flushed and closed; nothing more will happen.
    Detached,
    /// The device must fail: every request ends with an error from now on.
    Failed(FailReason),
    /// How far a resilver is.
    Progress(Progress),
    /// How far the snapshot is: metad may record it. That it is complete is told again when metad is seen
    /// not to know.
    Snapshot(Generation, SnapshotStep),
    /// For the log, the tests and the traces.
    Trace(TraceEvent),
}

/// Why a host request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostFault {
    /// No replica could deliver or take the data.
    #[error("every replica reports a medium error")]
    Medium,
    /// Every replica is full.
    #[error("every replica's store is full")]
    NoSpace,
    /// The range passes the end of the volume or the size limit.
    #[error("the range is outside the volume or too large")]
    Range,
    /// A snapshot cannot be written.
    #[error("a snapshot is read-only")]
    ReadOnly,
    /// The device has failed (see [`FailReason`]).
    #[error("the device has failed")]
    Failed,
    /// The volume is being detached or was never attached.
    #[error("the volume is not attached")]
    NotAttached,
}

/// Why a volume could not be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachFault {
    /// A newer attach exists.
    #[error("a newer attachment holds the volume")]
    Fenced,
    /// Some shard would be left without an in-sync store that answers; one of these is needed.
    #[error("no in-sync store answers; needed is one of the stores at positions {0}")]
    StoresNeeded(Members),
    /// Members do not answer and may not be removed ([`super::Config::may_shrink`]).
    #[error("in-sync stores at positions {0} do not answer, and are waited for")]
    MembersAway(Members),
    /// metad's record is not what we asked for.
    #[error("the recorded membership changed under our epoch")]
    Membership,
    /// A store was told of a newer membership than metad knows of, or of newer snapshots.
    #[error(
        "metad knows an older membership or fewer snapshots than the stores: it has lost part of its \
         history"
    )]
    MetadBehind,
    /// What is above the volume has outlived our predecessor, and no in-sync store of some shard is
    /// sure to hold all that was acknowledged.
    #[error("every in-sync store of a shard restarted and may have lost unflushed writes")]
    DataLost,
    /// The volume was detached first.
    #[error("detached before it was attached")]
    Detached,
}

/// Why a device must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailReason {
    /// A newer attach exists.
    #[error("a newer attachment holds the volume")]
    Fenced,
    /// Every in-sync copy of some shard lost writes that were acknowledged and not flushed.
    #[error("every in-sync store of a shard restarted and lost unflushed writes")]
    DataLost,
    /// metad's record is not what we asked for.
    #[error("the recorded membership changed under our epoch")]
    Membership,
}

/// How far a resilver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Who is resilvered.
    pub store: StoreId,
    /// Bytes to move in all, as known now.
    pub bytes_total: u64,
    /// Bytes moved so far.
    pub bytes_done: u64,
    /// Bytes moved per second since the start.
    pub bytes_per_s: u64,
}

/// A finished resilver, for history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resilvered {
    /// Who was resilvered.
    pub store: StoreId,
    /// Bytes it had missed, as known at the start.
    pub bytes_missed: u64,
    /// Bytes copied to it.
    pub bytes_moved: u64,
    /// From opening the target to its commit.
    pub duration_ms: u64,
}

/// Where a store stands towards the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreState {
    /// In the in-sync set, session open.
    InSync,
    /// In the in-sync set, no session at the moment.
    Disconnected,
    /// In the in-sync set, lost unflushed writes, about to be removed.
    Suspect,
    /// Not in the in-sync set.
    Out,
    /// Not in the in-sync set, being brought up to date.
    Resilvering,
}

/// One per transition. Names follow `ReplicatedShard.tla` where it has the action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    /// A session began. Model: `Open`.
    Open {
        /// With whom.
        store: StoreId,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A session ended. Model: `ConnBreak`.
    ConnBreak {
        /// With whom.
        store: StoreId,
    },
    /// A store lost writes it had acknowledged.
    Suspect {
        /// Which.
        store: StoreId,
        /// The incarnation that wrote them.
        was: Incarnation,
        /// The one it has now.
        now: Incarnation,
    },
    /// A smaller set was asked for. Model: `Propose`.
    Propose {
        /// The set.
        isr: Members,
    },
    /// A larger set was asked for. Model: `Join`.
    Join {
        /// Who joins.
        store: StoreId,
        /// The set.
        isr: Members,
    },
    /// metad's answer became known. Model: `Learn`.
    Learn {
        /// The version.
        seq: MembershipSeq,
        /// The set.
        isr: Members,
    },
    /// The newest membership was found on the stores. Model: `Verify`.
    Verify {
        /// Its new version.
        seq: MembershipSeq,
        /// The set.
        isr: Members,
    },
    /// A member keeps writes waiting that others have taken.
    Slow {
        /// Which.
        store: StoreId,
    },
    /// What a member could not read was written to it again.
    Repaired {
        /// Which.
        store: StoreId,
        /// First block.
        lba: Lba,
        /// How many.
        blocks: u32,
    },
    /// A member holds the current stamp. Model: `Stamp`.
    Stamp {
        /// Which.
        store: StoreId,
    },
    /// The volume serves. Model: `Establish`.
    Establish {
        /// Regions that must be reconciled first.
        regions: u64,
    },
    /// All marked regions are equal on all members. Model: `Reconciled`.
    Reconciled,
    /// A resilver began. Model: `StartRs`.
    StartRs {
        /// Target.
        store: StoreId,
    },
    /// All that the target missed is known.
    Planned {
        /// Target.
        store: StoreId,
        /// Bytes to copy.
        bytes_missed: u64,
    },
    /// Everything is copied and the target is being flushed. Model: `RsFlush`.
    RsFlush {
        /// Target.
        store: StoreId,
    },
    /// The target failed. Model: `DropRs`.
    DropRs {
        /// Target.
        store: StoreId,
    },
    /// The target is in sync.
    Resilvered(Resilvered),
    /// Marks were cleaned everywhere. Model: `Stable`.
    Stable,
    /// Writes carry this generation from now on: every store that counts has begun it.
    Begun {
        /// The head.
        head: Generation,
    },
    /// A snapshot has all it will ever have, durably; the stores are told that it is complete.
    Sealed {
        /// Which.
        snapshot: Generation,
    },
    /// A store that was out is given generations that it lacks.
    CatchUp {
        /// Which.
        store: StoreId,
        /// How many snapshots it has to be given.
        snapshots: u32,
    },
    /// A view reads from this store, or no more.
    Shows {
        /// Which.
        store: StoreId,
        /// It has the snapshot and answers.
        ready: bool,
    },
    /// A store that was out has a snapshot as the others have it.
    CaughtUp {
        /// Which.
        store: StoreId,
        /// The snapshot.
        snapshot: Generation,
    },
    /// A command left; only where [`super::Config::record_commands`] asks for it.
    Sent(CommandFacts),
    /// A store did a command, and the session it was sent on is current; only where
    /// [`super::Config::record_commands`] asks for it.
    Heard(CommandFacts),
}

/// A command, as far as the models know commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandFacts {
    /// To whom.
    pub store: StoreId,
    /// What for.
    pub what: CommandKind,
    /// Blocks it is about, if it is about some.
    pub range: Option<BlockRange>,
    /// A write that is durable once it is answered.
    pub durable: bool,
    /// The host's request that it is a part of: in the core the number of its [`OpId`], above the
    /// shell the id that the host gave it.
    pub request: Option<u64>,
}

/// What a command is for. Names follow the models where they have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// A part of a host's write. Model: `Land`, message `W`.
    Write,
    /// A flush of the whole slice. Model: `FlushStore`, message `F`.
    Flush,
    /// All marks, for a resilver. Model: `AskMarks`.
    Marks,
    /// Which blocks are present, for a resilver. Model: `AskPresence`.
    Presence,
    /// A copy's source, for a resilver. Model: `CopyRead`.
    CopyRead,
    /// A copy's target, for a resilver. Model: `CopyLand`.
    CopyWrite,
    /// A copy's target, when replicas are made equal at attach.
    ReconcileWrite,
    /// The target counts as whole again. Model: `Complete`.
    Complete,
    /// Marks of idle regions are cleaned. Model: message `M`.
    Stable,
}
