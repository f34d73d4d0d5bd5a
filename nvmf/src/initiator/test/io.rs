use super::*;
use crate::proto::sqe::{CDW12_DEALLOCATE, CDW12_FUA};

fn verify(config: Config, knobs: Knobs) {
    let model = Model::start(knobs);
    let (mut world, id) = World::ready(config, &model);
    work(&mut world, id);
    world.end(id);
}

/// Writes and reads in all sizes, many at a time, and compares every block.
pub(super) fn work(world: &mut World, id: AssociationId) {
    const BLOCKS: u64 = 512;
    let mut seeds = BTreeMap::new();
    let mut random = 1u64;
    let mut below = |n: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % n
    };
    for round in 1..6 {
        // Writes of one round do not overlap: the space is walked through.
        let mut at = 0;
        while at < BLOCKS {
            let blocks = u32::try_from((below(32) + 1).min(BLOCKS - at)).unwrap();
            if below(3) > 0 {
                let mut request = world.write(at, blocks, round);
                while let Err(back) = world.try_submit(id, at, request) {
                    request = back;
                    world.settle(&seeds);
                }
                seeds.extend((at..at + u64::from(blocks)).map(|lba| (lba, round)));
            }
            at += u64::from(blocks);
        }
        world.settle_all(id, &seeds);
        let mut at = 0;
        while at < BLOCKS {
            let blocks = u32::try_from((below(32) + 1).min(BLOCKS - at)).unwrap();
            let mut request = world.read(at, blocks);
            while let Err(back) = world.try_submit(id, at, request) {
                request = back;
                world.settle(&seeds);
            }
            at += u64::from(blocks);
        }
        world.settle_all(id, &seeds);
    }
}

impl World {
    pub(super) fn try_submit(
        &mut self,
        to: AssociationId,
        user: u64,
        request: Request,
    ) -> Result<(), Request> {
        self.inbox.initiator.submit(&mut self.io, to, user, request)
    }

    /// Waits for one request and checks what it read.
    fn settle(&mut self, seeds: &BTreeMap<u64, u64>) {
        let InitiatorEvent::Done {
            request, result, ..
        } = self.next()
        else {
            panic!("lost")
        };
        result.unwrap();
        let Request::Read { slba, into, .. } = request else {
            return;
        };
        for (lba, block) in (slba..).zip(into.bytes().chunks(4096)) {
            let expected = seeds
                .get(&lba)
                .map_or([0; 4096], |seed| pattern(lba, *seed));
            assert!(block == expected, "block {lba} is wrong");
        }
    }

    fn settle_all(&mut self, id: AssociationId, seeds: &BTreeMap<u64, u64>) {
        while self.inbox.initiator.in_flight(id) > 0 || !self.inbox.events.is_empty() {
            self.settle(seeds);
        }
    }
}

#[test]
fn what_was_written_is_read() {
    verify(config(), Knobs::default());
}

#[test]
fn what_was_written_is_read_without_the_success_flag() {
    verify(
        config(),
        Knobs {
            success_flag: false,
            ..Knobs::default()
        },
    );
}

#[test]
fn what_was_written_is_read_with_digests() {
    for (header_digest, data_digest) in [(true, false), (false, true), (true, true)] {
        verify(
            Config {
                header_digest,
                data_digest,
                ..config()
            },
            Knobs::default(),
        );
    }
}

#[test]
fn what_was_written_is_read_in_odd_pieces() {
    // Everything by R2T, cut small on both levels, headers padded.
    let knobs = Knobs {
        in_capsule_bytes: 0,
        cpda: 31,
        maxh2cdata: 4096,
        r2t_bytes: 12288,
        c2h_bytes: 5000,
        success_flag: false,
        ..Knobs::default()
    };
    verify(
        config(),
        Knobs {
            in_capsule_bytes: 131_072,
            c2h_bytes: 512,
            ..knobs.clone()
        },
    );
    verify(
        Config {
            header_digest: true,
            data_digest: true,
            ..config()
        },
        knobs,
    );
}

#[test]
fn what_was_written_is_read_one_by_one() {
    verify(
        Config {
            queue_depth: 2,
            ..config()
        },
        Knobs::default(),
    );
}

