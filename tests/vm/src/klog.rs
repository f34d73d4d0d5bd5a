//! What the guest kernel said, and whether a test may pass after it.

/// Beginnings of kernel messages after which nothing the guest did can be trusted.
const COMPLAINTS: &[&str] = &[
    "Kernel panic",
    "kernel BUG at",
    "BUG: ",
    "WARNING: ",
    "Oops: ",
    "Internal error: ",
    "general protection fault",
    "UBSAN: ",
    "list_add corruption",
    "list_del corruption",
    "refcount_t: ",
    "unregister_netdevice: waiting",
];

/// Messages that begin with the task's name.
const COMPLAINTS_ANYWHERE: &[&str] =
    &["blocked for more than", "blocked in I/O wait for more than"];

/// The lines of a kernel log (console or `dmesg`) that fail a test.
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| {
            let message = message_of(line);
            COMPLAINTS.iter().any(|c| message.starts_with(c))
                || COMPLAINTS_ANYWHERE.iter().any(|c| message.contains(c))
        })
        .collect()
}

/// The message without `[  12.345678]`, a `watchdog: `-like owner or console noise before it.
fn message_of(line: &str) -> &str {
    let text = line.trim_start_matches(|c: char| c.is_control());
    let text = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, rest)) => rest.trim_start(),
        None => text,
    };
    let text = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, rest)) => rest.trim_start(), // the printing thread, with PRINTK_CALLER
        None => text,
    };
    text.strip_prefix("watchdog: ").unwrap_or(text)
}

#[cfg(test)]
mod test {
    use super::complaints;

    #[test]
    fn every_kind_of_trouble_is_found_with_or_without_a_timestamp() {
        for line in [
            "[    3.021] Kernel panic - not syncing: Attempted to kill init!",
            "[   12.5] ------------[ cut here ]------------\n[   12.5] WARNING: CPU: 1 PID: 7 at block/x.c:1 f+0x1/0x2",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[  99.1] INFO: task fio:123 blocked for more than 60 seconds.",
            "[  9.1][  T123] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
            "[  1.0] Oops: Oops: 0000 [#1] SMP",
        ] {
            assert_eq!(complaints(line).len(), 1, "{line}");
        }
    }

    #[test]
    fn ordinary_messages_are_no_complaint() {
        let log = "[    0.1] Linux version 7.0\n[ 1.0] ublk: debug: no WARNING: here\n\
                   [    2.0] nvme nvme1: creating 2 I/O queues.\nDEBUG: fine\n";
        assert_eq!(complaints(log), Vec::<&str>::new());
    }
}
