//! Runs the real tag and life machines between a played driver and a played volume, and prints what
//! happened for `tla/TraceUblkDrv.tla`: one TLA+ record a line, runs separated by an empty line.
//!
//! `tag_trace FIRST_SEED RUNS`
#![forbid(unsafe_code)]

#[path = "tag_trace/world.rs"]
mod world;

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let (Some(Ok(first)), Some(Ok(runs)), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: tag_trace FIRST_SEED RUNS");
        std::process::exit(2);
    };
    for seed in first..first + runs {
        world::World::new(seed)
            .run()
            .iter()
            .for_each(|line| println!("{line}"));
        println!();
    }
}
