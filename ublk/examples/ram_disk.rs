//! A block device in memory: `/dev/ublkbN` served by this crate on the reactor's uring driver.
//!
//! ```text
//! ram_disk [--size-mib 64] [--file /dev/shm/ublk-ram] [--id N | --recover N]
//!          [--queues 1] [--depth 128] [--delay-us 0] [--large-slots 64] [--protect]
//! ```
//!
//! Prints `live /dev/ublkbN` and serves until SIGTERM or SIGINT, which stops and deletes the device
//! unless it is in use. SIGUSR1 doubles its size. After a kill -9 the content is still in the file
//! and the device still in the kernel: `--recover N` serves on. `--delay-us` holds every answer back
//! for so long; `--large-slots` is the number of 128 KiB buffers; `--protect` does what a daemon
//! does for its own protection.
#![forbid(unsafe_code)]

use reactor::uring::{UringConfig, UringDriver};
use reactor::{App, ArenaConfig, Buf, Completion, Driver, Event, TimerId, Token};
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use ublk::{Device, DeviceConfig, DeviceError, DeviceSpec, Fault, RequestOp, TagIndex, UblkEvent};

const BLOCK_BYTES: u64 = ublk::limits::BLOCK_BYTES as u64;
const ZERO_BLOCK: [u8; ublk::limits::BLOCK_BYTES as usize] = [0; _];
const MARK: u64 = 0x7261_6d5f_6469_736b;

const DEVICE: u8 = 1;
const SIGNAL: u8 = 2;
const DELAY: u8 = 3;

struct Options {
    size_mib: u64,
    file: PathBuf,
    id: Option<u32>,
    recover: Option<u32>,
    queues: u16,
    depth: u16,
    delay_us: u64,
    large_slots: u32,
    protect: bool,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Self {
            size_mib: 64,
            file: PathBuf::from("/dev/shm/ublk-ram"),
            id: None,
            recover: None,
            queues: 1,
            depth: 128,
            delay_us: 0,
            large_slots: 64,
            protect: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--protect" {
                options.protect = true;
                continue;
            }
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            let bad = |e: std::num::ParseIntError| format!("{word} {value}: {e}");
            match word.as_str() {
                "--size-mib" => options.size_mib = value.parse().map_err(bad)?,
                "--file" => options.file = value.into(),
                "--id" => options.id = Some(value.parse().map_err(bad)?),
                "--recover" => options.recover = Some(value.parse().map_err(bad)?),
                "--queues" => options.queues = value.parse().map_err(bad)?,
                "--depth" => options.depth = value.parse().map_err(bad)?,
                "--delay-us" => options.delay_us = value.parse().map_err(bad)?,
                "--large-slots" => options.large_slots = value.parse().map_err(bad)?,
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(options)
    }
}

#[derive(Debug, Default)]
struct Counters {
    reads: u64,
    writes: u64,
    fua_writes: u64,
    flushes: u64,
    discards: u64,
    zeroes: u64,
    zeroes_kept: u64,
}

/// What signals ask for.
#[derive(Default)]
struct Wishes {
    stop: AtomicBool,
    grow: AtomicBool,
}

struct RamDisk {
    device: Device,
    content: File,
    delay_ns: u64,
    /// Answers held back, by their timers.
    held: BTreeMap<u64, (TagIndex, RequestOp)>,
    counters: Counters,
    wishes: Arc<Wishes>,
    ended: Option<ExitCode>,
}

impl RamDisk {
    fn create(
        options: &Options,
        io: &mut dyn Driver,
        wishes: Arc<Wishes>,
    ) -> Result<Self, DeviceError> {
        let size_bytes = options.size_mib << 20;
        let fresh = options.recover.is_none();
        let mut how = File::options();
        let opened = how
            .read(true)
            .write(true)
            .create(fresh)
            .truncate(fresh)
            .open(&options.file);
        let content = opened.unwrap_or_else(|e| panic!("{}: {e}", options.file.display()));
        let spec = DeviceSpec {
            wanted_id: options.id,
            size_blocks: size_bytes / BLOCK_BYTES,
            queue_count: options.queues,
            queue_depth: options.depth,
            read_only: false,
            boundary_blocks: None,
            mark: MARK,
        };
        let device = match options.recover {
            Some(id) => Device::recover(io, DEVICE, 0, id, MARK)?,
            None => {
                content.set_len(size_bytes).expect("room for the content");
                Device::create(
                    io,
                    DeviceConfig {
                        room: DEVICE,
                        index: 0,
                        spec,
                    },
                )?
            }
        };
        Ok(Self {
            device,
            content,
            delay_ns: options.delay_us * 1000,
            held: BTreeMap::new(),
            counters: Counters::default(),
            wishes,
            ended: None,
        })
    }

    fn handle(&mut self, io: &mut dyn Driver, events: Vec<UblkEvent>) {
        for event in events {
            match event {
                UblkEvent::Request { tag, op } if self.delay_ns > 0 => {
                    let token = Token {
                        room: DELAY,
                        index: 0,
                        value: 0,
                    };
                    let TimerId(timer) = io.arm(token, io.now_ns() + self.delay_ns);
                    self.held.insert(timer, (tag, op));
                }
                UblkEvent::Request { tag, op } => self.answer(io, tag, op),
                UblkEvent::Live { path, .. } => say(&format!("live {}", path.display())),
                UblkEvent::StopRefused { error } => say(&format!("still serving: {error}")),
                UblkEvent::Grown { size_blocks } => say(&format!("grown to {size_blocks} blocks")),
                UblkEvent::GrowFailed { error } => say(&format!("not grown: {error}")),
                UblkEvent::Stopped => {
                    say(&format!("stopped {:?}", self.counters));
                    self.ended = Some(ExitCode::SUCCESS);
                }
                UblkEvent::Failed { error, must_exit } => {
                    say(&format!("failed: {error}"));
                    if must_exit {
                        std::process::exit(1); // draining would wait for fetches that never return
                    }
                    self.ended = Some(ExitCode::FAILURE);
                }
            }
        }
    }

