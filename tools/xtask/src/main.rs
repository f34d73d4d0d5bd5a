//! Checks of the repository that the compiler does not make: `cargo xtask layers`, `cargo xtask tla`.
#![forbid(unsafe_code)]

mod cores;
mod edges;
mod lexer;
#[cfg(test)]
mod mechanisms;
mod tla;
mod tree;
mod unsafety;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use cargo_metadata::{Metadata, MetadataCommand};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Checks of the repository that the compiler does not make")]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Imports go down only, cores do no IO, unsafe code stays in its rooms, files stay short and
    /// name no machine.
    Layers,
    /// Model-check the configurations of `tla/checks.txt`.
    Tla(tla::TlaArgs),
    /// Follow runs of the real machines in the models; refuse runs that were tampered with.
    Trace(tla::trace::TraceArgs),
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the repository.
    file: String,
    /// From 1; 0 when it is about the file as a whole.
    line: u32,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.text),
            line => write!(f, "{}:{line}: {}", self.file, self.text),
        }
    }
}

fn main() -> Result<ExitCode> {
    let command = Cli::parse().command;
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let fine = match command {
        What::Layers => check_layers(&metadata)?,
        What::Tla(args) => tla::run(root_of(&metadata), &args)?,
        What::Trace(args) => tla::trace::run(root_of(&metadata), &args)?,
    };
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check_layers(metadata: &Metadata) -> Result<bool> {
    let mut findings = layers(metadata)?;
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    let (crates, files) = (
        metadata.packages.len(),
        tree::files(root_of(metadata))?.len(),
    );
    println!(
        "layers: {crates} crates, {files} files, {} findings",
        findings.len()
    );
    Ok(findings.is_empty())
}

fn root_of(metadata: &Metadata) -> &Path {
    metadata.workspace_root.as_std_path()
}

fn layers(metadata: &Metadata) -> Result<Vec<Finding>> {
    let root = root_of(metadata);
    let mut findings = edges::check(&edges::of(metadata));
    for file in tree::files(root)? {
        let Some(text) = tree::read_text(root, &file)? else {
            continue;
        };
        findings.extend(tree::check(&file, &text));
        if file.ends_with(".rs") {
            let tokens = lexer::tokens(&text);
            findings.extend(cores::check(&file, &tokens));
            findings.extend(unsafety::check_file(&file, &tokens));
        }
    }
    for package in &metadata.packages {
        for target in &package.targets {
            let path = PathBuf::from(target.src_path.as_std_path());
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            let file = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            findings.extend(unsafety::check_root(
                &package.name,
                &file,
                &lexer::tokens(&text),
            ));
        }
    }
    Ok(findings)
}
