//! Core commands as NVMe requests, NVMe answers as core answers. Tables only; nothing is decided.

use crate::core::{Answer, Command, Fault, Members, SliceFacts, Stamp};
use nvmf::initiator::{Reply, Request};
use nvmf::proto::status::Status;
use nvmf::proto::vendor::{
    GENERATION_PENDING, OpenSlice, PROTOCOL_VERSION, STATE_INCOMPLETE, SliceGeneration, SliceStamp,
    SliceState, VENDOR_DATA_BYTES_MAX, opcode,
};
use shardmap::dirty::{BlockSet, RegionSet};
use shardmap::generations::{SnapshotState, VolumeGenerations};
use shardmap::units::{
    EXTENT_BLOCKS, Generation, Incarnation, Lba, MembershipSeq, REGION_BLOCKS, RegionIndex,
    VolumeId, WriteTick,
};
use zerocopy::{FromBytes, IntoBytes};

/// Snapshots and head of a slice: what a store has room for.
const GENERATIONS_MAX: usize = 1025;

/// What identifies us to a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credentials {
    pub(super) volume: VolumeId,
    pub(super) ticket: [u8; 32],
}

/// A command without data buffers, as a request. Reads and writes are made where the buffers are.
pub(super) fn request(nsid: u32, who: &Credentials, what: &Command) -> Request {
    match what {
        Command::Read { .. } | Command::Write { .. } => unreachable!("carries a buffer"),
        Command::Flush => Request::Flush { nsid },
        Command::Zero {
            range,
            deallocate,
            fua,
            generation,
        } => Request::WriteZeroes {
            nsid,
            slba: range.start().0,
            blocks: range.blocks().0,
            deallocate: *deallocate,
            fua: *fua,
            tag: generation.0,
        },
        Command::OpenSlice { epoch } => {
            let data = OpenSlice {
                version: PROTOCOL_VERSION.into(),
                flags: 0.into(),
                reserved: 0.into(),
                epoch: epoch.0.into(),
                volume: who.volume.0,
                ticket: who.ticket,
            };
            vendor_in(nsid, opcode::OPEN_SLICE, data.as_bytes().to_vec())
        }
        Command::SliceState => {
            let len_bytes = u32::try_from(size_of::<SliceState>()).expect("128");
            vendor_out(nsid, opcode::SLICE_STATE, [0; 4], len_bytes)
        }
        Command::CloseSlice => vendor(nsid, opcode::CLOSE_SLICE, [0; 4], None, 0),
        Command::Stamp(stamp) => vendor_in(nsid, opcode::STAMP_SLICE, stamp_bytes(stamp)),
        Command::CompleteSlice(stamp) => {
            vendor_in(nsid, opcode::COMPLETE_SLICE, stamp_bytes(stamp))
        }
        Command::Tick => vendor(nsid, opcode::TICK, [0; 4], None, 0),
        Command::Stable {
            tick,
            idle_ticks,
            keep_max,
        } => {
            let [low, high] = halves(tick.0);
            let cdws = [low, high, *idle_ticks, *keep_max];
            vendor(nsid, opcode::STABLE, cdws, None, 0)
        }
        Command::AddMarks(regions) => vendor_in(nsid, opcode::ADD_MARKS, regions.to_bytes()),
        Command::ReadMarks { .. }
        | Command::ReadPresence { .. }
        | Command::Hash(..)
        | Command::ReadGenerations
        | Command::BeginGeneration(_)
        | Command::CompleteGeneration(_) => numbered(nsid, what),
    }
}

