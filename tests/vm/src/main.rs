//! `vmtest run`: scripts on a real kernel, from the command line.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use vmtest::script::{self, Script};
use vmtest::spec::{Placed, parse_size};
use vmtest::{Disk, Spec, Vm, kernel};

#[derive(Debug, Parser)]
#[command(about = "Runs scripts and programs on a real kernel inside QEMU")]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Boot once and run the scripts one after the other; exit code 0 when all passed.
    Run(Box<Run>),
    /// Get the kernel and say which one it is and where.
    Kernel,
}

#[derive(Debug, Args)]
struct Run {
    /// Script to run in the guest; its `# vm:` lines are obeyed too. May be repeated.
    #[arg(long, required = true)]
    script: Vec<PathBuf>,
    /// Program to put into /usr/bin of the guest (stripped, with its libraries).
    #[arg(long, num_args = 1..)]
    bin: Vec<PathBuf>,
    /// File to put into the guest.
    #[arg(long, value_name = "SRC:DST", num_args = 1..)]
    file: Vec<Placed>,
    /// Data disk: SIZE[,serial=NAME][,block=4096][,file=PATH].
    #[arg(long, num_args = 1..)]
    disk: Vec<Disk>,
    /// Program of the host to put into the guest.
    #[arg(long, num_args = 1..)]
    tool: Vec<String>,
    /// Kernel module to put into the guest.
    #[arg(long, num_args = 1..)]
    module: Vec<String>,
    /// Seconds each script may take; scripts' own limits count when absent.
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Memory of the guest.
    #[arg(long, value_name = "SIZE")]
    mem: Option<String>,
    #[arg(long)]
    smp: Option<u32>,
    /// Where cargo finds the workspace, for `build=` needs.
    #[arg(long, default_value = ".")]
    workspace: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        What::Run(run) => run_scripts(*run),
        What::Kernel => show_kernel(),
    };
    done.unwrap_or_else(|why| {
        eprintln!("vmtest: {why:#}");
        ExitCode::from(2)
    })
}

fn show_kernel() -> Result<ExitCode> {
    let kernel = kernel::resolve(kernel::Suite::from_env())?;
    println!("{} in {}", kernel.release, kernel.root.display());
    Ok(ExitCode::SUCCESS)
}

fn run_scripts(run: Run) -> Result<ExitCode> {
    if let Some(why) = vmtest::missing_programs() {
        bail!("{why}");
    }
    let load = |path: &PathBuf| Script::load(path, &run.workspace);
    let scripts = run.script.iter().map(load).collect::<Result<Vec<_>>>()?;
    let builds: Vec<_> = scripts.iter().flat_map(|s| s.builds.clone()).collect();
    let mut needs = Spec {
        programs: run.bin,
        files: run.file,
        disks: run.disk,
        tools: run.tool,
        modules: run.module,
        ..Spec::default()
    };
    for script in &scripts {
        needs.add(&script.spec);
    }
    let built = script::build_programs(&run.workspace, &builds)?;
    needs.programs.extend(built);
    if let Some(size) = &run.mem {
        needs.memory_bytes = parse_size(size)?;
    }
    needs.cpus = run.smp.unwrap_or(needs.cpus);
    let kernel = kernel::resolve(kernel::Suite::from_env())?;
    eprintln!("vm: booting {} ({needs})", kernel.release);
    let mut vm = None;
    let mut failed = 0_u32;
    for script in &scripts {
        let limit = run.timeout.map_or(script.limit, Duration::from_secs);
        let seen = match script.parts().as_slice() {
            [whole] => {
                let vm = match &mut vm {
                    Some(vm) => vm,
                    none => none.insert(Vm::boot(&kernel, &needs)?),
                };
                vm.echo(true);
                vm.run(whole, limit)?
            }
            parts => {
                vm = None; // two guests at once would only be slow
                vmtest::run_with_cuts(&kernel, &needs, parts, limit, true)?
            }
        };
        if !seen.passed() {
            eprintln!("--- kernel log of {} ---\n{}", script.name, seen.kernel_log);
        }
        for line in &seen.complaints {
            eprintln!("vm: kernel complaint: {line}");
        }
        let word = if seen.passed() { "ok" } else { "FAILED" };
        let seconds = seen.took.as_secs_f64();
        eprintln!(
            "vm: {} {word} (exit code {}, {seconds:.1} s)",
            script.name, seen.status
        );
        failed += u32::from(!seen.passed());
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
