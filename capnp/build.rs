//! Makes Rust types of the schemas. Needs the `capnp` compiler (Debian package `capnproto`).

fn main() {
    let made = capnpc::CompilerCommand::new()
        .src_prefix("schema")
        .file("schema/control.capnp")
        .run();
    if let Err(e) = made {
        eprintln!("ubs-capnp: {e}");
        eprintln!("ubs-capnp: is the Cap'n Proto compiler there? `apt install capnproto`");
        std::process::exit(1);
    }
}
