//! The control side of the volume engine: a thread that speaks to metad.

use crate::engine::VolumeOptions;
use anyhow::{Context, Result, anyhow};
use control::api::Filter;
use control::client::{ClientConfig, MetadClient, MetadError};
use control::core::{HostId, NewHost};
use reactor::Mailbox;
use shardmap::generations::{SnapshotStep, VolumeGenerations};
use shardmap::units::{Epoch, Generation, MembershipSeq, StoreId, VolumeId};
use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;
use volume::{AttachGrant, MetadAnswer, MetadVerdict, VolumeOptions as Knobs};

/// Requests that may wait for the thread.
const REQUESTS_MAX: usize = 64;
/// How often an attach is tried while the volume's slices are not there or a holder is leaving.
const ATTEMPTS_MAX: u32 = 50;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(200);

/// What the thread tells the reactor.
#[derive(Debug)]
pub(crate) enum Word {
    /// To [`Request::SetIsr`].
    Answer(MetadAnswer),
    /// Head and snapshots of the volume now.
    Generations(VolumeGenerations),
}

/// What the reactor asks of the thread.
#[derive(Debug)]
pub(crate) enum Request {
    /// Record another in-sync set; answered through the mailbox.
    SetIsr {
        request: u64,
        epoch: Epoch,
        seq: MembershipSeq,
        new_isr: BTreeSet<StoreId>,
    },
    /// How far a snapshot is. Not answered.
    Snapshot(Epoch, (Generation, SnapshotStep)),
    /// We do not use the volume any more. The thread ends after it.
    Detach(Epoch),
}

/// What metad gave us.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) grant: AttachGrant,
    host: HostId,
    pub(crate) host_nqn: String,
    pub(crate) host_id: [u8; 16],
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Metad {
    requests: mpsc::Sender<Request>,
    thread: Option<JoinHandle<()>>,
}

impl Metad {
    /// Registers as a host and attaches the volume to it.
    pub(crate) fn take(options: &VolumeOptions, words: Mailbox<Word>) -> Result<(Self, Taken)> {
        let (requests, requests_in) = mpsc::channel(REQUESTS_MAX);
        let (taken, taken_in) = std::sync::mpsc::sync_channel(1);
        let options = options.clone();
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.expect("a runtime of one thread");
            let set = tokio::task::LocalSet::new();
            set.block_on(&runtime, serve(options, taken, requests_in, words));
        };
        let thread = std::thread::Builder::new()
            .name("metad".into())
            .spawn(body)?;
        let grant = taken_in.recv().context("the metad thread died")??;
        Ok((
            Self {
                requests,
                thread: Some(thread),
            },
            grant,
        ))
    }

    /// Passes a request on. One that finds the queue full is made again by who made it.
    pub(crate) fn send(&self, request: Request) {
        if let Err(why) = self.requests.try_send(request) {
            tracing::warn!(%why, "request to metad lost");
        }
    }

    /// Tells metad that the volume is free and waits until it knows.
    pub(crate) fn let_go(&mut self, epoch: Epoch) {
        self.send(Request::Detach(epoch));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the metad thread panicked");
        }
    }
}

async fn serve(
    options: VolumeOptions,
    taken: std::sync::mpsc::SyncSender<Result<Taken>>,
    mut requests: mpsc::Receiver<Request>,
    words: Mailbox<Word>,
) {
    let program = concat!("ubs-bench/", env!("CARGO_PKG_VERSION"));
    let client = MetadClient::new(ClientConfig::new(options.metad.clone(), program));
    let attached = attach(&client, &options).await;
    let ours = attached.as_ref().ok();
    let ours = ours.map(|taken| (taken.grant.volume, taken.host));
    if taken.send(attached).is_err() {
        return;
    }
    let Some((volume, host)) = ours else { return };
    if let Some(every) = options.snapshot_every {
        let (client, words) = (client.clone(), words.clone());
        // Ends with this function.
        tokio::task::spawn_local(async move {
            let every = Duration::from_secs_f64(every);
            if let Err(why) = make_snapshots(&client, (volume, host), every, &words).await {
                tracing::warn!(%why, "no more snapshots");
            }
        });
    }
    while let Some(request) = requests.recv().await {
        match request {
            Request::SetIsr {
                request,
                epoch,
                seq,
                new_isr,
            } => {
                let answer = client.set_isr(volume, epoch, seq, new_isr.clone()).await;
                let verdict = MetadVerdict::of(answer.ok(), new_isr);
                let answer = MetadAnswer {
                    volume,
                    epoch,
                    request,
                    verdict,
                };
                send(&words, Word::Answer(answer));
            }
            Request::Snapshot(epoch, snapshot) => {
                client.record_snapshot(volume, epoch, snapshot).await;
            }
            Request::Detach(epoch) => return detach(&client, volume, epoch).await,
        }
    }
}

