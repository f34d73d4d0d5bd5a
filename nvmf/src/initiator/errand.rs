//! One command for one target: connect, ask, let go. For programs that do nothing else meanwhile.

use super::{AssociationId, Config, Failure, Initiator, InitiatorEvent, Reply, Request};
use crate::proto::host::LostReason;
use reactor::{App, Completion, Driver};
use std::net::SocketAddr;

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrandFault {
    /// There was no association, or it was lost: the command may have been carried out, or may not.
    #[error("does not answer ({0:?})")]
    Lost(LostReason),
    /// The target refused it.
    #[error("refused it with status {0}")]
    Refused(crate::proto::status::Status),
}

/// The app of a reactor that runs until the answer is there. The deadlines of its [`Config`] bound that.
#[derive(Debug)]
pub struct Errand {
    initiator: Initiator,
    room: u8,
    association: AssociationId,
    /// Until the association is ready.
    request: Option<Request>,
    answer: Option<Result<Reply, ErrandFault>>,
    events: Vec<InitiatorEvent>,
}

impl Errand {
    /// Begins to connect.
    pub fn begin(
        io: &mut dyn Driver,
        config: Config,
        (address, subsystem_nqn): (SocketAddr, &str),
        request: Request,
    ) -> Self {
        let room = config.room;
        let mut initiator = Initiator::new(config);
        let association = initiator.connect(io, address, subsystem_nqn);
        Self {
            initiator,
            room,
            association,
            request: Some(request),
            answer: None,
            events: Vec::new(),
        }
    }

    /// The answer, when the reactor has ended.
    ///
    /// # Errors
    /// [`ErrandFault`].
    ///
    /// # Panics
    /// The reactor has not ended.
    pub fn answer(self) -> Result<Reply, ErrandFault> {
        self.answer.expect("the reactor runs until it is there")
    }

    fn on_event(&mut self, io: &mut dyn Driver, event: InitiatorEvent) {
        match event {
            InitiatorEvent::Ready { association, .. } => {
                if let Some(request) = self.request.take() {
                    let taken = self.initiator.submit(io, association, 0, request);
                    assert!(taken.is_ok(), "a new association has room for one command");
                }
            }
            InitiatorEvent::Done { result, .. } => {
                self.answer = match result {
                    Ok(reply) => Some(Ok(reply)),
                    Err(Failure::Status(status)) => Some(Err(ErrandFault::Refused(status))),
                    // Why is told next.
                    Err(Failure::ConnectionLost) => return,
                };
                self.initiator.abort(io, self.association);
            }
            InitiatorEvent::Lost { reason, .. } => {
                self.answer.get_or_insert(Err(ErrandFault::Lost(reason)));
            }
            InitiatorEvent::NamespacesChanged { .. } => {}
        }
    }
}

impl App for Errand {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        assert_eq!(completion.token.room, self.room, "there is no other");
        let mut events = std::mem::take(&mut self.events);
        self.initiator.on_completion(io, completion, &mut events);
        for event in events.drain(..) {
            self.on_event(io, event);
        }
        self.events = events;
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        self.initiator.on_turn_end(io);
    }

    fn is_finished(&self) -> bool {
        self.answer.is_some() && self.initiator.is_idle()
    }
}
