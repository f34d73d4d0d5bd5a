//! One boot and the scripts run in it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::kernel::Kernel;
use crate::qemu::{Accel, Files, Qemu};
use crate::spec::{Placed, Spec};
use crate::{image, klog};

/// A boot on a busy two-core machine takes 10 s; this long without a word means it hangs.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(15);
const BOOT_ATTEMPTS: usize = 2;
/// The guest enforces a script's limit; the host waits this much longer before it gives up on it.
const GUEST_GRACE: Duration = Duration::from_secs(30);
/// More output than this from one script is cut (bytes).
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Where a guest finds what earlier boots wrote to streams.
const STREAMS: &str = "/streams/";
/// Last lines of the console shown when a guest is lost.
const CONSOLE_TAIL_LINES: usize = 40;

/// What a script did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code; 124 when it passed its limit.
    pub status: i32,
    /// Standard output and error, as they came.
    pub output: String,
    /// The kernel log of the time the script ran.
    pub kernel_log: String,
    /// Lines of it that fail any test.
    pub complaints: Vec<String>,
    pub took: Duration,
}

impl Outcome {
    /// Exit code 0 and a kernel that did not complain.
    pub fn passed(&self) -> bool {
        self.status == 0 && self.complaints.is_empty()
    }
}

/// A booted guest; dropping it ends QEMU and removes its files.
#[derive(Debug)]
pub struct Vm {
    // Field order is drop order: QEMU ends before its files go.
    _qemu: Qemu,
    control: UnixStream,
    bytes: Receiver<Vec<u8>>,
    pending: Vec<u8>,
    files: Files,
    scripts_run: u32,
    lost: bool,
    echo: bool,
    _folder: TempDir,
}

impl Vm {
    /// Boot `spec`; a boot that does not report is tried once more.
    ///
    /// # Errors
    /// The image cannot be made, or no attempt came up: then the console's end is in the error.
    pub fn boot(kernel: &Kernel, spec: &Spec) -> Result<Self> {
        let mut spec = spec.clone();
        spec.name_disks()?;
        let mut attempts = Vec::new();
        for accel in Accel::to_try() {
            match accel {
                Accel::Kvm => attempts.push((accel, KVM_BOOT_LIMIT)),
                Accel::Emulated => attempts.extend([(accel, BOOT_LIMIT); BOOT_ATTEMPTS]),
            }
        }
        let mut last = None;
        for (accel, limit) in attempts {
            match Self::boot_once(kernel, &spec, accel, limit) {
                Ok(vm) => return Ok(vm),
                Err(Attempt::Useless(why)) => return Err(why),
                Err(Attempt::Silent(why)) => {
                    eprintln!("vm: a boot did not come up ({accel:?}): {why:#}");
                    last = Some(why);
                }
            }
        }
        Err(last.context("no way to boot was tried")?)
    }

    fn boot_once(
        kernel: &Kernel,
        spec: &Spec,
        accel: Accel,
        limit: Duration,
    ) -> Result<Self, Attempt> {
        let folder = tempfile::Builder::new().prefix("ubs-vm-").tempdir()?;
        let files = Files::in_folder(folder.path(), spec);
        image::build(kernel, spec, folder.path(), &files.root_image)?;
        for (disk, path) in spec.disks.iter().zip(&files.disks) {
            if disk.file.is_none() {
                File::create(path)?.set_len(disk.size_bytes)?;
            }
        }
        File::create(&files.console)?;
        let listener = UnixListener::bind(&files.control)?;
        let qemu = Qemu::start(kernel, spec, &files, accel)?;
        let (control, _) = listener.accept()?;
        drop(listener);
        let bytes = read_in_background(control.try_clone()?)?;
        let mut vm = Self {
            _qemu: qemu,
            control,
            bytes,
            pending: Vec::new(),
            files,
            scripts_run: 0,
            lost: false,
            echo: false,
            _folder: folder,
        };
        match vm.read_until(b"READY\n", Instant::now() + limit, false) {
            Ok(_) => Ok(vm),
            Err(why) => Err(Attempt::Silent(vm.with_console(&why))),
        }
    }

