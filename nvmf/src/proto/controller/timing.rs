//! Deadlines: set-up, termination, keep-alive.

use super::{CloseReason, Core, Effect, Stage};

impl Core {
    /// The earliest moment at which [`Core::on_time`] may have something to do. Traffic moves
    /// keep-alive deadlines later without this being called again: a timer armed for an old answer
    /// fires early, finds nothing and is armed anew, so that busy queues cost no timers.
    pub fn deadline_ns(&self) -> Option<u64> {
        let connections = self
            .connections
            .iter()
            .flatten()
            .filter_map(|c| c.deadline_ns);
        let associations = self
            .associations
            .iter()
            .flatten()
            .filter_map(|a| a.deadline_ns());
        connections.chain(associations).min()
    }

    /// Whether [`Core::deadline_ns`] is worth asking again; says so once.
    pub fn take_deadlines_changed(&mut self) -> bool {
        std::mem::take(&mut self.deadlines_changed)
    }

    /// Gives up what is overdue.
    pub fn on_time(&mut self, now_ns: u64, out: &mut Vec<Effect>) {
        self.now_ns = now_ns;
        self.deadlines_changed = true;
        for index in 0..self.associations.len() {
            let overdue = |a: &super::Association| a.deadline_ns().is_some_and(|at| at <= now_ns);
            if let Some(admin) = self.associations[index].as_ref().filter(|a| overdue(a)) {
                self.expel(admin.admin, CloseReason::KeepAliveExpired, out);
            }
        }
        for index in 0..self.connections.len() {
            let Some(this) = self.connections[index].as_mut() else {
                continue;
            };
            if this.deadline_ns.is_some_and(|at| at <= now_ns) {
                this.deadline_ns = None;
                this.stage = Stage::Closing;
                let connection = u32::try_from(index).expect("connections are counted in u32");
                let why = CloseReason::TooSlow;
                out.push(Effect::Close {
                    connection,
                    reset: true,
                    why,
                });
            }
        }
    }

    /// Retires a connection and closes it with RST.
    pub(super) fn expel(&mut self, connection: u32, why: CloseReason, out: &mut Vec<Effect>) {
        self.retire(connection, why, out);
        out.push(Effect::Close {
            connection,
            reset: true,
            why,
        });
    }
}
