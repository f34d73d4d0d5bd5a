//! Vendor admin commands in terms of the store, and its answers in terms of the wire.
//! `docs/protocol.md` describes them byte by byte.

use nvmf::proto::status::Status;
use nvmf::proto::vendor::{self, opcode};
use roaring::RoaringBitmap;
use shardmap::units::{
    BlockRange, Blocks, Epoch, Generation, Lba, MembershipSeq, RegionIndex, VolumeId, WriteTick,
};
use store::{
    GenerationState, Growth, GrowthFault, SliceSpace, SliceState, Stamp, StoreOp, StoreReply,
};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

/// Reads a command. CDW10 (version) to CDW15 as given, `data` as transferred.
pub(crate) fn operation(op: u8, cdws: [u32; 6], data: Option<&[u8]>) -> Result<StoreOp, Status> {
    let [version, cdw11, cdw12, cdw13, cdw14, _] = cdws;
    if version & 0xffff != u32::from(vendor::PROTOCOL_VERSION) {
        return Err(Status::PROTOCOL_VERSION);
    }
    let data = data.unwrap_or_default();
    let long = u64::from(cdw11) | u64::from(cdw12) << 32;
    match op {
        opcode::OPEN_SLICE => {
            let open: vendor::OpenSlice = fixed(data)?;
            let (epoch, volume) = (Epoch(open.epoch.get()), VolumeId(open.volume));
            Ok(StoreOp::OpenSession { epoch, volume })
        }
        opcode::SLICE_STATE => Ok(StoreOp::ReadState),
        opcode::CLOSE_SLICE => Ok(StoreOp::CloseSession),
        opcode::STAMP_SLICE => Ok(StoreOp::Stamp(stamp(data)?)),
        opcode::COMPLETE_SLICE => Ok(StoreOp::Complete(stamp(data)?)),
        opcode::TICK => Ok(StoreOp::Tick),
        opcode::STABLE => Ok(StoreOp::Stable {
            tick: WriteTick(long),
            idle_ticks: cdw13,
            keep_max: cdw14,
        }),
        opcode::READ_MARKS => Ok(StoreOp::ReadMarks {
            from: RegionIndex(cdw11),
        }),
        opcode::ADD_MARKS => {
            let regions =
                RoaringBitmap::deserialize_from(data).map_err(|_| Status::INVALID_FIELD)?;
            Ok(StoreOp::AddMarks { regions })
        }
        opcode::READ_PRESENCE => Ok(StoreOp::ReadPresence {
            from: RegionIndex(cdw11),
            regions: cdw12,
            after: Generation(cdw13),
            upto: Generation(cdw14),
            shown: false,
        }),
        opcode::READ_SHOWN => Ok(StoreOp::ReadPresence {
            from: RegionIndex(cdw11),
            regions: cdw12,
            after: Generation(0),
            upto: Generation(cdw14),
            shown: true,
        }),
        opcode::HASH_RANGE => {
            let range = BlockRange::new(Lba(long), Blocks(cdw13)).ok_or(Status::INVALID_FIELD)?;
            let generation = Generation(cdw14);
            Ok(StoreOp::Hash { range, generation })
        }
        opcode::SET_INCOMPLETE => Ok(StoreOp::SetIncomplete),
        opcode::READ_GENERATIONS => Ok(StoreOp::ReadGenerations),
        opcode::READ_SPACE => Ok(StoreOp::ReadSpace { from: long }),
        opcode::BEGIN_GENERATION => Ok(StoreOp::BeginGeneration(Generation(cdw11))),
        opcode::COMPLETE_GENERATION => Ok(StoreOp::CompleteGeneration(Generation(cdw11))),
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// Block and generation of a read for healing another replica.
pub(crate) fn replica(cdws: [u32; 6]) -> Result<(Lba, Generation), Status> {
    let [version, low, high, generation, ..] = cdws;
    if version & 0xffff != u32::from(vendor::PROTOCOL_VERSION) {
        return Err(Status::PROTOCOL_VERSION);
    }
    let lba = Lba(u64::from(low) | u64::from(high) << 32);
    Ok((lba, Generation(generation)))
}

/// The store of a growth.
pub(crate) fn store(cdws: [u32; 6]) -> Result<Uuid, Status> {
    if cdws[0] & 0xffff != u32::from(vendor::PROTOCOL_VERSION) {
        return Err(Status::PROTOCOL_VERSION);
    }
    Ok(Uuid::from_bytes(vendor::growth::store(cdws)))
}

/// What came of a growth.
fn growth(outcome: Result<Growth, GrowthFault>) -> Vec<u8> {
    use vendor::growth::{DEVICE, RUNNING, SHRANK, TOO_LARGE, TOO_LITTLE, TOO_OFTEN};
    let mut wire = vendor::StoreGrowth {
        version: vendor::PROTOCOL_VERSION.into(),
        ..vendor::StoreGrowth::default()
    };
    let sizes = match outcome {
        Ok(growth) => {
            wire.capacity_bytes_before = growth.capacity_bytes_before.into();
            wire.capacity_bytes = growth.capacity_bytes.into();
            (0, growth.device_bytes_before, growth.device_bytes)
        }
        Err(GrowthFault::TooLittle {
            device_bytes,
            used_bytes,
        }) => (TOO_LITTLE, used_bytes, device_bytes),
        Err(GrowthFault::Shrank {
            device_bytes,
            used_bytes,
        }) => (SHRANK, used_bytes, device_bytes),
        Err(GrowthFault::TooOften) => (TOO_OFTEN, 0, 0),
        Err(GrowthFault::TooLarge { device_bytes }) => (TOO_LARGE, 0, device_bytes),
        Err(GrowthFault::Running) => (RUNNING, 0, 0),
        Err(GrowthFault::Device { errno }) => {
            wire.errno = errno.unsigned_abs().into();
            (DEVICE, 0, 0)
        }
    };
    wire.refusal = sizes.0.into();
    wire.device_bytes_before = sizes.1.into();
    wire.device_bytes = sizes.2.into();
    wire.as_bytes().to_vec()
}

/// The answer to a growth that is refused: told in full, at most `reply_bytes_max`.
pub(crate) fn refused_growth(
    fault: GrowthFault,
    reply_bytes_max: u32,
) -> Result<(u64, Vec<u8>), Status> {
    fitting((0, growth(Err(fault))), reply_bytes_max)
}

fn fixed<T: FromBytes>(data: &[u8]) -> Result<T, Status> {
    let (value, _) = T::read_from_prefix(data).map_err(|_| Status::SGL_LENGTH_INVALID)?;
    Ok(value)
}

fn stamp(data: &[u8]) -> Result<Stamp, Status> {
    let wire: vendor::SliceStamp = fixed(data)?;
    Ok(Stamp {
        seq: MembershipSeq(wire.seq.get()),
        in_sync: wire.isr.get(),
        members: wire.members.get(),
    })
}

/// Writes an answer: the completion's result dwords and the data, at most `reply_bytes_max`.
///
/// Bitmaps that have a continuation put the next region, plus one, into the result; zero means
/// that nothing follows.
pub(crate) fn answer(
    op: u8,
    reply: &StoreReply,
    reply_bytes_max: u32,
) -> Result<(u64, Vec<u8>), Status> {
    let told = match reply {
        StoreReply::Done | StoreReply::Healed(_) => (0, Vec::new()),
        StoreReply::Grown(grown) => (0, growth(Ok(*grown))),
        StoreReply::Read(block) => (0, block.bytes().to_vec()),
        StoreReply::Generations(all) => (0, all.iter().flat_map(generation).collect()),
        StoreReply::Space(part) => (part.next.unwrap_or(0), space(part)),
        StoreReply::State(state) if op == opcode::OPEN_SLICE => (state.incarnation.0, Vec::new()),
        StoreReply::State(state) => (0, state_of(state).as_bytes().to_vec()),
        StoreReply::Tick(tick) => (tick.0, Vec::new()),
        StoreReply::Stable { marks_left } => (*marks_left, Vec::new()),
        StoreReply::Marks { regions, next } => (continuation(*next), bitmap(regions)),
        StoreReply::Presence { blocks, next } => (continuation(*next), bitmap(blocks)),
        StoreReply::Hashes(hashes) => (0, hashes.iter().flat_map(|h| h.to_le_bytes()).collect()),
    };
    fitting(told, reply_bytes_max)
}

/// An answer, unless it has more data than the host has room for.
fn fitting(told: (u64, Vec<u8>), reply_bytes_max: u32) -> Result<(u64, Vec<u8>), Status> {
    if told.1.len() > reply_bytes_max as usize {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    Ok(told)
}

fn continuation(next: Option<RegionIndex>) -> u64 {
    next.map_or(0, |region| u64::from(region.0) + 1)
}

fn bitmap(set: &RoaringBitmap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(set.serialized_size());
    set.serialize_into(&mut bytes)
        .expect("writing to memory cannot fail");
    bytes
}

fn generation(state: &GenerationState) -> Vec<u8> {
    let pending = u32::from(state.pending) * vendor::GENERATION_PENDING;
    let wire = vendor::SliceGeneration {
        generation: state.generation.0.into(),
        flags: pending.into(),
    };
    wire.as_bytes().to_vec()
}

fn space(part: &SliceSpace) -> Vec<u8> {
    let count = u32::try_from(part.exclusive.len()).expect("as many as there are snapshots");
    let head = vendor::SliceSpace {
        version: vendor::PROTOCOL_VERSION.into(),
        flags: 0.into(),
        exclusive_count: count.into(),
        live_bytes: part.live_bytes.into(),
        snapshots_bytes: part.snapshots_bytes.into(),
        reclaimable_bytes: part.reclaimable_bytes.into(),
    };
    let mut bytes = head.as_bytes().to_vec();
    for (generation, freed) in &part.exclusive {
        let entry = vendor::SpaceExclusive {
            generation: generation.0.into(),
            reserved: 0.into(),
            bytes: (*freed).into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes
}

fn state_of(state: &SliceState) -> vendor::SliceState {
    let mut flags = 0;
    if state.clean {
        flags |= vendor::STATE_CLEAN;
    }
    if state.incomplete {
        flags |= vendor::STATE_INCOMPLETE;
    }
    vendor::SliceState {
        version: vendor::PROTOCOL_VERSION.into(),
        flags: flags.into(),
        reserved0: 0.into(),
        incarnation: state.incarnation.0.into(),
        lost_at: state.lost_at.0.into(),
        epoch: state.epoch.0.into(),
        stamp_seq: state.stamp.seq.0.into(),
        stamp_isr: state.stamp.in_sync.into(),
        stamp_members: state.stamp.members.into(),
        head_generation: state.head.0.into(),
        mark_count: u32::try_from(state.mark_count).unwrap_or(u32::MAX).into(),
        tick: state.tick.0.into(),
        snapshot_count: state.snapshot_count.into(),
        reserved: [0; 52],
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const OURS: u32 = vendor::PROTOCOL_VERSION as u32;

    #[test]
    fn another_protocol_version_is_refused_before_anything_is_read() {
        let refused = operation(opcode::TICK, [1, 0, 0, 0, 0, 0], None).unwrap_err();
        assert_eq!(refused, Status::PROTOCOL_VERSION);
    }

    #[test]
    fn short_data_is_refused() {
        let cdws = [OURS, 0, 0, 0, 0, 0];
        let refused = operation(opcode::OPEN_SLICE, cdws, Some(&[0; 63])).unwrap_err();
        assert_eq!(refused, Status::SGL_LENGTH_INVALID);
        assert!(operation(opcode::ADD_MARKS, cdws, Some(&[1, 2, 3])).is_err());
    }

    #[test]
    fn open_carries_epoch_and_volume() {
        let open = vendor::OpenSlice {
            version: vendor::PROTOCOL_VERSION.into(),
            flags: 0.into(),
            reserved: 0.into(),
            epoch: 77.into(),
            volume: [9; 16],
            ticket: [0; 32],
        };
        let op = operation(
            opcode::OPEN_SLICE,
            [OURS, 0, 0, 0, 0, 0],
            Some(open.as_bytes()),
        );
        let Ok(StoreOp::OpenSession { epoch, volume }) = op else {
            panic!("{op:?}")
        };
        assert_eq!((epoch, volume), (Epoch(77), VolumeId([9; 16])));
    }

    #[test]
    fn generations_are_named_in_dwords_and_told_as_entries() {
        let cdws = [OURS, 3, 2, 5, 6, 0];
        let op = operation(opcode::READ_PRESENCE, cdws, None);
        let Ok(StoreOp::ReadPresence { after, upto, .. }) = op else {
            panic!("{op:?}")
        };
        assert_eq!((after, upto), (Generation(5), Generation(6)));
        let op = operation(opcode::READ_SHOWN, cdws, None);
        let Ok(StoreOp::ReadPresence {
            after, upto, shown, ..
        }) = op
        else {
            panic!("{op:?}")
        };
        assert_eq!((after, upto, shown), (Generation(0), Generation(6), true));
        let op = operation(opcode::HASH_RANGE, [OURS, 0, 0, 16, 6, 0], None);
        assert!(matches!(
            op,
            Ok(StoreOp::Hash {
                generation: Generation(6),
                ..
            })
        ));
        let op = operation(opcode::BEGIN_GENERATION, cdws, None);
        assert!(matches!(op, Ok(StoreOp::BeginGeneration(Generation(3)))));
        let op = operation(opcode::COMPLETE_GENERATION, cdws, None);
        assert!(matches!(op, Ok(StoreOp::CompleteGeneration(Generation(3)))));
        let state = |generation, pending| GenerationState {
            generation: Generation(generation),
            pending,
            used_blocks: 0,
        };
        let all = StoreReply::Generations(vec![state(2, true), state(3, false)]);
        let (result, data) = answer(opcode::READ_GENERATIONS, &all, 4096).unwrap();
        assert_eq!(
            (result, &data[..]),
            (0, &[2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..])
        );
    }

    #[test]
    fn space_is_told_with_what_each_snapshot_keeps() {
        let op = operation(opcode::READ_SPACE, [OURS, 5, 1, 0, 0, 0], None);
        let Ok(StoreOp::ReadSpace { from }) = op else {
            panic!("{op:?}")
        };
        assert_eq!(from, (1 << 32) + 5);
        let part = SliceSpace {
            live_bytes: 1,
            snapshots_bytes: 2,
            reclaimable_bytes: 3,
            exclusive: vec![(Generation(4), 65536)],
            next: Some(77),
        };
        let reply = StoreReply::Space(part);
        let (result, data) = answer(opcode::READ_SPACE, &reply, 4096).unwrap();
        let words: Vec<u64> = data
            .chunks(8)
            .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(
            (result, &words[..]),
            (77, &[2 | 1 << 32, 1, 2, 3, 4, 65536][..])
        );
    }

    #[test]
    fn a_growth_names_its_store_and_tells_sizes_or_why_not() {
        let uuid = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let cdws = vendor::growth::cdw10_15(*uuid.as_bytes());
        assert_eq!(
            cdws,
            [OURS, 0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d, 0]
        );
        assert_eq!(store(cdws), Ok(uuid));
        assert_eq!(store([1, 0, 0, 0, 0, 0]), Err(Status::PROTOCOL_VERSION));
        let words = |bytes: &[u8]| -> Vec<u64> {
            let words = bytes.chunks(8);
            words
                .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
                .collect()
        };
        let grown = Growth {
            device_bytes_before: 1,
            device_bytes: 2,
            capacity_bytes_before: 3,
            capacity_bytes: 4,
        };
        let reply = StoreReply::Grown(grown);
        let (result, data) = answer(opcode::GROW_STORE, &reply, 48).unwrap();
        assert_eq!((result, words(&data)), (0, vec![2, 1, 2, 3, 4, 0]));
        let short = Err(Status::SGL_LENGTH_INVALID);
        assert_eq!(answer(opcode::GROW_STORE, &reply, 47), short);
        let refused = GrowthFault::TooLittle {
            device_bytes: 7,
            used_bytes: 6,
        };
        let (result, data) = refused_growth(refused, 48).unwrap();
        assert_eq!(
            (result, words(&data)),
            (0, vec![2 | 1 << 32, 6, 7, 0, 0, 0])
        );
        assert_eq!(refused_growth(refused, 47), short);
        let failed = GrowthFault::Device { errno: 5 };
        assert_eq!(words(&growth(Err(failed))), [2 | 6 << 32, 0, 0, 0, 0, 5]);
    }

    #[test]
    fn a_long_answer_says_where_to_go_on() {
        let regions: RoaringBitmap = (5..9).collect();
        let reply = StoreReply::Marks {
            regions: regions.clone(),
            next: Some(RegionIndex(0)),
        };
        let (result, data) = answer(opcode::READ_MARKS, &reply, 4096).unwrap();
        assert_eq!(result, 1);
        assert_eq!(RoaringBitmap::deserialize_from(&data[..]).unwrap(), regions);
        let last = StoreReply::Marks {
            regions,
            next: None,
        };
        assert_eq!(answer(opcode::READ_MARKS, &last, 4096).unwrap().0, 0);
        assert!(answer(opcode::READ_MARKS, &last, 4).is_err());
    }
}
