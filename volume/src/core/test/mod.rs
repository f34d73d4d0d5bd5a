//! Tests of the whole machine: scripts with exact effects, and a seeded world that breaks things.

mod degraded;
mod groups;
mod hearing;
mod maintained;
mod oracle;
mod recovery;
mod repair;
mod resilvering;
mod script;
mod scripted;
mod seeds;
mod snapshots;
mod steady;
mod store;
mod view;
mod vouching;
mod world;
