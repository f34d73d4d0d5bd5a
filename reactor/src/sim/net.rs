//! Simulated TCP: two ordered byte streams per link, cut at random places, delayed, aborted.

use super::state::{Action, Place, SimHandle, State, slot};
use crate::driver::{Done, Handle, Op};
use crate::error::Errno;
use crate::slab::Key;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Bytes that may be on their way or unread in one direction: the socket buffers of both ends.
const WINDOW_BYTES: usize = 256 * 1024;
/// Most bytes that arrive at once.
const SEGMENT_BYTES: usize = 64 * 1024;
/// Connections that wait for an accept.
const BACKLOG: usize = 1024;
/// How long a connection request to a dark node takes to fail, in nanoseconds.
const CONNECT_TIMEOUT_NS: u64 = 130_000_000_000;

/// One of the two ends of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The end that connected.
    Near,
    /// The end that accepted.
    Far,
}

/// An end, named from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkEnd {
    pub(super) link: u64,
    pub(super) end: End,
}

impl LinkEnd {
    const fn other(self) -> Self {
        let end = match self.end {
            End::Near => End::Far,
            End::Far => End::Near,
        };
        Self {
            link: self.link,
            end,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    /// Closed by its process or kernel: what arrives is answered with a reset.
    Closed,
    /// Its node lost power: what arrives is answered only once the node is up again.
    Lost,
}

struct Side {
    node: usize,
    life: Life,
    /// Received and not read.
    arrived: VecDeque<u8>,
    /// Sent by the other side and not arrived.
    on_wire_bytes: usize,
    end_of_stream: bool,
    /// Aborted; the first op after it is told why.
    aborted: Option<Option<Errno>>,
    recvs: VecDeque<Key>,
    /// To be sent, and the send that waits for it.
    queued: VecDeque<u8>,
    sending: Option<Key>,
    last_arrival_ns: u64,
}

impl Side {
    fn new(node: usize) -> Self {
        Self {
            node,
            life: Life::Open,
            arrived: VecDeque::new(),
            on_wire_bytes: 0,
            end_of_stream: false,
            aborted: None,
            recvs: VecDeque::new(),
            queued: VecDeque::new(),
            sending: None,
            last_arrival_ns: 0,
        }
    }
}

pub(super) struct Link {
    near: Side,
    far: Side,
    near_address: SocketAddr,
    far_address: SocketAddr,
}

impl Link {
    fn side(&mut self, end: End) -> &mut Side {
        match end {
            End::Near => &mut self.near,
            End::Far => &mut self.far,
        }
    }
}

impl State {
    fn side(&mut self, end: LinkEnd) -> Option<&mut Side> {
        Some(self.links.get_mut(&end.link)?.side(end.end))
    }

    fn latency_ns(&mut self) -> u64 {
        self.draw(self.config.net_ns)
    }

    /// The nodes of a link, smaller first.
    fn nodes_of(&self, link: u64) -> Option<(usize, usize)> {
        let link = self.links.get(&link)?;
        Some(pair(link.near.node, link.far.node))
    }

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
        if self.partitions.contains(&pair(node, target)) {
            let held = Action::Syn {
                node,
                life,
                key,
                from,
                to,
            };
            return self.held.push((pair(node, target), held));
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

    pub(super) fn send(&mut self, node: usize, key: Key, end: LinkEnd) {
        let op = self.nodes[node].ops.get(key).expect("just submitted");
        let Op::Send { parts, .. } = &op.op else {
            unreachable!("a send")
        };
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|part| part.bytes())
            .copied()
            .collect();
        let side = self.side(end).expect("sim: an open socket has its link");
        if let Some(told) = &mut side.aborted {
            let errno = told.take().unwrap_or(Errno(libc::EPIPE));
            return self.decide(node, key, Err(errno));
        }
        assert!(
            side.sending.is_none(),
            "reactor: two sends in flight on one socket"
        );
        side.sending = Some(key);
        side.queued.extend(bytes);
        self.pump(end);
    }

    /// Puts queued bytes on the wire as far as the window allows.
    fn pump(&mut self, end: LinkEnd) {
        loop {
            let Some(to) = self.side(end.other()) else {
                return;
            };
            let room = WINDOW_BYTES.saturating_sub(to.on_wire_bytes + to.arrived.len());
            let from = self.side(end).expect("links have two ends");
            let most = room.min(from.queued.len()).min(SEGMENT_BYTES);
            if most == 0 {
                break;
            }
            let cut = self.cut(most);
            let latency_ns = self.latency_ns();
            let now_ns = self.now_ns;
            let from = self.side(end).expect("as above");
            let bytes: Vec<u8> = from.queued.drain(..cut).collect();
            let to = self.side(end.other()).expect("as above");
            to.on_wire_bytes += bytes.len();
            to.last_arrival_ns = to.last_arrival_ns.max(now_ns + latency_ns);
            let at_ns = to.last_arrival_ns;
            self.schedule(
                at_ns,
                Action::Arrive {
                    end: end.other(),
                    bytes,
                },
            );
        }
        let from = self.side(end).expect("as above");
        if from.queued.is_empty()
            && let Some(key) = from.sending.take()
        {
            let node = from.node;
            let total =
                crate::driver::total_bytes(&self.nodes[node].ops.get(key).expect("in flight").op);
            self.decide(node, key, Ok(Done::Bytes(total)));
        }
    }

    /// How much of `most` bytes travels together: a few bytes, some or all.
    fn cut(&mut self, most: usize) -> usize {
        let most = most as u64;
        let cut = match self.prng.below(4) {
            0 => self.prng.within(1, most.min(64)),
            1 => self.prng.within(1, most),
            _ => most,
        };
        usize::try_from(cut).expect("at most a segment")
    }

    pub(super) fn recv(&mut self, key: Key, end: LinkEnd) {
        self.side(end)
            .expect("sim: an open socket has its link")
            .recvs
            .push_back(key);
        self.serve_recvs(end);
    }

    /// Gives waiting receives what has arrived.
    fn serve_recvs(&mut self, end: LinkEnd) {
        loop {
            let Some(side) = self.side(end) else { return };
            let node = side.node;
            let Some(key) = side.recvs.front().copied() else {
                return;
            };
            let result = if let Some(told) = &mut side.aborted {
                told.take().map_or(Ok(Done::Bytes(0)), Err)
            } else if !side.arrived.is_empty() {
                let bytes = std::mem::take(&mut side.arrived);
                let (count, rest) = self.fill(node, key, bytes);
                self.side(end).expect("as above").arrived = rest;
                Ok(Done::Bytes(count))
            } else if side.end_of_stream {
                Ok(Done::Bytes(0))
            } else {
                return;
            };
            self.side(end).expect("as above").recvs.pop_front();
            self.decide(node, key, result);
            self.pump(end.other());
        }
    }

    /// Moves bytes into the windows of a receive; returns how many and what is left.
    fn fill(&mut self, node: usize, key: Key, mut bytes: VecDeque<u8>) -> (u32, VecDeque<u8>) {
        // A receive may also come back early: the kernel owes one byte, no more.
        let most = if self.prng.chance(1, 8) {
            self.cut(bytes.len())
        } else {
            bytes.len()
        };
        let op = self.nodes[node]
            .ops
            .get_mut(key)
            .expect("waiting receives are in flight");
        let Op::Recv {
            into: (first, second),
            ..
        } = &mut op.op
        else {
            unreachable!("a receive")
        };
        let mut count = 0;
        for window in [Some(first), second.as_mut()].into_iter().flatten() {
            let part = (window.len_bytes() as usize).min(most - count);
            for (to, from) in window.bytes_mut()[..part]
                .iter_mut()
                .zip(bytes.drain(..part))
            {
                *to = from;
            }
            count += part;
        }
        (u32::try_from(count).expect("two windows"), bytes)
    }

    /// A cancelled receive or send leaves its link.
    pub(super) fn forget_on_link(&mut self, end: LinkEnd, key: Key) {
        let side = self.side(end).expect("sim: an open socket has its link");
        side.recvs.retain(|waiting| *waiting != key);
        if side.sending == Some(key) {
            side.sending = None;
            side.queued.clear();
        }
    }

    /// True if the action was kept back by a partition.
    pub(super) fn hold(&mut self, end: LinkEnd, action: Action) -> Option<Action> {
        match self.nodes_of(end.link) {
            Some(nodes) if self.partitions.contains(&nodes) => {
                self.held.push((nodes, action));
                None
            }
            _ => Some(action),
        }
    }

    pub(super) fn on_arrive(&mut self, end: LinkEnd, bytes: &[u8]) {
        let Some(node) = self.side(end).map(|side| side.node) else {
            return;
        };
        let dark = self.nodes[node].dark;
        let side = self.side(end).expect("just seen");
        match side.life {
            Life::Open => {
                side.on_wire_bytes -= bytes.len();
                if side.aborted.is_none() {
                    side.arrived.extend(bytes);
                    self.serve_recvs(end);
                }
            }
            Life::Closed => {
                side.on_wire_bytes -= bytes.len();
                self.send_reset(end);
            }
            Life::Lost if !dark => self.send_reset(end),
            // Never acknowledged, so it stays in the sender's window.
            Life::Lost => {}
        }
    }

    pub(super) fn on_fin(&mut self, end: LinkEnd) {
        if let Some(side) = self.side(end) {
            side.end_of_stream = true;
            self.serve_recvs(end);
        }
    }

    pub(super) fn on_reset(&mut self, end: LinkEnd) {
        let Some(side) = self.side(end).filter(|side| side.aborted.is_none()) else {
            return;
        };
        side.arrived.clear();
        side.queued.clear();
        let sending = side.sending.take();
        // Both kinds of op that wait are told; later ones see the end of the stream.
        side.aborted = Some(Some(Errno::CONNECTION_RESET));
        let node = side.node;
        if let Some(key) = sending {
            self.decide(node, key, Err(Errno::CONNECTION_RESET));
        }
        self.serve_recvs(end);
    }

    fn send_reset(&mut self, from: LinkEnd) {
        let latency_ns = self.latency_ns();
        let now_ns = self.now_ns;
        let Some(to) = self.side(from.other()) else {
            return;
        };
        to.last_arrival_ns = to.last_arrival_ns.max(now_ns + latency_ns);
        let at_ns = to.last_arrival_ns;
        self.schedule(at_ns, Action::Reset { end: from.other() });
    }

    /// Closes an end: in order, or by abort if that was asked for or unread bytes are thrown away.
    pub(super) fn close_end(&mut self, end: LinkEnd, reset: bool) {
        let Some(side) = self.side(end).filter(|side| side.life == Life::Open) else {
            return;
        };
        side.life = Life::Closed;
        side.recvs.clear();
        side.sending = None;
        side.queued.clear();
        let already = side.aborted.is_some();
        let abort = reset || !side.arrived.is_empty();
        side.arrived.clear();
        if already {
            // The other end aborted first and knows.
        } else if abort {
            self.send_reset(end);
        } else {
            let latency_ns = self.latency_ns();
            let now_ns = self.now_ns;
            let to = self.side(end.other()).expect("links have two ends");
            to.last_arrival_ns = to.last_arrival_ns.max(now_ns + latency_ns);
            let at_ns = to.last_arrival_ns;
            self.schedule(at_ns, Action::Fin { end: end.other() });
        }
        self.forget_closed(end.link);
    }

    /// The node of an end lost power.
    pub(super) fn lose_end(&mut self, end: LinkEnd) {
        if let Some(side) = self.side(end).filter(|side| side.life == Life::Open) {
            side.life = Life::Lost;
            side.recvs.clear();
            side.sending = None;
            side.queued.clear();
        }
        self.forget_closed(end.link);
    }

    /// A node is up again and knows nothing of its old connections: what peers still send to them
    /// is answered with a reset.
    pub(super) fn disown_lost(&mut self, node: usize) {
        let all = self
            .links
            .keys()
            .flat_map(|&link| [End::Near, End::Far].map(|end| LinkEnd { link, end }));
        for end in all.collect::<Vec<_>>() {
            let side = self.side(end).expect("listed");
            if side.node == node && side.life == Life::Lost && side.on_wire_bytes > 0 {
                self.send_reset(end);
            }
        }
    }

    /// Aborts every connection between two nodes, as a middle box that forgot them would.
    pub(super) fn reset_between(&mut self, nodes: (usize, usize)) {
        let all = self.links.keys().copied();
        let links: Vec<u64> = all
            .filter(|link| self.nodes_of(*link) == Some(nodes))
            .collect();
        for link in links {
            for end in [End::Near, End::Far] {
                let at_ns = self.now_ns;
                self.schedule(
                    at_ns,
                    Action::Reset {
                        end: LinkEnd { link, end },
                    },
                );
            }
        }
    }

    fn forget_closed(&mut self, link: u64) {
        let both = self
            .links
            .get(&link)
            .is_some_and(|link| link.near.life != Life::Open && link.far.life != Life::Open);
        if both {
            self.links.remove(&link);
        }
    }
}

/// Two nodes, smaller first.
pub(super) fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}
