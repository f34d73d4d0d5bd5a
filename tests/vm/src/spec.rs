//! What a VM is made of.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

/// A data disk: a sparse raw file on an emulated NVMe controller of its own.
///
/// In the guest it is `/dev/disk/by-serial/<serial>`; NVMe device names are handed out in random
/// order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disk {
    pub size_bytes: u64,
    pub serial: String,
    /// Logical block size in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// An existing file to use instead of a fresh one that goes away with the VM.
    pub file: Option<PathBuf>,
}

impl FromStr for Disk {
    type Err = anyhow::Error;

    /// `SIZE[,serial=NAME][,block=512|4096][,file=PATH]`.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let size_bytes = parse_size(parts.next().unwrap_or_default())?;
        let mut disk = Self {
            size_bytes,
            serial: String::new(),
            block_bytes: 512,
            file: None,
        };
        for part in parts {
            match part.split_once('=') {
                Some(("serial", name)) => disk.serial = checked_serial(name)?,
                Some(("block", "512")) => disk.block_bytes = 512,
                Some(("block", "4096")) => disk.block_bytes = 4096,
                Some(("file", path)) => disk.file = Some(path.into()),
                _ => bail!(
                    "disk {text:?}: {part:?} is none of serial=NAME, block=512|4096, file=PATH"
                ),
            }
        }
        Ok(disk)
    }
}

fn checked_serial(name: &str) -> Result<String> {
    let plain = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    ensure!(
        plain && name.len() <= 20,
        "serial {name:?}: want 1 to 20 letters, digits, '-' or '_'"
    );
    ensure!(name != "root", "serial \"root\" is the root disk's");
    Ok(name.to_owned())
}

/// `512M`, `2G`, `4096` (bytes): powers of 1024.
pub fn parse_size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("size {text:?}: want a number with K, M or G"))?;
    let bytes = number
        .checked_mul(1 << shift)
        .with_context(|| format!("size {text:?} is too large"))?;
    ensure!(bytes > 0, "size {text:?} is zero");
    Ok(bytes)
}

/// A file of the host and where it goes in the guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placed {
    pub source: PathBuf,
    /// Absolute path in the guest.
    pub target: String,
}

impl FromStr for Placed {
    type Err = anyhow::Error;

    /// `SOURCE:/TARGET`.
    fn from_str(text: &str) -> Result<Self> {
        match text.rsplit_once(':') {
            Some((source, target)) if target.starts_with('/') && !source.is_empty() => Ok(Self {
                source: source.into(),
                target: target.to_owned(),
            }),
            _ => bail!("{text:?}: want SOURCE:/TARGET"),
        }
    }
}

/// Everything that decides what a boot looks like; equal specs can share a boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spec {
    /// Our programs: stripped into `/usr/bin` under their own file names, with their libraries.
    pub programs: Vec<PathBuf>,
    pub files: Vec<Placed>,
    /// Tools of the host beyond the usual ones; missing ones are an error.
    pub tools: Vec<String>,
    /// Kernel modules beyond the usual ones; unknown ones are an error.
    pub modules: Vec<String>,
    pub disks: Vec<Disk>,
    /// Names of ports that are files on the host.
    pub streams: Vec<String>,
    /// Where those files are; absent: in the boot's scratch folder.
    pub streams_in: Option<PathBuf>,
    pub memory_bytes: u64,
    pub cpus: u32,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            programs: Vec::new(),
            files: Vec::new(),
            tools: Vec::new(),
            modules: Vec::new(),
            disks: Vec::new(),
            streams: Vec::new(),
            streams_in: None,
            memory_bytes: 2 << 30,
            cpus: 2,
        }
    }
}

impl Spec {
    /// Make this one do for `other` as well.
    pub fn add(&mut self, other: &Self) {
        self.programs.extend(other.programs.iter().cloned());
        self.files.extend(other.files.iter().cloned());
        self.tools.extend(other.tools.iter().cloned());
        self.modules.extend(other.modules.iter().cloned());
        let new = other.disks.iter().filter(|d| !self.disks.contains(d));
        self.disks.extend(new.cloned().collect::<Vec<_>>());
        let new = other.streams.iter().filter(|s| !self.streams.contains(s));
        self.streams.extend(new.cloned().collect::<Vec<_>>());
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.cpus = self.cpus.max(other.cpus);
    }

    /// Give unnamed disks `data0`, `data1` …
    ///
    /// # Errors
    /// Two disks have the same serial.
    pub fn name_disks(&mut self) -> Result<()> {
        for index in 0..self.disks.len() {
            if self.disks[index].serial.is_empty() {
                self.disks[index].serial = format!("data{index}");
            }
            let (named, rest) = self.disks.split_at(index);
            let taken = named.iter().any(|d| d.serial == rest[0].serial);
            ensure!(!taken, "two disks have the serial {:?}", rest[0].serial);
        }
        Ok(())
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cpus, {} MiB", self.cpus, self.memory_bytes >> 20)?;
        for disk in &self.disks {
            write!(f, ", disk {} {} MiB", disk.serial, disk.size_bytes >> 20)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn disks_are_described_in_one_word() {
        let disk: Disk = "2G,serial=log,block=4096".parse().expect("a good disk");
        assert_eq!(
            (disk.size_bytes, disk.serial.as_str(), disk.block_bytes),
            (2 << 30, "log", 4096)
        );
        for bad in [
            "",
            "0",
            "12Q",
            "1G,serial=root",
            "1G,block=1024",
            "1G,colour=red",
            "1G,serial=a b",
        ] {
            assert!(bad.parse::<Disk>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn unnamed_disks_get_names_and_double_names_are_refused() {
        let disk = |text: &str| text.parse::<Disk>().expect("a good disk");
        let mut spec = Spec {
            disks: vec![disk("1M"), disk("1M,serial=x"), disk("1M")],
            ..Spec::default()
        };
        spec.name_disks().expect("no name twice");
        let names: Vec<&str> = spec.disks.iter().map(|d| d.serial.as_str()).collect();
        assert_eq!(names, ["data0", "x", "data2"]);
        spec.disks[2].serial = "x".into();
        assert!(spec.name_disks().is_err());
    }

    #[test]
    fn a_placed_file_needs_an_absolute_target() {
        assert!("a.toml:/etc/a.toml".parse::<Placed>().is_ok());
        for bad in ["a.toml", "a.toml:etc/a.toml", ":/etc/a"] {
            assert!(bad.parse::<Placed>().is_err(), "{bad:?} was accepted");
        }
    }
}
