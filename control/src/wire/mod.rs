//! Cap'n Proto types of the wire to the types of the state machine, and back.
//!
//! One pair of functions per type: `put_x(&X, builder)` and `get_x(reader) -> Result<X>`. What
//! comes from the wire is checked for form here (numbers that do not fit, unknown names, text that
//! is no address) and for meaning in the state machine.

pub(crate) mod command;
pub(crate) mod question;
pub(crate) mod reply;
pub(crate) mod report;
pub(crate) mod view;
pub(crate) mod words;

#[cfg(test)]
mod test;

pub(crate) use capnp::Error;

/// What decoding gives.
pub(crate) type Decoded<T> = Result<T, Error>;

/// A value whose form is not what the schema's comment says.
pub(crate) fn malformed(what: &str, value: impl std::fmt::Display) -> Error {
    Error::failed(format!("malformed message: {what} is {value}"))
}
