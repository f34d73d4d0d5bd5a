//! Our target over real sockets: with our initiator, and with a peer that misbehaves.
#![forbid(unsafe_code)]

#[cfg(test)]
#[path = "../examples/ram/mod.rs"]
mod ram;

#[cfg(test)]
mod inside;

#[cfg(test)]
mod test {
    use super::inside::{BLOCKS, HOST, Inside, NQN, WATCHDOG};
    use super::ram::NSID;
    use nvmf::initiator::{AssociationId, Failure, InitiatorEvent, Reply, Request};
    use nvmf::proto::fabrics::{CNTLID_DYNAMIC, ConnectCommand, ConnectData};
    use nvmf::proto::pdu::{
        Digests, Fes, Framing, HEADER_BYTES_MAX, Header, IcReq, Role, term_req,
    };
    use nvmf::proto::sqe::{Sgl, Sqe, io as opcode};
    use nvmf::proto::status::Status;
    use nvmf::proto::vendor;
    use reactor::{App, ArenaConfig, Buf, Driver, Token, UringConfig, UringDriver};
    use std::collections::BTreeMap;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use zerocopy::IntoBytes;

    struct World {
        io: UringDriver,
        arena: ArenaConfig,
        inside: Inside,
        at: SocketAddr,
    }

    impl World {
        fn new(arena: [u32; 3], digests: Digests) -> Self {
            let arena = ArenaConfig {
                slot_counts: arena,
                huge_pages: false,
            };
            let mut io = UringDriver::new(UringConfig {
                arena,
                ..UringConfig::default()
            })
            .unwrap();
            let mut config = Inside::config();
            config.header_digest = digests.header;
            config.data_digest = digests.data;
            let mut inside = Inside::new(config);
            let at = inside
                .target
                .listen(&mut io, "127.0.0.1:0".parse().unwrap())
                .unwrap();
            Self {
                io,
                arena,
                inside,
                at,
            }
        }

        fn plenty() -> Self {
            Self::new([512, 64, 64], Digests::default())
        }

        /// Turns until `done`; the watchdog panics if nothing happens.
        fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
            loop {
                if let Some(result) = done(self) {
                    return result;
                }
                let token = Token {
                    room: WATCHDOG,
                    index: 0,
                    value: 0,
                };
                let at_ns = self.io.now_ns() + 30_000_000_000;
                let dog = self.io.arm(token, at_ns);
                self.io.turn(&mut self.inside);
                self.io.disarm(dog);
            }
        }

        fn event(&mut self) -> InitiatorEvent {
            self.until(|world| {
                let events = &mut world.inside.events;
                if events.is_empty() {
                    None
                } else {
                    Some(events.remove(0))
                }
            })
        }

        fn connect(&mut self) -> AssociationId {
            let id = self.inside.initiator.connect(&mut self.io, self.at, NQN);
            let event = self.event();
            let InitiatorEvent::Ready { association, facts } = event else {
                panic!("{event:?}")
            };
            assert_eq!((association, facts.inline_bytes), (id, 16 * 1024));
            id
        }

        /// The client must leave half of the arena: what it waits for may wait for that.
        fn client_may_take(&self) -> bool {
            let total_bytes = self.arena.len_bytes();
            self.io.arena().in_use_bytes() < total_bytes / 2
        }

        fn try_submit(&mut self, on: AssociationId, user: u64, request: Request) -> bool {
            self.inside
                .initiator
                .submit(&mut self.io, on, user, request)
                .is_ok()
        }

        /// One request to its end.
        fn ask(&mut self, on: AssociationId, request: Request) -> Result<Reply, Failure> {
            assert!(self.try_submit(on, 0, request));
            // What was submitted between turns leaves when one ends.
            self.inside.initiator.on_turn_end(&mut self.io);
            let event = self.event();
            let InitiatorEvent::Done { result, .. } = event else {
                panic!("{event:?}")
            };
            result
        }

