//! Switches that take single mechanisms of the cores away, to prove that the simulator would miss
//! them. Only builds with the feature `canary` have them; in every other build [`stands`] is a
//! constant, and what asks it is compiled away.
//!
//! This is the one global of the cores: a switch is thrown once, before anything runs.

macro_rules! mechanisms {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal;)*) => {
        /// A mechanism that can be switched off. Names of constants are those of the model
        /// `ReplicatedShard.tla`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mechanism {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Mechanism {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name on command lines.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

mechanisms! {
    /// Hazard: a superseded client opens sessions again. Model: `UseEpochFence`.
    EpochFence = "epoch-fence";
    /// Hazard: commands of a session that is over are admitted. Model: `UseSessionFence`.
    SessionFence = "session-fence";
    /// Hazard: a session opens while commands of its predecessor are on their way to the medium.
    OpenDrain = "open-drain";
    /// Hazard: an acknowledgement without the member that is being removed, before metad knows.
    /// Model: `UseWitness`.
    Witness = "witness";
    /// Hazard: a write without a durable mark is not reconciled. Model: `UseMark`.
    Mark = "mark";
    /// Hazard: an attach does not look at the marks.
    AttachMarks = "attach-marks";
    /// Hazard: a mark is cleaned although its region was written since. Model: `UseTick`.
    Tick = "tick";
    /// Hazard: marks are cleaned while a member is out. Model: `StickyMarks`.
    StickyMarks = "sticky-marks";
    /// Hazard: a store that lost its volatile state is trusted. Model: `UseIncarnation`.
    Incarnation = "incarnation";
    /// Hazard: a resilver copies over a newer write. Model: `UseCopyLock`.
    CopyLock = "copy-lock";
    /// Hazard: copies of an abandoned choice land after those of the next. Model: `DrainOnAbort`.
    ReconcileDrain = "reconcile-drain";
    /// Hazard: a target joins with what it copied in its cache. Model: `JoinFlush`.
    JoinFlush = "join-flush";
    /// Hazard: a blank store passes for a whole one. Model: `BlankIsAnswer`.
    Incomplete = "incomplete";
    /// Hazard: a store that lost its medium unnoticed stays, and the whole one goes. Model: `UseHearing`.
    Hear = "hear";
    /// Hazard: acknowledged before the last replica has it.
    AckAll = "ack-all";
    /// Hazard: a flush takes credit for writes that completed after it was sent.
    FlushCredit = "flush-credit";
    /// Hazard: a flush asks one member only.
    FlushAll = "flush-all";
    /// Hazard: a durable write is sent as any other, and counts as durable.
    Fua = "fua";
    /// Hazard: overlapping writes land in different orders on different replicas.
    RangeLock = "range-lock";
    /// Hazard: a read of a store that lost acknowledged writes.
    SuspectRead = "suspect-read";
    /// Hazard: a resilver forgets what was written while its target was away.
    FineBitmap = "fine-bitmap";
    /// Hazard: a flush of the store does not flush the device, and the map names data that never
    /// reached the medium.
    DeviceFlush = "device-flush";
    /// Hazard: what was discarded or zeroed comes back with a restart of its store.
    ZeroEntry = "zero-entry";
    /// Hazard: a blank store that took a zero passes for equal there. Model: `UseZeroMark`.
    ZeroMark = "zero-mark";
    /// Hazard: a rotten block is written again from bytes that nobody compared with its checksum.
    HealCompare = "heal-compare";
    /// Hazard: what a write that failed has left at the device is read, and taken for what was written.
    FailedList = "failed-list";
    /// Hazard: a clone is made over a parent that is not whole, and shows zeroes where there is data.
    CloneParent = "clone-parent";
    /// Hazard: a store of a volume that nobody has loses its slice, and counts as in sync.
    BlankReport = "blank-report";
    /// Hazard: a superblock counts on what a growth has written and a power cut takes away.
    GrowthFlush = "growth-flush";
    /// Hazard: a rollback is over, and power that is lost takes it back in part.
    RollbackFlush = "rollback-flush";
    /// Hazard: a rollback leaves what was written for the first time since the snapshot.
    RollbackZero = "rollback-zero";
    /// Hazard: writes carry a generation that a store has not begun, which takes them into the one before.
    BeginAll = "begin-all";
    /// Hazard: a snapshot is complete while writes to it are under way.
    SnapshotDrain = "snapshot-drain";
    /// Hazard: a snapshot is complete with some of it in caches.
    SnapshotFlush = "snapshot-flush";
    /// Hazard: doubtful regions are made equal in the head, and stay different in the pending snapshot.
    SnapshotReconcile = "snapshot-reconcile";
    /// Hazard: a store that was out completes snapshots that lack what it missed.
    CatchUp = "catch-up";
    /// Hazard: a restored metad is believed about a membership that the stores know to be old. Model:
    /// `FStamp`.
    Stamps = "stamps";
    /// Hazard: a store joins, and is left alone before an older member knows: a restored metad and that
    /// member agree on a membership without it. Model: `FVouch`.
    Vouch = "vouch";
    /// Hazard: a clientd takes over a device and trusts a store that restarted unseen.
    Remembered = "remembered";
}

/// Whether the mechanism is in force.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn stands(_mechanism: Mechanism) -> bool {
    true
}

#[cfg(feature = "canary")]
static OFF: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Whether the mechanism is in force.
#[cfg(feature = "canary")]
pub fn stands(mechanism: Mechanism) -> bool {
    OFF.load(std::sync::atomic::Ordering::Relaxed) & (1 << mechanism as u64) == 0
}

/// Switches one mechanism off and all others on; `None`: all on.
#[cfg(feature = "canary")]
pub fn switch_off(mechanism: Option<Mechanism>) {
    let off = mechanism.map_or(0, |m| 1 << m as u64);
    OFF.store(off, std::sync::atomic::Ordering::Relaxed);
}
