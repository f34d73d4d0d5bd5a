//! What a load is put on.

mod target;
mod volume;

pub(crate) use target::{TargetEngine, TargetOptions};
pub(crate) use volume::{VolumeEngine, VolumeOptions};

use crate::pattern::Way;
use reactor::{Buf, BufMut, Completion, Driver};

/// Room of the load's own timers and of the mailbox.
pub(crate) const ROOM_LOAD: u8 = 1;
/// Room of the initiator.
pub(crate) const ROOM_INITIATOR: u8 = 2;
/// Room of the volume core's timers.
pub(crate) const ROOM_VOLUMES: u8 = 3;

/// The bytes of a request; used again and again.
#[derive(Debug)]
pub(crate) enum Body {
    /// To be filled.
    Read(BufMut),
    /// To be written.
    Write(Buf),
}

impl Body {
    /// Which way it goes.
    pub(crate) const fn way(&self) -> Way {
        match self {
            Self::Read(_) => Way::Read,
            Self::Write(_) => Way::Write,
        }
    }
}

/// One request.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Comes back with the completion.
    pub(crate) slot: u32,
    /// First block.
    pub(crate) lba: u64,
    /// Blocks.
    pub(crate) blocks: u32,
    pub(crate) body: Body,
}

/// What an engine says.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// Requests are taken.
    Ready {
        /// Size of what is measured.
        size_blocks: u64,
    },
    /// A request ended.
    Done {
        slot: u32,
        body: Body,
        /// Why it failed, if it did.
        fault: Option<String>,
    },
    /// The volume has heard of a snapshot that is to be made.
    SnapshotBegan,
    /// It is complete on every in-sync store.
    SnapshotEnded,
    /// A replica is being brought up to date.
    ResilverBegan,
    /// It is in sync.
    ResilverEnded {
        /// What it had missed.
        bytes_missed: u64,
        /// What was copied to it.
        bytes_moved: u64,
    },
    /// It cannot go on.
    Broken(String),
    /// After `stop`: everything is closed.
    Gone,
}

/// What a load is put on.
pub(crate) trait Engine {
    /// Its name in reports.
    const NAME: &'static str;

    /// Connections that requests are spread over, slot by slot.
    fn connections(&self) -> u32;

    /// Begins to connect; ends in [`EngineEvent::Ready`] or [`EngineEvent::Broken`].
    fn start(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>);

    /// Starts a request, or gives it back: there is no room until another one ends.
    fn submit(&mut self, io: &mut dyn Driver, ask: Ask) -> Result<(), Ask>;

    /// A completion that is not of [`ROOM_LOAD`].
    fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        completion: Completion,
        out: &mut Vec<EngineEvent>,
    );

    /// The mailbox rang.
    fn on_rung(&mut self, _io: &mut dyn Driver, _out: &mut Vec<EngineEvent>) {}

    /// Sends what has gathered.
    fn on_turn_end(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>);

    /// Lets go of everything; nothing is in flight. Ends in [`EngineEvent::Gone`].
    fn stop(&mut self, io: &mut dyn Driver, out: &mut Vec<EngineEvent>);
}
