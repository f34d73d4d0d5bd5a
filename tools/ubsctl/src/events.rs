//! `ubsctl events`: what happened.

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{API_VERSION, Format, Listing, Row, say, time};
use control::core::{EventRecord, Subject};
use serde_json::{Value, json};

/// `events`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only events after this index.
    #[arg(long, default_value_t = 0, value_name = "INDEX")]
    after: u64,
    /// Go on with each new event; as JSON one document per line.
    #[arg(long)]
    follow: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    if args.follow {
        return follow(args.after, context).await;
    }
    let events = context.client.events(args.after, false).await?;
    let rows = events.iter().map(|e| Row {
        name: e.index.to_string(),
        cells: vec![
            e.index.to_string(),
            time(e.at_unix_ms),
            e.kind.clone(),
            e.text.clone(),
        ],
        json: to_json(e),
    });
    let columns = &["INDEX", "TIME", "KIND", "EVENT"];
    Listing {
        kind: "EventList",
        columns,
        rows: rows.collect(),
    }
    .print(context.format);
    Ok(())
}

async fn follow(mut after: u64, context: &Context) -> Result<(), Failure> {
    loop {
        for e in context.client.events(after, true).await? {
            after = e.index;
            match context.format {
                Format::Table => say(&format!("{} {} {}", e.index, time(e.at_unix_ms), e.text)),
                Format::Json => {
                    let mut line = to_json(&e);
                    line["apiVersion"] = API_VERSION.into();
                    line["kind"] = "Event".into();
                    say(&line.to_string());
                }
                Format::Name => say(&e.index.to_string()),
            }
        }
    }
}

fn to_json(e: &EventRecord) -> Value {
    let subject = match e.subject {
        Subject::Cluster => json!({ "kind": "cluster" }),
        Subject::Server(id) => json!({ "kind": "server", "id": id.0 }),
        Subject::Store(id) => json!({ "kind": "store", "id": id.0 }),
        Subject::Host(id) => json!({ "kind": "host", "id": id.0 }),
        Subject::Volume(id) => json!({ "kind": "volume", "id": id.to_string() }),
    };
    json!({
        "index": e.index,
        "atUnixMs": e.at_unix_ms,
        "subject": subject,
        "event": e.kind,
        "text": e.text,
    })
}
