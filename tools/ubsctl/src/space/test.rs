//! Questions to a storaged that is played, over a socket.

use super::asker::{Question, ask};
use super::*;
use nvmf::proto::status::Status;
use nvmf::proto::vendor::{self, opcode};
use nvmf::target::{
    AssociationId, Command, CommandKind, Identity, NamespaceFacts, Namespaces, Reply, ReplyData,
    Target, TargetConfig,
};
use reactor::{App, Completion, Driver};
use shardmap::units::Nsid;
use std::net::SocketAddr;
use std::time::Duration;
use zerocopy::IntoBytes as _;

const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:played";

/// What it says: by slice and first extent, the figures, a snapshot's, and where to go on.
type Script = BTreeMap<(u32, u64), ([u64; 3], Option<(u32, u64)>, u64)>;

struct Slices {
    script: Script,
    replies: Vec<Reply>,
    associations_gone: usize,
}

impl Slices {
    fn answer(&self, nsid: u32, from: u64) -> Option<(u64, Vec<u8>)> {
        let ([live, snapshots, reclaimable], exclusive, next) = self.script.get(&(nsid, from))?;
        let head = vendor::SliceSpace {
            version: vendor::PROTOCOL_VERSION.into(),
            flags: 0.into(),
            exclusive_count: u32::from(exclusive.is_some()).into(),
            live_bytes: (*live).into(),
            snapshots_bytes: (*snapshots).into(),
            reclaimable_bytes: (*reclaimable).into(),
        };
        let mut data = head.as_bytes().to_vec();
        if let Some((generation, bytes)) = *exclusive {
            let entry = vendor::SpaceExclusive {
                generation: generation.into(),
                reserved: 0.into(),
                bytes: bytes.into(),
            };
            data.extend_from_slice(entry.as_bytes());
        }
        Some((*next, data))
    }
}

impl Namespaces for Slices {
    fn list(&self, _: &str) -> Vec<u32> {
        Vec::new()
    }

    fn identify(&self, _: u32) -> Option<NamespaceFacts> {
        None
    }

    fn admit(&mut self, _: &mut dyn Driver, command: Command) {
        let CommandKind::Vendor {
            opcode: opcode::READ_SPACE,
            cdw10_15: [_, low, high, ..],
            ..
        } = command.kind
        else {
            panic!("{:?}", command.kind)
        };
        let found = self.answer(command.nsid, u64::from(low) | u64::from(high) << 32);
        self.replies.push(match found {
            Some((result, data)) => Reply {
                id: command.id,
                status: Status::SUCCESS,
                result,
                data: ReplyData::Bytes(data),
            },
            None => Reply {
                id: command.id,
                status: Status::INVALID_NAMESPACE,
                result: 0,
                data: ReplyData::None,
            },
        });
    }

    fn on_association_gone(&mut self, _: &mut dyn Driver, _: AssociationId) {
        self.associations_gone += 1;
    }
}

struct Program {
    target: Target,
    slices: Slices,
}

impl Program {
    fn answer(&mut self, io: &mut dyn Driver) {
        for reply in self.slices.replies.drain(..) {
            self.target.reply(io, reply);
        }
    }
}

impl App for Program {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        self.target.on_completion(io, &mut self.slices, completion);
        self.answer(io);
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.target.on_turn_end(io, &mut self.slices);
        if !self.slices.replies.is_empty() {
            self.answer(io);
            self.target.on_turn_end(io, &mut self.slices);
        }
    }

    fn is_finished(&self) -> bool {
        self.slices.associations_gone > 0
    }
}

/// Plays a storaged until its first guest has gone.
fn play(script: Script) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut driver = crate::ring::driver([64, 32, 48]).unwrap();
        let identity = Identity {
            subnqn: NQN.into(),
            serial: "played".into(),
            firmware: "0.1".into(),
        };
        let mut program = Program {
            target: Target::new(TargetConfig::new(0, identity)),
            slices: Slices {
                script,
                replies: Vec::new(),
                associations_gone: 0,
            },
        };
        let bound = program
            .target
            .listen(&mut driver, ([127, 0, 0, 1], 0).into());
        tell.send(bound.unwrap()).unwrap();
        driver.run(&mut program);
    });
    (told.recv().unwrap(), thread)
}

fn asked(questions: &[(u32, SocketAddr)], patience: Duration) -> Vec<asker::Answer> {
    let question = |(nsid, address): &(u32, SocketAddr)| Question {
        nsid: Nsid(*nsid),
        address: *address,
        subsystem_nqn: NQN.into(),
    };
    let questions = questions.iter().map(question).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let nqn = "nqn.2026-01.io.ublkstor:reader:test".to_owned();
    runtime.block_on(ask(nqn, questions, patience)).unwrap()
}

#[test]
fn parts_are_summed_up_and_what_is_refused_is_told() {
    let script = Script::from([
        ((1, 0), ([1, 2, 3], Some((4, 20)), (1 << 32) + 7)),
        ((1, (1 << 32) + 7), ([10, 20, 30], Some((4, 2)), 0)),
        // It would never end.
        ((3, 0), ([1, 1, 1], None, 5)),
        ((3, 5), ([1, 1, 1], None, 5)),
        ((4, 0), ([0, 0, 9], None, 0)),
    ]);
    let (address, thread) = play(script);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let slices = [1, 2, 3, 4].map(|nsid| (nsid, address));
    let questions: Vec<_> = slices.into_iter().chain([(9, nobody)]).collect();
    let answers = asked(&questions, Duration::from_secs(60));
    let [whole, refused, senseless, last, lost] = &answers[..] else {
        panic!("{answers:?}")
    };
    let expected = Space {
        live_bytes: 11,
        snapshots_bytes: 22,
        reclaimable_bytes: 33,
        exclusive: [(Generation(4), 22)].into(),
    };
    assert_eq!(whole, &Ok(expected));
    assert_eq!(last.as_ref().unwrap().allocated_bytes(), 9);
    assert!(
        refused.as_ref().unwrap_err().contains("status"),
        "{refused:?}"
    );
    assert!(
        senseless.as_ref().unwrap_err().contains("makes no sense"),
        "{senseless:?}"
    );
    assert!(
        lost.as_ref().unwrap_err().contains(&nobody.to_string()),
        "{lost:?}"
    );
    thread.join().unwrap();
}

#[test]
fn who_never_answers_is_waited_for_as_long_as_wanted() {
    // It takes the connection and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let answers = asked(&[(1, at)], Duration::from_millis(300));
    let why = answers[0].as_ref().unwrap_err();
    assert!(why.contains("in time"), "{why}");
}