        /// Opens a socket, talks in a thread, and serves until the thread is done.
        fn with_peer<T: Send + 'static>(
            &mut self,
            talk: impl FnOnce(TcpStream) -> T + Send + 'static,
        ) -> T {
            let token = Token {
                room: WATCHDOG,
                index: 0,
                value: 0,
            };
            let bell = self.io.doorbell(token).unwrap();
            let stream = TcpStream::connect(self.at).unwrap();
            stream
                .set_read_timeout(Some(std::time::Duration::from_secs(20)))
                .unwrap();
            let (sender, receiver) = std::sync::mpsc::channel();
            let peer = std::thread::spawn(move || {
                sender.send(talk(stream)).unwrap();
                bell.ring();
            });
            let result = self.until(|_| receiver.try_recv().ok());
            peer.join().unwrap();
            result
        }

        fn stop(mut self) {
            self.inside.target.stop(&mut self.io);
            self.until(|world| world.inside.is_finished().then_some(()));
            drop(self.inside);
            assert_eq!(self.io.arena().in_use_bytes(), 0, "a buffer leaked");
        }
    }

    fn block(lba: u64, version: u8) -> [u8; 4096] {
        let mut bytes = [version; 4096];
        bytes[..8].copy_from_slice(&lba.to_le_bytes());
        bytes
    }

    fn payload(world: &World, slba: u64, blocks: u32, version: u8) -> Option<Buf> {
        let mut data = world.io.arena().take(blocks * 4096)?;
        for (lba, chunk) in (slba..).zip(data.bytes_mut().chunks_exact_mut(4096)) {
            chunk.copy_from_slice(&block(lba, version));
        }
        Some(data.freeze())
    }

    /// Writes every block in pieces of many sizes at full depth, reads all back in other pieces.
    fn storm(world: &mut World, on: AssociationId) {
        let sizes = [1u32, 32, 3, 8, 16, 4, 5, 31];
        for (reading, skew) in [(false, 0), (true, 3)] {
            let mut next = 0u64;
            let mut turn = skew;
            let mut outstanding = BTreeMap::new();
            while next < BLOCKS || !outstanding.is_empty() {
                while next < BLOCKS && outstanding.len() < 48 && world.client_may_take() {
                    let left = u32::try_from(BLOCKS - next).unwrap();
                    let blocks = sizes[turn % sizes.len()].min(left);
                    let Some(request) = request(world, reading, next, blocks) else {
                        break;
                    };
                    if !world.try_submit(on, next, request) {
                        break;
                    }
                    outstanding.insert(next, blocks);
                    next += u64::from(blocks);
                    turn += 1;
                }
                world.inside.initiator.on_turn_end(&mut world.io);
                let InitiatorEvent::Done {
                    user,
                    request,
                    result,
                    ..
                } = world.event()
                else {
                    panic!("association lost");
                };
                assert!(result.is_ok(), "{result:?}");
                assert!(outstanding.remove(&user).is_some());
                if let Request::Read { into, .. } = request {
                    for (lba, chunk) in (user..).zip(into.bytes().chunks_exact(4096)) {
                        assert!(chunk == block(lba, 1), "block {lba}");
                    }
                }
            }
        }
    }

    fn request(world: &World, reading: bool, slba: u64, blocks: u32) -> Option<Request> {
        Some(if reading {
            let into = world.io.arena().take(blocks * 4096)?;
            Request::Read {
                nsid: NSID,
                slba,
                blocks,
                into,
                tag: 0,
            }
        } else {
            let data = payload(world, slba, blocks, 1)?;
            Request::Write {
                nsid: NSID,
                slba,
                blocks,
                fua: false,
                data,
                tag: 0,
            }
        })
    }

    #[test]
    fn every_byte_arrives_with_and_without_digests() {
        for dgst in 0..4 {
            let mut world = World::new([512, 64, 96], Digests::from_wire(dgst));
            let on = world.connect();
            storm(&mut world, on);
            assert_eq!(world.inside.target.counters().data_digest_errors, 0);
            world.stop();
        }
    }

    #[test]
    fn a_small_arena_makes_commands_wait_and_loses_none() {
        let mut world = World::new([48, 12, 14], Digests::default());
        let on = world.connect();
        storm(&mut world, on);
        let waits = world.inside.target.counters().buffer_waits;
        assert!(waits > 0, "the arena was meant to be too small");
        world.stop();
    }

    #[test]
    fn admin_commands_carry_data_both_ways() {
        let mut world = World::plenty();
        let on = world.connect();
        let marks: Vec<u8> = (0..40_000u32)
            .map(|i| u8::try_from(i % 253).unwrap())
            .collect();
        let vendor = |opcode, data, reply_len_bytes| Request::Vendor {
            nsid: NSID,
            opcode,
            cdw10_15: [vendor::PROTOCOL_VERSION.into(), 0, 0, 0, 0, 0],
            data,
            reply_len_bytes,
        };
        let add = vendor(vendor::opcode::ADD_MARKS, Some(marks.clone()), 0);
        assert!(world.ask(on, add).is_ok());
        let read = vendor(vendor::opcode::READ_MARKS, None, 65_536);
        let reply = world.ask(on, read).unwrap();
        assert!(reply.data[..40_000] == marks && reply.data[40_000..].iter().all(|b| *b == 0));
        let refused = world.ask(on, vendor(vendor::opcode::TICK, None, 0));
        assert_eq!(refused, Err(Failure::Status(Status::NOT_OPEN)));
        world.stop();
    }

    #[test]
    fn a_host_is_told_of_changed_namespaces() {
        let mut world = World::plenty();
        let on = world.connect();
        // Set-up ends with the event request; a round trip on the same queue lets it arrive.
        assert!(world.ask(on, Request::Identify { nsid: 0, cns: 1 }).is_ok());
        let World { io, inside, .. } = &mut world;
        inside.target.namespaces_changed(io);
        inside.target.on_turn_end(io, &mut inside.ram);
        assert!(matches!(
            world.event(),
            InitiatorEvent::NamespacesChanged { .. }
        ));
        world.stop();
    }

    #[test]
    fn replies_to_an_association_that_went_are_dropped() {
        let mut world = World::plenty();
        let on = world.connect();
        world.inside.hold = true;
        for user in 0..8 {
            let request = request(&world, user % 2 == 0, user, 1).unwrap();
            assert!(world.try_submit(on, user, request));
        }
        world.inside.initiator.on_turn_end(&mut world.io);
        world.until(|world| (world.inside.ram.replies.len() == 8).then_some(()));
        world.inside.initiator.abort(&mut world.io, on);
        world.until(|world| world.inside.ram.associations.is_empty().then_some(()));
        world.until(|world| (world.inside.target.population() == (0, 0)).then_some(()));
        world.inside.hold = false;
        // The same connection numbers are used again before the old answers come.
        world.inside.events.clear();
        let again = world.inside.initiator.connect(&mut world.io, world.at, NQN);
        let ready = world.until(|world| {
            let is_ready = |e: &InitiatorEvent| matches!(e, InitiatorEvent::Ready { .. });
            world.inside.events.iter().position(is_ready)
        });
        world.inside.events.drain(..=ready);
        assert_eq!(world.inside.target.counters().replies_dropped, 8);
        storm(&mut world, again);
        world.stop();
    }

    fn pdu(header: &Header, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES_MAX];
        let len_bytes = u32::try_from(data.len()).unwrap();
        let len = Framing::default().encode(header, len_bytes, &mut out);
        out.truncate(len);
        out.extend_from_slice(data);
        out
    }

    fn icreq() -> Vec<u8> {
        pdu(&Header::IcReq(IcReq::new(Digests::default())), &[])
    }

    fn connect_admin() -> Vec<u8> {
        let command = ConnectCommand::new(1, 0, 31, 0, 0).to_sqe();
        let data = ConnectData::new([9; 16], CNTLID_DYNAMIC, NQN, HOST);
        pdu(&Header::CapsuleCmd(command), data.as_bytes())
    }

    #[test]
    fn a_breach_is_answered_with_a_terminate_request_and_ends_only_its_connection() {
        let mut world = World::plenty();
        let on = world.connect();
        let flush = pdu(&Header::CapsuleCmd(Sqe::new(opcode::FLUSH, 1, 1)), &[]);
        let mut wrong_hlen = connect_admin();
        wrong_hlen[2] = 255;
        // (bytes after ICReq, FES, FEI)
        let cases = [(icreq(), 2, 0), (wrong_hlen, 1, 2), (vec![0x0a; 8], 1, 0)];
        for (bytes, fes, fei) in cases {
            let answer = world.with_peer(move |mut stream| {
                stream.write_all(&icreq()).unwrap();
                stream.read_exact(&mut [0; 128]).unwrap();
                stream.write_all(&bytes).unwrap();
                let mut answer = Vec::new();
                let mut head = [0; 8];
                stream.read_exact(&mut head).unwrap();
                let plen = usize::from(head[4]);
                answer.extend_from_slice(&head);
                answer.resize(plen, 0);
                stream.read_exact(&mut answer[8..]).unwrap();
                answer
            });
            assert_eq!((answer[0], answer[8], answer[10]), (3, fes, fei));
        }
        // First PDU is no ICReq.
        let answer = world.with_peer(move |mut stream| {
            stream.write_all(&flush).unwrap();
            let mut head = [0; 24];
            stream.read_exact(&mut head).unwrap();
            head
        });
        assert_eq!((answer[0], answer[8]), (3, 2));
        assert_eq!(
            world
                .inside
                .target
                .counters()
                .breaches_of(Fes::SequenceError),
            2
        );
        assert!(world.ask(on, Request::Flush { nsid: NSID }).is_ok());
        world.stop();
    }

    #[test]
    fn connections_that_end_anywhere_leave_nothing_behind() {
        let mut world = World::plenty();
        let on = world.connect();
        let bytes = [
            icreq(),
            connect_admin(),
            term_req(Role::Host, nothing(), &[]),
        ]
        .concat();
        for end in (0..=bytes.len()).step_by(61) {
            let bytes = bytes[..end].to_vec();
            world.with_peer(move |mut stream| stream.write_all(&bytes).unwrap());
        }
        world.until(|world| (world.inside.target.population() == (2, 1)).then_some(()));
        assert!(world.ask(on, Request::Flush { nsid: NSID }).is_ok());
        world.stop();
    }

    fn nothing() -> nvmf::proto::pdu::Fatal {
        nvmf::proto::pdu::Fatal::field(0)
    }

    #[test]
    fn a_host_that_does_not_read_is_not_heard_and_stops_nobody() {
        let mut world = World::plenty();
        let on = world.connect();
        // Identify data for thousands of commands, none of it read.
        let identify = pdu(
            &Header::CapsuleCmd(
                Sqe::new(6, 3, 0)
                    .with_cdws([1, 0, 0, 0, 0, 0])
                    .with_sgl(Sgl::transport(4096)),
            ),
            &[],
        );
        let enable = nvmf::proto::fabrics::PropertyCommand::set(
            2,
            nvmf::proto::fabrics::property::CC,
            nvmf::proto::fabrics::CC_ENABLE,
        );
        let enable = pdu(&Header::CapsuleCmd(enable.to_sqe()), &[]);
        let stream = world.with_peer(move |mut stream| {
            stream.write_all(&icreq()).unwrap();
            stream.write_all(&connect_admin()).unwrap();
            stream.write_all(&enable).unwrap();
            stream
                .set_write_timeout(Some(std::time::Duration::from_millis(300)))
                .unwrap();
            let mut written = 0;
            for _ in 0..200_000 {
                match stream.write_all(&identify) {
                    Ok(()) => written += 1,
                    Err(_) => break,
                }
            }
            assert!(written < 200_000, "the target never stopped listening");
            stream
        });
        assert!(world.ask(on, Request::Flush { nsid: NSID }).is_ok());
        storm(&mut world, on);
        drop(stream);
        world.stop();
    }
}
