//! What runs on a reactor.

use crate::driver::{Completion, Driver};

/// A program's data-path half: wiring that routes completions to the shells by [`crate::Token`].
///
/// The same `App` runs under every driver. It is called from one thread only and never re-entered.
pub trait App {
    /// One completion. New work is submitted through `io`.
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion);

    /// All completions of this turn are handled: the place to send what the sockets have gathered,
    /// one `Op::Send` each, so that a batch of replies costs one call.
    fn on_turn_end(&mut self, io: &mut dyn Driver);

    /// True once the app wants its loop to end. In-flight ops are then drained by the driver.
    fn is_finished(&self) -> bool;
}
