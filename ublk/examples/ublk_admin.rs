//! Device control without a daemon: `ublk_admin list | stop N [force] | delete N | begin N`.
//!
//! `begin` starts a recovery and leaves it at that, as a successor does that dies too early.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use ublk::{Control, ControlError};

fn run(words: &[&str]) -> Result<ExitCode, ControlError> {
    let number = |word: &str| word.parse::<u32>().ok();
    match *words {
        ["list"] => {
            for device in Control::open()?.list()? {
                println!("{device:?}");
            }
        }
        ["stop", n] if let Some(id) = number(n) => Control::open()?.stop(id, false)?,
        ["stop", n, "force"] if let Some(id) = number(n) => Control::open()?.stop(id, true)?,
        ["delete", n] if let Some(id) = number(n) => Control::open()?.delete(id)?,
        ["begin", n] if let Some(id) = number(n) => {
            let mut control = Control::open()?;
            let mark = control.info(id)?.mark;
            control.start_recovery(id, mark)?;
        }
        _ => {
            eprintln!("usage: ublk_admin list | stop N [force] | delete N | begin N");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(&words).unwrap_or_else(|error| {
        eprintln!("ublk_admin: {error}");
        ExitCode::FAILURE
    })
}
