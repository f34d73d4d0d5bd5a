//! What storaged, clientd and metad do the same: read a configuration, log, tell systemd that they
//! are ready, answer `/metrics`, stop on a signal. No daemon's own business is in here.
#![forbid(unsafe_code)]

pub mod config;
pub mod identity;
pub mod metrics;
pub mod own;
pub mod service;

pub use config::{Cli, ConfigError};
