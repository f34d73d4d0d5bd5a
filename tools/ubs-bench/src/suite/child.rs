//! The processes of a measurement: servers on one processor, loads on another.

use crate::outcome::Outcome;
use crate::serve::{Backing, NQN, ServeCounters};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) rw: &'static str,
    pub(crate) bs: &'static str,
    pub(crate) iodepth: u32,
}

impl Workload {
    /// As in reports.
    pub(crate) fn name(self) -> String {
        format!("{} {} QD{}", self.rw, self.bs, self.iodepth)
    }

    /// As options of a load.
    pub(crate) fn options(self, effort: Effort) -> Vec<String> {
        [
            ("--rw", self.rw.to_owned()),
            ("--bs", self.bs.to_owned()),
            ("--iodepth", self.iodepth.to_string()),
            ("--runtime", effort.runtime.to_string()),
            ("--ramp-time", effort.ramp_time.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }
}

/// How long samples are, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) pairs_count: usize,
    pub(crate) runtime: f64,
    pub(crate) ramp_time: f64,
}

/// A server process; ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    address: String,
    path: Option<PathBuf>,
}

/// The processor of targets, and that of loads; the same one where there is only one.
pub(crate) fn processors() -> (usize, usize) {
    let both = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    (0, usize::from(both))
}

fn program() -> Result<Command> {
    Ok(Command::new(
        std::env::current_exe().context("cannot find our own program")?,
    ))
}

impl Server {
    /// Starts a server and waits until it listens.
    pub(crate) fn start(backing: Backing, dir: &Path, size: u64, spin_us: u32) -> Result<Self> {
        let mut command = program()?;
        command.args(["serve", "--size", &size.to_string()]);
        command.args([
            "--spin-us",
            &spin_us.to_string(),
            "--cpu",
            &processors().0.to_string(),
        ]);
        let path = match backing {
            Backing::Ram => {
                command.args(["--backing", "ram"]);
                None
            }
            Backing::Store => {
                let path = dir.join(format!("store-{spin_us}"));
                command.args(["--backing", "store", "--path"]).arg(&path);
                Some(path)
            }
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut server = Self {
            child,
            input,
            output,
            address: String::new(),
            path,
        };
        let line = server.line()?;
        let address = line
            .strip_prefix("listening on ")
            .and_then(|rest| rest.split(' ').next());
        server.address = address
            .context("the server said something else")?
            .to_owned();
        Ok(server)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the server ended: {}", self.child.wait()?);
        }
        Ok(line)
    }

    /// What the server has counted so far.
    pub(crate) fn counters(&mut self) -> Result<ServeCounters> {
        let input = self.input.as_mut().context("the server is ending")?;
        writeln!(input, "counters")?;
        input.flush()?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Writes the whole namespace once, so that reads find data and writes overwrite.
    pub(crate) fn fill(&self) -> Result<()> {
        let fill = ["--rw", "write", "--bs", "128k", "--iodepth", "16", "--once"];
        self.load(&fill).map(|_| ())
    }

    /// One sample of a workload; `more` are further options of the load.
    pub(crate) fn sample(&self, what: Workload, effort: Effort, more: &[&str]) -> Result<Outcome> {
        let options = what.options(effort);
        let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
        options.extend(more);
        self.load(&options).with_context(|| what.name())
    }

    fn load(&self, options: &[&str]) -> Result<Outcome> {
        let mut command = program()?;
        command.args(["target", &self.address, "--nqn", NQN, "--json"]);
        command.args(["--cpu", &processors().1.to_string()]);
        command.args(["--peer-pid", &self.child.id().to_string()]);
        outcome_of(command.args(options))
    }
}

/// Runs a load process and reads its JSON.
pub(crate) fn outcome_of(command: &mut Command) -> Result<Outcome> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .context("cannot start the load")?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr).trim());
    }
    serde_json::from_slice(&done.stdout).context("the load printed no report")
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input is the end of the server.
        drop(self.input.take());
        if let Err(why) = self.child.wait() {
            eprintln!("ubs-bench: the server's end was not seen: {why}");
        }
        if let Some(path) = &self.path
            && let Err(why) = std::fs::remove_file(path)
        {
            eprintln!("ubs-bench: {}: {why}", path.display());
        }
    }
}