/// A command that is made of dwords only.
fn numbered(nsid: u32, what: &Command) -> Request {
    match what {
        Command::ReadMarks { from } => vendor_out(
            nsid,
            opcode::READ_MARKS,
            [from.0, 0, 0, 0],
            VENDOR_DATA_BYTES_MAX,
        ),
        Command::ReadPresence {
            from,
            regions,
            after,
            upto,
            shown,
        } => {
            let cdws = [from.0, *regions, after.0, upto.0];
            let opcode = if *shown && after.0 == 0 {
                opcode::READ_SHOWN
            } else {
                opcode::READ_PRESENCE
            };
            vendor_out(nsid, opcode, cdws, VENDOR_DATA_BYTES_MAX)
        }
        Command::ReadGenerations => {
            let len_bytes = size_of::<SliceGeneration>() * GENERATIONS_MAX;
            let len_bytes = u32::try_from(len_bytes).expect("small");
            vendor_out(nsid, opcode::READ_GENERATIONS, [0; 4], len_bytes)
        }
        Command::BeginGeneration(head) => {
            vendor(nsid, opcode::BEGIN_GENERATION, [head.0, 0, 0, 0], None, 0)
        }
        Command::CompleteGeneration(snapshot) => {
            let cdws = [snapshot.0, 0, 0, 0];
            vendor(nsid, opcode::COMPLETE_GENERATION, cdws, None, 0)
        }
        Command::Hash(range, generation) => {
            let [low, high] = halves(range.start().0);
            let chunks = range.split_at_multiples(EXTENT_BLOCKS).count();
            let len_bytes = u32::try_from(chunks * 8).expect("of one region");
            vendor_out(
                nsid,
                opcode::HASH_RANGE,
                [low, high, range.blocks().0, generation.0],
                len_bytes,
            )
        }
        Command::Read { .. }
        | Command::Write { .. }
        | Command::Zero { .. }
        | Command::Flush
        | Command::OpenSlice { .. }
        | Command::SliceState
        | Command::CloseSlice
        | Command::Stamp(_)
        | Command::CompleteSlice(_)
        | Command::Tick
        | Command::Stable { .. }
        | Command::AddMarks(_) => unreachable!("{what:?} is made elsewhere"),
    }
}

fn halves(word: u64) -> [u32; 2] {
    let [low, high] = [word & 0xffff_ffff, word >> 32];
    [low, high].map(|half| u32::try_from(half).expect("32 bits"))
}

fn vendor(nsid: u32, op: u8, cdws: [u32; 4], data: Option<Vec<u8>>, reply: u32) -> Request {
    let [cdw11, cdw12, cdw13, cdw14] = cdws;
    Request::Vendor {
        nsid,
        opcode: op,
        cdw10_15: [u32::from(PROTOCOL_VERSION), cdw11, cdw12, cdw13, cdw14, 0],
        data,
        reply_len_bytes: reply,
    }
}

fn vendor_in(nsid: u32, op: u8, data: Vec<u8>) -> Request {
    vendor(nsid, op, [0; 4], Some(data), 0)
}

fn vendor_out(nsid: u32, op: u8, cdws: [u32; 4], reply_len_bytes: u32) -> Request {
    vendor(nsid, op, cdws, None, reply_len_bytes)
}

fn stamp_bytes(stamp: &Stamp) -> Vec<u8> {
    let data = SliceStamp {
        version: PROTOCOL_VERSION.into(),
        flags: 0.into(),
        reserved: 0.into(),
        seq: stamp.seq.0.into(),
        isr: stamp.isr.0.into(),
        members: stamp.members.0.into(),
    };
    data.as_bytes().to_vec()
}

/// A reply without a data buffer, as the command it answers expects it. A peer that answers
/// nonsense does not serve the slice.
pub(super) fn answer(what: &Command, reply: &Reply) -> Result<Answer, Fault> {
    match what {
        Command::Read { .. }
        | Command::Write { .. }
        | Command::Zero { .. }
        | Command::Flush
        | Command::CloseSlice
        | Command::Stamp(_)
        | Command::CompleteSlice(_)
        | Command::BeginGeneration(_)
        | Command::CompleteGeneration(_)
        | Command::AddMarks(_) => Ok(Answer::Done),
        Command::ReadGenerations => generations(&reply.data),
        Command::OpenSlice { .. } => Ok(Answer::Opened(Incarnation(reply.result))),
        Command::Stable { .. } => Ok(Answer::MarksLeft(reply.result)),
        Command::Tick => Ok(Answer::Tick(WriteTick(reply.result))),
        Command::SliceState => facts(&reply.data),
        Command::ReadMarks { .. } => {
            let marks = RegionSet::from_bytes(&reply.data).map_err(|_| Fault::Refused)?;
            let more = continuation(reply.result)?;
            Ok(Answer::Marks(marks, more))
        }
        Command::ReadPresence { from, .. } => {
            let base = Lba(u64::from(from.0) * u64::from(REGION_BLOCKS));
            let mut blocks = BlockSet::new();
            blocks
                .insert_serialized(base, &reply.data)
                .map_err(|_| Fault::Refused)?;
            Ok(Answer::Presence(blocks))
        }
        Command::Hash(range, _) => {
            let chunks = range.split_at_multiples(EXTENT_BLOCKS).count();
            let words = reply.data.chunks_exact(8).take(chunks);
            let hashes: Vec<u64> = words
                .map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes")))
                .collect();
            if hashes.len() == chunks {
                Ok(Answer::Hashes(hashes))
            } else {
                Err(Fault::Refused)
            }
        }
    }
}

