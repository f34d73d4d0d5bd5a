//! The configurations of a cluster's daemons.

use crate::plan::{Daemon, Kind, Plan};
use crate::{Fault, trying};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

/// Ports nobody uses now. They are chosen at once, so that no two are the same, and stay with their
/// daemons for good: a restarted daemon must be found where it was.
fn free_ports(count: usize) -> Result<Vec<SocketAddr>, Fault> {
    let bind = |_| {
        let listener = trying(
            "find a free port",
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
        )?;
        let address = trying("ask for a port", listener.local_addr())?;
        Ok((listener, address))
    };
    let held: Vec<(TcpListener, SocketAddr)> =
        (0..count).map(bind).collect::<Result<_, Fault>>()?;
    Ok(held.into_iter().map(|(_, address)| address).collect())
}

/// Makes directories and configurations; returns the daemons in starting order.
pub(crate) fn lay_out(dir: &Path, plan: &Plan) -> Result<Vec<Daemon>, Fault> {
    let count = usize::from(plan.metads) + usize::from(plan.storageds) + usize::from(plan.clientd);
    let ports = free_ports(2 * count)?;
    let mut ports = ports.chunks(2).map(|pair| (pair[0], pair[1]));
    let mut take = || ports.next().expect("two ports per daemon");
    let metads: Vec<Daemon> = (1..=plan.metads)
        .map(|i| daemon(dir, plan, Kind::Metad, &format!("metad{i}"), take()))
        .collect();
    let storageds: Vec<Daemon> = (1..=plan.storageds)
        .map(|i| daemon(dir, plan, Kind::Storaged, &format!("storaged{i}"), take()))
        .collect();
    let clientd = plan
        .clientd
        .then(|| daemon(dir, plan, Kind::Clientd, "clientd", take()));

    let members: Vec<SocketAddr> = metads.iter().map(|d| d.address).collect();
    let mut all = Vec::new();
    for (i, daemon) in metads.into_iter().enumerate() {
        write_config(dir, &daemon, &metad_toml(&daemon, i + 1, dir, &members))?;
        all.push(daemon);
    }
    for daemon in storageds {
        let text = storaged_toml(&daemon, dir, &members, plan.store_bytes);
        write_config(dir, &daemon, &text)?;
        all.push(daemon);
    }
    if let Some(daemon) = clientd {
        write_config(dir, &daemon, &clientd_toml(&daemon, dir, &members))?;
        all.push(daemon);
    }
    Ok(all)
}

fn daemon(
    dir: &Path,
    plan: &Plan,
    kind: Kind,
    name: &str,
    (address, metrics): (SocketAddr, SocketAddr),
) -> Daemon {
    Daemon {
        name: name.to_owned(),
        kind,
        program: plan.programs.join(kind.program()),
        config: dir.join(format!("{name}.toml")),
        log: dir.join(format!("{name}.log")),
        address,
        metrics,
        process: None,
    }
}

fn write_config(dir: &Path, daemon: &Daemon, text: &str) -> Result<(), Fault> {
    let data = dir.join(&daemon.name);
    trying(
        format!("create {}", data.display()),
        std::fs::create_dir_all(&data),
    )?;
    let path = &daemon.config;
    trying(
        format!("write {}", path.display()),
        std::fs::write(path, text),
    )
}

/// A string as TOML writes it.
fn quoted(text: impl std::fmt::Display) -> String {
    // JSON's escapes are a subset of those of TOML's basic strings.
    serde_json::Value::String(text.to_string()).to_string()
}

fn metad_list(members: &[SocketAddr]) -> String {
    let quoted: Vec<String> = members.iter().map(quoted).collect();
    format!("metad = [{}]\n", quoted.join(", "))
}

fn metad_toml(daemon: &Daemon, id: usize, dir: &Path, members: &[SocketAddr]) -> String {
    let data_dir = quoted(dir.join(&daemon.name).display());
    let mut text = format!(
        "node_id = {id}\ndata_dir = {data_dir}\nlisten = {}\nmetrics_listen = {}\n\
         cluster_name = \"dev\"\n",
        quoted(daemon.address),
        quoted(daemon.metrics)
    );
    for (i, member) in members.iter().enumerate() {
        let address = quoted(member);
        write!(text, "\n[[member]]\nid = {}\naddress = {address}\n", i + 1).expect("to memory");
    }
    text
}

fn storaged_toml(daemon: &Daemon, dir: &Path, members: &[SocketAddr], store_bytes: u64) -> String {
    let data_dir = dir.join(&daemon.name);
    format!(
        "name = {}\ndata_dir = {}\nlisten = {}\nmetrics_listen = {}\n{}\n\
         [arena]\nslots_4k = 1024\nslots_16k = 512\nslots_128k = 192\n\n\
         [[store]]\npath = {}\ncreate_bytes = {store_bytes}\n",
        quoted(&daemon.name),
        quoted(data_dir.display()),
        quoted(daemon.address),
        quoted(daemon.metrics),
        metad_list(members),
        quoted(data_dir.join("store.img").display()),
    )
}

fn clientd_toml(daemon: &Daemon, dir: &Path, members: &[SocketAddr]) -> String {
    format!(
        "name = \"dev\"\ndata_dir = {}\nruntime_dir = {}\nmetrics_listen = {}\n{}\n\
         [arena]\nslots_4k = 1024\nslots_16k = 512\nslots_128k = 192\n",
        quoted(dir.join(&daemon.name).display()),
        quoted(dir.join(&daemon.name).join("run").display()),
        quoted(daemon.metrics),
        metad_list(members),
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn each_daemon_gets_its_own_ports_and_directory() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan {
            dir: dir.path().to_owned(),
            programs: "bin".into(),
            metads: 3,
            storageds: 3,
            store_bytes: 1 << 30,
            clientd: true,
        };
        let daemons = lay_out(dir.path(), &plan).unwrap();
        assert_eq!(daemons.len(), 7);
        let mut ports: Vec<u16> = daemons
            .iter()
            .flat_map(|d| [d.address.port(), d.metrics.port()])
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 14);
        assert!(
            daemons
                .iter()
                .all(|d| d.config.exists() && dir.path().join(&d.name).is_dir())
        );
    }

    #[test]
    fn a_path_with_quotes_stays_one_string() {
        assert_eq!(quoted("a\"b\\c"), r#""a\"b\\c""#);
    }
}