    fn answer(&mut self, io: &mut dyn Driver, tag: TagIndex, op: RequestOp) {
        let (result, data) = match self.serve(op) {
            Ok(data) => (Ok(()), data),
            Err(e) if e.raw_os_error() == Some(28) => (Err(Fault::NoSpace), None),
            Err(_) => (Err(Fault::Io), None),
        };
        self.device.complete(io, tag, result, data);
    }

    fn serve(&mut self, op: RequestOp) -> std::io::Result<Option<Buf>> {
        match op {
            RequestOp::Read {
                first_block,
                mut into,
                ..
            } => {
                self.counters.reads += 1;
                self.content
                    .read_exact_at(into.bytes_mut(), first_block * BLOCK_BYTES)?;
                return Ok(Some(into.freeze()));
            }
            RequestOp::Write {
                first_block,
                fua,
                data,
                ..
            } => {
                self.counters.writes += 1;
                self.counters.fua_writes += u64::from(fua);
                self.content
                    .write_all_at(data.bytes(), first_block * BLOCK_BYTES)?;
            }
            RequestOp::Flush => self.counters.flushes += 1,
            RequestOp::Discard {
                first_block,
                blocks,
            } => {
                self.counters.discards += 1;
                self.punch(first_block, blocks)?;
            }
            RequestOp::WriteZeroes {
                first_block,
                blocks,
                no_unmap: false,
                ..
            } => {
                self.counters.zeroes += 1;
                self.punch(first_block, blocks)?;
            }
            RequestOp::WriteZeroes {
                first_block,
                blocks,
                no_unmap: true,
                ..
            } => {
                self.counters.zeroes_kept += 1;
                for block in first_block..first_block + u64::from(blocks) {
                    self.content
                        .write_all_at(&ZERO_BLOCK, block * BLOCK_BYTES)?;
                }
            }
        }
        Ok(None)
    }

    fn punch(&self, first_block: u64, blocks: u32) -> std::io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (at, len) = (first_block * BLOCK_BYTES, u64::from(blocks) * BLOCK_BYTES);
        Ok(fallocate(&self.content, how, at, len)?)
    }

    fn on_signal(&mut self, io: &mut dyn Driver) {
        let mut events = Vec::new();
        if self.wishes.stop.swap(false, Ordering::Relaxed) {
            self.device.stop(io, false, &mut events);
        }
        if self.wishes.grow.swap(false, Ordering::Relaxed) {
            let size_blocks = self.device.size_blocks() * 2;
            self.content
                .set_len(size_blocks * BLOCK_BYTES)
                .expect("room for the content");
            if let Err(error) = self.device.grow(size_blocks) {
                say(&format!("not grown: {error}"));
            }
        }
        self.handle(io, events);
    }
}

impl App for RamDisk {
    fn on_completion(&mut self, io: &mut dyn Driver, completion: Completion) {
        match (completion.token.room, &completion.event) {
            (SIGNAL, _) => self.on_signal(io),
            (DELAY, Event::Timer(TimerId(timer))) => {
                let (tag, op) = self.held.remove(timer).expect("armed for a request");
                self.answer(io, tag, op);
            }
            _ => {
                let mut events = Vec::new();
                self.device.on_completion(io, completion, &mut events);
                self.handle(io, events);
            }
        }
    }

    fn on_turn_end(&mut self, io: &mut dyn Driver) {
        let mut events = Vec::new();
        self.device.on_turn_end(io, &mut events);
        self.handle(io, events);
    }

    fn is_finished(&self) -> bool {
        self.ended.is_some()
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("stdout");
}

fn watch_signals(io: &mut dyn Driver) -> Result<Arc<Wishes>, DeviceError> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    let wishes = Arc::new(Wishes::default());
    let bell = io.doorbell(Token {
        room: SIGNAL,
        index: 0,
        value: 0,
    })?;
    let mut signals =
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1]).expect("three signals");
    let wanted = Arc::clone(&wishes);
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let wish = if signal == SIGUSR1 {
                &wanted.grow
            } else {
                &wanted.stop
            };
            wish.store(true, Ordering::Relaxed);
            bell.ring();
        }
    });
    Ok(wishes)
}

fn run(options: &Options) -> Result<ExitCode, DeviceError> {
    let arena = ArenaConfig {
        slot_counts: [256, 64, options.large_slots],
        huge_pages: false,
    };
    let config = UringConfig {
        ops_max: 4096,
        handles_max: 16,
        arena,
        ..UringConfig::default()
    };
    let mut driver = UringDriver::new(config)?;
    let wishes = watch_signals(&mut driver)?;
    let mut disk = RamDisk::create(options, &mut driver, wishes)?;
    driver.run(&mut disk);
    Ok(disk.ended.expect("run until the end"))
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("ram_disk: {why}");
            return ExitCode::from(2);
        }
    };
    if options.protect
        && let Err(error) = ublk::protect_process(&[])
    {
        eprintln!("ram_disk: {error}");
        return ExitCode::from(2);
    }
    run(&options).unwrap_or_else(|error| {
        eprintln!("ram_disk: {error}");
        ExitCode::FAILURE
    })
}
