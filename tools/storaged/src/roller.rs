//! Rolls back the volume that is here to be brought up to date: opens views of the two snapshots beside it
//! and carries out what [`Rolling`] asks for, as a client of all three.

use crate::rollback::{Ask, PIECES_MAX, Rolling};
use control::core::Rollback;
use reactor::{Buf, Driver};
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::units::{BLOCK_BYTES, BlockRange, Epoch, Generation, VolumeId};
use std::collections::{BTreeMap, BTreeSet};
use volume::{
    AttachFault, AttachGrant, HostBuffer, HostFault, HostOp, HostRequest, ViewGrant, VolumeEvent,
    Volumes,
};

/// Large arena slots that it may hold.
pub(crate) const SLOTS: usize = PIECES_MAX;
/// Name of a request that is no piece's.
const NO_PIECE: u64 = 0;
/// Least time between two words of how far it is.
const PROGRESS_NS: u64 = 1_000_000_000;

/// What has come of it.
#[derive(Debug)]
pub(crate) enum Told {
    /// So many hundredths are done.
    Progress(u64),
    /// The volume shows what it is to show, durably, under this epoch.
    Done(Epoch, Rollback),
    /// It cannot go on.
    Failed(String),
}

#[derive(Debug)]
enum Stage {
    /// For the volume to serve, and `before` to be complete.
    Waiting,
    /// For so many views.
    Opening(u8),
    Rolling(Rolling),
    Done,
    /// It failed, or something else is to be done.
    Over,
}

#[derive(Debug)]
struct Job {
    grant: AttachGrant,
    rollback: Rollback,
    stage: Stage,
    /// Pieces that were read, until they are written.
    read: BTreeMap<u64, Buf>,
    told_at_ns: u64,
}

impl Job {
    /// What a view of one of its snapshots is called here.
    fn view_id(&self, generation: Generation) -> VolumeId {
        let mark = if generation == self.rollback.to { 1 } else { 2 };
        VolumeId(self.grant.volume.0.map(|byte| byte ^ mark))
    }

    fn views(&self) -> [VolumeId; 2] {
        [self.rollback.to, self.rollback.before].map(|g| self.view_id(g))
    }

