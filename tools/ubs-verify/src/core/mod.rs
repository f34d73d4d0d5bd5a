//! What the verifier decides. No IO, no clock: time is the order of what is told.

mod block;
pub mod compare;
pub mod history;
pub mod journal;
pub mod oracle;
pub mod record;
pub mod stamp;
#[cfg(test)]
mod test;
pub mod verdict;
