//! What the running kernel can do, found out by asking it, and what to say when it cannot.

use crate::error::{Errno, SetupError};
use io_uring::{IoUring, Probe, opcode};
use std::fmt;

/// One thing a kernel may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is called here.
    pub name: &'static str,
    /// First Linux version that has it.
    pub since: &'static str,
    /// Whether this host has it.
    pub present: bool,
    /// What its absence means. "required": the driver does not start.
    pub when_absent: &'static str,
}

/// The result of probing; `Display` prints it as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// `uname -r`.
    pub kernel: String,
    /// In a fixed order.
    pub all: Vec<Feature>,
}

const REQUIRED: &str = "required";
/// Files leave the registered table as soon as their own requests are done (and not when all
/// requests of that time are done). It came with 6.13; the first bit that proves it is 6.15's.
pub(crate) const PROMPT_FILES: &str = "prompt file release";
/// Enters name the ring by the task's registered slot.
pub(crate) const REGISTERED_RING: &str = "registered ring";
/// Ops name files by registered slot.
pub(crate) const FIXED_FILES: &str = "registered files";
/// `BLOCK_URING_CMD_DISCARD`.
pub(crate) const BLOCK_DISCARD: &str = "block discard command";

impl Features {
    /// Whether the feature of that name is present. Panics on a name that is not in the table.
    pub fn has(&self, name: &str) -> bool {
        let found = self.all.iter().find(|feature| feature.name == name);
        found
            .unwrap_or_else(|| panic!("no feature is called {name:?}"))
            .present
    }

    /// Records what a trial showed.
    pub(crate) fn set(&mut self, name: &str, present: bool) {
        let found = self.all.iter_mut().find(|feature| feature.name == name);
        found
            .unwrap_or_else(|| panic!("no feature is called {name:?}"))
            .present = present;
    }

