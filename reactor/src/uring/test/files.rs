use super::*;
use std::path::PathBuf;

const RW: OpenFile = OpenFile {
    exclusive: true,
    writable: true,
    direct: true,
    create_bytes: None,
};

/// A folder beside the test binary: on a real file system, where the usual one may be a tmpfs.
fn folder() -> tempfile::TempDir {
    let binary = std::env::current_exe().unwrap();
    tempfile::tempdir_in(binary.parent().unwrap()).unwrap()
}

fn create(bench: &mut Bench, folder: &tempfile::TempDir, bytes: u64) -> (Handle, PathBuf) {
    let path = folder.path().join("backing");
    let how = OpenFile {
        create_bytes: Some(bytes),
        ..RW
    };
    let (file, facts) = bench.io.open(&path, how).unwrap();
    assert_eq!((facts.kind, facts.size_bytes), (FileKind::File, bytes));
    assert!(facts.volatile_cache);
    (file, path)
}

fn read(bench: &mut Bench, file: Handle, offset_bytes: u64, len: usize) -> Vec<u8> {
    let into = bench.window(len, |bytes| bytes.fill(0xee));
    let (op, result) = bench.run(Op::Read {
        file,
        offset_bytes,
        into,
    });
    let (Op::Read { into, .. }, Ok(Done::Bytes(count))) = (op, result) else {
        panic!("read failed")
    };
    into.bytes()[..count as usize].to_vec()
}

fn write(bench: &mut Bench, file: Handle, offset_bytes: u64, bytes: &[u8], durable: bool) {
    let from = bench.buf(bytes);
    let result = bench
        .run(Op::Write {
            file,
            offset_bytes,
            from,
            durable,
        })
        .1;
    assert_eq!(result, Ok(Done::Bytes(u32::try_from(bytes.len()).unwrap())));
}

#[test]
fn what_was_written_is_read_back_from_another_open() {
    let folder = folder();
    let mut bench = Bench::new();
    let (file, path) = create(&mut bench, &folder, 1 << 20);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|f| f.set_len(2 << 20))
        .unwrap();
    assert_eq!(bench.io.size_bytes(file), Ok(2 << 20));
    let (small, large) = (pattern(4096, 1), pattern(128 * 1024, 2));
    write(&mut bench, file, 8192, &small, false);
    write(&mut bench, file, 256 * 1024, &large, true);
    assert_eq!(bench.run(Op::Flush { file }).1, Ok(Done::Nothing));
    bench
        .run(Op::Close {
            handle: file,
            reset: false,
        })
        .1
        .unwrap();

    let (file, facts) = bench
        .io
        .open(
            &path,
            OpenFile {
                writable: false,
                ..RW
            },
        )
        .unwrap();
    assert_eq!(facts.size_bytes, 2 << 20);
    assert!(read(&mut bench, file, 8192, 4096) == small);
    assert!(read(&mut bench, file, 256 * 1024, 128 * 1024) == large);
    assert!(read(&mut bench, file, 0, 4096).iter().all(|b| *b == 0));
}

#[test]
fn reads_past_the_end_are_short() {
    let folder = folder();
    let mut bench = Bench::new();
    let path = folder.path().join("odd");
    std::fs::write(&path, pattern(10_000, 3)).unwrap();
    let (file, facts) = bench.io.open(&path, RW).unwrap();
    assert_eq!(facts.size_bytes, 10_000);
    assert!(read(&mut bench, file, 0, 16 * 1024) == pattern(10_000, 3));
    assert!(read(&mut bench, file, 12_288, 4096).is_empty());
    let (file, _) = {
        bench
            .run(Op::Close {
                handle: file,
                reset: false,
            })
            .1
            .unwrap();
        bench
            .io
            .open(
                &path,
                OpenFile {
                    direct: false,
                    ..RW
                },
            )
            .unwrap()
    };
    assert!(read(&mut bench, file, 0, 16 * 1024) == pattern(10_000, 3));
}

