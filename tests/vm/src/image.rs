//! The root disk: a Debian-shaped tree of host files, made into an ext4 image without mounting.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::kernel::{Kernel, cache_home, output, unpack_debs};
use crate::spec::Spec;

/// Disk signature: the root is found by it, because NVMe disks are numbered in random order.
pub(crate) const ROOT_PARTUUID: &str = "ec0ec0ec-01";
const DISK_SIGNATURE: u32 = 0xec0e_c0ec;
const SECTOR_BYTES: u64 = 512;
const PARTITION_START_BYTES: u64 = 1 << 20;
/// Free space for what scripts write outside of data disks.
const SPARE_BYTES: u64 = 512 << 20;

/// Tools every script may rely on. Those that start other programs are not left to busybox, which
/// would start its own applets instead of the tools in the PATH.
const TOOLS: &[&str] = &[
    "blkdiscard",
    "blockdev",
    "chroot",
    "dash",
    "e2fsck",
    "env",
    "fio",
    "flock",
    "ip",
    "losetup",
    "mke2fs",
    "mount",
    "nice",
    "nohup",
    "nvme",
    "prlimit",
    "setsid",
    "taskset",
    "timeout",
    "umount",
    "xargs",
];
/// Tools that are there when the host has them; a script that needs one says `tool=NAME`.
const TOOLS_IF_THERE: &[&str] = &[
    "bash",
    "dmsetup",
    "findmnt",
    "lsblk",
    "mkfs.xfs",
    "nsenter",
    "setpriv",
    "strace",
    "tc",
    "unshare",
    "wipefs",
    "xfs_repair",
];
/// Modules every script may load; a kernel without one of them is not an error by itself.
const MODULES: &[&str] = &[
    "brd",
    "bridge",
    "dm-delay",
    "dm-flakey",
    "dm-log-writes",
    "dm-mod",
    "loop",
    "null_blk",
    "nvme-loop",
    "nvme-tcp",
    "nvmet",
    "nvmet-tcp",
    "raid1",
    "sch_netem",
    "ublk_drv",
    "veth",
    "xfs",
];

/// Who the guest is to NVMe targets.
const HOST_UUID: &str = "0a6b9f3c-52f1-4c5e-9d0e-6d2f6d0e7a11";

const INIT: &str = include_str!("../guest/init.sh");
const PRELUDE: &str = include_str!("../guest/prelude.sh");

/// Write the root image for `spec` to `image`, using `work` for scratch.
///
/// # Errors
/// A tool, program, file or module is missing; the disk is full.
pub fn build(kernel: &Kernel, spec: &Spec, work: &Path, image: &Path) -> Result<()> {
    let mut tree = Tree::new(&work.join("root"))?;
    tree.add_tools(spec)?;
    tree.add_busybox()?;
    for program in &spec.programs {
        tree.add_program(program)?;
    }
    for placed in &spec.files {
        tree.add_file(&placed.source, &placed.target)?;
    }
    tree.add_modules(kernel, spec)?;
    tree.write("init", INIT, 0o755)?;
    tree.write("usr/lib/ubs/prelude.sh", PRELUDE, 0o644)?;
    make_ext4(&tree.root, image)?;
    fs::remove_dir_all(&tree.root)?;
    Ok(())
}

