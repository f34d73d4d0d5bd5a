//! Our initiator and our target on one reactor, over loopback.

use super::loss::{collect, fill};
use super::*;
use crate::proto::vendor::PROTOCOL_VERSION;
use crate::target::{
    AssociationId as TheirAssociation, Command, CommandKind, Identity, NamespaceFacts, Namespaces,
    Reply as Answer, ReplyData, Target, TargetConfig,
};

const ROOM_TARGET: u8 = 4;
const BLOCKS: u64 = 4096;

/// A namespace in memory that answers at the end of the turn, in any order.
#[derive(Default)]
struct Ram {
    blocks: BTreeMap<u64, [u8; 4096]>,
    answers: Vec<Answer>,
    /// Commands taken and not answered.
    kept: Vec<Answer>,
    /// Answer no command after this many.
    mute_after: Option<usize>,
    admitted: usize,
    ended: usize,
}

impl Ram {
    fn carry_out(&mut self, command: Command) -> Answer {
        let Command { id, kind, .. } = command;
        let mut data = ReplyData::None;
        let mut result = 0;
        match kind {
            CommandKind::Read { slba, mut into, .. } => {
                for (lba, out) in (slba..).zip(into.bytes_mut().chunks_mut(4096)) {
                    out.copy_from_slice(self.blocks.get(&lba).unwrap_or(&[0; 4096]));
                }
                data = ReplyData::Buf(into.freeze());
            }
            CommandKind::Write { slba, data, .. } => {
                for (lba, block) in (slba..).zip(data.bytes().chunks(4096)) {
                    self.blocks.insert(lba, block.try_into().unwrap());
                }
            }
            CommandKind::Flush => {}
            CommandKind::WriteZeroes { slba, blocks, .. } => {
                for lba in slba..slba + u64::from(blocks) {
                    self.blocks.remove(&lba);
                }
            }
            CommandKind::Deallocate { ranges } => {
                for (slba, blocks) in ranges {
                    for lba in slba..slba + u64::from(blocks) {
                        self.blocks.remove(&lba);
                    }
                }
            }
            CommandKind::Vendor {
                opcode,
                data: sent,
                reply_len_bytes,
                ..
            } => {
                result = u64::from(opcode);
                if reply_len_bytes > 0 {
                    data = ReplyData::Bytes((0..reply_len_bytes).map(low_byte).collect());
                } else if let Some(sent) = sent {
                    let intact = (0u32..).zip(&sent).all(|(i, byte)| low_byte(i) == *byte);
                    result |= u64::from(intact) << 8 | (sent.len() as u64) << 32;
                }
            }
        }
        Answer {
            id,
            status: Status::SUCCESS,
            result,
            data,
        }
    }
}

fn low_byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

impl Namespaces for Ram {
    fn list(&self, _host_nqn: &str) -> Vec<u32> {
        vec![1]
    }

    fn identify(&self, nsid: u32) -> Option<NamespaceFacts> {
        (nsid == 1).then_some(NamespaceFacts {
            size_blocks: BLOCKS,
            used_blocks: self.blocks.len() as u64,
            nguid: [1; 16],
            uuid: [2; 16],
            thin: true,
            deallocate_blocks: 1,
        })
    }

    fn admit(&mut self, _io: &mut dyn Driver, command: Command) {
        self.admitted += 1;
        let answer = self.carry_out(command);
        if self.mute_after.is_some_and(|limit| self.admitted > limit) {
            self.kept.push(answer);
        } else {
            self.answers.push(answer);
        }
    }

    fn on_association_gone(&mut self, _io: &mut dyn Driver, _association: TheirAssociation) {
        self.ended += 1;
    }
}

/// The other end.
pub(super) struct Server {
    target: Target,
    ram: Ram,
    at: std::net::SocketAddr,
}

impl Server {
    pub(super) fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        assert_eq!(completion.token.room, ROOM_TARGET);
        self.target.on_completion(io, &mut self.ram, completion);
    }

    pub(super) fn on_turn_end(&mut self, io: &mut dyn Driver) {
        // Backwards, and every third one first: never in the order of arrival.
        let mut answers = std::mem::take(&mut self.ram.answers);
        let third = answers.len() / 3;
        answers.rotate_left(third);
        while let Some(answer) = answers.pop() {
            self.target.reply(io, answer);
        }
        self.target.on_turn_end(io, &mut self.ram);
    }
}

fn world(config: Config) -> World {
    let mut world = World::new(config);
    let identity = Identity {
        subnqn: NQN.into(),
        serial: "loopback".into(),
        firmware: "0".into(),
    };
    let mut target = Target::new(TargetConfig::new(ROOM_TARGET, identity));
    let at = target
        .listen(&mut world.io, "127.0.0.1:0".parse().unwrap())
        .unwrap();
    world.inbox.server = Some(Server {
        target,
        ram: Ram::default(),
        at,
    });
    world
}

