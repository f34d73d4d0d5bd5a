//! The table of configurations.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// When a configuration runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// Per change.
    Small,
    /// On request.
    Long,
}

/// What TLC has to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Pass,
    /// This invariant broken; `Temporal` for a property.
    Broken(String),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.pad("pass"),
            Self::Broken(what) => f.pad(what),
        }
    }
}

/// One configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) module: String,
    pub(super) name: String,
    pub(super) set: Set,
    pub(super) expected: Expected,
    replaced: BTreeMap<String, String>,
}

/// Lines `MODULE SET EXPECTED NAME [KEY=VALUE ...]`; `#` begins a comment.
pub(super) fn parse(text: &str) -> Result<Vec<Check>> {
    let mut checks: Vec<Check> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line
            .split('#')
            .next()
            .expect("even an empty line has a first part");
        let words: Vec<_> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let check = parse_line(&words).with_context(|| format!("tla/checks.txt:{number}"))?;
        let twice = checks
            .iter()
            .any(|c| c.module == check.module && c.name == check.name);
        ensure!(
            !twice,
            "tla/checks.txt:{number}: {} is there twice",
            check.name
        );
        checks.push(check);
    }
    Ok(checks)
}

fn parse_line(words: &[&str]) -> Result<Check> {
    let [module, set, expected, name, replaced @ ..] = words else {
        bail!("want MODULE SET EXPECTED NAME [KEY=VALUE ...]");
    };
    let set = match *set {
        "small" => Set::Small,
        "long" => Set::Long,
        other => bail!("no set {other}: small or long"),
    };
    let expected = match *expected {
        "pass" => Expected::Pass,
        what => Expected::Broken(what.to_owned()),
    };
    let replaced = replaced.iter().map(|word| {
        let (key, value) = word
            .split_once('=')
            .with_context(|| format!("{word}: no ="))?;
        Ok((key.to_owned(), value.replace(',', ", ")))
    });
    Ok(Check {
        module: (*module).to_owned(),
        name: (*name).to_owned(),
        set,
        expected,
        replaced: replaced.collect::<Result<_>>()?,
    })
}

/// Sections of a `.cfg` file that hold names on their own line.
const SECTIONS: &[&str] = &["SPECIFICATION", "INVARIANTS", "PROPERTIES", "SYMMETRY"];

impl Check {
    /// The module's own configuration with this one's lines in place of it. `KEY` is a constant or a
    /// section; an empty value drops the section.
    pub(super) fn config(&self, base: &str) -> Result<String> {
        let mut used = BTreeMap::new();
        let mut text = String::new();
        for line in base.lines() {
            let mut words = line.split_whitespace();
            let key = words.next().unwrap_or("");
            let constant = words.next() == Some("=");
            let section = SECTIONS.contains(&key);
            let value = self.replaced.get(key).filter(|_| constant || section);
            match value {
                None => text.push_str(line),
                Some(value) => {
                    used.insert(key, ());
                    match (section, value.as_str()) {
                        (true, "") => {}
                        (true, value) => text.push_str(&format!("{key} {value}")),
                        (false, value) => text.push_str(&format!("  {key} = {value}")),
                    }
                }
            }
            text.push('\n');
        }
        for (key, value) in &self.replaced {
            if !used.contains_key(key.as_str()) {
                ensure!(
                    SECTIONS.contains(&key.as_str()),
                    "{}: {}.cfg has no constant {key}",
                    self.name,
                    self.module
                );
                text.push_str(&format!("{key} {value}\n"));
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const BASE: &str = "SPECIFICATION Spec\nINVARIANTS A B\nCONSTANTS\n  X = 1\n  Y = {a}\n";

    fn config(overrides: &str) -> Result<String> {
        parse(&format!("M small pass one {overrides}"))?[0].config(BASE)
    }

    #[test]
    fn constants_and_sections_are_replaced() {
        let got = config("Y={a,b} INVARIANTS=A PROPERTIES=P").unwrap();
        let want =
            "SPECIFICATION Spec\nINVARIANTS A\nCONSTANTS\n  X = 1\n  Y = {a, b}\nPROPERTIES P\n";
        assert_eq!(got, want);
    }

    #[test]
    fn a_misspelt_constant_is_an_error() {
        assert!(config("Z=1").is_err());
    }

    #[test]
    fn a_name_may_be_there_once() {
        assert!(parse("M small pass a\nM long A a").is_err());
        assert!(parse("M small pass a\nN long A a # fine").is_ok());
    }
}