#[test]
fn a_batch_of_commands_is_one_send() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(config(), &model);
    let before = world.inbox.initiator.counters().sends;
    for user in 0..30 {
        let request = world.read(user, 1);
        world.try_submit(id, user, request).unwrap();
    }
    for _ in 0..30 {
        assert!(matches!(
            world.next(),
            InitiatorEvent::Done { result: Ok(_), .. }
        ));
    }
    let sends = world.inbox.initiator.counters().sends - before;
    assert_eq!(sends, 1);
    world.end(id);
}

#[test]
fn what_was_written_is_read_a_few_bytes_at_a_time() {
    for (piece_bytes, blocks) in [(1, 1), (3, 3), (29, 20)] {
        let model = Model::start(Knobs {
            piece_bytes,
            c2h_bytes: 3000,
            ..Knobs::default()
        });
        let digests = Config {
            header_digest: true,
            data_digest: true,
            ..config()
        };
        let (mut world, id) = World::ready(digests, &model);
        let write = world.write(5, blocks, 1);
        world.ask(id, write).1.unwrap();
        let read = world.read(5, blocks);
        let (Request::Read { into, .. }, Ok(_)) = world.ask(id, read) else {
            panic!()
        };
        for (lba, block) in (5..).zip(into.bytes().chunks(4096)) {
            assert!(block == pattern(lba, 1), "block {lba}");
        }
        drop(into);
        world.end(id);
    }
}

#[test]
fn large_payload_does_not_pass_through_staging() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(config(), &model);
    let before = *world.inbox.initiator.counters();
    for _ in 0..50 {
        let request = world.read(0, 32);
        world.ask(id, request).1.unwrap();
    }
    let after = *world.inbox.initiator.counters();
    assert_eq!(after.received_bytes - before.received_bytes, 50 * 131_072);
    // One load of staging holds the header and what came with it.
    let staged = after.staged_bytes - before.staged_bytes;
    assert!(
        staged <= 50 * u64::from(limits::STAGING_BYTES),
        "{staged} bytes copied"
    );
    world.end(id);
}

#[test]
fn commands_without_payload_look_as_specified() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(config(), &model);
    // An answer on the admin queue: the event request behind Ready has arrived before it.
    let identify = Request::Identify { nsid: 0, cns: 1 };
    world.ask(id, identify).1.unwrap();
    let before = model.opcodes().len();
    let write = world.write(10, 4, 1);
    world.ask(id, write).1.unwrap();
    let (nsid, fua) = (1, true);
    world.ask(id, Request::Flush { nsid }).1.unwrap();
    let zeroes = Request::WriteZeroes {
        nsid,
        slba: 10,
        blocks: 1,
        deallocate: true,
        fua,
        tag: 9,
    };
    world.ask(id, zeroes).1.unwrap();
    let ranges = vec![(11, 1), (13, 1)];
    world
        .ask(id, Request::Deallocate { nsid, ranges })
        .1
        .unwrap();
    let expected = [
        (0x00, [0; 6]),
        (0x08, [10, 0, CDW12_DEALLOCATE | CDW12_FUA, 9, 0, 0]),
        (0x09, [1, 4, 0, 0, 0, 0]),
    ];
    assert_eq!(model.opcodes()[before..], expected);
    let read = world.read(10, 4);
    let (Request::Read { into, .. }, Ok(_)) = world.ask(id, read) else {
        panic!()
    };
    for (lba, block) in (10..).zip(into.bytes().chunks(4096)) {
        let expected = if lba == 12 { pattern(12, 1) } else { [0; 4096] };
        assert!(block == expected, "block {lba}");
    }
    drop(into);
    world.end(id);
}

#[test]
fn vendor_commands_carry_data_both_ways() {
    for len in [1usize, 4096, 8192, 8193, 65536] {
        let model = Model::start(Knobs {
            r2t_bytes: 10_000,
            ..Knobs::default()
        });
        let (mut world, id) = World::ready(config(), &model);
        let data: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[0]).collect();
        let open = Request::Vendor {
            nsid: 1,
            opcode: 0xc1,
            cdw10_15: [1, 2, 3, 4, 5, 6],
            data: Some(data.clone()),
            reply_len_bytes: 0,
        };
        let (_, reply) = world.ask(id, open);
        assert_eq!(reply.unwrap().result, 0x1122_3344_5566_7788);
        assert_eq!(model.opcodes().last(), Some(&(0xc1, [1, 2, 3, 4, 5, 6])));
        let state = Request::Vendor {
            nsid: 1,
            opcode: 0xc2,
            cdw10_15: [0; 6],
            data: None,
            reply_len_bytes: 65536,
        };
        assert!(world.ask(id, state).1.unwrap().data == data);
        let close = Request::Vendor {
            nsid: 1,
            opcode: 0xc4,
            cdw10_15: [0; 6],
            data: None,
            reply_len_bytes: 0,
        };
        assert_eq!(
            world.ask(id, close).1,
            Err(Failure::Status(Status::NOT_OPEN))
        );
        world.end(id);
    }
}

