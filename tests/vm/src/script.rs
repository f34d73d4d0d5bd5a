//! Guest scripts: a shell script whose `# vm:` lines say what it needs.
//!
//! ```text
//! # vm: build=nvmf/ram_target build=storaged tool=mdadm module=nbd
//! # vm: disk=1G,serial=log mem=2G cpus=2 limit=120 alone
//! # vm: file=tests/conform/host.sh:/usr/lib/ubs/host.sh
//! ```
//!
//! `build=PACKAGE` builds that package's program, `build=PACKAGE/EXAMPLE` an example of it.
//! `alone` gives the script a boot of its own; scripts of equal needs share one otherwise. A line
//! `# vm: cut` ends a part: it says `cut_the_power`, the machine is killed as it is, and the next part
//! runs in a new boot with the same disks. `stream=NAME` is `/dev/virtio-ports/NAME`: what is written
//! there is on the host at once, and in the next part in `/streams/NAME`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::kernel::output;
use crate::spec::{Spec, parse_size};

const LIMIT_DEFAULT: Duration = Duration::from_secs(120);

/// A program of this workspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Build {
    pub package: String,
    pub example: Option<String>,
}

/// A script file with its needs.
#[derive(Clone, Debug)]
pub struct Script {
    /// File name without `.sh`.
    pub name: String,
    pub text: String,
    pub builds: Vec<Build>,
    /// Everything but the programs to build.
    pub spec: Spec,
    pub limit: Duration,
    pub alone: bool,
}

/// The line between two parts of a script.
const CUT: &str = "# vm: cut\n";
/// Variables of the host with this beginning are set in scripts as well.
const PASSED_ON: &str = "UBS_TEST_";

impl Script {
    /// What runs between two power cuts: one part if there is none.
    pub fn parts(&self) -> Vec<String> {
        let variables: String = std::env::vars()
            .filter(|(name, _)| name.starts_with(PASSED_ON))
            .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "")))
            .collect();
        let parts = self.text.split(CUT);
        parts.map(|part| format!("{variables}{part}")).collect()
    }

    /// Read `path` and its `# vm:` lines; `file=` needs are relative to `workspace`.
    ///
    /// # Errors
    /// The file cannot be read or a line says something unknown.
    pub fn load(path: &Path, workspace: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .file_stem()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_default();
        let at = || format!("{}: # vm:", path.display());
        let mut script = Self::parse(name, text).with_context(at)?;
        for file in &mut script.spec.files {
            file.source = workspace.join(&file.source);
        }
        Ok(script)
    }

    fn parse(name: String, text: String) -> Result<Self> {
        let mut script = Self {
            name,
            builds: Vec::new(),
            spec: Spec::default(),
            limit: LIMIT_DEFAULT,
            alone: false,
            text: String::new(),
        };
        for line in text.lines() {
            let Some(words) = line.strip_prefix("# vm:") else {
                continue;
            };
            for word in words.split_whitespace() {
                script.need(word)?;
            }
        }
        script.builds.sort();
        script.builds.dedup();
        script.spec.name_disks()?;
        script.text = text;
        Ok(script)
    }

    fn need(&mut self, word: &str) -> Result<()> {
        match word.split_once('=') {
            Some(("build", what)) => {
                let (package, example) = match what.split_once('/') {
                    Some((package, example)) => (package, Some(example.to_owned())),
                    None => (what, None),
                };
                self.builds.push(Build {
                    package: package.to_owned(),
                    example,
                });
            }
            Some(("file", what)) => self.spec.files.push(what.parse()?),
            Some(("disk", what)) => self.spec.disks.push(what.parse()?),
            Some(("tool", name)) => self.spec.tools.push(name.to_owned()),
            Some(("module", name)) => self.spec.modules.push(name.to_owned()),
            Some(("mem", size)) => self.spec.memory_bytes = parse_size(size)?,
            Some(("cpus", count)) => {
                self.spec.cpus = count.parse().context("cpus: want a number")?
            }
            Some(("limit", s)) => {
                self.limit = Duration::from_secs(s.parse().context("limit: want seconds")?);
            }
            Some(("stream", name)) => self.spec.streams.push(name.to_owned()),
            None if word == "alone" => self.alone = true,
            None if word == "cut" => self.alone = true,
            _ => bail!(
                "{word:?} is none of build, file, disk, stream, tool, module, mem, cpus, limit, alone, cut"
            ),
        }
        Ok(())
    }
}

/// All `*.sh` of a folder, by name.
///
/// # Errors
/// The folder or a script cannot be read.
pub fn load_folder(dir: &Path, workspace: &Path) -> Result<Vec<Script>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths = entries
        .map(|e| Ok(e?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "sh"));
    paths.sort();
    paths.iter().map(|p| Script::load(p, workspace)).collect()
}

/// Build programs with cargo (debug unless `UBS_VM_PROFILE` names a profile) and say where they are.
///
/// # Errors
/// The build failed; cargo's messages went to standard error.
pub fn build_programs(workspace: &Path, builds: &[Build]) -> Result<Vec<PathBuf>> {
    let wanted: BTreeSet<&Build> = builds.iter().collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace).args([
        "build",
        "-q",
        "--message-format=json-render-diagnostics",
        // Features as the other tests have them: dependencies are built once.
        "--workspace",
    ]);
    for build in &wanted {
        match &build.example {
            Some(example) => command.args(["--example", example]),
            None => command.args(["--bin", &build.package]),
        };
    }
    if let Ok(profile) = std::env::var("UBS_VM_PROFILE") {
        command.args(["--profile", &profile]);
    }
    let messages = output(&mut command).with_context(|| format!("building {builds:?}"))?;
    let paths = executables(&messages);
    ensure!(
        paths.len() == wanted.len(),
        "building {wanted:?} made {paths:?} only"
    );
    Ok(paths)
}

/// Paths of `executable` in cargo's JSON messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(header: &str) -> Result<Script> {
        Script::parse("x".into(), format!("#!/bin/sh\n{header}\ntrue\n"))
    }

    #[test]
    fn header_lines_say_what_a_script_needs() {
        let script = parse(
            "# vm: build=nvmf/ram_target build=storaged disk=1G,serial=a\n# vm: limit=7 alone",
        )
        .expect("a good header");
        assert_eq!(script.builds[0].example.as_deref(), Some("ram_target"));
        assert_eq!(
            (script.builds[1].package.as_str(), &script.builds[1].example),
            ("storaged", &None)
        );
        assert_eq!(script.spec.disks[0].serial, "a");
        assert_eq!((script.limit, script.alone), (Duration::from_secs(7), true));
    }

    #[test]
    fn a_cut_ends_a_part() {
        let script = parse("# vm: stream=j\necho 1\n# vm: cut\necho 2").expect("a good header");
        let parts = script.parts();
        assert!(parts.len() == 2 && parts[0].contains("echo 1") && parts[1].contains("echo 2"));
        assert!(script.alone && script.spec.streams == ["j"]);
        assert_eq!(parse("").expect("a good header").parts().len(), 1);
    }

    #[test]
    fn unknown_needs_are_refused() {
        for bad in [
            "# vm: colour=red",
            "# vm: alon",
            "# vm: disk=big",
            "# vm: limit=soon",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/examples/a\"}\n";
        assert_eq!(
            executables(messages),
            [PathBuf::from("/t/debug/examples/a")]
        );
    }
}
