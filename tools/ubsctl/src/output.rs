//! Tables for people, JSON for scripts, names for pipes.

use serde_json::{Value, json};
use std::io::Write as _;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

/// Version of the JSON documents; fields are only added within it.
pub(crate) const API_VERSION: &str = "ublkstor/v1";

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people; may change.
    Table,
    /// One document; stable, with apiVersion. Sizes in bytes.
    Json,
    /// One name per line.
    Name,
}

/// Several things of a kind.
pub(crate) struct Listing {
    /// Kind of the JSON document, as `VolumeList`.
    pub(crate) kind: &'static str,
    /// Column headings.
    pub(crate) columns: &'static [&'static str],
    /// One per thing.
    pub(crate) rows: Vec<Row>,
}

/// One thing, in all formats.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) cells: Vec<String>,
    pub(crate) json: Value,
}

impl Listing {
    pub(crate) fn print(self, format: Format) {
        match format {
            Format::Table => say(&table(self.columns, self.rows.iter().map(|r| &r.cells))),
            Format::Json => {
                let items: Vec<Value> = self.rows.into_iter().map(|r| r.json).collect();
                document(self.kind, json!({ "items": items }));
            }
            Format::Name => {
                for row in self.rows {
                    say(&row.name);
                }
            }
        }
    }
}

/// Prints one JSON document: the fields of `body` with its kind and version.
pub(crate) fn document(kind: &str, body: Value) {
    let mut document = json!({ "apiVersion": API_VERSION, "kind": kind });
    if let (Some(into), Value::Object(fields)) = (document.as_object_mut(), body) {
        into.extend(fields);
    }
    say(&serde_json::to_string_pretty(&document).unwrap_or_else(|e| format!("{{}} {e}")));
}

/// Prints one thing: pairs for people, a document for scripts.
pub(crate) fn one(format: Format, kind: &str, name: &str, pairs: &[(&str, String)], json: Value) {
    match format {
        Format::Table => {
            let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
            for (key, value) in pairs {
                say(&format!("{key:width$}  {value}"));
            }
        }
        Format::Json => document(kind, json),
        Format::Name => say(name),
    }
}

/// Aligned columns without lines.
pub(crate) fn table<'a>(columns: &[&str], rows: impl Iterator<Item = &'a Vec<String>>) -> String {
    let mut builder = Builder::default();
    builder.push_record(columns.iter().map(|c| (*c).to_owned()));
    for row in rows {
        builder.push_record(row.iter().map(String::as_str));
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    let text = table.to_string();
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A line on standard output. A reader that has gone (`| head`) ends the program quietly.
pub(crate) fn say(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// A wall-clock moment for people.
pub(crate) fn time(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| unix_ms.to_string(), |t| format!("{t:.3}"))
}

/// `-` for nothing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.into()
    }
}

/// Reads `10GiB`, `512M`, `4096`. K, M, G, T are powers of 1024, as are KiB …; KB … of 1000.
///
/// # Errors
/// A sentence.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => {
            return Err(format!(
                "{text:?} has no unit that is known; use bytes, or K M G T"
            ));
        }
    };
    let count: u64 = digits
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is not a size; use a whole number and a unit, as 10GiB"))?;
    count
        .checked_mul(factor)
        .ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("10g"), Ok(10 << 30));
        assert_eq!(parse_size("5MB"), Ok(5_000_000));
        for wrong in ["", "x", "1.5G", "-1", "1 X", "99999999P"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn columns_line_up_and_lines_do_not_end_in_spaces() {
        let rows = [
            vec!["a".to_owned(), "1".into()],
            vec!["long".to_owned(), "22".into()],
        ];
        assert_eq!(
            table(&["NAME", "N"], rows.iter()),
            "NAME  N\na     1\nlong  22"
        );
    }
}
