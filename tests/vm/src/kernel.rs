//! Which kernel to boot: the newest Debian cloud kernel of a suite, cached per version.
//!
//! Resolved at run time through a private apt configuration that borrows the mirror of the host's
//! own sources; nothing is added to the host and neither a version nor a host name is written
//! down here. Since Linux 6.19 Debian ships vmlinuz in `linux-binary-*`, modules in
//! `linux-modules-*` and the configuration in `linux-base-*`; before that all is in `linux-image-*`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

/// How old the package index may be before the mirror is asked again.
const INDEX_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const DOWNLOAD_ATTEMPTS: u32 = 3;

/// The Debian suite a kernel is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite(pub String);

impl Suite {
    /// `UBS_VM_SUITE`, or `trixie-backports`, which carries the newest packaged kernel; `trixie`
    /// carries the long-term one.
    pub fn from_env() -> Self {
        Self(std::env::var("UBS_VM_SUITE").unwrap_or_else(|_| "trixie-backports".into()))
    }
}

/// An unpacked kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `uname -r` of the guest.
    pub release: String,
    /// Holds `vmlinuz` and `usr/lib/modules/<release>`.
    pub root: PathBuf,
}

impl Kernel {
    pub fn vmlinuz(&self) -> PathBuf {
        self.root.join("vmlinuz")
    }

    pub fn modules(&self) -> PathBuf {
        self.root.join("usr/lib/modules").join(&self.release)
    }
}

/// The kernel to boot: downloaded when the cache lacks it, else the newest cached one of this
/// suite, said on standard error.
///
/// # Errors
/// No kernel could be downloaded and none is cached.
pub fn resolve(suite: Suite) -> Result<Kernel> {
    let cache = Cache::open(&suite)?;
    let newest = match cache
        .newest_release()
        .and_then(|release| cache.fetch(&release))
    {
        Ok(kernel) => return Ok(kernel),
        Err(why) => why,
    };
    let kernel = cache.newest_cached().with_context(|| {
        format!(
            "no kernel: {newest:#}; and none of suite {} is cached in {}",
            suite.0,
            cache.dir.display()
        )
    })?;
    eprintln!(
        "vm: could not get the newest kernel ({newest:#}); using the cached {}",
        kernel.release
    );
    Ok(kernel)
}

struct Cache {
    dir: PathBuf,
    suite: Suite,
    /// Held while the cache may change; released on drop.
    _lock: File,
}

impl Cache {
    fn open(suite: &Suite) -> Result<Self> {
        let dir = cache_home()?.join("ublkstor/vm").join(&suite.0);
        for part in ["apt/lists/partial", "apt/cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))
                .with_context(|| format!("cannot create {}", dir.join(part).display()))?;
        }
        let lock = File::create(dir.join("lock"))?;
        lock.lock().context("cannot lock the kernel cache")?;
        Ok(Self {
            dir,
            suite: suite.clone(),
            _lock: lock,
        })
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.dir.join("apt/apt.conf"))
            .args(["-o", "APT::Sandbox::User=root"]);
        command.env("LC_ALL", "C").current_dir(self.dir.join("apt"));
        command
    }

    /// The release `linux-image-cloud-amd64` of the suite depends on.
    fn newest_release(&self) -> Result<String> {
        self.refresh_index()?;
        let package = format!("linux-image-cloud-amd64/{}", self.suite.0);
        let shown = output(self.apt("apt-cache").args(["depends", &package]))?;
        shown
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .map(str::to_owned)
            .next()
            .with_context(|| format!("{package} names no kernel"))
    }

    fn refresh_index(&self) -> Result<()> {
        let stamp = self.dir.join("apt/updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age < INDEX_AGE_MAX) {
            return Ok(());
        }
        let mirrors = host_mirrors()?;
        let mut last = None;
        for mirror in &mirrors {
            self.write_configuration(mirror)?;
            match output(self.apt("apt-get").args([
                "-q",
                "update",
                "-o",
                "APT::Update::Error-Mode=any",
            ])) {
                Ok(_) => return Ok(fs::write(&stamp, mirror)?),
                Err(why) => last = Some(why),
            }
        }
        Err(last.context("the host's apt sources name no Debian mirror")?)
    }

    fn write_configuration(&self, mirror: &str) -> Result<()> {
        let apt = self.dir.join("apt");
        let at = apt.display();
        fs::write(
            apt.join("sources.list"),
            format!("deb {mirror} {} main\n", self.suite.0),
        )?;
        fs::write(
            apt.join("apt.conf"),
            format!(
                "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
                 Dir::State::lists \"{at}/lists\";\nDir::Cache \"{at}/cache\";\n\
                 Acquire::Languages \"none\";\n"
            ),
        )?;
        Ok(())
    }

    /// Download and unpack `release` unless it is there.
    fn fetch(&self, release: &str) -> Result<Kernel> {
        let root = self.dir.join(release);
        let kernel = Kernel {
            release: release.to_owned(),
            root: root.clone(),
        };
        if kernel.vmlinuz().exists() {
            return Ok(kernel);
        }
        eprintln!("vm: downloading kernel {release} (about 40 MB, once)");
        let work = tempfile::tempdir_in(&self.dir)?;
        self.download(release, work.path())?;
        let unpacked = work.path().join("root");
        unpack(work.path(), &unpacked, release)?;
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::rename(&unpacked, &root)?;
        Ok(kernel)
    }

    fn download(&self, release: &str, to: &Path) -> Result<()> {
        let split = ["binary", "modules", "base"].map(|part| format!("linux-{part}-{release}"));
        let whole = [format!("linux-image-{release}")];
        let known = output(self.apt("apt-cache").args([
            "--names-only",
            "search",
            &split[0].replace('+', "\\+"),
        ]))?;
        let names: &[String] = if known.trim().is_empty() {
            &whole
        } else {
            &split
        };
        let mut last = None;
        for _ in 0..DOWNLOAD_ATTEMPTS {
            let mut apt = self.apt("apt-get");
            apt.args(["-q", "download"]).args(names).current_dir(to);
            match output(&mut apt) {
                Ok(_) => return Ok(()),
                Err(why) => last = Some(why),
            }
        }
        Err(last.context("no download attempt was made")?)
    }

    /// The cached kernel with the latest change time.
    fn newest_cached(&self) -> Option<Kernel> {
        let mut found: Vec<(SystemTime, Kernel)> = fs::read_dir(&self.dir)
            .ok()?
            .flatten()
            .filter_map(|entry| {
                let release = entry.file_name().into_string().ok()?;
                let kernel = Kernel {
                    release,
                    root: entry.path(),
                };
                let changed = fs::metadata(kernel.vmlinuz()).ok()?.modified().ok()?;
                Some((changed, kernel))
            })
            .collect();
        found.sort_by(|a, b| (a.0, &a.1.release).cmp(&(b.0, &b.1.release)));
        found.pop().map(|(_, kernel)| kernel)
    }
}

