//! Simulated TCP: two ordered byte streams per link, cut at random places, delayed, aborted.

use super::state::{Action, State};
use crate::driver::{Done, Op, total_bytes};
use crate::error::Errno;
use crate::slab::Key;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Bytes that may be on their way or unread in one direction: the socket buffers of both ends.
const WINDOW_BYTES: usize = 256 * 1024;
/// Most bytes that arrive at once.
const SEGMENT_BYTES: usize = 64 * 1024;
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

pub(super) struct Side {
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
    pub(super) last_arrival_ns: u64,
}

impl Side {
    pub(super) fn new(node: usize) -> Self {
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
    pub(super) near: Side,
    pub(super) far: Side,
    pub(super) near_address: SocketAddr,
    pub(super) far_address: SocketAddr,
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
    pub(super) fn side(&mut self, end: LinkEnd) -> Option<&mut Side> {
        Some(self.links.get_mut(&end.link)?.side(end.end))
    }

    pub(super) fn latency_ns(&mut self) -> u64 {
        self.draw(self.config.net_ns)
    }

    /// The nodes of a link, smaller first.
    fn nodes_of(&self, link: u64) -> Option<(usize, usize)> {
        let link = self.links.get(&link)?;
        Some(pair(link.near.node, link.far.node))
    }

    /// The way to an end: from which node to which.
    fn way_to(&self, end: LinkEnd) -> Option<(usize, usize)> {
        let link = self.links.get(&end.link)?;
        Some(match end.end {
            End::Near => (link.far.node, link.near.node),
            End::Far => (link.near.node, link.far.node),
        })
    }

    pub(super) fn send(&mut self, node: usize, key: Key, end: LinkEnd) {
        let op = self.nodes[node].ops.get(key).expect("just submitted");
        let Op::Send { parts, .. } = &op.op else {
            unreachable!("a send")
        };
        let mut bytes = Vec::with_capacity(total_bytes(&op.op) as usize);
        parts
            .iter()
            .for_each(|part| bytes.extend_from_slice(part.bytes()));
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
        side.queued.extend(&bytes);
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
            let mut bytes = vec![0; cut];
            take_front(&mut from.queued, &mut bytes);
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
            let total = total_bytes(&self.nodes[node].ops.get(key).expect("in flight").op);
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
            take_front(&mut bytes, &mut window.bytes_mut()[..part]);
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
        match self.way_to(end) {
            Some(way) if self.partitions.contains(&way) => {
                self.held.push((way, action));
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

/// Moves as many bytes as fit.
fn take_front(from: &mut VecDeque<u8>, into: &mut [u8]) {
    let (first, second) = from.as_slices();
    let head = first.len().min(into.len());
    into[..head].copy_from_slice(&first[..head]);
    let tail = into.len() - head;
    into[head..].copy_from_slice(&second[..tail]);
    from.drain(..into.len());
}

/// Two nodes, smaller first.
pub(super) fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}
