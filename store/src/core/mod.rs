//! What a data store decides. No IO, no clock, no payload.

pub mod facts;
