//! How often the rare paths were taken. A simulator that never gets there proves nothing.

use std::collections::BTreeMap;

macro_rules! rare {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $must:literal;)*) => {
        /// A path that must be taken now and then.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Rare {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Rare {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in summaries.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Whether many seeds that never take it are a failure.
            pub(crate) const fn must_happen(self) -> bool {
                match self {
                    $(Self::$variant => $must,)*
                }
            }
        }
    };
}

rare! {
    /// A client asked for a smaller in-sync set.
    Degraded = "degraded", true;
    /// It asked while metad was down.
    DegradedWithoutMetad = "degraded while metad was down", true;
    /// A store lost writes that it had acknowledged.
    Suspect = "a store became suspect", true;
    /// A resilver ended well.
    Resilvered = "resilvered", true;
    /// The target of a resilver failed.
    ResilverDropped = "resilver dropped", true;
    /// A dropped resilver began again in the same attachment.
    ResilverAgain = "resilver dropped and begun again", true;
    /// Another member was removed while a resilver ran.
    SecondFailure = "a second replica failed during a resilver", true;
    /// A resilver's target wanted to join.
    Joined = "asked to join the in-sync set", true;
    /// A volume was attached with regions to reconcile.
    Reconciling = "attached with regions to reconcile", true;
    /// All of them were reconciled.
    Reconciled = "reconciled", true;
    /// The client ended before they were.
    ReconcileInterrupted = "reconcile interrupted", true;
    /// Marks were cleaned everywhere.
    Stable = "marks cleaned", true;
    /// A client was told that it is superseded.
    Fenced = "a client learnt that it is fenced", true;
    /// A superseded client went on after a stop.
    ZombieWokeUp = "a superseded client went on", true;
    /// What it wrote then ended with an error.
    ZombieRefused = "a superseded client's write was refused", true;
    /// A device failed because every in-sync copy of a shard had lost acknowledged writes.
    DataLost = "device failed: unflushed data lost everywhere", true;
    /// A host request ended with an error of the medium.
    MediumFault = "host request failed: medium", true;
    /// A read was asked of another replica.
    ReadFailover = "read of another replica after a failure", true;
    /// A volume was not attached and tried again.
    AttachFailed = "attach failed and tried again", true;
    /// A volume was detached in order.
    Detached = "detached in order", true;
    /// A grant reached its host when the attachment had been ended by force.
    GrantLate = "grant of an attachment that is over", false;
    /// A host had lost the volume by force and was to have it again before it heard of that.
    EndedAndWanted = "attachment ended by force and wanted again at once", false;
    /// A clientd process was killed while it had the volume.
    ClientKilled = "client killed", true;
    /// Another one took over its device.
    DeviceTakenOver = "device taken over from a killed client", true;
    /// A request that the killed one had not answered was issued again.
    Reissued = "request of a killed client issued again", true;
    /// It could not, because unflushed data was lost meanwhile, or the volume was elsewhere.
    DeviceLost = "device of a killed client lost", true;
    /// A storaged process was killed.
    StoreKilled = "store killed", true;
    /// A storage server lost power.
    PowerLost = "store lost power", true;
    /// All storage servers lost power at once.
    PowerLostEverywhere = "all stores lost power", true;
    /// A storaged was stopped in order.
    StoreStopped = "store stopped in order", true;
    /// A store ended its process because it could not be trusted any more.
    StorePoisoned = "store poisoned", true;
    /// A store did not open and was tried again.
    StoreNotOpened = "store not opened", false;
    /// A store came back blank.
    StoreWiped = "store wiped", true;
    /// A store took in what its disk had become larger by.
    StoreGrown = "store grown", true;
    /// It did, and was killed before anybody heard of it.
    GrownUnheard = "store grown, its word lost", false;
    /// metad committed a snapshot.
    SnapshotMade = "snapshot made", true;
    /// One was complete on every in-sync store.
    SnapshotComplete = "snapshot complete", true;
    /// It was completed by another attachment than the one in which it was made.
    SnapshotResumed = "snapshot completed after its client had gone", true;
    /// A store that was out was given a snapshot that it had missed.
    SnapshotCaughtUp = "snapshot given to a store that was out", true;
    /// A store that was being given snapshots was lost, or who gave them.
    CatchUpInterrupted = "a store was lost while it was given snapshots", true;
    /// A snapshot was deleted while a store that had it was down or out.
    SnapshotDeletedWithoutAll = "snapshot deleted while a store was away", true;
    /// Extents of a deleted snapshot went over to the next generation.
    Merged = "extents of deleted snapshots merged", true;
    /// A storaged was given a volume that nobody had.
    Maintained = "maintenance began", true;
    /// It compared what was marked.
    MaintenanceReconciled = "maintenance reconciled", true;
    /// It brought a replica up to date.
    MaintenanceResilvered = "maintenance resilvered", true;
    /// It removed a member that said itself that its slice was incomplete.
    MaintenanceRemovedBlank = "maintenance removed a blank member", true;
    /// It completed a pending snapshot.
    MaintenanceSnapshot = "maintenance completed a snapshot", true;
    /// It let go in order.
    MaintenanceLetGo = "maintenance let go", true;
    /// It learnt from the stores, or from metad, that another one has the volume.
    MaintenanceFenced = "maintenance fenced", true;
    /// A host was granted the volume while a storaged was at work.
    MaintenanceTakenOver = "host granted a volume under maintenance", true;
    /// It lacked a member.
    MaintenanceFailed = "maintenance ended for lack of a member", true;
    /// Its server was gone, and another one was to go on.
    MaintenanceMoved = "maintenance given to another server", true;
    /// A superseded client's write after a storaged had opened the stores was refused.
    ZombieRefusedByUpkeep = "a write of a client superseded by maintenance was refused", true;
    /// metad came back as it had been some time before.
    Restored = "metad restored from a backup", true;
    /// The stores knew of the membership that was in it.
    FoundAsInBackup = "restored membership confirmed by the stores", true;
    /// They knew of a newer one.
    FoundNewer = "newer membership than restored found on the stores", true;
    /// A source was lost while copies of it waited in the target's disk.
    ChoiceAbandoned = "source lost while its copies waited in a disk", true;
    /// All older members were lost when it had joined, and metad then came back as it had been before.
    LeftAlone = "left alone just after joining", true;
    /// Zeroes came while a blank store was about to join, and its sources did not get to them.
    ZeroedWhileJoining = "zeroed on a blank store only, which then joined", true;
    /// What had failed to be written was written again in the end.
    WrittenAgain = "a block whose write had failed written again in the end", false;
    /// A store lost its medium while nobody had the volume.
    ReplacedWithNobody = "store wiped while nobody had the volume", true;
    /// The volume shows what one of its snapshots shows.
    RolledBack = "rolled back to a snapshot", true;
    /// Another rollback took the place of one that had begun to write.
    RollbackReplaced = "rollback replaced by another", false;
    /// metad was restored while one was under way.
    RollbackAbandoned = "rollback abandoned by a restore", false;
    /// A volume was made of a snapshot.
    Cloned = "clone of a snapshot made", true;
    /// A store that had not been there got a clone's slice brought up to date.
    CloneResilvered = "clone brought up to date on a store that was away", true;
    /// A snapshot went while a clone showed it.
    KeptForClone = "snapshot with clones deleted", true;
    /// A snapshot was deleted because a write into it had failed.
    SnapshotGivenUp = "snapshot with a failed write given up", false;
    /// A disk spoiled a block, silently.
    Spoiled = "a block spoiled on its disk", true;
    /// It wrote a block over another one's place.
    SpoiledByAnother = "a block spoiled by another one's content", true;
    /// A block of a snapshot.
    SpoiledSnapshot = "a block of a snapshot spoiled", true;
    /// Its storaged wrote it again, from another server's replica.
    Healed = "spoiled block healed from another replica", true;
    /// A host wrote to it while another replica was read for it.
    HealRaced = "spoiled block written over while it was to be healed", true;
    /// Another replica had something else than what was written.
    HealRefused = "another replica's content refused for healing", false;
    /// An answer of metad was lost.
    AnswerLost = "answer of metad lost", true;
    /// A command reached metad more than once.
    AskedAgain = "metad asked again", true;
}

/// The counts of a run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<Rare, u64>);

impl Counts {
    /// One more.
    pub(crate) fn note(&mut self, what: Rare) {
        self.add(what, 1);
    }

    /// Some more.
    pub(crate) fn add(&mut self, what: Rare, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    /// How often.
    pub(crate) fn of(&self, what: Rare) -> u64 {
        self.0.get(&what).copied().unwrap_or(0)
    }

    /// Adds those of another run.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, n)| self.add(*what, *n));
    }

    /// Paths that were never taken and must be.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let never = Rare::ALL
            .iter()
            .filter(|r| r.must_happen() && self.of(**r) == 0);
        never.map(|r| r.name()).collect()
    }
}
