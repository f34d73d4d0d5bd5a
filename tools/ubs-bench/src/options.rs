//! What load to make, in fio's words.

use crate::pattern::Rw;
use clap::Args;

/// Options of every engine.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadOptions {
    /// Kind of load
    #[arg(long, value_enum, default_value = "randread")]
    pub(crate) rw: Rw,
    /// Bytes per request: a multiple of 4k, at most 128k
    #[arg(long, default_value = "4k", value_parser = parse_io_bytes)]
    pub(crate) bs: u32,
    /// Requests outstanding at a time, over all connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) iodepth: u32,
    /// Seconds measured
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    pub(crate) runtime: f64,
    /// Seconds of load before measuring begins
    #[arg(long, default_value = "0.5", value_parser = parse_seconds)]
    pub(crate) ramp_time: f64,
    /// Use only so many bytes from the start
    #[arg(long, value_parser = parse_bytes)]
    pub(crate) size: Option<u64>,
    /// Go over the whole size once, however long it takes, instead of for a time
    #[arg(long, conflicts_with_all = ["runtime", "ramp_time"])]
    pub(crate) once: bool,
    /// Share of reads in randrw, in percent
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) rwmixread: u8,
    /// Seed of places and data
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// One JSON document instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Run on this processor only
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
    /// Look for completions so long before sleeping, microseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) spin_us: u32,
    /// A process whose CPU time is reported beside ours; may be repeated
    #[arg(long)]
    pub(crate) peer_pid: Vec<u32>,
}

/// `4096`, `4k`, `1M`, `2G`: powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("\"{text}\" is no size; write 4096, 4k, 1M or 2G"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("\"{text}\" is zero or too large"))
}

fn parse_io_bytes(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| bytes % 4096 == 0 && *bytes <= 128 * 1024)
        .ok_or_else(|| format!("{bytes} bytes; a request has a multiple of 4096, at most 131072"))
}

pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    text.trim_end_matches('s')
        .parse()
        .ok()
        .filter(|seconds: &f64| (0.0..=86_400.0).contains(seconds))
        .ok_or_else(|| format!("\"{text}\" is no number of seconds from 0 to 86400"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        for bad in ["", "k", "0", "-4k", "4x", "99999999999999G"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn requests_have_whole_blocks_up_to_the_largest_transfer() {
        assert_eq!(parse_io_bytes("128k"), Ok(131_072));
        for bad in ["512", "6k", "132k", "1M"] {
            assert!(parse_io_bytes(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(parse_seconds("1.5"), Ok(1.5));
        assert_eq!(parse_seconds("2s"), Ok(2.0));
        for bad in ["-1", "nan", "inf", "soon", ""] {
            assert!(parse_seconds(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
