//! The QEMU process: its command line, and that it never outlives us.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::image::ROOT_PARTUUID;
use crate::kernel::Kernel;
use crate::spec::Spec;

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// How the guest's processor is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    Emulated,
    Kvm,
}

impl Accel {
    /// The ways to try, in order. A `/dev/kvm` that exists proves nothing: nested ones under a
    /// paravirtual hypervisor hang or crawl. KVM is tried where the host shows real hardware
    /// support loaded, or where `UBS_VM_ACCEL=kvm` asks for it.
    pub(crate) fn to_try() -> Vec<Self> {
        let asked = std::env::var("UBS_VM_ACCEL").unwrap_or_default();
        let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        let hardware = modules
            .lines()
            .any(|l| l.starts_with("kvm_intel ") || l.starts_with("kvm_amd "));
        let usable = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        match asked.as_str() {
            "tcg" => vec![Self::Emulated],
            "kvm" => vec![Self::Kvm],
            _ if usable && hardware && !modules.contains("kvm_pvm") => {
                vec![Self::Kvm, Self::Emulated]
            }
            _ => vec![Self::Emulated],
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Self::Emulated => "tcg,thread=multi",
            Self::Kvm => "kvm",
        }
    }

    /// The processor of the guest. The emulator goes over `rep movsb` byte by byte, and that is how the kernel
    /// and the C library copy and clear memory where it is said to be fast.
    fn processor(self) -> &'static str {
        match self {
            Self::Emulated => "max,-erms,-fsrm",
            Self::Kvm => "max",
        }
    }
}

/// Files of one boot, all in its scratch folder.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) root_image: PathBuf,
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) streams: Vec<PathBuf>,
    pub(crate) console: PathBuf,
    pub(crate) control: PathBuf,
    pub(crate) stderr: PathBuf,
}

impl Files {
    pub(crate) fn in_folder(dir: &Path, spec: &Spec) -> Self {
        let place = |d: &crate::spec::Disk| dir.join(format!("disk-{}.raw", d.serial));
        Self {
            root_image: dir.join("root.img"),
            disks: spec
                .disks
                .iter()
                .map(|d| d.file.clone().unwrap_or_else(|| place(d)))
                .collect(),
            streams: spec
                .streams
                .iter()
                .map(|name| spec.streams_in.as_deref().unwrap_or(dir).join(name))
                .collect(),
            console: dir.join("console.log"),
            control: dir.join("ctl"),
            stderr: dir.join("qemu.stderr"),
        }
    }
}

/// A running QEMU; dropping it ends the process and waits for it.
#[derive(Debug)]
pub(crate) struct Qemu {
    pidfd: rustix::fd::OwnedFd,
    reaper: Option<JoinHandle<()>>,
}

impl Qemu {
    /// Start QEMU; when it ends by itself, a bare connection to the control socket says so.
    pub(crate) fn start(kernel: &Kernel, spec: &Spec, files: &Files, accel: Accel) -> Result<Self> {
        let mut command = command_line(kernel, spec, files, accel);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&files.stderr)?);
        let control = files.control.clone();
        let (started, starting) = std::sync::mpsc::channel();
        // The kernel ends QEMU when the thread that started it ends, so that thread must be one
        // that lives as long as QEMU does.
        let reaper = thread::Builder::new()
            .name("qemu-reaper".into())
            .spawn(move || {
                let child = command.spawn();
                reap(child, &started, &control);
            })?;
        let pid = starting
            .recv()
            .context("the reaper thread is gone")?
            .context("cannot start QEMU")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Self {
            pidfd,
            reaper: Some(reaper),
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {} // ended by itself: as good
            Err(why) => eprintln!("vm: cannot end QEMU: {why}"),
        }
        if let Some(reaper) = self.reaper.take() {
            drop(reaper.join());
        }
    }
}

fn reap(
    child: std::io::Result<Child>,
    started: &std::sync::mpsc::Sender<std::io::Result<Pid>>,
    control: &Path,
) {
    match child {
        Ok(mut child) => {
            let pid = Pid::from_child(&child);
            drop(started.send(Ok(pid)));
            drop(child.wait());
            // Wakes an accept that waits for a QEMU that is no more; else nobody listens.
            drop(UnixStream::connect(control));
        }
        Err(why) => drop(started.send(Err(why))),
    }
}

fn command_line(kernel: &Kernel, spec: &Spec, files: &Files, accel: Accel) -> Command {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", PROGRAM]);
    qemu.args([
        "-M",
        "q35",
        "-accel",
        accel.argument(),
        "-cpu",
        accel.processor(),
    ]);
    qemu.args([
        "-smp",
        &spec.cpus.to_string(),
        "-m",
        &format!("{}M", spec.memory_bytes >> 20),
    ]);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    qemu.arg("-serial")
        .arg(format!("file:{}", files.console.display()));
    qemu.arg("-kernel").arg(kernel.vmlinuz());
    qemu.arg("-append").arg(format!(
        "root=PARTUUID={ROOT_PARTUUID} rootwait rw init=/init console=ttyS0 loglevel=5 panic=-1 \
         mitigations=off nowatchdog"
    ));
    let root = files.root_image.display();
    qemu.arg("-drive").arg(format!(
        "if=none,id=root,file={root},format=raw,snapshot=on"
    ));
    qemu.args(["-device", "nvme,drive=root,serial=root"]);
    for (index, (disk, file)) in spec.disks.iter().zip(&files.disks).enumerate() {
        let file = file.display();
        qemu.arg("-drive").arg(format!(
            "if=none,id=d{index},file={file},format=raw,discard=unmap"
        ));
        qemu.arg("-device").arg(format!(
            "nvme,drive=d{index},serial={},logical_block_size={1},physical_block_size={1}",
            disk.serial, disk.block_bytes
        ));
    }
    qemu.args(["-device", "virtio-serial-pci"]);
    qemu.arg("-chardev")
        .arg(format!("socket,id=ctl,path={}", files.control.display()));
    qemu.args(["-device", "virtserialport,chardev=ctl,name=ubs.ctl"]);
    for (index, (name, file)) in spec.streams.iter().zip(&files.streams).enumerate() {
        let file = file.display();
        qemu.arg("-chardev")
            .arg(format!("file,id=s{index},path={file},append=on"));
        qemu.arg("-device")
            .arg(format!("virtserialport,chardev=s{index},name={name}"));
    }
    qemu
}