/// Where the host keeps `name`, also outside a user's PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(beside)
        .map(|dir| dir.join(name))
        .find(|p| fs::metadata(p).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Tools that would change the host when installed (units, device rules): program and package.
const UNPACKED: &[(&str, &str)] = &[("mdadm", "mdadm")];

/// A tool the host lacks, from its package, downloaded and unpacked but not installed.
fn unpacked_tool(name: &str) -> Result<PathBuf> {
    let (_, package) = UNPACKED
        .iter()
        .find(|(tool, _)| *tool == name)
        .with_context(|| format!("{name} is not installed on this host (`make deps`)"))?;
    let cache = cache_home()?.join("ublkstor/vm/tools");
    fs::create_dir_all(&cache)?;
    let place = cache.join(package);
    if !place.exists() {
        let work = tempfile::tempdir_in(&cache)?;
        output(
            Command::new("apt-get")
                .args(["-q", "download", package])
                .current_dir(work.path()),
        )
        .with_context(|| format!("{name} is not installed and {package} not to be had"))?;
        let unpacked = work.path().join("root");
        unpack_debs(work.path(), &unpacked)?;
        if let Err(why) = fs::rename(&unpacked, &place) {
            ensure!(place.exists(), "cannot keep {package}: {why}"); // another run was faster
        }
    }
    let places = ["usr/sbin", "sbin", "usr/bin", "bin"].map(|dir| place.join(dir).join(name));
    places
        .into_iter()
        .find(|p| p.is_file())
        .with_context(|| format!("package {package} holds no {name}"))
}

struct Tree {
    root: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

impl Tree {
    fn new(root: &Path) -> Result<Self> {
        for dir in [
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "mnt",
            "root",
            "etc/nvme",
            "var/lib",
            "var/log",
            "usr/bin",
            "usr/sbin",
            "usr/lib64",
            "usr/lib/ubs",
        ] {
            fs::create_dir_all(root.join(dir))?;
        }
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/sbin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            symlink(target, root.join(link))?;
        }
        let tree = Self {
            root: root.to_owned(),
            libraries: BTreeSet::new(),
        };
        tree.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
        tree.write("etc/group", "root:x:0:\n", 0o644)?;
        tree.write(
            "etc/nvme/hostnqn",
            &format!("nqn.2014-08.org.nvmexpress:uuid:{HOST_UUID}\n"),
            0o644,
        )?;
        tree.write("etc/nvme/hostid", &format!("{HOST_UUID}\n"), 0o644)?;
        tree.write("etc/hosts", "127.0.0.1 localhost\n", 0o644)?;
        Ok(tree)
    }

    fn write(&self, at: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.root.join(at);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    fn add_tools(&mut self, spec: &Spec) -> Result<()> {
        let required = TOOLS
            .iter()
            .copied()
            .chain(spec.tools.iter().map(String::as_str));
        for name in required {
            let path = match find_program(name) {
                Some(path) => path,
                None => unpacked_tool(name)?,
            };
            self.add_elf(&path, &format!("usr/sbin/{name}"), false)?;
        }
        for name in TOOLS_IF_THERE {
            if let Some(path) = find_program(name) {
                self.add_elf(&path, &format!("usr/sbin/{name}"), false)?;
            }
        }
        symlink("mke2fs", self.root.join("usr/sbin/mkfs.ext4"))?;
        if Path::new("/etc/mke2fs.conf").exists() {
            fs::copy("/etc/mke2fs.conf", self.root.join("etc/mke2fs.conf"))?;
        }
        Ok(())
    }

    /// busybox for everything the host's own tools did not fill; the shell is dash, because a
    /// shell of busybox prefers its own applets to the tools in the PATH.
    fn add_busybox(&mut self) -> Result<()> {
        symlink("../sbin/dash", self.root.join("usr/bin/sh"))?;
        let path = find_program("busybox").context("busybox is not installed (busybox-static)")?;
        self.add_elf(&path, "usr/bin/busybox", false)?;
        for applet in output(Command::new(&path).arg("--list"))?.lines() {
            let taken = ["usr/bin", "usr/sbin"]
                .iter()
                .any(|d| fs::symlink_metadata(self.root.join(d).join(applet)).is_ok());
            if !taken {
                symlink("busybox", self.root.join("usr/bin").join(applet))?;
            }
        }
        Ok(())
    }

    fn add_program(&mut self, path: &Path) -> Result<()> {
        let name = path
            .file_name()
            .with_context(|| format!("{} names no file", path.display()))?;
        self.add_elf(path, &format!("usr/bin/{}", name.to_string_lossy()), true)
    }

    fn add_file(&mut self, source: &Path, target: &str) -> Result<()> {
        let to = self.root.join(target.trim_start_matches('/'));
        let parent = to
            .parent()
            .with_context(|| format!("{target:?} has no folder"))?;
        fs::create_dir_all(parent)?;
        fs::copy(source, &to).with_context(|| format!("cannot copy {}", source.display()))?;
        Ok(())
    }

    /// An executable with the libraries it loads; `strip` leaves its symbols behind.
    fn add_elf(&mut self, source: &Path, at: &str, strip: bool) -> Result<()> {
        let to = self.root.join(at);
        let head = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        if strip && head.starts_with(b"\x7fELF") {
            output(Command::new("strip").arg("-o").arg(&to).arg(source))?;
        } else {
            fs::write(&to, head)?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        for library in libraries(source)? {
            if !self.libraries.insert(library.clone()) {
                continue;
            }
            let place = self
                .root
                .join(library.strip_prefix("/").unwrap_or(&library));
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(&library, &place)
                .with_context(|| format!("cannot copy {}", library.display()))?;
        }
        Ok(())
    }

    fn add_modules(&self, kernel: &Kernel, spec: &Spec) -> Result<()> {
        let to = self.root.join("usr/lib/modules").join(&kernel.release);
        fs::create_dir_all(&to)?;
        for list in [
            "modules.builtin",
            "modules.builtin.modinfo",
            "modules.order",
        ] {
            fs::copy(kernel.modules().join(list), to.join(list))
                .with_context(|| format!("kernel {} has no {list}", kernel.release))?;
        }
        let mut files = BTreeSet::new();
        for name in MODULES {
            files.extend(module_files(kernel, name).unwrap_or_default());
        }
        for name in &spec.modules {
            files.extend(module_files(kernel, name)?);
        }
        for file in &files {
            let inside = file.strip_prefix(kernel.modules())?;
            unpack_module(file, &to.join(inside))?;
        }
        output(
            Command::new("depmod")
                .arg("-b")
                .arg(self.root.join("usr"))
                .arg(&kernel.release),
        )?;
        Ok(())
    }
}

/// The module and all it depends on, as files of the kernel cache; nothing for a built-in one.
fn module_files(kernel: &Kernel, name: &str) -> Result<Vec<PathBuf>> {
    let mut modprobe = Command::new(find_program("modprobe").context("modprobe is not installed")?);
    modprobe
        .arg("-d")
        .arg(kernel.root.join("usr"))
        .args(["-S", &kernel.release]);
    let shown = output(modprobe.args(["--show-depends", name]))
        .with_context(|| format!("kernel {} has no module {name}", kernel.release))?;
    Ok(shown
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(PathBuf::from)
        .collect())
}

/// Copy a module, uncompressed, so that the guest needs neither xz nor time for it.
fn unpack_module(file: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let tool = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            fs::copy(file, to)?;
            return Ok(());
        }
    };
    let plain = File::create(to.with_extension(""))?;
    let status = Command::new(tool)
        .arg("-dc")
        .arg(file)
        .stdout(Stdio::from(plain))
        .status();
    let status = status.with_context(|| format!("cannot run {tool}"))?;
    ensure!(status.success(), "{tool} failed on {}", file.display());
    Ok(())
}

/// Shared libraries of an executable by `ldd`; none for static ones and scripts.
fn libraries(path: &Path) -> Result<Vec<PathBuf>> {
    let got = Command::new("ldd")
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run ldd")?;
    let shown = String::from_utf8_lossy(&got.stdout);
    let missing: Vec<&str> = shown
        .lines()
        .filter(|l| l.contains("=> not found"))
        .collect();
    ensure!(
        missing.is_empty(),
        "{} lacks libraries: {}",
        path.display(),
        missing.join(";")
    );
    Ok(library_paths(&shown))
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`, in file order.
fn library_paths(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let text = line.trim();
            let text = text.split_once("=> ").map_or(text, |(_, path)| path);
            text.starts_with('/')
                .then(|| text.split(" (").next().unwrap_or(text).into())
        })
        .collect()
}

/// A disk image with one ext4 partition that holds `root`.
fn make_ext4(root: &Path, image: &Path) -> Result<()> {
    let used_bytes = tree_bytes(root)?;
    let size_bytes = ((used_bytes + used_bytes / 8 + SPARE_BYTES) >> 20) << 20;
    let mut file = File::create(image)?;
    file.set_len(PARTITION_START_BYTES + size_bytes)?;
    file.write_all(&partition_table(size_bytes)?)?;
    let mke2fs = find_program("mke2fs").context("mke2fs is not installed (e2fsprogs)")?;
    let offset = format!("offset={PARTITION_START_BYTES},lazy_itable_init=1,root_owner=0:0");
    output(
        Command::new(mke2fs)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                "^has_journal",
                "-m",
                "0",
                "-N",
                "8192",
            ])
            .args(["-E", &offset, "-d"])
            .arg(root)
            .arg(image)
            .arg(format!("{}k", size_bytes >> 10)),
    )?;
    Ok(())
}

/// A DOS partition table: our signature and one Linux partition.
fn partition_table(partition_bytes: u64) -> Result<[u8; 512]> {
    let start = u32::try_from(PARTITION_START_BYTES / SECTOR_BYTES)?;
    let sectors = u32::try_from(partition_bytes / SECTOR_BYTES).context("root image too large")?;
    let mut table = [0; 512];
    table[0x1b8..0x1bc].copy_from_slice(&DISK_SIGNATURE.to_le_bytes());
    table[0x1be + 4] = 0x83;
    table[0x1be + 8..0x1be + 12].copy_from_slice(&start.to_le_bytes());
    table[0x1be + 12..0x1be + 16].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(table)
}

/// Bytes of all files below `dir`, rounded up to blocks, with a block per name.
fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        sum += 4096 + facts.len().next_multiple_of(4096);
        if facts.is_dir() {
            sum += tree_bytes(&entry.path())?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn libraries_are_read_from_every_form_ldd_prints() {
        let shown = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                     \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                     \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tstatically linked\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(library_paths(shown), expected.map(PathBuf::from));
    }

    #[test]
    fn partition_table_names_the_root_by_the_partuuid_of_the_command_line() {
        let table = partition_table(64 << 20).expect("64 MiB fits");
        let signature = u32::from_le_bytes(table[0x1b8..0x1bc].try_into().expect("four bytes"));
        assert_eq!(format!("{signature:08x}-01"), ROOT_PARTUUID);
        assert_eq!(table[510..], [0x55, 0xaa]);
        assert_eq!(
            u32::from_le_bytes(table[0x1ca..0x1ce].try_into().expect("four bytes")),
            131_072
        );
    }
}
