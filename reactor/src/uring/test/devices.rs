use super::*;
use std::path::PathBuf;
use std::process::Command;

const RW: OpenFile = OpenFile {
    exclusive: true,
    writable: true,
    direct: true,
    create_bytes: None,
};

/// A block device over a file, for as long as it lives.
struct Loop {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Loop {
    /// `None` where the machine does not let us, with the reason printed.
    fn new(bytes: u64) -> Option<Self> {
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let file = folder.path().join("image");
        std::fs::File::create(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file)
            .output();
        match made {
            Ok(made) if made.status.success() => {
                let path = String::from_utf8(made.stdout).unwrap().trim().into();
                Some(Self {
                    path,
                    _folder: folder,
                })
            }
            other => {
                println!("skipped: no loop device to be had: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let done = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

fn write_discard_read(bench: &mut Bench, file: Handle, facts: FileFacts) {
    let bytes = pattern(128 * 1024, 5);
    let (from, durable) = (bench.buf(&bytes), true);
    let write = Op::Write {
        file,
        offset_bytes: 64 * 1024,
        from,
        durable,
    };
    assert_eq!(bench.run(write).1, Ok(Done::Bytes(128 * 1024)));
    let (offset_bytes, len_bytes) = (64 * 1024, 64 * 1024);
    let discarded = bench
        .run(Op::Discard {
            file,
            offset_bytes,
            len_bytes,
        })
        .1;
    assert_eq!(
        discarded,
        if facts.can_discard {
            Ok(Done::Nothing)
        } else {
            discarded
        }
    );
    assert_eq!(bench.run(Op::Flush { file }).1, Ok(Done::Nothing));
    let into = bench.window(64 * 1024, |_| {});
    let (op, result) = bench.run(Op::Read {
        file,
        offset_bytes: 128 * 1024,
        into,
    });
    assert_eq!(result, Ok(Done::Bytes(64 * 1024)));
    let Op::Read { into, .. } = op else {
        panic!("{op:?}")
    };
    assert!(into.bytes() == &bytes[64 * 1024..]);
    let from = bench.buf(&bytes[..4096]);
    let past = Op::Write {
        file,
        offset_bytes: 1 << 20,
        from,
        durable: false,
    };
    assert_eq!(bench.run(past).1, Err(Errno::NO_SPACE));
}

fn through_a_block_device(fallocate: bool) {
    let Some(device) = Loop::new(1 << 20) else {
        return;
    };
    let mut bench = Bench::new();
    if fallocate {
        // As on a kernel without the command.
        bench.io.ring.features.set(probe::BLOCK_DISCARD, false);
    }
    let (file, facts) = bench.io.open(&device.path, RW).unwrap();
    assert_eq!(
        (facts.kind, facts.size_bytes),
        (FileKind::BlockDevice, 1 << 20)
    );
    assert!(facts.direct && facts.volatile_cache);
    let mut other = Bench::new();
    let told = other.io.open(&device.path, RW).unwrap_err().to_string();
    assert!(
        told.contains("mounted, or another process has it"),
        "{told}"
    );

    write_discard_read(&mut bench, file, facts);
    // The claim ends with the close.
    bench
        .run(Op::Close {
            handle: file,
            reset: false,
        })
        .1
        .unwrap();
    let (file, _) = other.io.open(&device.path, RW).unwrap();
    other
        .run(Op::Close {
            handle: file,
            reset: false,
        })
        .1
        .unwrap();
}

#[test]
fn a_block_device_is_claimed_written_discarded_and_released() {
    through_a_block_device(false);
}

#[test]
fn a_block_device_is_discarded_by_fallocate_where_the_command_is_missing() {
    through_a_block_device(true);
}
