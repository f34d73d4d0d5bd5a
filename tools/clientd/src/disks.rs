//! The block devices of attached volumes: requests of the kernel become requests to the volume.

use crate::config::UblkKnobs;
use reactor::{Completion, Driver};
use shardmap::units::{BLOCK_BYTES, BlockRange, Blocks, Lba, VolumeId};
use std::collections::BTreeMap;
use ublk::{Device, DeviceConfig, DeviceSpec, Fault, RequestOp, TagIndex, UblkEvent};
use uuid::Uuid;
use volume::{HostBuffer, HostFault, HostOp, HostRequest, Volumes};

/// The number that the kernel keeps with a device of ours: whose and which volume it is. Another
/// clientd on this machine leaves it alone.
pub(crate) fn mark_of(host: Uuid, volume: VolumeId) -> u64 {
    let half = |bytes: &[u8; 16]| {
        let (head, _) = bytes.split_first_chunk::<8>().expect("a UUID has 16 bytes");
        u64::from_le_bytes(*head)
    };
    half(host.as_bytes()) ^ half(&volume.0)
}

// What the kernel may hand us as one request, a volume takes as one operation.
const _: () = assert!(ublk::limits::IO_BYTES_MAX == volume::limits::IO_BLOCKS_MAX * BLOCK_BYTES);
const _: () =
    assert!(ublk::limits::RANGE_BYTES_MAX == volume::limits::ZERO_BLOCKS_MAX * BLOCK_BYTES);

/// One device.
#[derive(Debug)]
struct Disk {
    volume: VolumeId,
    device: Device,
}

/// All devices of this host.
#[derive(Debug)]
pub(crate) struct Disks {
    room: u8,
    host: Uuid,
    knobs: UblkKnobs,
    /// By token index; indices are not used again within a life.
    disks: BTreeMap<u32, Disk>,
    next_index: u32,
    scratch: Vec<UblkEvent>,
}

/// What the app must know of a device.
#[derive(Debug)]
pub(crate) enum DiskNews {
    /// The disk can be used.
    Live(VolumeId, String),
    /// It would not stop; it serves on.
    StopRefused(VolumeId, String),
    /// It is gone.
    Gone(VolumeId),
    /// It has grown.
    Grown(VolumeId),
    /// It keeps its size.
    NotGrown(VolumeId, String),
    /// It failed and is gone.
    Failed(VolumeId, String),
}

impl Disks {
    /// No devices yet. `host` is this clientd's identity.
    pub(crate) fn new(room: u8, host: Uuid, knobs: UblkKnobs) -> Self {
        Self {
            room,
            host,
            knobs,
            disks: BTreeMap::new(),
            next_index: 0,
            scratch: Vec::new(),
        }
    }

    /// What the device of a volume is marked with.
    pub(crate) fn mark_of(&self, volume: VolumeId) -> u64 {
        mark_of(self.host, volume)
    }

    /// Makes the device of a volume, or takes over the one that an earlier clientd left.
    pub(crate) fn open(
        &mut self,
        io: &mut dyn Driver,
        volume: VolumeId,
        (size_blocks, read_only): (u64, bool),
        left_behind: Option<u32>,
    ) -> Result<(), String> {
        let (room, index) = (self.room, self.next_index);
        self.next_index += 1;
        let mark = self.mark_of(volume);
        let opened = match left_behind {
            Some(device) => Device::recover(io, room, index, device, mark),
            None => {
                let spec = DeviceSpec {
                    wanted_id: None,
                    size_blocks,
                    queue_count: self.knobs.queue_count,
                    queue_depth: self.knobs.queue_depth,
                    read_only,
                    boundary_blocks: None,
                    mark,
                };
                Device::create(io, DeviceConfig { room, index, spec })
            }
        };
        let device = opened.map_err(|error| error.to_string())?;
        self.disks.insert(index, Disk { volume, device });
        Ok(())
    }

