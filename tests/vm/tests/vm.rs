//! Every script of `scripts/` is a test; scripts of equal needs share a boot.
//!
//! Run with one process (`cargo test -p vmtest --test vm -- NAME`): under a runner with a process
//! per test it works as well, with a boot per test.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use libtest_mimic::{Arguments, Failed, Trial};
use vmtest::kernel::{self, Kernel, Suite};
use vmtest::script::{self, Script};
use vmtest::{Spec, Vm};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1); // a boot is shared, and it keeps two cores busy
    let scripts = load_scripts();
    let kernel = if arguments.list {
        Err("only listing".into())
    } else {
        usable_kernel()
    };
    if let (Err(why), false) = (&kernel, arguments.list) {
        println!("vm: {} scripts skipped: {why}", scripts.len());
    }
    let shared = Arc::new(Mutex::new(None));
    let trials = scripts.iter().map(|script| {
        let (script, kernel) = (script.clone(), kernel.clone());
        let (scripts, shared) = (Arc::clone(&scripts), Arc::clone(&shared));
        let ignored = !arguments.list && kernel.is_err() && !required();
        Trial::test(script.name.clone(), move || {
            let mut shared = shared.lock().map_err(|_| "an earlier test panicked")?;
            run(&script, &scripts, &kernel?, &mut shared)
        })
        .with_ignored_flag(ignored)
    });
    let mut trials: Vec<Trial> = trials.collect();
    let ignored = !arguments.list && kernel.is_err() && !required();
    let judge = move || Ok(what_must_fail_fails(&kernel?).map_err(|why| format!("{why:#}"))?);
    trials.push(Trial::test("harness_fails_what_must_fail", judge).with_ignored_flag(ignored));
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(shared.lock().map(|mut shared| shared.take())); // exit() drops nothing
    conclusion.exit();
}

/// The harness judged by itself: a bad exit code, a script past its limit, a kernel complaint and
/// a panic are each told apart, and none of them ends in `passed`.
fn what_must_fail_fails(kernel: &Kernel) -> anyhow::Result<()> {
    let second = Duration::from_secs(1);
    let mut vm = Vm::boot(kernel, &Spec::default())?;
    let seen = vm.run("echo seen; sleep 1000 & exit 3", 30 * second)?;
    ensure!(
        seen.status == 3 && !seen.passed() && seen.output == "seen\n",
        "exit 3: {seen:?}"
    );
    let seen = vm.run("ps | grep -c '[s]leep 1000'", 30 * second)?;
    ensure!(
        seen.output == "0\n",
        "the script before left a process: {seen:?}"
    );
    let seen = vm.run("sleep 1000", second)?;
    ensure!(
        seen.status == 124 && !seen.passed(),
        "past its limit: {seen:?}"
    );
    let seen = vm.run("echo 'WARNING: at x.c:1' > /dev/kmsg", 30 * second)?;
    ensure!(
        seen.status == 0 && !seen.passed(),
        "a kernel warning: {seen:?}"
    );
    let seen = vm.run("uname -r", 30 * second)?;
    ensure!(
        seen.passed() && seen.output.trim() == kernel.release,
        "a good script: {seen:?}"
    );
    let lost = vm.run("echo c > /proc/sysrq-trigger", 30 * second);
    let told = lost.err().map(|why| format!("{why:#}")).unwrap_or_default();
    ensure!(
        told.contains("Kernel panic") && vm.is_lost(),
        "a panic: {told:?}"
    );
    Ok(())
}

/// CI sets this: a machine that cannot run VMs is a failure there.
fn required() -> bool {
    std::env::var_os("UBS_VM_REQUIRED").is_some_and(|v| v == "1")
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Scripts in an order that keeps those of one boot together.
fn load_scripts() -> Arc<Vec<Script>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut scripts =
        script::load_folder(&dir, &workspace()).unwrap_or_else(|why| panic!("{why:#}"));
    scripts.sort_by(|a, b| (a.alone, &a.spec, &a.name).cmp(&(b.alone, &b.spec, &b.name)));
    Arc::new(scripts)
}

fn usable_kernel() -> Result<Kernel, String> {
    match vmtest::missing_programs() {
        Some(why) => Err(why),
        None => kernel::resolve(Suite::from_env()).map_err(|why| format!("{why:#}")),
    }
}

/// The boot at hand and what it was made for.
type Shared = Option<(Spec, Vm)>;

fn run(
    script: &Script,
    all: &[Script],
    kernel: &Kernel,
    shared: &mut Shared,
) -> Result<(), Failed> {
    let seen = match script.parts().as_slice() {
        [whole] => {
            let at_hand = shared
                .as_ref()
                .is_some_and(|(spec, vm)| *spec == script.spec && !vm.is_lost());
            if script.alone || !at_hand {
                *shared = None; // ends the other guest before this one starts
                let vm = Vm::boot(kernel, &spec_of(script, all)?);
                let vm = vm.map_err(|why| format!("{why:#}"))?;
                *shared = Some((script.spec.clone(), vm));
            }
            let Some((_, vm)) = shared.as_mut() else {
                return Err("no guest".into());
            };
            vm.run(whole, script.limit)
        }
        parts => {
            *shared = None;
            let spec = spec_of(script, all)?;
            vmtest::run_with_cuts(kernel, &spec, parts, script.limit, false)
        }
    };
    let seen = seen.map_err(|why| format!("{why:#}"))?;
    if script.alone || !seen.passed() {
        *shared = None; // a failed script may leave anything behind
    }
    if seen.passed() {
        return Ok(());
    }
    let complaints = seen.complaints.join("\n");
    let (status, output, log) = (seen.status, &seen.output, &seen.kernel_log);
    Err(format!(
        "exit code {status}\n{output}\n--- kernel ---\n{log}\n--- complaints ---\n{complaints}"
    )
    .into())
}

/// What a guest needs that has the programs of every script that will share it.
fn spec_of(script: &Script, all: &[Script]) -> Result<Spec, Failed> {
    let sharing = all
        .iter()
        .filter(|s| !script.alone && !s.alone && s.spec == script.spec);
    let builds: BTreeSet<_> = sharing
        .chain([script])
        .flat_map(|s| s.builds.iter().cloned())
        .collect();
    let builds: Vec<_> = builds.into_iter().collect();
    let programs =
        script::build_programs(&workspace(), &builds).map_err(|why| format!("{why:#}"))?;
    Ok(Spec {
        programs,
        ..script.spec.clone()
    })
}