    /// # Errors
    /// [`SetupError::KernelTooOld`] naming the first required feature that is absent.
    pub(crate) fn require(&self) -> Result<(), SetupError> {
        match self
            .all
            .iter()
            .find(|f| f.when_absent == REQUIRED && !f.present)
        {
            None => Ok(()),
            Some(missing) => Err(SetupError::KernelTooOld {
                missing: missing.name,
                needed: missing.since,
                found: self.kernel.clone(),
            }),
        }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}", self.kernel)?;
        for feature in &self.all {
            let mark = if feature.present { "yes" } else { "no" };
            write!(f, "  {:<24} {:>5}  {mark:<3}", feature.name, feature.since)?;
            if !feature.present {
                write!(f, "  {}", feature.when_absent)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Makes a ring with the flags that the reactor wants, dropping the optional ones a kernel refuses.
/// `flag_work`: a flag in the ring says when there is deferred work, for those who look.
pub(crate) fn set_up(
    sq_entries: u32,
    cq_entries: u32,
    flag_work: bool,
) -> Result<IoUring, SetupError> {
    let mut last = Errno(0);
    for no_sqarray in [true, false] {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun();
        builder
            .setup_submit_all()
            .setup_cqsize(cq_entries)
            .setup_clamp()
            .dontfork();
        if no_sqarray {
            builder.setup_no_sqarray();
        }
        if flag_work {
            builder.setup_taskrun_flag();
        }
        match builder.build(sq_entries) {
            Ok(ring) => return Ok(ring),
            Err(error) => last = Errno::of(&error),
        }
        if last.0 != libc::EINVAL {
            break;
        }
    }
    Err(setup_error(
        last,
        sysctl("io_uring_disabled"),
        kernel_release(),
    ))
}

fn sysctl(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
    Some(text.trim().to_owned())
}

fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// What a refused `io_uring_setup` means.
fn setup_error(errno: Errno, disabled: Option<String>, found: String) -> SetupError {
    match (errno.0, disabled) {
        (libc::EPERM | libc::EACCES, Some(value)) if value != "0" => SetupError::Disabled { value },
        (libc::EPERM | libc::EACCES | libc::ENOSYS, Some(_)) => SetupError::Forbidden { errno },
        (libc::EPERM | libc::EACCES, None) => SetupError::Forbidden { errno },
        (libc::ENOSYS, None) => SetupError::KernelTooOld {
            missing: "io_uring",
            needed: "6.1",
            found,
        },
        (libc::EINVAL, _) => SetupError::KernelTooOld {
            missing: "deferred task work",
            needed: "6.1",
            found,
        },
        _ => SetupError::Call {
            what: "set up an io_uring".to_owned(),
            errno,
        },
    }
}

/// What a refused registration of `needed_bytes` of buffers means.
pub(crate) fn buffer_error(errno: Errno, needed_bytes: u64) -> SetupError {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    memlock_error(errno, limit, needed_bytes)
}

fn memlock_error(errno: Errno, limit: Option<u64>, needed_bytes: u64) -> SetupError {
    match limit {
        // Locked memory is counted per user, so a limit above what we need may be used up already.
        Some(limit_bytes) if errno.0 == libc::ENOMEM => SetupError::MemlockTooLow {
            limit_bytes,
            needed_bytes,
        },
        _ => SetupError::Call {
            what: format!("register {needed_bytes} bytes of buffers with io_uring"),
            errno,
        },
    }
}

/// Every row of the report: name, first version, what its absence means.
const ROWS: [(&str, &str, &str); 13] = [
    ("deferred task work", "6.1", REQUIRED),
    ("enter with a deadline", "5.11", REQUIRED),
    ("no lost completions", "5.5", REQUIRED),
    ("send and receive", "5.3", REQUIRED),
    ("driver commands", "5.19", REQUIRED),
    (
        REGISTERED_RING,
        "5.18",
        "one descriptor lookup more per enter",
    ),
    (
        PROMPT_FILES,
        "6.15",
        "files are not registered: closing would be late",
    ),
    (FIXED_FILES, "6.15", "one descriptor lookup more per op"),
    (
        "sleep is not iowait",
        "6.15",
        "an idle reactor is shown as iowait",
    ),
    (
        "minimum wait",
        "6.12",
        "batches cannot be gathered by waiting (not used yet)",
    ),
    (
        BLOCK_DISCARD,
        "6.12",
        "discard by fallocate, in a worker thread",
    ),
    ("zero-copy send", "6.1", "sends copy (the default anyway)"),
    ("vectored fixed IO", "6.15", "not used yet"),
];

/// Asks the kernel about everything that can be asked without trying. What only a trial shows is
/// absent until [`Features::set`].
pub(crate) fn features(ring: &IoUring) -> Features {
    let params = ring.params();
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe).is_ok();
    let op = |code: u8| probed && probe.is_supported(code);
    let present = |name: &str| match name {
        "deferred task work" => params.is_setup_single_issuer(),
        "enter with a deadline" => params.is_feature_ext_arg(),
        "no lost completions" => params.is_feature_nodrop(),
        "send and receive" => op(opcode::SendMsg::CODE) && op(opcode::Recv::CODE),
        // Also the age of cancelling all requests of one file, for which there is no bit.
        "driver commands" => op(opcode::UringCmd16::CODE),
        "sleep is not iowait" | PROMPT_FILES => params.is_feature_no_iowait(),
        "minimum wait" | BLOCK_DISCARD => params.is_feature_min_timeout(),
        "zero-copy send" => op(opcode::SendMsgZc::CODE),
        "vectored fixed IO" => op(opcode::ReadvFixed::CODE),
        _ => false,
    };
    let rows = ROWS.iter().map(|&(name, since, when_absent)| Feature {
        name,
        since,
        present: present(name),
        when_absent,
    });
    Features {
        kernel: kernel_release(),
        all: rows.collect(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn text(errno: i32, disabled: Option<&str>) -> String {
        setup_error(
            Errno(errno),
            disabled.map(str::to_owned),
            "5.15.0-test".to_owned(),
        )
        .to_string()
    }

    #[test]
    fn a_disabled_io_uring_names_the_sysctl_its_value_and_the_remedy() {
        assert_eq!(
            text(libc::EPERM, Some("2")),
            "io_uring is disabled on this host (kernel.io_uring_disabled = 2); set it to 0 with \
             `sysctl -w kernel.io_uring_disabled=0`"
        );
    }

    #[test]
    fn a_seccomp_filter_is_not_blamed_on_the_sysctl() {
        let told = text(libc::EPERM, Some("0"));
        assert!(
            told.contains("seccomp") && told.contains("Operation not permitted"),
            "{told}"
        );
        assert!(text(libc::ENOSYS, Some("0")).contains("seccomp"));
    }

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        assert_eq!(
            text(libc::EINVAL, None),
            "the kernel is too old: deferred task work needs Linux 6.1, this is 5.15.0-test; \
             upgrade it"
        );
        assert!(text(libc::ENOSYS, None).contains("io_uring needs Linux 6.1"));
    }

    #[test]
    fn a_low_memlock_limit_names_both_numbers() {
        let told = memlock_error(Errno(libc::ENOMEM), Some(8_388_608), 67_108_864).to_string();
        assert!(
            told.contains("limit is 8388608 bytes for all processes of this user"),
            "{told}"
        );
        assert!(told.contains("arena needs 67108864"), "{told}");
        assert!(told.contains("LimitMEMLOCK=infinity"), "{told}");
        let other = memlock_error(Errno(libc::EFAULT), Some(1), 4096).to_string();
        assert!(other.contains("register 4096 bytes"), "{other}");
        let unlimited = memlock_error(Errno(libc::ENOMEM), None, 4096).to_string();
        assert!(unlimited.contains("register 4096 bytes"), "{unlimited}");
    }

    #[test]
    fn a_missing_required_feature_stops_the_start() {
        let ring = set_up(8, 16, false).unwrap();
        let mut features = features(&ring);
        assert!(features.require().is_ok());
        features.set("driver commands", false);
        let told = features.require().unwrap_err().to_string();
        assert!(told.contains("driver commands needs Linux 5.19"), "{told}");
    }

    #[test]
    fn the_report_names_every_feature_and_the_kernel() {
        let ring = set_up(8, 16, false).unwrap();
        let mut features = features(&ring);
        features.set(BLOCK_DISCARD, false);
        let report = features.to_string();
        println!("{report}");
        assert!(report.starts_with("kernel "));
        assert!(
            features
                .all
                .iter()
                .all(|feature| report.contains(feature.name))
        );
        assert!(report.contains("discard by fallocate"));
    }
}