/// Where to go on: the next region plus one, zero if nothing follows.
fn continuation(result: u64) -> Result<Option<RegionIndex>, Fault> {
    let Some(next) = result.checked_sub(1) else {
        return Ok(None);
    };
    let next = u32::try_from(next).map_err(|_| Fault::Refused)?;
    Ok(Some(RegionIndex(next)))
}

fn facts(data: &[u8]) -> Result<Answer, Fault> {
    let Ok((state, _)) = SliceState::ref_from_prefix(data) else {
        return Err(Fault::Refused);
    };
    Ok(Answer::Facts(SliceFacts {
        incarnation: Incarnation(state.incarnation.get()),
        incomplete: state.flags.get() & STATE_INCOMPLETE != 0,
        stamp_seq: MembershipSeq(state.stamp_seq.get()),
        stamp_isr: Members(state.stamp_isr.get()),
        mark_count: state.mark_count.get(),
        head: Generation(state.head_generation.get()),
        snapshot_count: state.snapshot_count.get(),
    }))
}

/// The snapshots, ascending, and the head; what is behind them is padding.
fn generations(data: &[u8]) -> Result<Answer, Fault> {
    let entries = data.chunks_exact(size_of::<SliceGeneration>());
    let entries = entries.filter_map(|raw| SliceGeneration::ref_from_bytes(raw).ok());
    let mut all: Vec<&SliceGeneration> = entries.take_while(|e| e.generation.get() != 0).collect();
    let head = all.pop().ok_or(Fault::Refused)?;
    let state = |flags: u32| {
        if flags & GENERATION_PENDING == 0 {
            SnapshotState::Complete
        } else {
            SnapshotState::Pending
        }
    };
    let snapshots = all.iter();
    let snapshots = snapshots.map(|e| (Generation(e.generation.get()), state(e.flags.get())));
    let generations = VolumeGenerations {
        head: Generation(head.generation.get()),
        snapshots: snapshots.collect(),
        hold: false,
    };
    let below = generations.snapshots.keys().all(|s| *s < generations.head);
    if below && generations.snapshots.len() == all.len() {
        Ok(Answer::Generations(generations))
    } else {
        Err(Fault::Refused)
    }
}

/// What a status means to the core.
pub(super) fn fault(status: Status) -> Fault {
    let code = |s: Status| (s.sct, s.sc);
    let table = [
        (Status::SESSION_REVOKED, Fault::Fenced),
        (Status::NOT_OPEN, Fault::NotOpen),
        (Status::UNRECOVERED_READ, Fault::Medium),
        (Status::WRITE_FAULT, Fault::Medium),
        (Status::CAPACITY_EXCEEDED, Fault::NoSpace),
        (Status::SLICE_INCOMPLETE, Fault::Incomplete),
        (Status::STORE_FAULTED, Fault::Refused),
        // The slice may be about to be created, or its store about to be opened.
        (Status::INVALID_NAMESPACE, Fault::Transient),
    ];
    let known = table.iter().find(|(known, _)| code(*known) == code(status));
    let other = if status.dnr {
        Fault::Refused
    } else {
        Fault::Transient
    };
    known.map_or(other, |(_, fault)| *fault)
}

#[cfg(test)]
mod test {
    use super::*;
    use shardmap::units::{BlockRange, Blocks, Epoch};

    const WHO: Credentials = Credentials {
        volume: VolumeId([7; 16]),
        ticket: [9; 32],
    };

    #[test]
    fn opening_carries_epoch_volume_and_ticket() {
        let request = request(5, &WHO, &Command::OpenSlice { epoch: Epoch(3) });
        let Request::Vendor {
            nsid: 5,
            opcode: 0xc1,
            data: Some(data),
            ..
        } = request
        else {
            panic!("{request:?}");
        };
        let open = OpenSlice::ref_from_bytes(&data).unwrap();
        assert_eq!(
            (open.epoch.get(), open.volume, open.ticket),
            (3, [7; 16], [9; 32])
        );
    }