    /// Whether the device of a volume can be used.
    pub(crate) fn is_live(&self, volume: VolumeId) -> bool {
        let mut disks = self.disks.values();
        disks.any(|disk| disk.volume == volume && disk.device.size_blocks() > 0)
    }

    /// Asks the device of a volume to grow, if it is smaller; [`DiskNews::Grown`] or
    /// [`DiskNews::NotGrown`] follows.
    ///
    /// # Errors
    /// A sentence, if it cannot be asked now.
    pub(crate) fn grow(&mut self, volume: VolumeId, size_blocks: u64) -> Result<(), String> {
        let disk = self.disks.values_mut().find(|disk| disk.volume == volume);
        let disk = disk.ok_or("there is no device")?;
        if size_blocks <= disk.device.size_blocks() {
            return Ok(());
        }
        disk.device.grow(size_blocks).map_err(|e| e.to_string())
    }

    fn index_of(&self, volume: VolumeId) -> Option<u32> {
        self.disks
            .iter()
            .find(|(_, disk)| disk.volume == volume)
            .map(|(index, _)| *index)
    }

    /// Asks the device of a volume to go; false if there is none.
    pub(crate) fn stop(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        volume: VolumeId,
        force: bool,
        news: &mut Vec<DiskNews>,
    ) -> bool {
        let Some(index) = self.index_of(volume) else {
            return false;
        };
        let mut events = std::mem::take(&mut self.scratch);
        if let Some(disk) = self.disks.get_mut(&index) {
            disk.device.stop(io, force, &mut events);
        }
        self.handle(io, volumes, index, events, news);
        true
    }

    /// A completion of a device.
    pub(crate) fn on_completion(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        completion: Completion,
        news: &mut Vec<DiskNews>,
    ) {
        let index = completion.token.index;
        let Some(disk) = self.disks.get_mut(&index) else {
            return;
        };
        let mut events = std::mem::take(&mut self.scratch);
        disk.device.on_completion(io, completion, &mut events);
        self.handle(io, volumes, index, events, news);
    }

    /// Requests that waited for a buffer try again.
    pub(crate) fn on_turn_end(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        news: &mut Vec<DiskNews>,
    ) {
        let indices: Vec<u32> = self.disks.keys().copied().collect();
        for index in indices {
            let mut events = std::mem::take(&mut self.scratch);
            if let Some(disk) = self.disks.get_mut(&index) {
                disk.device.on_turn_end(io, &mut events);
            }
            self.handle(io, volumes, index, events, news);
        }
    }

    /// A request of the host has ended.
    pub(crate) fn complete(
        &mut self,
        io: &mut dyn Driver,
        volume: VolumeId,
        id: u64,
        result: Result<(), HostFault>,
        buffer: HostBuffer,
    ) {
        let (index, tag) = split(id);
        let Some(disk) = self.disks.get_mut(&index) else {
            return tracing::debug!(%volume, id, "an answer for a device that is gone");
        };
        let data = match (result, buffer) {
            (Ok(()), HostBuffer::Read(into)) => Some(into.freeze()),
            (Ok(()) | Err(_), _) => None,
        };
        disk.device
            .complete(io, tag, result.map_err(fault_of), data);
    }

    fn handle(
        &mut self,
        io: &mut dyn Driver,
        volumes: &mut Volumes,
        index: u32,
        mut events: Vec<UblkEvent>,
        news: &mut Vec<DiskNews>,
    ) {
        for event in events.drain(..) {
            let Some(disk) = self.disks.get_mut(&index) else {
                break;
            };
            let volume = disk.volume;
            match event {
                UblkEvent::Request { tag, op } => submit(io, volumes, disk, index, tag, op),
                UblkEvent::Live { path, .. } => {
                    news.push(DiskNews::Live(volume, path.display().to_string()));
                }
                UblkEvent::StopRefused { error } => {
                    news.push(DiskNews::StopRefused(volume, error.to_string()));
                }
                UblkEvent::Grown { size_blocks } => {
                    tracing::info!(%volume, size_blocks, "the device has grown");
                    news.push(DiskNews::Grown(volume));
                }
                UblkEvent::GrowFailed { error } => {
                    tracing::error!(%volume, %error, "the device could not grow");
                    news.push(DiskNews::NotGrown(volume, error.to_string()));
                }
                UblkEvent::Stopped => {
                    self.disks.remove(&index);
                    news.push(DiskNews::Gone(volume));
                }
                UblkEvent::Failed { error, must_exit } => {
                    assert!(
                        !must_exit,
                        "{volume}: {error}; the next clientd takes the device over"
                    );
                    self.disks.remove(&index);
                    news.push(DiskNews::Failed(volume, error.to_string()));
                }
            }
        }
        self.scratch = events;
    }
}