fn ready(config: Config) -> (World, AssociationId) {
    let mut world = world(config);
    let at = world.server().at;
    let id = world.inbox.initiator.connect(&mut world.io, at, NQN);
    assert!(matches!(world.next(), InitiatorEvent::Ready { .. }));
    (world, id)
}

impl World {
    fn server(&mut self) -> &mut Server {
        self.inbox.server.as_mut().unwrap()
    }
}

#[test]
fn our_two_ends_agree_with_and_without_digests() {
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)]
    {
        let (mut world, id) = ready(Config {
            header_digest,
            data_digest,
            ..config()
        });
        super::io::work(&mut world, id);
        let counters = *world.inbox.initiator.counters();
        assert_eq!((counters.failed_commands, counters.breaches), (0, 0));
        assert!(counters.sends < counters.pdus_sent, "nothing was gathered");
    }
}

#[test]
fn our_two_ends_agree_at_full_depth() {
    let (mut world, id) = ready(Config {
        queue_depth: 128,
        ..config()
    });
    for round in 0..20 {
        for user in 0..120 {
            let request = if (user + round) % 2 == 0 {
                world.write(user * 32, 1 + u32::try_from(user % 3).unwrap(), round)
            } else {
                world.read(user * 32, 1)
            };
            world.try_submit(id, user, request).unwrap();
        }
        for _ in 0..120 {
            assert!(matches!(
                world.next(),
                InitiatorEvent::Done { result: Ok(_), .. }
            ));
        }
    }
}

#[test]
fn vendor_commands_pass_between_our_two_ends() {
    let (mut world, id) = ready(config());
    for len in [1u32, 128, 8192, 8193, 65536] {
        let request = Request::Vendor {
            nsid: 1,
            opcode: 0xc9,
            cdw10_15: [PROTOCOL_VERSION.into(), 0, 0, 0, 0, 0],
            data: Some((0..len).map(low_byte).collect()),
            reply_len_bytes: 0,
        };
        let result = world.ask(id, request).1.unwrap().result;
        assert_eq!(
            result,
            0xc9 | 1 << 8 | u64::from(len) << 32,
            "{len} bytes out"
        );
        let request = Request::Vendor {
            nsid: 1,
            opcode: 0xc6,
            cdw10_15: [PROTOCOL_VERSION.into(), 0, 0, 0, 0, 0],
            data: None,
            reply_len_bytes: len,
        };
        let reply = world.ask(id, request).1.unwrap();
        let expected: Vec<u8> = (0..len).map(low_byte).collect();
        assert!(reply.data == expected, "{len} bytes in");
    }
}

#[test]
fn our_target_stopped_in_the_middle_returns_every_request_once() {
    for after in [0, 1, 5, 20] {
        let (mut world, id) = ready(config());
        world.server().ram.mute_after = Some(after);
        let count = fill(&mut world, id);
        world.inbox.on_turn_end(&mut world.io);
        while world.server().ram.admitted <= after {
            world.io.turn(&mut world.inbox);
        }
        let server = world.inbox.server.as_mut().unwrap();
        server.target.stop(&mut world.io);
        let (reason, failed) = collect(&mut world, count);
        assert!(
            matches!(
                reason,
                LostReason::PeerClosed { .. } | LostReason::Socket { .. }
            ),
            "{reason:?}"
        );
        assert!(failed > 0);
        // Answers that come too late go nowhere.
        let kept = std::mem::take(&mut world.server().ram.kept);
        for answer in kept {
            let server = world.inbox.server.as_mut().unwrap();
            server.target.reply(&mut world.io, answer);
        }
    }
}

#[test]
fn a_mute_target_costs_the_association_at_the_deadline_and_it_can_come_back() {
    let (mut world, id) = ready(Config {
        command_deadline_ms: 60,
        ..config()
    });
    world.server().ram.mute_after = Some(3);
    let count = fill(&mut world, id);
    let (reason, failed) = collect(&mut world, count);
    assert!(matches!(reason, LostReason::Deadline { .. }), "{reason:?}");
    assert!(failed >= count - 3);
    world.server().ram.mute_after = None;
    let at = world.server().at;
    world.inbox.initiator.connect(&mut world.io, at, NQN);
    assert!(matches!(world.next(), InitiatorEvent::Ready { .. }));
}

#[test]
fn changed_namespaces_pass_between_our_two_ends() {
    let (mut world, id) = ready(config());
    for _ in 0..3 {
        world
            .ask(id, Request::Identify { nsid: 0, cns: 1 })
            .1
            .unwrap();
        let server = world.inbox.server.as_mut().unwrap();
        server.target.namespaces_changed(&mut world.io);
        assert!(matches!(
            world.next(),
            InitiatorEvent::NamespacesChanged { .. }
        ));
    }
}