    #[test]
    fn every_vendor_request_agrees_with_its_opcode_about_the_direction() {
        use nvmf::proto::sqe::Direction;
        let range = BlockRange::new(Lba(1 << 33), Blocks(17)).unwrap();
        let all = [
            Command::OpenSlice { epoch: Epoch(1) },
            Command::SliceState,
            Command::CloseSlice,
            Command::Stamp(Stamp::default()),
            Command::CompleteSlice(Stamp::default()),
            Command::Tick,
            Command::Stable {
                tick: WriteTick(1 << 40),
                idle_ticks: 1,
                keep_max: 4096,
            },
            Command::ReadMarks {
                from: RegionIndex(0),
            },
            Command::AddMarks(RegionSet::new()),
            Command::ReadPresence {
                from: RegionIndex(0),
                regions: 16,
                after: Generation(1),
                upto: Generation(2),
                shown: false,
            },
            Command::ReadPresence {
                from: RegionIndex(0),
                regions: 16,
                after: Generation(0),
                upto: Generation(2),
                shown: true,
            },
            Command::Hash(range, Generation(2)),
            Command::ReadGenerations,
            Command::BeginGeneration(Generation(2)),
            Command::CompleteGeneration(Generation(1)),
        ];
        for what in all {
            let request = request(1, &WHO, &what);
            let Request::Vendor {
                opcode,
                data,
                reply_len_bytes,
                ..
            } = request
            else {
                panic!("{what:?} is {request:?}");
            };
            let direction = nvmf::proto::vendor::direction(opcode).unwrap();
            assert_eq!(
                direction == Direction::ToController,
                data.is_some(),
                "{what:?}"
            );
            assert_eq!(
                direction == Direction::ToHost,
                reply_len_bytes > 0,
                "{what:?}"
            );
        }
    }

    #[test]
    fn nonsense_from_a_peer_is_a_refusal() {
        let reply = Reply {
            result: 0,
            data: vec![1, 2, 3],
        };
        let range = BlockRange::new(Lba(0), Blocks(16)).unwrap();
        for what in [
            Command::SliceState,
            Command::ReadMarks {
                from: RegionIndex(0),
            },
            Command::ReadPresence {
                from: RegionIndex(0),
                regions: 1,
                after: Generation(0),
                upto: Generation(0),
                shown: false,
            },
            Command::Hash(range, Generation(1)),
            Command::ReadGenerations,
        ] {
            assert_eq!(answer(&what, &reply), Err(Fault::Refused), "{what:?}");
        }
    }

    #[test]
    fn generations_are_told_oldest_first_and_padded() {
        let entry = |generation: u32, flags: u32| SliceGeneration {
            generation: generation.into(),
            flags: flags.into(),
        };
        let told = |entries: &[SliceGeneration]| {
            let mut data = entries.as_bytes().to_vec();
            data.resize(8 * GENERATIONS_MAX, 0);
            answer(&Command::ReadGenerations, &Reply { result: 0, data })
        };
        let found = VolumeGenerations {
            head: Generation(4),
            snapshots: [
                (Generation(1), SnapshotState::Complete),
                (Generation(3), SnapshotState::Pending),
            ]
            .into(),
            hold: false,
        };
        let entries = [entry(1, 0), entry(3, GENERATION_PENDING), entry(4, 0)];
        assert_eq!(told(&entries), Ok(Answer::Generations(found)));
        assert_eq!(told(&[]), Err(Fault::Refused));
        assert_eq!(told(&[entry(5, 0), entry(4, 0)]), Err(Fault::Refused));
    }

    #[test]
    fn marks_go_on_at_the_region_that_the_result_names() {
        let marks: RegionSet = [RegionIndex(4)].into_iter().collect();
        let from = RegionIndex(0);
        let more = |result| {
            let data = marks.to_bytes();
            let reply = Reply { result, data };
            answer(&Command::ReadMarks { from }, &reply)
        };
        assert_eq!(more(0), Ok(Answer::Marks(marks.clone(), None)));
        let at = |region| Ok(Answer::Marks(marks.clone(), Some(RegionIndex(region))));
        assert_eq!(more(1), at(0));
        assert_eq!(more(7), at(6));
        assert_eq!(more(1 << 33), Err(Fault::Refused));
    }

    #[test]
    fn statuses_that_may_pass_are_told_from_those_that_do_not() {
        assert_eq!(fault(Status::SESSION_REVOKED), Fault::Fenced);
        assert_eq!(fault(Status::CAPACITY_EXCEEDED), Fault::NoSpace);
        assert_eq!(fault(Status::UNKNOWN_VOLUME), Fault::Refused);
        assert_eq!(fault(Status::TRANSIENT_TRANSPORT), Fault::Transient);
        assert_eq!(fault(Status::INTERNAL_ERROR), Fault::Transient);
    }
}
