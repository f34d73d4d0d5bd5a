//! Which crate may import which.

use cargo_metadata::Metadata;

use crate::Finding;

/// Crate and the crates of ours it may import, in any kind of dependency. Arrows point down only:
/// programs, shells, mechanism, cores, words (docs/ARCHITECTURE.md).
const ALLOWED: &[(&str, &[&str])] = &[
    ("shardmap", &[]),
    ("reactor", &[]),
    ("ubs-capnp", &[]),
    ("nvmf", &["reactor"]),
    ("ublk", &["reactor"]),
    ("store", &["shardmap", "reactor"]),
    // Not only a program: its oracle judges volume's seeded worlds, too.
    ("ubs-verify", &["shardmap", "store"]),
    ("volume", &["shardmap", "reactor", "nvmf", "ubs-verify"]),
    ("control", &["shardmap", "ubs-capnp"]),
    ("daemon", &["reactor"]),
    ("devcluster", &[]),
    ("metad", &["daemon", "shardmap", "control"]),
    (
        "storaged",
        &[
            "daemon", "shardmap", "reactor", "nvmf", "store", "volume", "control",
        ],
    ),
    (
        "clientd",
        &[
            "daemon", "shardmap", "reactor", "nvmf", "volume", "ublk", "control",
        ],
    ),
    (
        "ubsctl",
        &[
            "devcluster",
            "shardmap",
            "reactor",
            "nvmf",
            "store",
            "volume",
            "ublk",
            "control",
        ],
    ),
    (
        "ubs-bench",
        &["shardmap", "reactor", "nvmf", "store", "volume", "control"],
    ),
    (
        "ubs-sim",
        &[
            "shardmap",
            "reactor",
            "nvmf",
            "store",
            "volume",
            "control",
            "storaged",
            "ubs-verify",
        ],
    ),
    ("xtask", &[]),
    ("vmtest", &[]),
];

/// Crates of the data path: no runtime, no consensus, no RPC.
const DATA_PATH: &[&str] = &["shardmap", "reactor", "nvmf", "store", "volume", "ublk"];
const NOT_IN_DATA_PATH: &[&str] = &[
    "tokio",
    "tokio-util",
    "futures",
    "openraft",
    "heed",
    "capnp",
    "capnp-rpc",
    "tonic",
];

/// A crate with the names of everything it depends on.
#[derive(Clone, Debug)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) manifest: String,
    /// Whether it is a program or a test of the whole, where `anyhow` may be used.
    pub(crate) program: bool,
    pub(crate) imports: Vec<String>,
}

/// The crates of the workspace.
pub(crate) fn of(metadata: &Metadata) -> Vec<Crate> {
    let root = &metadata.workspace_root;
    let of_package = |p: &cargo_metadata::Package| {
        let manifest = p
            .manifest_path
            .strip_prefix(root)
            .unwrap_or(&p.manifest_path)
            .to_string();
        Crate {
            name: p.name.to_string(),
            program: manifest.starts_with("tools/") || manifest.starts_with("tests/"),
            manifest,
            imports: p.dependencies.iter().map(|d| d.name.clone()).collect(),
        }
    };
    metadata.packages.iter().map(of_package).collect()
}

/// Every edge that is not in the table.
pub(crate) fn check(crates: &[Crate]) -> Vec<Finding> {
    let ours: Vec<&str> = crates.iter().map(|c| c.name.as_str()).collect();
    let mut findings = Vec::new();
    for one in crates {
        let mut find = |text: String| {
            findings.push(Finding {
                file: one.manifest.clone(),
                line: 0,
                text,
            });
        };
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == one.name) else {
            find(format!(
                "crate {} is not in the table of layers (tools/xtask/src/edges.rs)",
                one.name
            ));
            continue;
        };
        for import in &one.imports {
            let import = import.as_str();
            if ours.contains(&import) && !allowed.contains(&import) {
                find(format!(
                    "{} may not import {import}: arrows point down only",
                    one.name
                ));
            }
            if DATA_PATH.contains(&one.name.as_str()) && NOT_IN_DATA_PATH.contains(&import) {
                find(format!(
                    "{import} may not be in the data path ({})",
                    one.name
                ));
            }
            if import == "anyhow" && !one.program {
                find(format!(
                    "{} is a library: typed errors instead of anyhow",
                    one.name
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod test {
    use super::*;

    fn workspace(edges: &[(&str, &[&str])]) -> Vec<Finding> {
        let crates: Vec<Crate> = edges
            .iter()
            .map(|(name, imports)| Crate {
                name: (*name).into(),
                manifest: format!("{name}/Cargo.toml"),
                program: false,
                imports: imports.iter().map(|i| (*i).into()).collect(),
            })
            .collect();
        check(&crates)
    }

    #[test]
    fn an_edge_up_or_sideways_is_found() {
        for (from, to) in [
            ("nvmf", "shardmap"),
            ("shardmap", "reactor"),
            ("ublk", "nvmf"),
            ("store", "control"),
        ] {
            let found = workspace(&[(from, &[to]), (to, &[])]);
            assert_eq!(found.len(), 1, "{from} -> {to}: {found:?}");
            assert!(found[0].text.contains(to) && found[0].file == format!("{from}/Cargo.toml"));
        }
    }

    #[test]
    fn allowed_edges_and_foreign_crates_pass() {
        assert_eq!(
            workspace(&[
                ("nvmf", &["reactor", "zerocopy"]),
                ("reactor", &["io-uring"])
            ]),
            []
        );
    }

    #[test]
    fn a_runtime_in_the_data_path_and_anyhow_in_a_library_are_found() {
        assert_eq!(workspace(&[("volume", &["tokio"])]).len(), 1);
        assert_eq!(workspace(&[("control", &["tokio"])]), []);
        assert_eq!(workspace(&[("control", &["anyhow"])]).len(), 1);
    }

    #[test]
    fn a_crate_nobody_placed_is_found() {
        assert_eq!(workspace(&[("newcomer", &[])]).len(), 1);
    }

    /// The table itself has no cycle: each row imports only rows above it.
    #[test]
    fn the_table_points_down() {
        for (at, (name, allowed)) in ALLOWED.iter().enumerate() {
            for import in *allowed {
                let place = ALLOWED.iter().position(|(n, _)| n == import);
                assert!(place.is_some_and(|p| p < at), "{name} -> {import}");
            }
        }
    }
}