#[test]
fn identify_delivers_its_page() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(config(), &model);
    let (_, reply) = world.ask(id, Request::Identify { nsid: 0, cns: 1 });
    let data = reply.unwrap().data;
    assert_eq!((data.len(), &data[4..9]), (4096, &b"model"[..]));
    world.end(id);
}

#[test]
fn a_full_queue_gives_the_request_back_and_takes_it_later() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(
        Config {
            queue_depth: 4,
            ..config()
        },
        &model,
    );
    for user in 0..4 {
        let request = world.read(0, 1);
        world.try_submit(id, user, request).unwrap();
    }
    let request = world.read(5, 1);
    let Err(Request::Read { slba: 5, into, .. }) = world.try_submit(id, 9, request) else {
        panic!("taken");
    };
    assert_eq!(world.inbox.initiator.counters().refused_commands, 1);
    assert!(matches!(world.next(), InitiatorEvent::Done { .. }));
    world.submit(
        id,
        9,
        Request::Read {
            nsid: 1,
            slba: 5,
            blocks: 1,
            into,
            tag: 0,
        },
    );
    for _ in 0..4 {
        assert!(matches!(
            world.next(),
            InitiatorEvent::Done { result: Ok(_), .. }
        ));
    }
    world.end(id);
}

#[test]
fn changed_namespaces_are_announced_again_and_again() {
    let model = Model::start(Knobs::default());
    let (mut world, id) = World::ready(config(), &model);
    for _ in 0..3 {
        // The event request is on its way behind Ready, and behind each announcement: an answered
        // admin command proves that it has arrived.
        world
            .ask(id, Request::Identify { nsid: 0, cns: 1 })
            .1
            .unwrap();
        model.announce_change();
        let event = world.next();
        assert!(
            matches!(event, InitiatorEvent::NamespacesChanged { .. }),
            "{event:?}"
        );
    }
    world.end(id);
}

#[test]
fn a_wrong_data_digest_fails_one_read_where_headers_are_digested() {
    let knobs = Knobs {
        spoil_at: 1,
        ..Knobs::default()
    };
    let model = Model::start(knobs);
    let digests = Config {
        header_digest: true,
        data_digest: true,
        ..config()
    };
    let (mut world, id) = World::ready(digests, &model);
    let read = world.read(0, 4);
    let (_, result) = world.ask(id, read);
    assert_eq!(result, Err(Failure::Status(Status::TRANSIENT_TRANSPORT)));
    let read = world.read(0, 4);
    assert!(world.ask(id, read).1.is_ok());
    assert_eq!(world.inbox.initiator.counters().wrong_digests, 1);
    world.end(id);
}

#[test]
fn associations_to_several_targets_are_independent() {
    let models: Vec<_> = (0..3).map(|_| Model::start(Knobs::default())).collect();
    let mut world = World::new(config());
    let ids: Vec<_> = models.iter().map(|model| world.connect(model)).collect();
    for _ in &ids {
        assert!(matches!(world.next(), InitiatorEvent::Ready { .. }));
    }
    models[1].kill();
    let LostReason::PeerClosed { .. } = world.lost() else {
        panic!()
    };
    for id in [ids[0], ids[2]] {
        let read = world.read(0, 2);
        assert!(world.ask(id, read).1.is_ok());
    }
    let read = world.read(0, 2);
    assert!(world.try_submit(ids[1], 0, read).is_err());
    // The place is used again, under another turn.
    let again = world.connect(&models[1]);
    assert_eq!((again.index, again.turn), (ids[1].index, ids[1].turn + 1));
    assert!(matches!(world.next(), InitiatorEvent::Ready { .. }));
    let read = world.read(0, 2);
    assert!(world.try_submit(ids[1], 0, read).is_err());
}