    fn view(&self, generation: Generation) -> ViewGrant {
        ViewGrant {
            id: self.view_id(generation),
            map: self.grant.map.clone(),
            generation,
            slices: self.grant.slices.clone(),
            attach_wait_ms: self.grant.options.attach_wait_ms,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Roller {
    job: Option<Job>,
    /// Open, or on their way in or out.
    views: BTreeSet<VolumeId>,
    told: Vec<(VolumeId, Told)>,
}

impl Roller {
    /// The volume of this grant is being attached and is to be rolled back.
    pub(crate) fn begin(&mut self, grant: &AttachGrant, rollback: Rollback) {
        self.job = Some(Job {
            grant: grant.clone(),
            rollback,
            stage: Stage::Waiting,
            read: BTreeMap::new(),
            told_at_ns: 0,
        });
    }

    /// Whether the volume is being rolled back, and has a snapshot since: nothing more is begun for it.
    pub(crate) fn stops_for(&mut self, volume: VolumeId, now: &VolumeGenerations) -> bool {
        let writes =
            |job: &&mut Job| job.grant.volume == volume && !matches!(job.stage, Stage::Done);
        let job = self.job.as_mut().filter(writes);
        let Some(job) = job.filter(|j| j.grant.generations.head != now.head) else {
            return false;
        };
        job.stage = Stage::Over;
        true
    }

    /// The volume goes. True if requests of the roller may be outstanding, which may be held for long.
    pub(crate) fn end(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        volume: VolumeId,
    ) -> bool {
        let Some(job) = self.job.take_if(|job| job.grant.volume == volume) else {
            return false;
        };
        close(io, volumes, &job);
        !matches!(job.stage, Stage::Waiting | Stage::Opening(_) | Stage::Done)
    }

    /// Whether it has a view of that name.
    pub(crate) fn has_view(&self, id: VolumeId) -> bool {
        self.views.contains(&id)
    }

    /// What has come of it since, and of which volume.
    pub(crate) fn take_told(&mut self) -> Vec<(VolumeId, Told)> {
        std::mem::take(&mut self.told)
    }

    /// Takes the events that are its own; gives others back. After them [`Self::go_on`].
    pub(crate) fn on_event(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        event: VolumeEvent,
    ) -> Option<VolumeEvent> {
        match event {
            VolumeEvent::HostDone {
                volume,
                id,
                result,
                buffer,
            } => {
                self.on_done(io, volumes, (volume, id), result, buffer);
                None
            }
            VolumeEvent::Attached { volume } if self.views.contains(&volume) => {
                self.on_view_open();
                None
            }
            VolumeEvent::AttachFailed { volume, why, .. } if self.views.remove(&volume) => {
                if why != AttachFault::Detached {
                    self.fail(io, volumes, format!("a snapshot cannot be read: {why}"));
                }
                None
            }
            VolumeEvent::Detached { volume } if self.views.remove(&volume) => None,
            VolumeEvent::Transition { volume, .. } if self.views.contains(&volume) => None,
            event @ (VolumeEvent::Attached { .. }
            | VolumeEvent::AttachFailed { .. }
            | VolumeEvent::AskMetad { .. }
            | VolumeEvent::AskVerify { .. }
            | VolumeEvent::Remember { .. }
            | VolumeEvent::Snapshot { .. }
            | VolumeEvent::Detached { .. }
            | VolumeEvent::Failed { .. }
            | VolumeEvent::Progress { .. }
            | VolumeEvent::Resilvered { .. }
            | VolumeEvent::Transition { .. }) => Some(event),
        }
    }

    fn on_view_open(&mut self) {
        let Some(job) = &mut self.job else { return };
        match &mut job.stage {
            Stage::Opening(left @ 2..) => *left -= 1,
            Stage::Opening(_) => {
                let size_blocks = job.grant.map.size_blocks;
                job.stage = Stage::Rolling(Rolling::new(size_blocks));
            }
            Stage::Waiting | Stage::Rolling(_) | Stage::Done | Stage::Over => {}
        }
    }

    /// There may be room now for what could not be read.
    pub(crate) fn retry(&mut self, io: &mut dyn Driver, volumes: &mut Volumes) {
        if matches!(&self.job, Some(job) if matches!(job.stage, Stage::Rolling(_))) {
            self.roll(io, volumes);
        }
    }

    /// Does what can be done now that the volume has changed.
    pub(crate) fn go_on(&mut self, io: &mut dyn Driver, volumes: &mut Volumes) {
        let Some(job) = &mut self.job else { return };
        match &mut job.stage {
            Stage::Waiting => self.open(io, volumes),
            Stage::Rolling(_) => self.roll(io, volumes),
            Stage::Opening(_) | Stage::Done | Stage::Over => {}
        }
    }

    fn open(&mut self, io: &mut dyn Driver, volumes: &mut Volumes) {
        if !self.views.is_empty() {
            return; // those of the job before, on their way out
        }
        let Some(job) = &mut self.job else { return };
        let Some(status) = volumes.status(job.grant.volume) else {
            return;
        };
        let before = status.generations.snapshots.get(&job.rollback.before);
        if !status.serving || before != Some(&SnapshotState::Complete) {
            return;
        }
        job.stage = Stage::Opening(2);
        let views = [job.rollback.to, job.rollback.before].map(|g| job.view(g));
        for view in views {
            if let Err(fault) = volumes.open_view(io, &view) {
                return self.fail(io, volumes, fault.to_string());
            }
            self.views.insert(view.id);
        }
    }

    fn roll(&mut self, io: &mut dyn Driver, volumes: &mut Volumes) {
        while let Some(job) = &mut self.job
            && let Stage::Rolling(rolling) = &mut job.stage
            && let Some(ask) = rolling.next_ask()
        {
            let (to, before) = (job.rollback.to, job.rollback.before);
            let (id, op, of) = match ask {
                Ask::Differing(from) => {
                    let op = HostOp::Changes { from, after: to };
                    (NO_PIECE, op, job.view_id(before))
                }
                Ask::Shown(from) => {
                    let after = Generation(0);
                    (NO_PIECE, HostOp::Changes { from, after }, job.view_id(to))
                }
                Ask::Read(id, range) => {
                    let Some(into) = io.arena().take(len_bytes(range)) else {
                        return rolling.put_back(id); // until something ends
                    };
                    (id, HostOp::Read { range, into }, job.view_id(to))
                }
                Ask::Write(id, range) => {
                    let data = job.read.remove(&id).expect("it was read");
                    let fua = false;
                    (id, HostOp::Write { range, data, fua }, job.grant.volume)
                }
                Ask::Zero(id, range) => (id, HostOp::Discard { range }, job.grant.volume),
                Ask::Flush => (NO_PIECE, HostOp::Flush, job.grant.volume),
            };
            let request = HostRequest { volume: of, id, op };
            if let Err(refused) = volumes.submit(io, request) {
                return self.fail(io, volumes, refused.why.to_string());
            }
        }
    }

    fn on_done(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        (of, id): (VolumeId, u64),
        result: Result<(), HostFault>,
        buffer: HostBuffer,
    ) {
        let Some(job) = &mut self.job else { return };
        let is_ours = of == job.grant.volume || job.views().contains(&of);
        let Stage::Rolling(rolling) = &mut job.stage else {
            return; // it failed meanwhile
        };
        if !is_ours {
            return; // of the job before
        }
        if let Err(fault) = result {
            let what = if of == job.grant.volume {
                "the volume"
            } else {
                "a snapshot"
            };
            return self.fail(io, volumes, format!("{what}: {fault}"));
        }
        match buffer {
            HostBuffer::Changes(blocks) => rolling.on_blocks(blocks),
            HostBuffer::Read(data) => {
                let is_zero = volume::is_zero(data.bytes());
                if !is_zero {
                    job.read.insert(id, data.freeze());
                }
                rolling.on_read(id, is_zero);
            }
            HostBuffer::Write(_) | HostBuffer::None if id != NO_PIECE => rolling.on_written(id),
            HostBuffer::Write(_) | HostBuffer::None => rolling.on_flushed(),
        }
        if rolling.is_done() {
            let done = Told::Done(job.grant.epoch, job.rollback);
            self.told.push((job.grant.volume, done));
            job.stage = Stage::Done;
            return close(io, volumes, job);
        }
        let now_ns = io.now_ns();
        if now_ns >= job.told_at_ns + PROGRESS_NS {
            job.told_at_ns = now_ns;
            let told = Told::Progress(rolling.percent());
            self.told.push((job.grant.volume, told));
        }
    }

    fn fail(&mut self, io: &mut dyn Driver, volumes: &mut Volumes, why: String) {
        let Some(job) = &mut self.job else { return };
        job.stage = Stage::Over;
        job.read.clear();
        close(io, volumes, job);
        self.told.push((job.grant.volume, Told::Failed(why)));
    }
}

/// Closes its views; one that is not open needs no more.
fn close(io: &mut dyn Driver, volumes: &mut Volumes, job: &Job) {
    for view in job.views() {
        volumes.detach(io, view);
    }
}

fn len_bytes(range: BlockRange) -> u32 {
    range.blocks().0 * BLOCK_BYTES
}
