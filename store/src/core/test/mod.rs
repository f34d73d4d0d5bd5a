//! The core against a device that loses what was not flushed, and against a dull model.

mod account;
mod checksums;
mod clones;
mod crash;
mod device;
mod enumerate;
mod failed;
mod generations;
mod grow;
mod heal;
mod model;
mod record;
mod rules;
mod torn;
mod world;
