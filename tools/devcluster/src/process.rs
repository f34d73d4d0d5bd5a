//! Processes that outlive who started them, and that are never mistaken for others.

use crate::plan::Daemon;
use crate::{Fault, trying};
use rustix::process::{Pid, PidfdFlags, Signal as Sig, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A process, told from a later one with the same number by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started_ticks: u64,
}

/// How a process is asked to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    Terminate,
    Kill,
}

impl Signal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Kill => "SIGKILL",
        }
    }
}

impl Alive {
    /// Whether that very process still runs. A zombie does not.
    pub fn is_running(self) -> bool {
        matches!(stat_of(self.pid), Some((started, state))
            if started == self.started_ticks && state != 'Z' && state != 'X')
    }
}

/// Start time and state letter from `/proc/PID/stat`; the name in the middle may hold anything.
fn stat_of(pid: i32) -> Option<(u64, char)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((started, state))
}

/// Starts a daemon in a process group of its own, its output going to its log.
pub(crate) fn spawn(daemon: &Daemon) -> Result<Alive, Fault> {
    let open = File::options().create(true).append(true).open(&daemon.log);
    let log = trying(format!("open {}", daemon.log.display()), open)?;
    let copy = trying("duplicate the log's descriptor", log.try_clone())?;
    let spawned = Command::new(&daemon.program)
        .arg("--config")
        .arg(&daemon.config)
        .stdin(Stdio::null())
        .stdout(copy)
        .stderr(log)
        .process_group(0)
        .spawn();
    let child = trying(format!("start {}", daemon.program.display()), spawned)?;
    let pid = i32::try_from(child.id()).expect("process ids fit i32");
    let started_ticks = stat_of(pid).map_or(0, |(started, _)| started);
    // Reaps the child when it ends while we live; otherwise init does.
    reap_in_background(child);
    Ok(Alive { pid, started_ticks })
}

fn reap_in_background(mut child: std::process::Child) {
    let waiter = std::thread::Builder::new().name("reaper".to_owned());
    // The exit status is in the daemon's log; nobody waits for it here.
    let spawned = waiter.spawn(move || drop(child.wait()));
    drop(spawned);
}

fn pidfd(alive: Alive) -> Option<OwnedFd> {
    let pid = Pid::from_raw(alive.pid)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Opened first, compared after: from here on the descriptor means this very process.
    alive.is_running().then_some(fd)
}

pub(crate) fn signal(alive: Alive, how: Signal) -> Result<(), Fault> {
    let Some(fd) = pidfd(alive) else {
        return Ok(());
    };
    let sig = match how {
        Signal::Terminate => Sig::TERM,
        Signal::Kill => Sig::KILL,
    };
    let sent = pidfd_send_signal(&fd, sig).map_err(std::io::Error::from);
    trying(
        format!("send {} to process {}", how.name(), alive.pid),
        sent,
    )
}

/// Waits until the process is gone; `false` if it still runs at the deadline.
pub(crate) fn wait_gone(alive: Alive, deadline: Instant) -> Result<bool, Fault> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(fd) = pidfd(alive) else {
        return Ok(true);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let polled = poll(&mut fds, Some(&limit)).map_err(std::io::Error::from);
    trying(format!("wait for process {}", alive.pid), polled)?;
    Ok(!alive.is_running())
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::plan::Kind;
    use std::time::Duration;

    fn sleeper(dir: &std::path::Path) -> Daemon {
        let script = dir.join("sleeper");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 60\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        Daemon {
            name: "sleeper".to_owned(),
            kind: Kind::Storaged,
            program: script,
            config: dir.join("none.toml"),
            log: dir.join("sleeper.log"),
            address: "127.0.0.1:1".parse().unwrap(),
            metrics: "127.0.0.1:2".parse().unwrap(),
            process: None,
        }
    }

    #[test]
    fn a_killed_process_is_gone_and_its_number_means_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let alive = spawn(&sleeper(dir.path())).unwrap();
        assert!(alive.is_running());
        let impostor = Alive {
            started_ticks: alive.started_ticks + 1,
            ..alive
        };
        assert!(!impostor.is_running());
        signal(impostor, Signal::Kill).unwrap();
        assert!(
            alive.is_running(),
            "a signal for another process reached this one"
        );
        signal(alive, Signal::Kill).unwrap();
        assert!(wait_gone(alive, Instant::now() + Duration::from_secs(10)).unwrap());
        assert!(!alive.is_running());
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = sleeper(dir.path());
        daemon.program = dir.path().join("absent");
        let error = spawn(&daemon).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
