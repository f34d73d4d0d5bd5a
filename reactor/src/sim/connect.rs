//! How simulated connections come to be.

use super::net::{End, Link, LinkEnd, Side};
use super::state::{Action, Place, SimHandle, State, slot};
use crate::driver::{Done, Handle};
use crate::error::Errno;
use crate::slab::Key;
use std::net::SocketAddr;

/// Connections that wait for an accept.
const BACKLOG: usize = 1024;
/// How long a connection request to a dark node takes to fail, in nanoseconds.
const CONNECT_TIMEOUT_NS: u64 = 130_000_000_000;

impl State {
    /// Asks for a connection; the answer decides the op.
    pub(super) fn connect(&mut self, node: usize, key: Key, to: SocketAddr) {
        let ip = if to.ip().is_loopback() {
            to.ip()
        } else {
            Self::ip(node)
        };
        let port = self.free_port(node);
        let life = self.nodes[node].life;
        let at_ns = self.now_ns + self.latency_ns();
        let from = SocketAddr::new(ip, port);
        self.schedule(
            at_ns,
            Action::Syn {
                node,
                life,
                key,
                from,
                to,
            },
        );
    }

    pub(super) fn free_port(&mut self, node: usize) -> u16 {
        let it = &mut self.nodes[node];
        it.next_port = it.next_port.checked_add(1).unwrap_or(40_000);
        it.next_port
    }

    pub(super) fn on_syn(&mut self, action: Action) {
        let Action::Syn {
            node,
            life,
            key,
            from,
            to,
        } = action
        else {
            unreachable!("a syn")
        };
        let Some(target) = self.node_at(node, to.ip()) else {
            return self.answer_syn(node, life, key, Err(Errno::CONNECTION_REFUSED));
        };
        if self.partitions.contains(&(node, target)) {
            let held = Action::Syn {
                node,
                life,
                key,
                from,
                to,
            };
            return self.held.push(((node, target), held));
        }
        if self.nodes[target].dark {
            if self.is_alive(node, life) && self.undecided(node, key).is_some() {
                let at_ns = self.now_ns + CONNECT_TIMEOUT_NS;
                self.schedule(
                    at_ns,
                    Action::SynAnswer {
                        node,
                        life,
                        key,
                        link: Err(Errno(libc::ETIMEDOUT)),
                    },
                );
            }
            return;
        }
        let Some(listener) = self.listener(target, to.port()) else {
            return self.answer_syn(node, life, key, Err(Errno::CONNECTION_REFUSED));
        };
        let id = self.next_link;
        self.next_link += 1;
        let link = Link {
            near: Side::new(node),
            far: Side::new(target),
            near_address: from,
            far_address: to,
        };
        self.links.insert(id, link);
        let open = self.nodes[target]
            .handles
            .get_mut(slot(listener))
            .expect("just found");
        let Place::Listener { backlog, .. } = &mut open.place else {
            unreachable!("a listener")
        };
        backlog.push_back(id);
        self.serve_accepts(target, listener);
        self.answer_syn(node, life, key, Ok(id));
    }

    fn answer_syn(&mut self, node: usize, life: u32, key: Key, link: Result<u64, Errno>) {
        let at_ns = self.now_ns + self.latency_ns();
        if let Some(side) = link.ok().and_then(|link| {
            self.side(LinkEnd {
                link,
                end: End::Near,
            })
        }) {
            // What the far end sends meanwhile arrives behind the answer.
            side.last_arrival_ns = at_ns;
        }
        self.schedule(
            at_ns,
            Action::SynAnswer {
                node,
                life,
                key,
                link,
            },
        );
    }

    fn listener(&self, node: usize, port: u16) -> Option<Handle> {
        let found = self.nodes[node].handles.iter().find(|(_, open)| {
            let Place::Listener {
                port: bound,
                backlog,
                ..
            } = &open.place
            else {
                return false;
            };
            *bound == port && backlog.len() < BACKLOG && open.closing.is_none()
        });
        found.map(|(key, _)| Handle {
            index: key.index,
            turn: key.turn,
        })
    }

    pub(super) fn on_syn_answer(
        &mut self,
        node: usize,
        life: u32,
        key: Key,
        link: Result<u64, Errno>,
    ) {
        let wanted = self.is_alive(node, life) && self.undecided(node, key).is_some();
        match link.map(|link| LinkEnd {
            link,
            end: End::Near,
        }) {
            Ok(near) if wanted => {
                let link = &self.links[&near.link];
                let (local, peer) = (link.near_address, link.far_address);
                let result = self.add_socket(node, near, local, peer);
                self.decide(node, key, result);
            }
            Ok(near) => self.close_end(near, true),
            Err(errno) if wanted => self.decide(node, key, Err(errno)),
            Err(_) => {}
        }
    }

    fn add_socket(
        &mut self,
        node: usize,
        end: LinkEnd,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Done, Errno> {
        let open = SimHandle {
            place: Place::Socket(end),
            local: Some(local),
            in_flight: 0,
            closing: None,
            exclusive: false,
        };
        match self.nodes[node].handles.insert(open) {
            Ok(key) => Ok(Done::Socket {
                handle: Handle {
                    index: key.index,
                    turn: key.turn,
                },
                peer,
            }),
            Err(_) => {
                self.close_end(end, true);
                Err(Errno::TOO_MANY_HANDLES)
            }
        }
    }

    /// Matches waiting connections with waiting accepts.
    pub(super) fn serve_accepts(&mut self, node: usize, listener: Handle) {
        loop {
            let open = self.nodes[node]
                .handles
                .get_mut(slot(listener))
                .expect("sim: open");
            let Place::Listener {
                backlog, accepts, ..
            } = &mut open.place
            else {
                unreachable!("checked at submission")
            };
            if backlog.is_empty() || accepts.is_empty() {
                return;
            }
            let (link, key) = (backlog.pop_front(), accepts.pop_front());
            let (link, key) = (link.expect("not empty"), key.expect("not empty"));
            let addresses = self
                .links
                .get(&link)
                .map(|l| (l.far_address, l.near_address));
            let (local, peer) = addresses.expect("sim: links in a backlog exist");
            let end = LinkEnd {
                link,
                end: End::Far,
            };
            let result = self.add_socket(node, end, local, peer);
            self.decide(node, key, result);
        }
    }
}
