//! A real kernel for tests: boots a Debian cloud kernel under QEMU in seconds and runs scripts in it.
//!
//! What it owns: the kernel cache, the root image made for each boot, the QEMU process. What it
//! promises: nothing keeps running and nothing but the kernel cache stays behind when a [`Vm`] is
//! dropped or its process dies; a kernel complaint (panic, BUG, WARNING, hung task) fails the
//! script during which it appeared, whatever the script's own exit code. What the caller owes:
//! scripts that wait for events, not for time.
//!
//! ```no_run
//! use std::time::Duration;
//! let kernel = vmtest::kernel::resolve(vmtest::kernel::Suite::from_env())?;
//! let mut vm = vmtest::Vm::boot(&kernel, &vmtest::Spec::default())?;
//! let seen = vm.run("uname -r", Duration::from_secs(30))?;
//! assert!(seen.passed(), "{}", seen.output);
//! # anyhow::Ok(())
//! ```
#![forbid(unsafe_code)]

pub mod image;
pub mod kernel;
pub mod klog;
mod qemu;
pub mod script;
pub mod spec;
mod vm;

pub use spec::{Disk, Spec};
pub use vm::{Outcome, Vm, run_with_cuts};

/// Why this machine cannot run VM tests, if it cannot: a sentence with the remedy.
///
/// Only what the machine truly lacks is a reason; a kernel that cannot be downloaded is reported
/// by [`kernel::resolve`].
pub fn missing_programs() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!(
            "the VM harness knows x86_64 only, this is {}",
            std::env::consts::ARCH
        ));
    }
    let needed = [
        (qemu::PROGRAM, "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("mke2fs", "e2fsprogs"),
        ("modprobe", "kmod"),
        ("depmod", "kmod"),
        ("xz", "xz-utils"),
        ("dpkg", "dpkg"),
        ("setpriv", "util-linux"),
        ("ldd", "libc-bin"),
        ("strip", "binutils"),
    ];
    let missing: Vec<String> = needed
        .iter()
        .filter(|(program, _)| image::find_program(program).is_none())
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "not installed: {}; `make deps` installs it",
            missing.join(", ")
        )
    })
}
