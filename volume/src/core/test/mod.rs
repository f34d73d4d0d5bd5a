//! Tests of the whole machine: scripts with exact effects, and a seeded world that breaks things.

mod oracle;
mod scripted;
mod seeds;
mod store;
mod world;