/// Every `.deb` in `from`, unpacked into `root`.
pub(crate) fn unpack_debs(from: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            output(Command::new("dpkg").arg("-x").arg(&path).arg(root))?;
        }
    }
    Ok(())
}

/// A kernel's packages, unpacked and brought into one shape.
fn unpack(from: &Path, root: &Path, release: &str) -> Result<()> {
    unpack_debs(from, root)?;
    let old_place = root.join("lib/modules");
    if old_place.exists() {
        fs::create_dir_all(root.join("usr/lib"))?;
        fs::rename(old_place, root.join("usr/lib/modules"))?;
    }
    let modules = root.join("usr/lib/modules").join(release);
    ensure!(
        modules.join("kernel").is_dir(),
        "the packages of {release} hold no modules"
    );
    output(
        Command::new("depmod")
            .arg("-b")
            .arg(root.join("usr"))
            .arg(release),
    )?;
    let image = [
        modules.join("vmlinuz"),
        root.join(format!("boot/vmlinuz-{release}")),
    ];
    let image = image.iter().find(|p| p.exists());
    let image = image.with_context(|| format!("the packages of {release} hold no vmlinuz"))?;
    fs::copy(image, root.join("vmlinuz"))?;
    Ok(())
}

/// Mirrors of the Debian archive in the host's own apt configuration, in its order.
fn host_mirrors() -> Result<Vec<String>> {
    let shown = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    Ok(debian_mirrors(&shown))
}

/// Of `URI RELEASE COMPONENT` lines: the URIs of the main archive, without repeats.
fn debian_mirrors(index_targets: &str) -> Vec<String> {
    let mut mirrors = Vec::new();
    for line in index_targets.lines() {
        let mut words = line.split_whitespace();
        let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let main_archive =
            uri.trim_end_matches('/').ends_with("/debian") && !release.contains("security");
        if main_archive && !mirrors.iter().any(|m| m == uri) {
            mirrors.push(uri.to_owned());
        }
    }
    mirrors
}

/// Where this user keeps caches.
pub(crate) fn cache_home() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME").filter(|d| !d.is_empty()) {
        return Ok(dir.into());
    }
    match std::env::var_os("HOME").filter(|d| !d.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".cache")),
        None => bail!("neither XDG_CACHE_HOME nor HOME is set: no place for the kernel cache"),
    }
}

/// Standard output of a command that must succeed; its standard error is in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let got = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !got.status.success() {
        let text = String::from_utf8_lossy(&got.stderr);
        bail!("{name} failed ({}): {}", got.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&got.stdout).into_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn mirror_is_the_main_archive_of_the_hosts_own_sources() {
        let shown = "http://one.example/debian/ bookworm main\n\
                     http://one.example/debian/ bookworm-updates main\n\
                     http://one.example/debian-security/ bookworm-security main\n\
                     https://other.example/apt/ nodistro main\n\
                     https://two.example/mirror/debian/ bookworm contrib\n\
                     https://two.example/mirror/debian/ bookworm main\n";
        let expected = [
            "http://one.example/debian/",
            "https://two.example/mirror/debian/",
        ];
        assert_eq!(debian_mirrors(shown), expected);
    }

    #[test]
    fn the_fallback_is_the_kernel_that_was_cached_last() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = Cache {
            dir: dir.path().to_owned(),
            suite: Suite("any".into()),
            _lock: tempfile::tempfile().expect("a file"),
        };
        assert!(cache.newest_cached().is_none());
        for (release, age_s) in [("9.1-cloud", 300), ("9.10-cloud", 100), ("9.2-cloud", 200)] {
            let root = dir.path().join(release);
            fs::create_dir(&root).expect("a folder");
            let image = File::create(root.join("vmlinuz")).expect("a file");
            let then = SystemTime::now() - Duration::from_secs(age_s);
            image.set_modified(then).expect("a changed time");
        }
        fs::create_dir(dir.path().join("half-unpacked")).expect("a folder");
        let newest = cache.newest_cached().map(|kernel| kernel.release);
        assert_eq!(newest.as_deref(), Some("9.10-cloud"));
    }

    #[test]
    fn a_failed_command_says_what_it_printed() {
        let failed = output(Command::new("sh").args(["-c", "echo no such disk >&2; exit 3"]));
        let text = format!("{:#}", failed.expect_err("exit 3 must be an error"));
        assert!(
            text.contains("no such disk") && text.contains('3'),
            "{text}"
        );
    }
}
