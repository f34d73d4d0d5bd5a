//! `ubsctl meta …`: the replicated state itself.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, document, say};
use clap::Subcommand;
use serde_json::json;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Check the leader's state against itself.
    Fsck,
}

pub(crate) async fn run(verb: Verb, context: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Fsck => fsck(context).await,
    }
}

async fn fsck(context: &Context) -> Result<(), Failure> {
    let found = context.client.fsck().await?;
    match context.format {
        Format::Json => document("Fsck", json!({ "findings": found })),
        Format::Table | Format::Name => {
            for finding in &found {
                say(finding);
            }
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(Failure::error(format!(
        "the state contradicts itself in {} places; keep the data directories and report it",
        found.len()
    )))
}
