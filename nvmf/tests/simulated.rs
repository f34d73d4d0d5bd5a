//! Our target and our initiator under virtual time: what takes hours, and what takes luck.
#![forbid(unsafe_code)]

#[cfg(test)]
mod inside;
#[cfg(test)]
#[path = "../examples/ram/mod.rs"]
mod ram;

#[cfg(test)]
mod test {
    use super::inside::{Inside, NQN};
    use super::ram::NSID;
    use nvmf::initiator::{InitiatorEvent, Request};
    use reactor::sim::{NodeId, SimConfig, SimWorld};
    use std::cell::RefCell;
    use std::net::SocketAddr;
    use std::rc::Rc;

    const SECOND_NS: u64 = 1_000_000_000;

    struct Pair {
        world: SimWorld,
        nodes: (NodeId, NodeId),
        server: Rc<RefCell<Inside>>,
        client: Rc<RefCell<Inside>>,
    }

    /// A server and a client that is connected to it.
    fn pair(seed: u64) -> Pair {
        let mut world = SimWorld::new(SimConfig::seeded(seed));
        let nodes = (world.add_node(), world.add_node());
        let at = SocketAddr::new(world.ip(nodes.0), 4420);
        let server = world.boot(nodes.0, |io| {
            let mut inside = Inside::new(Inside::config());
            inside.target.listen(io, at).unwrap();
            inside
        });
        let client = world.boot(nodes.1, |io| {
            let mut inside = Inside::new(Inside::config());
            inside.initiator.connect(io, at, NQN);
            inside
        });
        let ready = |client: &Inside| matches!(client.events[..], [InitiatorEvent::Ready { .. }]);
        assert!(world.run_to(SECOND_NS, |_| ready(&client.borrow())));
        Pair {
            world,
            nodes,
            server,
            client,
        }
    }

    #[test]
    fn an_idle_association_lives_for_hours() {
        let mut pair = pair(1);
        pair.world.run_for(6 * 3600 * SECOND_NS);
        assert_eq!(pair.server.borrow().target.population(), (2, 1));
        assert_eq!(pair.client.borrow().events.len(), 1, "nothing but Ready");
    }

    #[test]
    fn a_host_that_falls_silent_is_given_up_after_kato() {
        let mut pair = pair(2);
        pair.world.run_for(60 * SECOND_NS);
        pair.world.partition(pair.nodes.0, pair.nodes.1);
        // It was heard at most KATO/2 (7.5 s) ago, so it lives at least 7.5 s and at most 17 s more.
        pair.world.run_for(7 * SECOND_NS);
        assert_eq!(pair.server.borrow().target.population().1, 1);
        pair.world.run_for(11 * SECOND_NS);
        let server = pair.server.borrow();
        assert_eq!(server.target.population(), (0, 0));
        assert!(server.ram.associations.is_empty(), "the backend was told");
    }

    #[test]
    fn a_crashed_host_leaves_nothing_behind() {
        let mut pair = pair(3);
        pair.world.crash(pair.nodes.1);
        pair.world.run_for(SECOND_NS);
        assert_eq!(pair.server.borrow().target.population(), (0, 0));
    }

    /// Streams are cut differently with every seed; what is written must be read.
    #[test]
    fn data_survives_every_way_of_cutting_the_stream() {
        for seed in 0..40 {
            let mut pair = pair(seed);
            let association = match pair.client.borrow_mut().events.remove(0) {
                InitiatorEvent::Ready { association, .. } => association,
                InitiatorEvent::Done { .. }
                | InitiatorEvent::Lost { .. }
                | InitiatorEvent::NamespacesChanged { .. } => panic!("not ready"),
            };
            for (index, blocks) in [1u32, 4, 5, 17, 32].into_iter().enumerate() {
                let slba = 100 * index as u64;
                let fill = u8::try_from(seed).unwrap() + 1;
                for reading in [false, true] {
                    let client = pair.client.clone();
                    pair.world.on(pair.nodes.1, |io| {
                        let mut buffer = io.arena().take(blocks * 4096).unwrap();
                        let request = if reading {
                            Request::Read {
                                nsid: NSID,
                                slba,
                                blocks,
                                into: buffer,
                                tag: 0,
                            }
                        } else {
                            buffer.bytes_mut().fill(fill);
                            let data = buffer.freeze();
                            Request::Write {
                                nsid: NSID,
                                slba,
                                blocks,
                                fua: true,
                                data,
                                tag: 0,
                            }
                        };
                        let mut client = client.borrow_mut();
                        client
                            .initiator
                            .submit(io, association, 1, request)
                            .unwrap();
                    });
                    let has_event = |_: &mut SimWorld| !client.borrow().events.is_empty();
                    assert!(pair.world.run_to(SECOND_NS, has_event), "seed {seed}");
                    let event = client.borrow_mut().events.remove(0);
                    let InitiatorEvent::Done {
                        request, result, ..
                    } = event
                    else {
                        panic!("seed {seed}: {event:?}");
                    };
                    assert!(result.is_ok(), "seed {seed}: {result:?}");
                    if let Request::Read { into, .. } = request {
                        assert!(into.bytes().iter().all(|byte| *byte == fill), "seed {seed}");
                    }
                }
            }
        }
    }
}
