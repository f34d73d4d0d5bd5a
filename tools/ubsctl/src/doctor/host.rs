//! This machine: kernel, io_uring, locked memory, drivers, and what the configurations name.

use super::configs::{Configs, Program};
use super::finding::{Finding, Level};
use super::{stores, ublk_driver};
use crate::output::size;
use reactor::{SetupError, UringConfig, UringDriver};
use std::path::Path;
use uuid::Uuid;

const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Everything about this host. `cluster`: the one that metad answers for.
pub(super) fn findings(configs: &Configs, cluster: Option<Uuid>) -> Vec<Finding> {
    let mut found = vec![kernel(configs)];
    found.extend(ring(configs));
    found.push(huge_pages(configs));
    found.extend(ublk_driver::findings(configs));
    found.push(nvme_tcp());
    found.extend(configs.findings.iter().cloned());
    for configured in &configs.all {
        found.extend(stores::identity(configured, cluster));
        let of = cluster.or_else(|| configured.cluster());
        for store in configured.settings.iter().flat_map(|s| &s.stores) {
            found.push(stores::store(store, of));
        }
    }
    found
}

/// Whether we are root. Others cannot see everything, and have other limits than the daemons.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A problem if the daemons concerned belong here, otherwise something to know.
fn level_for(needed: bool) -> Level {
    if needed { Level::Problem } else { Level::Hint }
}

pub(super) fn kernel_release() -> String {
    let uname = rustix::system::uname();
    uname.release().to_string_lossy().into_owned()
}

/// `6.12.48+deb13-amd64` is (6, 12).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(configs: &Configs) -> Finding {
    let release = kernel_release();
    let (wanted, why) = if configs.has(Program::Clientd) {
        ((6, 5), "Linux 6.5 for clientd")
    } else {
        ((6, 1), "Linux 6.1 for storaged, 6.5 for clientd")
    };
    match version(&release) {
        Some(found) if found >= wanted => Finding::ok("kernel", release),
        Some(_) => {
            let level = level_for(configs.needs_reactor());
            Finding::new(
                level,
                "kernel",
                release,
                "install a newer kernel and boot it",
            )
            .needs(why)
        }
        None => Finding::new(Level::Hint, "kernel", release, "").needs(why),
    }
}

/// io_uring, what it can, and whether the arena of a daemon can be locked.
fn ring(configs: &Configs) -> Vec<Finding> {
    let level = level_for(configs.needs_reactor());
    let small = UringConfig {
        ops_max: 64,
        handles_max: 16,
        arena: reactor::ArenaConfig {
            slot_counts: [1, 0, 0],
            huge_pages: false,
        },
        ..UringConfig::default()
    };
    let features = match UringDriver::new(small) {
        Ok(driver) => driver.features().clone(),
        Err(error) => return vec![Finding::of_error(level, "io_uring", &error)],
    };
    let absent: Vec<String> = features
        .all
        .iter()
        .filter(|f| !f.present)
        .map(|f| format!("{} ({}, Linux {})", f.name, f.when_absent, f.since))
        .collect();
    let told = if absent.is_empty() {
        "works, with every feature that is used".to_owned()
    } else {
        format!(
            "works, slower where the kernel has no: {}",
            absent.join("; ")
        )
    };
    vec![Finding::ok("io_uring", told), locked_memory(configs, level)]
}

fn locked_memory(configs: &Configs, level: Level) -> Finding {
    const CHECK: &str = "locked memory";
    let arena = configs.arena();
    let wanted = UringConfig {
        arena,
        ..UringConfig::default()
    };
    match UringDriver::new(wanted) {
        Ok(_) => Finding::ok(
            CHECK,
            format!("an arena of {} can be locked", size(arena.len_bytes())),
        ),
        // The units set a limit of their own; what holds for this user may not hold for daemons.
        Err(error @ SetupError::MemlockTooLow { .. }) if !is_root() => {
            Finding::of_error(Level::Hint, CHECK, &error)
        }
        Err(error) => Finding::of_error(level, CHECK, &error),
    }
}

fn huge_pages(configs: &Configs) -> Finding {
    const CHECK: &str = "huge pages";
    let arena = configs.arena();
    let wanted = arena.len_bytes().div_ceil(HUGE_PAGE_BYTES);
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(free) = meminfo(&table, "HugePages_Free") else {
        return Finding::ok(CHECK, "none in this kernel: arenas use normal pages");
    };
    if free >= wanted || !arena.huge_pages {
        return Finding::ok(CHECK, format!("{free} free"));
    }
    Finding::new(
        Level::Hint,
        CHECK,
        format!("{free} free: the arena uses normal pages, which costs a little speed"),
        format!("`sysctl -w vm.nr_hugepages={wanted}` before the daemons start"),
    )
    .needs(format!(
        "{wanted} pages of 2 MiB for an arena of {}",
        size(arena.len_bytes())
    ))
}

fn meminfo(table: &str, key: &str) -> Option<u64> {
    let line = table
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Whether the kernel has a module: loaded or built in, or to be loaded, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    Present,
    Loadable,
    Absent,
}

pub(super) fn module(name: &str) -> Module {
    if Path::new("/sys/module").join(name).exists() {
        return Module::Present;
    }
    let dir = Path::new("/lib/modules").join(kernel_release());
    let listed = |file: &str| {
        let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        lists_module(&text, name)
    };
    if listed("modules.builtin") {
        Module::Present
    } else if listed("modules.dep") {
        Module::Loadable
    } else {
        Module::Absent
    }
}

/// Whether `modules.dep` or `modules.builtin` has a module; files may be compressed, and write
/// `-` for `_`.
fn lists_module(table: &str, name: &str) -> bool {
    table.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_") == name
    })
}

fn nvme_tcp() -> Finding {
    const CHECK: &str = "nvme_tcp";
    match module("nvme_tcp") {
        Module::Present => Finding::ok(CHECK, "the kernel's NVMe/TCP host is there"),
        Module::Loadable => Finding::ok(CHECK, "the kernel's NVMe/TCP host is not loaded"),
        Module::Absent => Finding::new(
            Level::Hint,
            CHECK,
            "this kernel has no NVMe/TCP host",
            "only `nvme connect` to open-access volumes needs it: install the distribution's full \
             set of kernel modules",
        ),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn releases_of_distributions_are_versions() {
        assert_eq!(version("6.12.48+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(version("7.0-rc3"), Some((7, 0)));
        assert_eq!(version("odd"), None);
        assert!(version("6.1.0").unwrap() < version("6.10.2").unwrap());
    }

    #[test]
    fn modules_are_found_under_every_spelling() {
        let dep = "kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz\n\
                   kernel/drivers/block/ublk_drv.ko:\n";
        assert!(lists_module(dep, "nvme_tcp") && lists_module(dep, "ublk_drv"));
        assert!(
            !lists_module(dep, "nvme_core"),
            "a dependency is not a module of its own line"
        );
    }

    #[test]
    fn numbers_are_read_from_meminfo() {
        let table = "MemTotal:  100 kB\nHugePages_Total:      32\nHugePages_Free:       30\n";
        assert_eq!(meminfo(table, "HugePages_Free"), Some(30));
        assert_eq!(meminfo(table, "HugePages"), None);
    }
}