fn send(words: &Mailbox<Word>, word: Word) {
    if words.send(word).is_err() {
        tracing::warn!("the reactor's mailbox is full");
    }
}

/// Makes a snapshot every so often and passes on what the volume has to know of it; when it is complete,
/// those before it are given up.
async fn make_snapshots(
    client: &MetadClient,
    (volume, host): (VolumeId, HostId),
    every: Duration,
    words: &Mailbox<Word>,
) -> Result<(), MetadError> {
    let run = Uuid::new_v4().simple();
    let mut due = tokio::time::interval(every);
    let (mut made, mut after) = (0u64, 0);
    loop {
        due.tick().await;
        made += 1;
        let name = format!("{run}-{made}");
        client.create_snapshot([volume].into(), name).await?;
        loop {
            let desire = client.watch_attachments(host, after).await?;
            after = desire.index;
            let ours = desire.volumes.into_iter().find(|v| v.volume == volume);
            let Some(ours) = ours else { return Ok(()) };
            let (pending, snapshots) = (ours.generations.pending(), &ours.generations.snapshots);
            let known: Vec<Generation> = snapshots.keys().copied().collect();
            send(words, Word::Generations(ours.generations));
            if pending.is_none() {
                let older = known.split_last().map_or(&[][..], |(_, older)| older);
                for generation in older {
                    client.delete_snapshot(volume, *generation).await?;
                }
                break;
            }
        }
    }
}

async fn detach(client: &MetadClient, volume: VolumeId, epoch: Epoch) {
    if let Err(why) = client.want_detached(volume).await {
        tracing::warn!(%why, "metad still wants the volume here");
    }
    if let Err(why) = client.detach(volume, epoch).await {
        tracing::warn!(%why, "metad still thinks that we hold the volume");
    }
}

async fn attach(client: &MetadClient, options: &VolumeOptions) -> Result<Taken> {
    // The same name gives the same identity, so that runs do not leave hosts behind.
    let uuid = Uuid::from_u128(name_hash(&options.host));
    let host_nqn = format!("nqn.2026-01.io.ublkstor:clientd:{uuid}");
    let new = NewHost {
        uuid,
        name: options.host.clone(),
        host_nqn: host_nqn.clone(),
    };
    let host = client
        .register_host(new)
        .await
        .context("metad refused to register us")?;
    let filter = Filter {
        name: options.volume.clone(),
        version: 0,
    };
    let found = client.volumes(filter).await?.list;
    let volume = found.first().map(|view| view.id);
    let volume = volume.ok_or_else(|| anyhow!("there is no volume \"{}\"", options.volume))?;
    client.want_attached(volume, host).await?;
    let mut attempts = 0;
    let grant = loop {
        match client.attach(volume, host).await {
            Ok(grant) => break grant,
            Err(why) if attempts >= ATTEMPTS_MAX => return Err(why).context("not attached"),
            Err(_) => attempts += 1,
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    };
    Ok(Taken {
        grant: AttachGrant::new(grant, Knobs::default()),
        host,
        host_nqn,
        host_id: uuid.into_bytes(),
    })
}

/// FNV-1a over 128 bits.
fn name_hash(name: &str) -> u128 {
    name.bytes()
        .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_name_is_one_host_and_another_name_another() {
        assert_eq!(name_hash("a"), name_hash("a"));
        assert_ne!(name_hash("a"), name_hash("b"));
    }
}
