//! Life with a service manager: logging, readiness, signals.

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Logs to standard error, one line per event, without colours or time when systemd adds its own.
///
/// # Errors
/// A sentence about the filter, if it cannot be understood.
pub fn init_logging(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("the log filter \"{filter}\" is not understood: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
    Ok(())
}

/// From now on a panic of any thread ends the process: a daemon that has lost a thread, or a task, must not go on
/// without it. Release builds abort anyway; builds for tests unwind.
pub fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        std::process::abort();
    }));
}

/// Tells systemd that the daemon serves. Without systemd this does nothing.
pub fn notify_ready(status: &str) {
    notify(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(status),
    ]);
}

/// Tells systemd what the daemon is doing.
pub fn notify_status(status: &str) {
    notify(&[sd_notify::NotifyState::Status(status)]);
}

/// Tells systemd that the daemon is on its way out.
pub fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// Resolves at the first SIGTERM or SIGINT.
///
/// # Errors
/// If the signal handlers cannot be installed.
pub async fn stop_requested() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const ABORTED: i32 = 6; // SIGABRT

    /// Runs itself once more, there with this variable.
    const PANICS: &str = "UBS_TEST_DAEMON_PANICS";

    #[test]
    fn a_thread_that_panics_takes_the_process_with_it() {
        if std::env::var_os(PANICS).is_some() {
            super::abort_on_panic();
            let lost = std::thread::spawn(|| panic!("this thread is lost")).join();
            assert!(lost.is_err(), "the process lives on");
            return;
        }
        let this = std::env::current_exe().expect("a test has a path");
        let name = "service::test::a_thread_that_panics_takes_the_process_with_it";
        let mut again = Command::new(this);
        again
            .args(["--exact", name, "--nocapture"])
            .env(PANICS, "1");
        let ended = again.output().expect("a test can be run");
        assert_eq!(ended.status.signal(), Some(ABORTED));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("this thread is lost"), "{said}");
    }
}