#[test]
fn many_file_ops_in_flight_end_each_with_its_own_bytes() {
    let folder = folder();
    let mut bench = Bench::new();
    let (file, _) = create(&mut bench, &folder, 1 << 20);
    for i in 0..16u64 {
        let from = bench.buf(&pattern(4096, usize::try_from(i).unwrap()));
        bench.io.submit(
            token(i),
            Op::Write {
                file,
                offset_bytes: i * 4096,
                from,
                durable: i % 2 == 0,
            },
        );
    }
    for i in 0..16 {
        assert_eq!(bench.result(i).1, Ok(Done::Bytes(4096)));
    }
    for i in 0..16u64 {
        let into = bench.window(4096, |_| {});
        bench.io.submit(
            token(i),
            Op::Read {
                file,
                offset_bytes: i * 4096,
                into,
            },
        );
    }
    for i in 0..16 {
        let (op, result) = bench.result(i);
        assert_eq!(result, Ok(Done::Bytes(4096)));
        let Op::Read { into, .. } = op else {
            panic!("{op:?}")
        };
        assert!(
            into.bytes() == pattern(4096, usize::try_from(i).unwrap()),
            "block {i}"
        );
    }
}

#[test]
fn a_discarded_range_of_a_file_frees_its_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = folder();
    let mut bench = Bench::new();
    let (file, path) = create(&mut bench, &folder, 1 << 20);
    write(&mut bench, file, 0, &pattern(128 * 1024, 4), true);
    let before = std::fs::metadata(&path).unwrap().blocks();
    let discard = Op::Discard {
        file,
        offset_bytes: 0,
        len_bytes: 512 * 1024,
    };
    assert_eq!(bench.run(discard).1, Ok(Done::Nothing));
    assert_eq!(before - std::fs::metadata(&path).unwrap().blocks(), 1024);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn an_exclusive_file_is_refused_to_a_second_owner_until_it_is_closed() {
    let folder = folder();
    let mut bench = Bench::new();
    let (file, path) = create(&mut bench, &folder, 8192);
    let mut other = Bench::new();
    let told = other.io.open(&path, RW).unwrap_err().to_string();
    assert!(
        told.contains("another process has it open") && told.contains("backing"),
        "{told}"
    );
    bench
        .run(Op::Close {
            handle: file,
            reset: false,
        })
        .1
        .unwrap();
    let (_, facts) = other.io.open(&path, RW).unwrap();
    assert!(facts.can_discard);
    drop(other);
    // The lock went with the driver, not some time later with its ring.
    bench.io.open(&path, RW).unwrap();
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = folder();
    let mut bench = Bench::new();
    let missing = folder.path().join("missing");
    let told = bench.io.open(&missing, RW).unwrap_err().to_string();
    assert!(
        told.starts_with("open ") && told.contains("No such file"),
        "{told}"
    );
    let how = OpenFile {
        writable: false,
        ..RW
    };
    let told = bench.io.open(folder.path(), how).unwrap_err().to_string();
    assert!(told.starts_with("use as a backing"), "{told}");
    let how = OpenFile {
        create_bytes: Some(1 << 60),
        ..RW
    };
    let told = bench.io.open(&missing, how).unwrap_err().to_string();
    assert!(
        told.starts_with("allocate 1152921504606846976 bytes for"),
        "{told}"
    );
    assert!(!missing.exists());
}

#[test]
fn an_adopted_device_is_not_given_registered_memory() {
    let mut bench = Bench::new();
    let zero = std::fs::File::open("/dev/zero").unwrap();
    let device = bench.io.adopt(zero.into()).unwrap();
    assert!(!bench.io.handles.target(device).unwrap().fixed_memory);
    assert_eq!(read(&mut bench, device, 0, 4096), [0; 4096]);
    let folder = folder();
    let (file, _) = create(&mut bench, &folder, 4096);
    assert!(bench.io.handles.target(file).unwrap().fixed_memory);
}

#[test]
fn a_command_to_a_file_that_knows_none_is_an_error() {
    let mut bench = Bench::new();
    let device = std::fs::File::open("/dev/zero").unwrap();
    let file = bench.io.adopt(device.into()).unwrap();
    let result = bench
        .run(Op::Command {
            file,
            command: 0xdead,
            payload: [0; 16],
        })
        .1;
    assert!(result.is_err(), "{result:?}");
}

#[test]
fn the_report_says_what_this_kernel_has() {
    let bench = Bench::new();
    println!("{}", bench.io.features());
    assert!(bench.io.features().require().is_ok());
}
