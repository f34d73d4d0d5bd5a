//! What a node's app sees of the simulated world.

use super::disk::Disk;
use super::state::{Action, Place, SimHandle, SimOp, State, slot};
use crate::arena::Arena;
use crate::counters::Counters;
use crate::driver::{
    Doorbell, Driver, FileFacts, FileKind, Handle, Op, OpId, OpenFile, SEND_PARTS_MAX, TimerId,
    Token, handle_of, total_bytes,
};
use crate::error::{Errno, SetupError};
use crate::slab::Key;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The driver of one life of one node.
pub struct SimDriver {
    pub(super) state: Rc<RefCell<State>>,
    pub(super) node: usize,
    pub(super) arena: Arena,
    pub(super) ops_total: u64,
}

impl std::fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDriver(node {})", self.node)
    }
}

fn call(what: String, errno: i32) -> SetupError {
    SetupError::Call {
        what,
        errno: Errno(errno),
    }
}

/// Whether the op may be done on that sort of thing.
fn fits(op: &Op, place: &Place) -> bool {
    match op {
        Op::Accept { .. } => matches!(place, Place::Listener { .. }),
        Op::Recv { .. } | Op::Send { .. } => matches!(place, Place::Socket(_)),
        Op::Read { .. } | Op::Write { .. } | Op::Flush { .. } | Op::Discard { .. } => {
            matches!(place, Place::File(_))
        }
        Op::Command { .. } => false,
        Op::Connect { .. } | Op::Close { .. } => true,
    }
}

impl State {
    /// Starts an op; an error decides it at once.
    fn start(&mut self, node: usize, key: Key) -> Result<(), Errno> {
        let it = &mut self.nodes[node];
        let op = it.ops.get_mut(key).expect("just inserted");
        if let Op::Close { handle, reset } = op.op {
            self.begin_close(node, key, handle, reset);
            return Ok(());
        }
        if it.draining {
            return Err(Errno::CANCELED);
        }
        if let Op::Connect { to } = op.op {
            self.connect(node, key, to);
            return Ok(());
        }
        let handle = handle_of(&op.op).expect("all others have one");
        let open = it.handles.get_mut(slot(handle)).ok_or(Errno::BAD_HANDLE)?;
        if open.closing.is_some() {
            return Err(Errno::BAD_HANDLE);
        }
        open.in_flight += 1;
        op.counted = true;
        if !fits(&op.op, &open.place) {
            return Err(Errno::NOT_SUPPORTED);
        }
        let sending = matches!(op.op, Op::Send { .. });
        let writing = matches!(op.op, Op::Write { .. });
        match &mut open.place {
            Place::Listener { accepts, .. } => {
                accepts.push_back(key);
                self.serve_accepts(node, handle);
            }
            Place::Socket(end) => {
                let end = *end;
                if sending {
                    self.send(node, key, end)
                } else {
                    self.recv(key, end)
                }
            }
            Place::File(path) => {
                op.mark = it.disks[path].flush_mark();
                let life = it.life;
                let disk = &it.disks[path];
                let mut delay_ns = disk.delay_ns.unwrap_or(self.config.disk_ns);
                if let Some((one_in, slow_ns)) = disk.laggards
                    && self.prng.chance(1, one_in)
                {
                    delay_ns = slow_ns;
                }
                if let Some(slow_ns) = disk.slow_writes_ns.filter(|_| writing) {
                    delay_ns = slow_ns;
                }
                let at_ns = self.now_ns + self.draw(delay_ns);
                self.schedule(at_ns, Action::Disk { node, life, key });
            }
        }
        Ok(())
    }

    fn add_listener(&mut self, node: usize, at: SocketAddr) -> Result<Handle, SetupError> {
        let port = if at.port() == 0 {
            self.free_port(node)
        } else {
            at.port()
        };
        let taken = self.nodes[node].handles.iter().any(|(_, open)| {
            matches!(&open.place, Place::Listener { port: bound, .. } if *bound == port)
        });
        if taken {
            return Err(call(format!("listen on {at}"), libc::EADDRINUSE));
        }
        let open = SimHandle {
            place: Place::Listener {
                port,
                backlog: [].into(),
                accepts: [].into(),
            },
            local: Some(SocketAddr::new(at.ip(), port)),
            in_flight: 0,
            closing: None,
            exclusive: false,
        };
        let inserted = self.nodes[node].handles.insert(open);
        let key = inserted.map_err(|_| call(format!("listen on {at}"), libc::EMFILE))?;
        Ok(Handle {
            index: key.index,
            turn: key.turn,
        })
    }