    /// Also copy what scripts print to standard output while they run.
    pub fn echo(&mut self, on: bool) {
        self.echo = on;
    }

    /// Whether the guest died or fell silent; nothing more can be run then.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The console so far: boot messages and what the kernel printed since.
    pub fn console(&self) -> String {
        fs::read(&self.files.console).map_or_else(
            |why| format!("(no console log: {why})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Run a shell script as root, for at most `limit`.
    ///
    /// Everything of the script's session is killed when it ends; what it loaded, mounted or
    /// created stays for the next script of this boot.
    ///
    /// # Errors
    /// The guest died or did not answer: the error holds the output so far and the console's end.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Outcome> {
        if self.lost {
            bail!("the guest is gone already");
        }
        let began = Instant::now();
        let deadline = began + limit + GUEST_GRACE;
        self.scripts_run += 1;
        let nonce = format!("end-{}-{}", std::process::id(), self.scripts_run);
        let result = self.exchange(script, &nonce, limit, deadline);
        let (status, output, kernel_log) = match result {
            Ok(parts) => parts,
            Err(why) => {
                self.lost = true;
                return Err(self.with_console(&why));
            }
        };
        let complaints = klog::complaints(&kernel_log)
            .into_iter()
            .map(str::to_owned)
            .collect();
        Ok(Outcome {
            status,
            output,
            kernel_log,
            complaints,
            took: began.elapsed(),
        })
    }

    /// Run a script until it asks for a power cut, and cut it: the guest is lost then.
    ///
    /// # Errors
    /// As [`Vm::run`].
    fn run_until_cut(&mut self, script: &str, limit: Duration) -> Result<String> {
        let began = Instant::now();
        let deadline = began + limit + GUEST_GRACE;
        self.send(script, "part", limit)?;
        let output = self.read_until(b"\n@", deadline, self.echo);
        let output = output.map_err(|why| self.with_console(&why))?;
        if self.read_until(b"\n", deadline, false)? == b"cut" {
            self.lost = true;
            return Ok(String::from_utf8_lossy(&output).into_owned());
        }
        bail!(
            "the script ended before it cut the power: {}",
            String::from_utf8_lossy(&output)
        )
    }

    fn send(&mut self, script: &str, nonce: &str, limit: Duration) -> Result<()> {
        let head = format!("RUN {nonce} {} {}\n", script.len(), limit.as_secs().max(1));
        self.control
            .write_all(head.as_bytes())
            .and_then(|()| self.control.write_all(script.as_bytes()))
            .context("cannot send to the guest")
    }

    fn exchange(
        &mut self,
        script: &str,
        nonce: &str,
        limit: Duration,
        deadline: Instant,
    ) -> Result<(i32, String, String)> {
        self.send(script, nonce, limit)?;
        let mut output = self.read_until(format!("\n@{nonce} ").as_bytes(), deadline, self.echo)?;
        let trailer = self.read_until(b"\n", deadline, false)?;
        let trailer = String::from_utf8_lossy(&trailer).into_owned();
        let (status, log_bytes) =
            parse_trailer(&trailer).with_context(|| format!("guest said {trailer:?}"))?;
        let log = self.read_exactly(log_bytes, deadline)?;
        output.truncate(OUTPUT_BYTES_MAX);
        let text = String::from_utf8_lossy(&output).into_owned();
        Ok((status, text, String::from_utf8_lossy(&log).into_owned()))
    }

    /// What came before `marker`, which is consumed; shown meanwhile if `echo` says so.
    fn read_until(&mut self, marker: &[u8], deadline: Instant, echo: bool) -> Result<Vec<u8>> {
        let mut searched = 0; // no marker begins before this
        loop {
            let found = self.pending[searched..]
                .windows(marker.len())
                .position(|w| w == marker);
            let tail = self.pending.len().saturating_sub(marker.len() - 1);
            let end = found.map_or(tail.max(searched), |at| searched + at);
            if echo {
                let mut out = std::io::stdout();
                let shown = out.write_all(&self.pending[searched..end]);
                shown
                    .and_then(|()| out.flush())
                    .context("standard output")?;
            }
            if found.is_some() {
                let rest = self.pending.split_off(end + marker.len());
                let mut before = std::mem::replace(&mut self.pending, rest);
                before.truncate(end);
                return Ok(before);
            }
            searched = end;
            self.receive(deadline)?;
        }
    }

    fn read_exactly(&mut self, count_bytes: usize, deadline: Instant) -> Result<Vec<u8>> {
        while self.pending.len() < count_bytes {
            self.receive(deadline)?;
        }
        let rest = self.pending.split_off(count_bytes);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    fn receive(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.bytes.recv_timeout(left) {
            Ok(bytes) => {
                self.pending.extend_from_slice(&bytes);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => bail!("the guest fell silent; {}", self.said()),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest died; {}", self.said()),
        }
    }

    fn said(&self) -> String {
        format!("its last words: {}", String::from_utf8_lossy(&self.pending))
    }

    fn with_console(&self, why: &anyhow::Error) -> anyhow::Error {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(CONSOLE_TAIL_LINES)..].join("\n");
        let stderr = fs::read_to_string(&self.files.stderr).unwrap_or_default();
        anyhow::anyhow!("{why:#}\n--- console ---\n{tail}\n--- qemu ---\n{stderr}")
    }
}

/// Runs the parts of a script, each in a boot of its own, with a power cut between two of them: QEMU is
/// killed, what the guest had not written is lost, and disks and streams are kept.
///
/// # Errors
/// As [`Vm::boot`] and [`Vm::run`]; a part that ends without the cut.
pub fn run_with_cuts(
    kernel: &Kernel,
    spec: &Spec,
    parts: &[String],
    limit: Duration,
    echo: bool,
) -> Result<Outcome> {
    let began = Instant::now();
    let (last, cut) = parts.split_last().context("a script without parts")?;
    let kept = tempfile::Builder::new().prefix("ubs-kept-").tempdir()?;
    let mut spec = spec.clone();
    spec.name_disks()?;
    spec.streams_in = Some(kept.path().to_owned());
    for disk in spec.disks.iter_mut().filter(|d| d.file.is_none()) {
        let path = kept.path().join(format!("{}.raw", disk.serial));
        File::create(&path)?.set_len(disk.size_bytes)?;
        disk.file = Some(path);
    }
    let mut output = String::new();
    for part in cut {
        let mut vm = Vm::boot(kernel, &spec)?;
        vm.echo(echo);
        output.push_str(&vm.run_until_cut(part, limit)?);
        output.push_str("\n-- power cut --\n");
        drop(vm);
        spec.files.retain(|f| !f.target.starts_with(STREAMS));
        for name in &spec.streams {
            spec.files.push(Placed {
                source: kept.path().join(name),
                target: format!("{STREAMS}{name}"),
            });
        }
    }
    let mut vm = Vm::boot(kernel, &spec)?;
    vm.echo(echo);
    let mut seen = vm.run(last, limit)?;
    seen.output.insert_str(0, &output);
    seen.took = began.elapsed();
    Ok(seen)
}

/// Why a boot attempt failed, and whether another one makes sense.
enum Attempt {
    Silent(anyhow::Error),
    Useless(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Attempt {
    fn from(why: E) -> Self {
        Self::Useless(why.into())
    }
}

/// Chunks as they arrive; the channel closes when QEMU does.
fn read_in_background(mut from: UnixStream) -> Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("vm-reader".into())
        .spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    break;
                }
            }
        })?;
    Ok(receiver)
}

/// `rc=3 log=120`.
fn parse_trailer(text: &str) -> Option<(i32, usize)> {
    let (status, log) = text.trim().split_once(' ')?;
    Some((
        status.strip_prefix("rc=")?.parse().ok()?,
        log.strip_prefix("log=")?.parse().ok()?,
    ))
}

#[cfg(test)]
mod test {
    use super::parse_trailer;

    #[test]
    fn trailer_holds_the_exit_code_and_the_log_length() {
        assert_eq!(parse_trailer("rc=124 log=17"), Some((124, 17)));
        assert_eq!(parse_trailer("rc=0"), None);
        assert_eq!(parse_trailer("rc=x log=1"), None);
    }
}
