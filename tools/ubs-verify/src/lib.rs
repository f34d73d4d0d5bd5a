//! The data verifier: one set of rules for simulation, processes and virtual machines.
//!
//! [`core`] decides and does no IO: every block carries a [`Stamp`], a [`History`] knows from what was
//! issued, completed and flushed which contents a read may return, and [`Journal`] is the same with a
//! serial form that lives outside the machine that fails. Simulations that hold all of it in memory ask an [`Oracle`].
//!
//! ```text
//! let mut history = History::new(Subject { volume, size_blocks, initial: Initial::Zero });
//! let writer = history.hand_over(Handover::Clean);               // an attach; fences earlier writers
//! let op = history.issue(writer, Action::Write { range, generation, fua });
//! history.stamp_of(op, lba, generation).fill(&mut block);        // what to write
//! history.end(op, Ending::Ok)?;                                  // Err: a fenced writer was obeyed
//! let read = history.issue(writer, Action::Read { range });
//! let verdict = history.judge(read, lba, &Content::of(&block));  // per block, before the read ends
//! history.end(read, Ending::Ok)?;
//! history.hand_over(Handover::Unclean);                          // power cut, crash, forced detach
//! ```
#![forbid(unsafe_code)]

pub mod core;
pub mod limits;

pub use crate::core::compare::{Comparison, Difference};
pub use crate::core::history::{Breach, History};
pub use crate::core::journal::{Journal, JournalFault, Loaded};
pub use crate::core::oracle::{Illegal, MayShow, Oracle};
pub use crate::core::record::{
    Action, Ending, Handover, Initial, OpId, Record, Sight, Subject, WriterId,
};
pub use crate::core::stamp::{Content, Stamp};
pub use crate::core::verdict::{Verdict, VerdictKind};