    fn open_disk(
        &mut self,
        node: usize,
        path: &Path,
        how: OpenFile,
    ) -> Result<(Handle, FileFacts), SetupError> {
        let failed = |what: &str, errno| call(format!("{what} {}", path.display()), errno);
        let it = &mut self.nodes[node];
        if let Some(bytes) = how.create_bytes.filter(|_| !it.disks.contains_key(path)) {
            it.disks
                .insert(path.to_owned(), Disk::new(FileKind::File, bytes, true));
        }
        let disk = it
            .disks
            .get_mut(path)
            .ok_or_else(|| failed("open", libc::ENOENT))?;
        if how.exclusive && disk.locked {
            return Err(failed("lock (another process has it open)", libc::EBUSY));
        }
        let facts = disk.facts(how.direct);
        let open = SimHandle {
            place: Place::File(path.to_owned()),
            local: None,
            in_flight: 0,
            closing: None,
            exclusive: how.exclusive,
        };
        let key = it
            .handles
            .insert(open)
            .map_err(|_| failed("open", libc::EMFILE))?;
        disk.locked |= how.exclusive;
        Ok((
            Handle {
                index: key.index,
                turn: key.turn,
            },
            facts,
        ))
    }
}

impl Driver for SimDriver {
    fn now_ns(&self) -> u64 {
        let state = self.state.borrow();
        state.nodes[self.node].clock.local_ns(state.now_ns)
    }

    fn counters(&self) -> Counters {
        Counters {
            ops: self.ops_total,
            ..Counters::default()
        }
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn submit(&mut self, token: Token, op: Op) -> OpId {
        self.ops_total += 1;
        match &op {
            Op::Send { parts, .. } => assert!((1..=SEND_PARTS_MAX).contains(&parts.len())),
            Op::Recv { .. } => assert!(total_bytes(&op) > 0, "an empty receive"),
            Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::Flush { .. }
            | Op::Discard { .. }
            | Op::Command { .. }
            | Op::Close { .. } => {}
        }
        let mut state = self.state.borrow_mut();
        let ops = &mut state.nodes[self.node].ops;
        let inserted = ops.insert(SimOp {
            token,
            op,
            counted: false,
            decided: false,
            mark: 0,
        });
        let Ok(key) = inserted else {
            panic!("reactor: more ops in flight than the limit")
        };
        if let Err(errno) = state.start(self.node, key) {
            state.decide(self.node, key, Err(errno));
        }
        OpId {
            index: key.index,
            turn: key.turn,
        }
    }

    fn cancel(&mut self, op: OpId) {
        self.state.borrow_mut().cancel(
            self.node,
            Key {
                index: op.index,
                turn: op.turn,
            },
        );
    }

    fn arm(&mut self, token: Token, at_ns: u64) -> TimerId {
        let mut state = self.state.borrow_mut();
        let at_ns = state.nodes[self.node].clock.world_ns(at_ns);
        let at_ns = at_ns.max(state.now_ns + 1);
        state.nodes[self.node].timers.arm(token, at_ns)
    }

    fn disarm(&mut self, timer: TimerId) {
        self.state.borrow_mut().nodes[self.node]
            .timers
            .disarm(timer);
    }

    fn listen(&mut self, at: SocketAddr) -> Result<Handle, SetupError> {
        self.state.borrow_mut().add_listener(self.node, at)
    }

    fn local_addr(&self, handle: Handle) -> Option<SocketAddr> {
        self.state.borrow().nodes[self.node]
            .handles
            .get(slot(handle))?
            .local
    }

    fn open(&mut self, path: &Path, how: OpenFile) -> Result<(Handle, FileFacts), SetupError> {
        self.state.borrow_mut().open_disk(self.node, path, how)
    }

    fn size_bytes(&self, file: Handle) -> Result<u64, Errno> {
        let state = self.state.borrow();
        let node = &state.nodes[self.node];
        match node.handles.get(slot(file)).map(|open| &open.place) {
            Some(Place::File(path)) => Ok(node.disks[path].size_bytes()),
            Some(_) | None => Err(Errno::BAD_HANDLE),
        }
    }

    fn adopt(&mut self, _fd: OwnedFd) -> Result<Handle, SetupError> {
        Err(SetupError::NotWithThisDriver {
            what: "adopting a descriptor",
            driver: "sim",
        })
    }

    fn doorbell(&mut self, token: Token) -> Result<Doorbell, SetupError> {
        let rung = Arc::new(AtomicBool::new(false));
        self.state.borrow_mut().nodes[self.node]
            .bells
            .push((token, rung.clone()));
        Ok(Doorbell::new(move || rung.store(true, SeqCst)))
    }
}