/// A request's name towards the volume: device and tag.
fn join(index: u32, tag: TagIndex) -> u64 {
    u64::from(index) << 32 | u64::from(tag.0)
}

fn split(id: u64) -> (u32, TagIndex) {
    let part = |n: u64| u32::try_from(n & u64::from(u32::MAX)).expect("masked");
    (part(id >> 32), TagIndex(part(id)))
}

fn submit(
    io: &mut dyn Driver,
    volumes: &mut Volumes,
    disk: &mut Disk,
    index: u32,
    tag: TagIndex,
    op: RequestOp,
) {
    let Some(op) = host_op(op) else {
        return disk.device.complete(io, tag, Err(Fault::Io), None);
    };
    let request = HostRequest {
        volume: disk.volume,
        id: join(index, tag),
        op,
    };
    if let Err(refused) = volumes.submit(io, request) {
        // Queue depths are below the volume's limit, so only a volume that is gone refuses.
        tracing::error!(volume = %disk.volume, why = %refused.why, "request not taken");
        disk.device.complete(io, tag, Err(Fault::Io), None);
    }
}

fn host_op(op: RequestOp) -> Option<HostOp> {
    let range = |first_block, blocks| BlockRange::new(Lba(first_block), Blocks(blocks));
    Some(match op {
        RequestOp::Read {
            first_block,
            blocks,
            into,
        } => HostOp::Read {
            range: range(first_block, blocks)?,
            into,
        },
        RequestOp::Write {
            first_block,
            blocks,
            fua,
            data,
        } => HostOp::Write {
            range: range(first_block, blocks)?,
            data,
            fua,
        },
        RequestOp::Flush => HostOp::Flush,
        RequestOp::Discard {
            first_block,
            blocks,
        } => HostOp::Discard {
            range: range(first_block, blocks)?,
        },
        RequestOp::WriteZeroes {
            first_block,
            blocks,
            no_unmap,
            fua,
        } => HostOp::Zero {
            range: range(first_block, blocks)?,
            no_unmap,
            fua,
        },
    })
}

/// What a volume's fault is called towards the kernel.
fn fault_of(fault: HostFault) -> Fault {
    match fault {
        HostFault::NoSpace => Fault::NoSpace,
        HostFault::Medium
        | HostFault::Range
        | HostFault::ReadOnly
        | HostFault::Failed
        | HostFault::NotAttached => Fault::Io,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn device_and_tag_survive_the_request_id() {
        let id = join(7, TagIndex(127));
        assert_eq!(split(id), (7, TagIndex(127)));
    }

    #[test]
    fn two_hosts_mark_a_volume_differently_and_one_host_two_volumes() {
        let (host, other) = (Uuid::from_u128(1 << 100), Uuid::from_u128(2 << 100));
        let (one, two) = (VolumeId([1; 16]), VolumeId([2; 16]));
        assert_ne!(mark_of(host, one), mark_of(other, one));
        assert_ne!(mark_of(host, one), mark_of(host, two));
    }

    #[test]
    fn only_a_full_store_is_no_space() {
        assert_eq!(fault_of(HostFault::NoSpace), Fault::NoSpace);
        assert_eq!(fault_of(HostFault::Medium), Fault::Io);
    }
}
