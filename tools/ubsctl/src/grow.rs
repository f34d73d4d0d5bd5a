//! `ubsctl store grow`: a store takes in what its device has become larger by, and metad learns of it.

use crate::context::{Context, named};
use crate::failure::Failure;
use crate::output::{Format, document, say, size};
use crate::ring;
use ::store::{Growth, GrowthFault};
use control::api::{ServerView, StoreView};
use control::core::reader_host_nqn;
use nvmf::initiator::{Config, Errand, Request};
use nvmf::proto::vendor::{PROTOCOL_VERSION, StoreGrowth, growth, opcode};
use serde_json::json;
use std::time::Duration;
use tokio::sync::oneshot;
use uuid::Uuid;
use zerocopy::FromBytes as _;

const ROOM: u8 = 1;

pub(crate) async fn run(context: &Context, store: &StoreView) -> Result<(), Failure> {
    let servers = context.client.servers(named("")).await?.list;
    let server = servers.into_iter().find(|s| s.id == store.server);
    let server = server.ok_or_else(|| Failure::not_found("server", &store.server_name))?;
    let nqn = reader_host_nqn(context.client.cluster().await?.uuid);
    let grown = ask(nqn, server, store.uuid, context.timeout).await;
    let grown = grown
        .map_err(|why| Failure::error(format!("{} on {}: {why}", store.id, store.server_name)))?;
    let known = |s: Option<&StoreView>| match s {
        None => Err(Failure::not_found("store", &store.id.to_string())),
        Some(s) => Ok((s.size_bytes >= grown.capacity_bytes).then_some(())),
    };
    let id = store.id.to_string();
    if context.follow_store(&id, known).await?.is_none() {
        return Err(Failure::StillGoing(format!(
            "{} on {} has grown to {}, and metad does not know yet: it learns of it when {} \
             reaches it",
            store.id,
            store.server_name,
            size(grown.capacity_bytes),
            store.server_name
        )));
    }
    print(context.format, store, &grown);
    Ok(())
}

fn print(format: Format, store: &StoreView, grown: &Growth) {
    match format {
        Format::Table => say(&format!(
            "{} on {}: {} for data, before {}; device {}, before {} used",
            store.id,
            store.server_name,
            size(grown.capacity_bytes),
            size(grown.capacity_bytes_before),
            size(grown.device_bytes),
            size(grown.device_bytes_before)
        )),
        Format::Json => document(
            "GrownStore",
            json!({
                "id": store.id.0,
                "uuid": store.uuid,
                "server": store.server_name,
                "sizeBytes": grown.capacity_bytes,
                "sizeBytesBefore": grown.capacity_bytes_before,
                "deviceBytes": grown.device_bytes,
                "deviceBytesBefore": grown.device_bytes_before,
            }),
        ),
        Format::Name => say(&store.id.to_string()),
    }
}

/// Asks the store's server, on a reactor in a thread of its own.
async fn ask(
    host_nqn: String,
    server: ServerView,
    store: Uuid,
    patience: Duration,
) -> Result<Growth, String> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        // Who does not listen any more has given up.
        drop(tell.send(ask_now(host_nqn, &server, store, patience)));
    });
    let answer = told
        .await
        .map_err(|_| "the thread that asks ended; see above".into());
    drop(thread.join());
    answer.and_then(|answer| answer)
}

fn ask_now(
    host_nqn: String,
    server: &ServerView,
    store: Uuid,
    patience: Duration,
) -> Result<Growth, String> {
    let mut driver = ring::driver([64, 32, 48])?;
    let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    let mut config = Config::new(ROOM, host_nqn, *Uuid::new_v4().as_bytes());
    config.connect_timeout_ms = config.connect_timeout_ms.min(patience_ms);
    config.admin_deadline_ms = config.admin_deadline_ms.min(patience_ms);
    let to = (server.address, server.subsystem_nqn.as_str());
    let mut errand = Errand::begin(&mut driver, config, to, request(store));
    driver.run(&mut errand);
    let reply = errand.answer().map_err(|fault| {
        format!(
            "storaged at {} {fault}; see `ubsctl server ls`",
            server.address
        )
    })?;
    let outcome = read(&reply.data).ok_or_else(|| {
        format!(
            "storaged at {} gives an answer that makes no sense; see its version",
            server.address
        )
    })?;
    outcome.map_err(|fault| fault.to_string())
}

fn request(store: Uuid) -> Request {
    Request::Vendor {
        nsid: 0,
        opcode: opcode::GROW_STORE,
        cdw10_15: growth::cdw10_15(*store.as_bytes()),
        data: None,
        reply_len_bytes: u32::try_from(size_of::<StoreGrowth>()).expect("small"),
    }
}

/// What became of it; `None`: nothing that we know.
fn read(data: &[u8]) -> Option<Result<Growth, GrowthFault>> {
    let (wire, _) = StoreGrowth::read_from_prefix(data).ok()?;
    let device_bytes = wire.device_bytes.get();
    let used_bytes = wire.device_bytes_before.get();
    if wire.version.get() != PROTOCOL_VERSION {
        return None;
    }
    let fault = match wire.refusal.get() {
        0 => {
            return Some(Ok(Growth {
                device_bytes_before: used_bytes,
                device_bytes,
                capacity_bytes_before: wire.capacity_bytes_before.get(),
                capacity_bytes: wire.capacity_bytes.get(),
            }));
        }
        growth::TOO_LITTLE => GrowthFault::TooLittle {
            device_bytes,
            used_bytes,
        },
        growth::SHRANK => GrowthFault::Shrank {
            device_bytes,
            used_bytes,
        },
        growth::TOO_OFTEN => GrowthFault::TooOften,
        growth::TOO_LARGE => GrowthFault::TooLarge { device_bytes },
        growth::RUNNING => GrowthFault::Running,
        growth::DEVICE => GrowthFault::Device {
            errno: i32::try_from(wire.errno.get()).ok()?,
        },
        _ => return None,
    };
    Some(Err(fault))
}

#[cfg(test)]
mod test {
    use super::*;
    use zerocopy::IntoBytes as _;

    fn told(refusal: u32) -> Option<Result<Growth, GrowthFault>> {
        let wire = StoreGrowth {
            version: PROTOCOL_VERSION.into(),
            refusal: refusal.into(),
            device_bytes_before: 1.into(),
            device_bytes: 2.into(),
            capacity_bytes_before: 3.into(),
            capacity_bytes: 4.into(),
            errno: 5.into(),
            ..StoreGrowth::default()
        };
        read(wire.as_bytes())
    }

    #[test]
    fn an_answer_is_sizes_or_the_sentence_of_the_store() {
        let grown = Growth {
            device_bytes_before: 1,
            device_bytes: 2,
            capacity_bytes_before: 3,
            capacity_bytes: 4,
        };
        assert_eq!(told(0), Some(Ok(grown)));
        let (device_bytes, used_bytes) = (2, 1);
        let faults = [
            GrowthFault::TooLittle {
                device_bytes,
                used_bytes,
            },
            GrowthFault::Shrank {
                device_bytes,
                used_bytes,
            },
            GrowthFault::TooOften,
            GrowthFault::TooLarge { device_bytes },
            GrowthFault::Running,
            GrowthFault::Device { errno: 5 },
        ];
        for (refusal, fault) in (1..).zip(faults) {
            assert_eq!(told(refusal), Some(Err(fault)));
        }
        assert_eq!(told(7), None);
        assert_eq!(read(&[0; 48]), None);
        assert_eq!(read(&[2, 0, 0]), None);
    }
}
